"""The paper's hybrid coding for GSpar (section 3.3): certain entries exact, sampled ones as index and sign alone.

A sampled entry is worth sign * magnitude, one magnitude for all (set B); the others keep their value (set A):

    list      magnitude, number of A entries; A's indices and values; then B's indices, each shifted left with the
              sign in the lowest bit
    symbols   magnitude, number of A entries; two bits a coordinate: 0 absent, 1 plus, 2 minus, 3 an A entry; A's values
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

from mpisparse.errors import WireError
from mpisparse.sparse import SparseVector, index_dtype
from mpisparse.wire import indices as index_codings

Bytes = NDArray[np.uint8]

#: Value codings, beside those of plain values; index coding is raw in both, and unused by SYMBOLS.
LIST = 3
SYMBOLS = 4

_ABSENT, _PLUS, _MINUS, _EXACT = range(4)
_PREFIX = struct.Struct("<fQ")


def encode(sparse: SparseVector) -> tuple[int, Bytes]:
    """Return the shorter of the two forms of a vector with a shared magnitude: its value coding, and its bytes."""
    assert sparse.magnitude is not None
    sampled = np.abs(sparse.values) == sparse.magnitude
    exact = int(sparse.count - np.count_nonzero(sampled))
    prefix = np.frombuffer(_PREFIX.pack(float(sparse.magnitude), exact), np.uint8)
    item = _shifted_dtype(sparse.numel).itemsize
    as_list = exact * (index_codings.width(index_codings.coding(sparse.numel)) + 4) + (sparse.count - exact) * item
    if as_list <= _symbol_bytes(sparse.numel) + exact * 4:
        return LIST, np.concatenate((prefix, *_list(sparse, sampled)))
    return SYMBOLS, np.concatenate((prefix, *_symbols(sparse, sampled)))


def decode(body: Bytes, value_coding: int, numel: int, count: int) -> SparseVector:
    """Return the vector that `body` holds in the form `value_coding`.

    Raises:
        WireError: the parts do not fit the lengths, or hold what no sender writes.
    """
    if body.size < _PREFIX.size:
        raise WireError(f"a hybrid body has {body.size} bytes, fewer than its prefix of {_PREFIX.size}")
    stored, exact = _PREFIX.unpack_from(body.data)
    magnitude = np.float32(stored)
    if not (np.isfinite(magnitude) and magnitude > 0):
        raise WireError(f"the shared magnitude is {magnitude}: it must be positive and finite")
    if exact > count:
        raise WireError(f"{exact} exact entries are announced among {count} in all")
    read = _read_list if value_coding == LIST else _read_symbols
    chosen, values = read(body[_PREFIX.size :], numel, count, exact, magnitude)
    if not np.isfinite(values).all():
        raise WireError("a value in the message is NaN or infinite")
    return SparseVector(chosen, values, numel, magnitude)


def _shifted_dtype(numel: int) -> np.dtype[np.unsignedinteger]:
    """Return the type of an index with a sign bit below it."""
    return np.dtype("<u4" if numel <= 2**31 else "<u8")


def _symbol_bytes(numel: int) -> int:
    return -(-numel // 4)


def _list(sparse: SparseVector, sampled: NDArray[np.bool_]) -> tuple[Bytes, Bytes, Bytes]:
    dtype = _shifted_dtype(sparse.numel)
    negative = np.signbit(sparse.values[sampled]).astype(dtype)
    shifted = (sparse.indices[sampled].astype(dtype) << dtype.type(1)) | negative
    exact_values = sparse.values[~sampled].astype("<f4")
    return index_codings.encode(sparse.indices[~sampled]), exact_values.view(np.uint8), shifted.view(np.uint8)


def _symbols(sparse: SparseVector, sampled: NDArray[np.bool_]) -> tuple[Bytes, Bytes]:
    symbols = np.zeros(_symbol_bytes(sparse.numel) * 4, np.uint8)
    symbols[sparse.indices] = np.where(sampled, np.where(np.signbit(sparse.values), _MINUS, _PLUS), _EXACT)
    quads = symbols.reshape(-1, 4)
    packed = (quads[:, 0] | quads[:, 1] << 2 | quads[:, 2] << 4 | quads[:, 3] << 6).astype(np.uint8)
    return packed, sparse.values[~sampled].astype("<f4").view(np.uint8)


def _read_list(
    body: Bytes, numel: int, count: int, exact: int, magnitude: np.float32
) -> tuple[NDArray[np.unsignedinteger], NDArray[np.float32]]:
    coding, dtype = index_codings.coding(numel), _shifted_dtype(numel)
    cut = exact * index_codings.width(coding)
    if body.size != cut + exact * 4 + (count - exact) * dtype.itemsize:
        raise WireError(f"a hybrid list of {exact} exact and {count - exact} sampled entries has {body.size} bytes")
    exact_indices = index_codings.decode(body[:cut], coding, numel)
    shifted = np.frombuffer(body[cut + exact * 4 :], dtype)
    indices = np.concatenate((exact_indices, (shifted >> dtype.type(1)).astype(index_dtype(numel))))
    signs = np.where(shifted & dtype.type(1), -magnitude, magnitude).astype(np.float32)
    values = np.concatenate((np.frombuffer(body[cut : cut + exact * 4], "<f4"), signs)).astype(np.float32)
    order = np.argsort(indices, kind="stable")
    indices, values = indices[order], values[order]
    index_codings.check(indices, numel)
    return indices, values


def _read_symbols(
    body: Bytes, numel: int, count: int, exact: int, magnitude: np.float32
) -> tuple[NDArray[np.unsignedinteger], NDArray[np.float32]]:
    cut = _symbol_bytes(numel)
    if body.size != cut + exact * 4:
        raise WireError(f"hybrid symbols of {numel} entries, {exact} of them exact, have {body.size} bytes")
    packed = body[:cut]
    symbols = np.stack([packed & 3, packed >> 2 & 3, packed >> 4 & 3, packed >> 6], axis=1).reshape(-1)
    if symbols[numel:].any():
        raise WireError("symbols beyond the end of the vector are not zero")
    indices = np.flatnonzero(symbols).astype(index_dtype(numel))
    found = symbols[indices]
    if indices.size != count or np.count_nonzero(found == _EXACT) != exact:
        raise WireError(f"the symbols hold {indices.size} entries, the header says {count}")
    values = np.where(found == _MINUS, -magnitude, magnitude).astype(np.float32)
    values[found == _EXACT] = np.frombuffer(body[cut:], "<f4")
    return indices, values
