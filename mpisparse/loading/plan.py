"""Plan: which keys of one epoch each rank gets in each step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from mpisparse.errors import ConfigError
from mpisparse.sampler import Deal


class Plan(ABC):
    """The order of one epoch, and how the ranks share it.

    A position is the number of entries of the order that all ranks together have used, so that it means the same on
    any number of ranks. All ranks have the same order, and agree without speaking.
    """

    def __init__(self, order: Sequence[Any]) -> None:
        self.order = order

    @abstractmethod
    def count(self, position: int) -> int:
        """Return how many entries the next step takes; 0 at the end of the epoch."""

    @abstractmethod
    def mine(self, position: int) -> list[Any]:
        """Return this rank's keys in the next step. Empty only when fewer were left than ranks."""

    @abstractmethod
    def lent(self, position: int) -> list[Any]:
        """Return keys that give a batch whose structure one without samples takes over."""

    def steps(self, position: int) -> int:
        """Return the number of steps from here to the end of the epoch."""
        steps = 0
        while count := self.count(position):
            position, steps = position + count, steps + 1
        return steps


class Indices(Plan):
    """Single keys in an order, of which a rank's step takes a batch."""

    def __init__(self, order: Sequence[Any], deal: Deal) -> None:
        super().__init__(order)
        self._deal = deal

    def count(self, position: int) -> int:
        """Return how many keys the next step takes."""
        return self._deal.count(len(self.order) - position)

    def mine(self, position: int) -> list[Any]:
        """Return this rank's keys in the next step."""
        count = self.count(position)
        return _listed(self.order[position : position + count][self._deal.mine(count)])

    def lent(self, position: int) -> list[Any]:
        """Return one key of the next step."""
        return _listed(self.order[position : position + 1])

    def steps(self, position: int) -> int:
        """Return the number of steps from here to the end of the epoch."""
        return self._deal.steps(len(self.order) - position)


class Batches(Plan):
    """Batches that somebody else made: each rank takes a whole one in turn.

    When fewer batches than ranks are left, their samples are shared: in a step of their own, or along with the step
    before when there are fewer samples than ranks.
    """

    def __init__(self, order: Sequence[Any], rank: int, size: int, *, drop_last: bool) -> None:
        super().__init__([_listed(batch) for batch in order])
        self._rank, self._size, self._drop_last = rank, size, drop_last

    def count(self, position: int) -> int:
        """Return how many batches the next step takes."""
        left = len(self.order) - position
        if left < self._size:
            return 0 if self._drop_last else left
        after = self.order[position + self._size : position + 2 * self._size]
        if not self._drop_last and len(after) < self._size and sum(map(len, after)) < self._size:
            return left
        return self._size

    def mine(self, position: int) -> list[Any]:
        """Return the keys of this rank's batch in the next step."""
        count = self.count(position)
        batches = self.order[position : position + count]
        if count < self._size:
            pool = [key for batch in batches for key in batch]
            return pool[Deal(1, self._rank, self._size).mine(len(pool))]
        rest = [key for batch in batches[self._size :] for key in batch]
        return [*batches[self._rank], *rest[self._rank : self._rank + 1]]

    def lent(self, position: int) -> list[Any]:
        """Return one key of the next step, if that has any."""
        return next((batch[:1] for batch in self.order[position:] if batch), [])


class Keys(Plan):
    """Keys of which each rank takes one in a step, as data that comes in batches has them; a rest is not used."""

    def __init__(self, order: Sequence[Any], rank: int, size: int) -> None:
        super().__init__(order)
        self._rank, self._size = rank, size

    def count(self, position: int) -> int:
        """Return how many keys the next step takes."""
        return self._size if len(self.order) - position >= self._size else 0

    def mine(self, position: int) -> list[Any]:
        """Return this rank's key in the next step, in a list."""
        return [self.order[position + self._rank]]

    def lent(self, position: int) -> list[Any]:
        """Return nothing: no step leaves a rank without a key."""
        raise NotImplementedError


def emptied(batch: Any) -> Any:
    """Return a batch of no samples with the structure, dtypes and further dimensions of `batch`.

    Raises:
        ConfigError: the batch holds something else than tensors, arrays, numbers and texts in mappings and sequences.
    """
    if isinstance(batch, Tensor | np.ndarray) and batch.ndim:
        return batch[:0]
    if isinstance(batch, Mapping):
        return {key: emptied(value) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*map(emptied, batch))
    if isinstance(batch, list | tuple):
        plain = all(isinstance(value, str | bytes | int | float) for value in batch)
        return type(batch)() if plain else type(batch)(map(emptied, batch))
    raise ConfigError(
        f"the epoch has fewer samples left than ranks, and a {type(batch).__name__} cannot be made a batch of none: "
        "go on with fewer ranks, or with a checkpoint that was saved earlier in the epoch or between epochs"
    )


def _listed(keys: Any) -> list[Any]:
    """Return keys as Python's own: data sets often do not take numpy's integers or tensors."""
    listed: list[Any] = keys.tolist() if isinstance(keys, np.ndarray | Tensor) else list(keys)
    return listed
