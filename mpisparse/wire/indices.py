"""Index coding: which entries are present. Version 1 writes them as they are, in the narrowest type that fits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mpisparse.errors import WireError
from mpisparse.sparse import Indices, index_dtype

RAW32 = 0
RAW64 = 1

_TYPES: dict[int, np.dtype[np.unsignedinteger]] = {RAW32: np.dtype("<u4"), RAW64: np.dtype("<u8")}


def coding(numel: int) -> int:
    """Return the index coding of a vector of `numel` entries."""
    return RAW32 if index_dtype(numel) == np.uint32 else RAW64


def width(index_coding: int) -> int:
    """Return the bytes of one index; WireError for a coding that does not exist."""
    if index_coding not in _TYPES:
        raise WireError(f"index coding {index_coding} does not exist in wire format 1")
    return _TYPES[index_coding].itemsize


def encode(indices: Indices) -> NDArray[np.uint8]:
    """Return the indices as bytes, little-endian."""
    return np.ascontiguousarray(indices, indices.dtype.newbyteorder("<")).view(np.uint8)


def decode(body: NDArray[np.uint8], index_coding: int, numel: int) -> Indices:
    """Return the indices in `body`, which fill it exactly.

    Raises:
        WireError: they do not rise strictly, or one is not below `numel`.
    """
    indices: Indices = np.frombuffer(body, _TYPES[index_coding]).astype(index_dtype(numel), copy=True)
    check(indices, numel)
    return indices


def check(indices: Indices, numel: int) -> None:
    """Raise WireError unless the indices rise strictly and stay below `numel`."""
    if indices.size == 0:
        return
    if int(indices[-1]) >= numel:
        raise WireError(f"index {int(indices[-1])} does not lie in a vector of {numel} entries")
    if not (indices[1:] > indices[:-1]).all():
        place = int(np.flatnonzero(indices[1:] <= indices[:-1])[0])
        raise WireError(f"indices do not rise: {int(indices[place])} is followed by {int(indices[place + 1])}")
