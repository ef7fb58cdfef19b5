"""The paper's hybrid coding for GSpar (section 3.3): certain entries exact, sampled ones by their sign alone.

A sampled entry is worth sign * magnitude, one magnitude for all (set B); the others keep their value (set A). After the
indices of both together come the magnitude, which of them are exact, the signs of the sampled ones, and the values of
the exact ones.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpisparse.errors import WireError
from mpisparse.sparse import Indices, SparseVector, index_dtype
from mpisparse.wire import indices as index_codings
from mpisparse.wire import signs, values
from mpisparse.wire.indices import EMPTY, IndexCoding, Plan

Bytes = NDArray[np.uint8]
Vector = NDArray[np.float32]

#: The value coding, beside those of plain values.
HYBRID = 4

#: magnitude, number of exact entries, index coding and parameter of their places
_PREFIX = struct.Struct("<fQBB")


class Split(NamedTuple):
    """A vector with a shared magnitude, taken apart."""

    sampled: NDArray[np.bool_]
    """Which entries have the shared magnitude."""
    exact: Indices
    """The places of the others among all entries."""
    how: Plan
    """How those places are written; not at all when they are none or all."""
    size: int
    """Bytes that the values take in this form."""


def split(sparse: SparseVector, coding: IndexCoding, gigabits: float) -> Split:
    """Return the parts of a vector with a shared magnitude."""
    sampled = np.abs(sparse.values) == sparse.magnitude
    exact: Indices = np.flatnonzero(~sampled).astype(index_dtype(sparse.count))
    some = 0 < exact.size < sparse.count
    how = index_codings.plan(exact, sparse.count, coding, gigabits) if some else EMPTY
    size = _PREFIX.size + how.size + signs.size(sparse.count - exact.size) + 4 * exact.size
    return Split(sampled, exact, how, size)


def encode(sparse: SparseVector, parts: Split) -> list[Bytes]:
    """Return the values' bytes, in pieces."""
    exact, how = parts.exact, parts.how
    prefix = _PREFIX.pack(sparse.magnitude, exact.size, how.coding, how.parameter)
    places = index_codings.encode(exact, sparse.count, how) if how.size else []
    sampled_signs = signs.encode(sparse.values[parts.sampled])
    exact_values = values.encode(sparse.values[~parts.sampled], values.FLOAT32)
    return [np.frombuffer(prefix, np.uint8), *places, sampled_signs, *exact_values]


def decode(section: Bytes, count: int) -> tuple[Vector, np.float32]:
    """Return the `count` values in `section`, which they must fill exactly, and the magnitude of the sampled ones.

    Raises:
        WireError: the parts do not fit the lengths, or hold what no sender writes.
    """
    if section.size < _PREFIX.size:
        raise WireError(f"hybrid values have {section.size} bytes, fewer than their prefix of {_PREFIX.size}")
    stored, exact, coding, parameter = _PREFIX.unpack_from(section.data)
    magnitude, rest = np.float32(stored), section[_PREFIX.size :]
    if not (np.isfinite(magnitude) and magnitude > 0):
        raise WireError(f"the shared magnitude is {magnitude}: it must be positive and finite")
    if exact > count:
        raise WireError(f"{exact} exact entries are announced among {count} in all")
    if 0 < exact < count:
        places, used = index_codings.decode(rest, coding, parameter, count, exact)
        rest = rest[used:]
    elif (coding, parameter) != (EMPTY.coding, EMPTY.parameter):
        raise WireError(f"{exact} exact entries of {count} need no places, but have index coding {coding}, {parameter}")
    cut = signs.size(count - exact)
    if rest.size != cut + 4 * exact:
        raise WireError(f"{exact} exact and {count - exact} sampled values have {rest.size} bytes")
    sampled_values = signs.decode(rest[:cut], count - exact, magnitude)
    exact_values, _ = values.decode(rest[cut:], values.FLOAT32, exact)
    if (np.abs(exact_values) == magnitude).any():
        raise WireError(f"an exact value has the shared magnitude {magnitude}: it must be written as a sign")
    if exact == 0:
        return sampled_values, magnitude
    if exact == count:
        return exact_values, magnitude
    return _merge(places, exact_values, sampled_values), magnitude


def _merge(places: Indices, exact_values: Vector, sampled_values: Vector) -> Vector:
    """Return all values in order: the exact ones at their places, the sampled ones between them."""
    merged = np.empty(exact_values.size + sampled_values.size, np.float32)
    sampled = np.ones(merged.size, np.bool_)
    sampled[places] = False
    merged[places] = exact_values
    merged[sampled] = sampled_values
    return merged
