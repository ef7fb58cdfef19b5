"""The vector as every kernel sees it: float32, one dimension, finite, read in chunks that stay in a core's cache."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpisparse.errors import ConfigError, NonFiniteError
from mpisparse.kernels.passes import largest_bits
from mpisparse.kernels.threads import for_each_span
from mpisparse.sparse import Indices, SparseVector, index_dtype

#: A float32 array of shape (numel,), contiguous.
Vector = NDArray[np.float32]

#: Entries read at a time: 256 KiB, so that the temporaries of a chunk never leave the cache.
CHUNK = 1 << 16

#: The smallest magnitude above zero: an entry is at least this or it is zero.
SMALLEST = np.float32(2.0**-149)

#: The largest magnitude that is finite.
LARGEST = np.finfo(np.float32).max

#: The bits of infinity; NaN has larger ones.
_INFINITY = 0x7F800000


def as_vector(vector: ArrayLike) -> Vector:
    """Return `vector` as a contiguous, finite float32 array of one dimension, without a copy if it is one already.

    Other real types (float16, float64, integers) are converted. torch.bfloat16 has no numpy view: convert it first.

    Raises:
        ConfigError: it has another number of dimensions than one, or is not real.
        NonFiniteError: an entry is NaN, infinite, or too large for float32.
    """
    array = np.asarray(vector)
    if array.ndim != 1:
        raise ConfigError(
            f"a vector of shape {array.shape} was given to a sparsifier: give one dimension (reshape(-1))"
        )
    if array.dtype.kind not in "fiu":
        raise ConfigError(f"a vector of {array.dtype} was given to a sparsifier: give real numbers, best float32")
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, np.float32)
    refuse_bad_entries(array)
    return array


def is_finite(vector: Vector) -> bool:
    """Return True when no entry is NaN or infinite. One pass, without temporaries."""
    largest = for_each_span(vector.size, lambda start, stop: int(largest_bits(vector[start:stop])))
    return max(largest) < _INFINITY


def largest_magnitude(vector: Vector) -> np.float32:
    """Return the largest magnitude, 0 without entries. One pass; NonFiniteError if an entry is NaN or infinite."""
    largest = max(for_each_span(vector.size, lambda start, stop: int(largest_bits(vector[start:stop]))))
    if largest >= _INFINITY:
        refuse_bad_entries(vector)
    return np.int32(largest).view(np.float32)


def refuse_bad_entries(vector: Vector) -> None:
    """Raise NonFiniteError, naming the first bad entry, if one is NaN or infinite."""
    if is_finite(vector):
        return
    bad = np.flatnonzero(~np.isfinite(vector))
    raise NonFiniteError(
        f"entry {bad[0]} of {vector.size} is {vector[bad[0]]} ({bad.size} such entries): only finite gradients can be "
        "sparsified; look for a diverging loss, lower the learning rate, or scale and clip the gradients"
    )


def chunks(vector: Vector, length: int = CHUNK) -> Iterator[tuple[int, Vector]]:
    """Return the pieces of `vector`, each with the index of its first entry."""
    return ((start, vector[start : start + length]) for start in range(0, vector.size, length))


def round_up(magnitude: float) -> np.float32:
    """Return the smallest float32 that is not below `magnitude`: entries reach the one when they reach the other."""
    with np.errstate(over="ignore", under="ignore"):
        rounded = np.float32(magnitude)
        return rounded if float(rounded) >= magnitude else np.nextafter(rounded, np.float32(np.inf))


def join(pieces: Iterable[NDArray[np.intp]], numel: int) -> Indices:
    """Return pieces of indices as one array of the narrowest type that names every entry of `numel`."""
    # Narrowed one by one, so that the wide pieces never exist together.
    narrow = [piece.astype(index_dtype(numel)) for piece in pieces]
    return np.concatenate(narrow) if narrow else np.empty(0, index_dtype(numel))


def take_all(vector: Vector) -> SparseVector:
    """Return every entry, zeros too, with its exact value, copied."""
    return SparseVector(np.arange(vector.size, dtype=index_dtype(vector.size)), vector.copy(), vector.size)
