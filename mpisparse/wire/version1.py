"""A reader of wire format 1, the format of mpisparse 0.1; nothing writes it any more.

Indices were written as they are, in the narrowest type that fits, and a vector with a shared magnitude in one of two
forms:

    list      magnitude, number of exact entries; their indices and values; then the sampled entries' indices, each
              shifted left with the sign in the lowest bit
    symbols   magnitude, number of exact entries; two bits a coordinate: 0 absent, 1 plus, 2 minus, 3 exact; the exact
              values
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

from mpisparse.errors import WireError
from mpisparse.sparse import Indices, SparseVector, index_dtype
from mpisparse.wire import indices as index_codings
from mpisparse.wire import values
from mpisparse.wire.header import Header

Bytes = NDArray[np.uint8]
Vector = NDArray[np.float32]

#: Index codings, which follow from numel alone.
RAW32, RAW64 = 0, 1

#: Value codings, beside float32, bfloat16 and float16.
LIST, SYMBOLS = 3, 4

_ABSENT, _PLUS, _MINUS, _EXACT = range(4)
_PREFIX = struct.Struct("<fQ")


def decode(header: Header, body: Bytes) -> SparseVector:
    """Return the vector that `body` holds, sharing no memory with it.

    Raises:
        WireError: the parts do not fit the lengths, or hold what no sender wrote.
    """
    numel, count = header.numel, header.count
    if header.index_coding != (RAW32 if index_dtype(numel) == np.uint32 else RAW64):
        raise WireError(f"index coding {header.index_coding} does not fit a vector of {numel} entries")
    if header.value_coding in (LIST, SYMBOLS):
        return _read_hybrid(body, header.value_coding, numel, count)
    if header.value_coding not in (values.FLOAT32, values.BFLOAT16, values.FLOAT16):
        raise WireError(f"value coding {header.value_coding} does not exist in wire format 1")
    cut = count * index_dtype(numel).itemsize
    if body.size != cut + values.size(header.value_coding, count):
        raise WireError(f"{count} entries are announced, but the body has {body.size} bytes")
    indices = _read_indices(body[:cut], numel)
    index_codings.check(indices, numel)
    found, _ = values.decode(body[cut:], header.value_coding, count)
    return SparseVector(indices, found, numel)


def _read_indices(section: Bytes, numel: int) -> Indices:
    dtype = index_dtype(numel)
    indices: Indices = section.view(dtype.newbyteorder("<")).astype(dtype)
    return indices


def _read_hybrid(body: Bytes, form: int, numel: int, count: int) -> SparseVector:
    if body.size < _PREFIX.size:
        raise WireError(f"a hybrid body has {body.size} bytes, fewer than its prefix of {_PREFIX.size}")
    stored, exact = _PREFIX.unpack_from(body.data)
    magnitude = np.float32(stored)
    if not (np.isfinite(magnitude) and magnitude > 0):
        raise WireError(f"the shared magnitude is {magnitude}: it must be positive and finite")
    if exact > count:
        raise WireError(f"{exact} exact entries are announced among {count} in all")
    read = _read_list if form == LIST else _read_symbols
    indices, found = read(body[_PREFIX.size :], numel, count, exact, magnitude)
    values.require_finite(found)
    return SparseVector(indices, found, numel, magnitude)


def _read_list(body: Bytes, numel: int, count: int, exact: int, magnitude: np.float32) -> tuple[Indices, Vector]:
    cut = exact * index_dtype(numel).itemsize
    shifted_type = np.dtype("<u4" if numel <= 2**31 else "<u8")
    if body.size != cut + exact * 4 + (count - exact) * shifted_type.itemsize:
        raise WireError(f"a hybrid list of {exact} exact and {count - exact} sampled entries has {body.size} bytes")
    shifted = body[cut + exact * 4 :].view(shifted_type).astype(np.uint64)
    # Wide until they are checked, so that none is cut to one that fits.
    wide = np.concatenate((_read_indices(body[:cut], numel).astype(np.uint64), shifted >> np.uint64(1)))
    signs = np.where(shifted & np.uint64(1), -magnitude, magnitude).astype(np.float32)
    merged = np.concatenate((body[cut : cut + exact * 4].view("<f4"), signs)).astype(np.float32)
    order = np.argsort(wide, kind="stable")
    index_codings.check(wide[order], numel)
    indices: Indices = wide[order].astype(index_dtype(numel))
    return indices, merged[order]


def _read_symbols(body: Bytes, numel: int, count: int, exact: int, magnitude: np.float32) -> tuple[Indices, Vector]:
    cut = -(-numel // 4)
    if body.size != cut + exact * 4:
        raise WireError(f"hybrid symbols of {numel} entries, {exact} of them exact, have {body.size} bytes")
    packed = body[:cut]
    symbols = np.stack([packed & 3, packed >> 2 & 3, packed >> 4 & 3, packed >> 6], axis=1).reshape(-1)
    if symbols[numel:].any():
        raise WireError("symbols beyond the end of the vector are not zero")
    indices: Indices = np.flatnonzero(symbols).astype(index_dtype(numel))
    found = symbols[indices]
    if indices.size != count or np.count_nonzero(found == _EXACT) != exact:
        raise WireError(f"the symbols hold {indices.size} entries, the header says {count}")
    merged = np.where(found == _MINUS, -magnitude, magnitude).astype(np.float32)
    merged[found == _EXACT] = body[cut:].view("<f4")
    return indices, merged
