"""Values on a grid, as QSGD draws them: the unit of each bucket, a sign an entry, and its level in few bits.

The levels, 1 or more each, are the gaps of a rising sequence, their running sums less one; the index codings write it.
Rice coding there is Rice coding of each level less one, and a bitmap is levels in unary.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpisparse.errors import WireError
from mpisparse.sparse import Grid, Indices, SparseVector, index_dtype
from mpisparse.wire import indices as index_codings
from mpisparse.wire import signs
from mpisparse.wire.indices import BITMAP, EMPTY, LARGEST_NUMEL, RICE, Plan

Bytes = NDArray[np.uint8]
Vector = NDArray[np.float32]

#: The value coding, beside those of plain values and hybrid.
LEVELS = 5

#: entries of a bucket, sum of all levels, index coding and parameter of their running sums
_PREFIX = struct.Struct("<QQBB")

_LARGEST = np.iinfo(np.uint16).max


class Sums(NamedTuple):
    """The levels of a vector as a rising sequence."""

    grid: Grid
    rising: Indices
    """Running sums of the levels, less one."""
    total: int
    """The sum of all levels."""
    how: Plan
    """How the sequence is written; not at all when every level is 1."""
    size: int
    """Bytes that the values take in this form."""


def add_up(grid: Grid) -> Sums:
    """Return the levels of a grid as a rising sequence, and which coding writes it in fewer bytes."""
    count = grid.levels.size
    running = np.cumsum(grid.levels, dtype=np.uint64)
    total = int(running[-1]) if count else 0
    rising: Indices = (running - np.uint64(1)).astype(index_dtype(total), copy=False)
    index_codings.check(rising, total)
    plans = [index_codings.plan(rising, total, coding, 1.0) for coding in ("rice", "bitmap")] if total > count else []
    how = min(plans, key=lambda plan: plan.size, default=EMPTY)
    return Sums(grid, rising, total, how, _PREFIX.size + 4 * grid.units.size + signs.size(count) + how.size)


def encode(sparse: SparseVector, sums: Sums) -> list[Bytes]:
    """Return the values' bytes, in pieces."""
    prefix = _PREFIX.pack(sums.grid.bucket, sums.total, sums.how.coding, sums.how.parameter)
    units = np.ascontiguousarray(sums.grid.units, "<f4").view(np.uint8)
    drawn = index_codings.encode(sums.rising, sums.total, sums.how) if sums.how.size else []
    return [np.frombuffer(prefix, np.uint8), units, signs.encode(sparse.values), *drawn]


def decode(section: Bytes, indices: Indices, numel: int) -> tuple[Vector, Grid]:
    """Return the values at `indices` in `section`, which they must fill exactly, and the grid that they lie on.

    Raises:
        WireError: the parts do not fit the lengths, or hold what no sender writes.
    """
    count = indices.size
    if section.size < _PREFIX.size:
        raise WireError(f"values in levels have {section.size} bytes, fewer than their prefix of {_PREFIX.size}")
    bucket, total, coding, parameter = _PREFIX.unpack_from(section.data)
    if not 1 <= bucket <= max(numel, 1):
        raise WireError(f"buckets of {bucket} entries are announced in a vector of {numel}")
    units, rest = _read_units(section[_PREFIX.size :], -(-numel // bucket))
    cut = signs.size(count)
    if rest.size < cut:
        raise WireError(f"{count} signs take {cut} bytes, but {rest.size} are left")
    levels = _read_levels(rest[cut:], count, total, coding, parameter)
    grid = Grid(units, bucket, levels)
    values = np.copysign(magnitudes(grid, indices), signs.decode(rest[:cut], count, np.float32(1)))
    if not (np.isfinite(values).all() and (values != 0).all()):
        raise WireError("a level times its unit is zero or leaves the range of float32")
    return values, grid


def magnitudes(grid: Grid, indices: Indices) -> Vector:
    """Return level * unit of every entry, rounded to float32 once."""
    one = grid.units.size <= 1
    units = grid.units if one else grid.units[(indices // indices.dtype.type(grid.bucket)).astype(np.intp)]
    with np.errstate(over="ignore"):
        return (grid.levels.astype(np.float64) * units).astype(np.float32)


def _read_units(section: Bytes, number: int) -> tuple[Vector, Bytes]:
    """Return so many units, and what follows them."""
    if section.size < 4 * number:
        raise WireError(f"{number} units take {4 * number} bytes, but {section.size} are left")
    units = section[: 4 * number].view("<f4").astype(np.float32)
    if not np.isfinite(units).all() or np.signbit(units).any():
        raise WireError("a unit is negative, NaN or infinite")
    return units, section[4 * number :]


def _read_levels(section: Bytes, count: int, total: int, coding: int, parameter: int) -> NDArray[np.uint16]:
    """Return `count` levels that add up to `total`, which must fill the section."""
    if not count <= total <= LARGEST_NUMEL:
        raise WireError(f"{count} levels of 1 or more are announced to add up to {total}")
    if total == count:
        if section.size or (coding, parameter) != (EMPTY.coding, EMPTY.parameter):
            raise WireError(f"{count} levels of 1 need no coding, but have {section.size} bytes in coding {coding}")
        return np.ones(count, np.uint16)
    if coding not in (RICE, BITMAP):
        raise WireError(f"levels in index coding {coding}: they are written in {RICE} or {BITMAP} alone")
    rising, used = index_codings.decode(section, coding, parameter, total, count)
    if used != section.size or count == 0 or int(rising[-1]) != total - 1:
        raise WireError(f"the levels are not {count} that add up to {total} in {section.size} bytes")
    # What comes before the first index is -1, which these types have as their largest.
    levels = np.diff(rising, prepend=rising.dtype.type(np.iinfo(rising.dtype).max))
    if not 1 <= int(levels.min()) <= int(levels.max()) <= _LARGEST:
        raise WireError(f"a level of 1 to {_LARGEST} is announced as {levels.min()}, or {levels.max()}")
    return levels.astype(np.uint16)
