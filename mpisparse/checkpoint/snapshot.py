"""Buffers: a copy of a state that stays as it is while training goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mpisparse.checkpoint.arrays import Array


class Buffers:
    """Host memory for the copies of one state after another: as much as the state takes, kept for the next one.

    To be given fresh memory costs more than to copy into it.
    """

    def __init__(self) -> None:
        self._memory: list[Array] = []

    def copy(self, arrays: Sequence[Array]) -> list[Array]:
        """Return copies of `arrays`, each contiguous; those of the call before are overwritten."""
        del self._memory[len(arrays) :]
        return [self._copy(place, array) for place, array in enumerate(arrays)]

    def _copy(self, place: int, array: Array) -> Array:
        if place == len(self._memory):
            self._memory.append(np.empty(array.nbytes, np.uint8))
        elif self._memory[place].nbytes != array.nbytes:
            self._memory[place] = np.empty(array.nbytes, np.uint8)
        copied: np.ndarray[Any, Any] = self._memory[place].view(array.dtype).reshape(array.shape)
        np.copyto(copied, array)
        return copied
