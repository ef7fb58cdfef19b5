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
    values: Vector | None
    """Their values, and None with the indices."""


def collect(numel: int, room: int, visit: Callable[[int, int, Indices, Vector], int]) -> Found:
    """Return what `visit(start, stop, out, values)` finds over all spans; it fills both and returns its count."""
    dtype = index_dtype(numel)

    def action(start: int, stop: int) -> tuple[int, Indices, Vector]:
        # As much room for each span as for all: memory that is not written to is never taken from the machine.
        out, values = np.empty(min(room, stop - start), dtype), np.empty(min(room, stop - start), np.float32)
        return int(visit(start, stop, out, values)), out, values

    parts = for_each_span(numel, action)
    count = sum(part[0] for part in parts)
    if count > room:
        return Found(count, None, None)
    if len(parts) == 1:
        return Found(count, parts[0][1][:count], parts[0][2][:count])
    indices = np.concatenate([out[:found] for found, out, _ in parts])
    return Found(count, indices, np.concatenate([values[:found] for found, _, values in parts]))


def find_all(numel: int, room: int, visit: Callable[[int, int, Indices, Vector], int]) -> tuple[Indices, Vector]:
    """Return indices and values of all that `visit` finds; a guess of `room` that is too low costs another visit."""
    found = collect(numel, room, visit)
    if found.indices is None:
        found = collect(numel, found.number, visit)
    assert found.indices is not None
    assert found.values is not None
    return found.indices, found.values


def find_at_least(vector: Vector, floor: np.float32, room: int | None = None) -> tuple[Indices, Vector]:
    """Return the entries whose magnitude is at least `floor`, and NaN: their rising indices, and their values.

    Args:
        vector: float32 of shape (numel,).
        floor: above 0.
        room: about how many there will be; a guess too low costs a second pass.
    """
    room = max(1024, vector.size // 64) if room is None else room
    return find_all(vector.size, room, lambda start, stop, *out: int(find(vector[start:stop], start, floor, *out)))
