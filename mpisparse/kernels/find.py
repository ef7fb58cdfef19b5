"""Finding the entries that reach a magnitude, by whatever pass visits them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mpisparse.kernels.passes import find
from mpisparse.kernels.threads import for_each_span
from mpisparse.kernels.vectors import Vector
from mpisparse.sparse import Indices, index_dtype


class Found(NamedTuple):
    """What a pass found."""

    number: int
    """How many entries reach the floor."""
    indices: Indices | None
    """Which, rising; None when they are more than there was room for."""


def collect(numel: int, room: int, visit: Callable[[int, int, Indices], int]) -> Found:
    """Return what `visit(start, stop, out)` finds over all spans; it fills `out` and returns its count."""
    dtype = index_dtype(numel)

    def action(start: int, stop: int) -> tuple[int, Indices]:
        # As much room for each span as for all: memory that is not written to is never taken from the machine.
        out = np.empty(min(room, stop - start), dtype)
        return int(visit(start, stop, out)), out

    parts = for_each_span(numel, action)
    count = sum(found for found, _ in parts)
    if count > room:
        return Found(count, None)
    if len(parts) == 1:
        return Found(count, parts[0][1][:count])
    return Found(count, np.concatenate([out[:found] for found, out in parts]))


def find_at_least(vector: Vector, floor: np.float32, room: int | None = None) -> Indices:
    """Return the rising indices of the entries whose magnitude is at least `floor`, and of NaN.

    Args:
        vector: float32 of shape (numel,).
        floor: above 0.
        room: about how many there will be; a guess too low costs a second pass.
    """
    room = max(1024, vector.size // 64) if room is None else room

    def visit(start: int, stop: int, out: Indices) -> int:
        return int(find(vector[start:stop], start, floor, out))

    found = collect(vector.size, room, visit)
    if found.indices is None:
        found = collect(vector.size, found.number, visit)
    assert found.indices is not None
    return found.indices
