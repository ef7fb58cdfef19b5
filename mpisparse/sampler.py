"""Which samples each rank sees, at each step of each epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpisparse.errors import ConfigError
from mpisparse.words import counted


class Share(NamedTuple):
    """What one rank gets of one step.

    indices: int64 of shape (n,), this rank's samples. Empty only when fewer samples than ranks were left, which needs
        a change of the number of ranks within an epoch.
    global_count: samples of all ranks together, to weigh the mean over this rank's samples by n / global_count.
    epoch: the epoch that the samples belong to, from 0.
    ends_epoch: True on all ranks when these are the last samples of the epoch.
    """

    indices: Tensor
    global_count: int
    epoch: int
    ends_epoch: bool


class Sampler:
    """Deals every sample to exactly one rank once an epoch, on any number of ranks.

    Laws:

    - Each sample is used exactly once an epoch, whatever the batch size and the number of ranks, also when they change
      within the epoch.
    - All ranks do the same number of steps, and agree without speaking: their answers follow from equal state.
    - The position is the number of samples that all ranks together have used, so it means the same on any number of
      ranks.

    The order of an epoch is drawn from (seed, epoch). A step takes the next batch * size samples of it, and also those
    after them if they are fewer than `size`, as they would leave a rank without any; rank r takes entries
    n * r // size to n * (r + 1) // size of these n.

    Args:
        samples: samples in the data set.
        batch: samples of one rank in one step; the last step of an epoch takes fewer, or at most one more.
        seed: 0 to 2**64 - 1, equal on all ranks.
        rank: this rank.
        size: number of ranks.
        shuffle: False keeps the order of the data set in every epoch.

    Raises:
        ConfigError: an argument is outside its range, or there are fewer samples than ranks.

    Example:
        >>> sampler = Sampler(samples=5, batch=1, seed=0, rank=1, size=2, shuffle=False)
        >>> [sampler.next().indices.tolist() for _ in range(sampler.steps_per_epoch)]
        [[1], [3, 4]]
    """

    def __init__(
        self, samples: int, batch: int, seed: int, rank: int = 0, size: int = 1, *, shuffle: bool = True
    ) -> None:
        if batch < 1:
            raise ConfigError(f"batch {batch} is below 1: give the samples of one rank in one step, such as 32")
        if not 0 <= seed < 2**64:
            raise ConfigError(f"seed {seed} is outside 0 to 2**64 - 1: give another")
        if not 0 <= rank < size:
            raise ConfigError(f"rank {rank} is outside 0 to {size - 1}, the ranks of {size}")
        if samples < size:
            raise ConfigError(
                f"{counted(samples, 'sample')} cannot be shared by {size} ranks: use at most "
                f"{counted(samples, 'rank')} or more data"
            )
        self._samples, self._batch, self._rank, self._size = samples, batch, rank, size
        self._shuffle = shuffle
        self._seed, self._epoch, self._consumed = seed, 0, 0
        self._order = self._draw_order()

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of steps of a whole epoch, the same on every rank."""
        return self._steps(self._samples)

    @property
    def steps_left(self) -> int:
        """Return the number of steps until the epoch that is under way ends, the same on every rank."""
        return self._steps(self._samples - self._consumed)

    @property
    def epoch(self) -> int:
        """Return the epoch that the next step belongs to, from 0."""
        return self._epoch

    def start_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch, whatever the position is."""
        self._epoch, self._consumed = epoch, 0
        self._order = self._draw_order()

    def next(self) -> Share:
        """Return this rank's share of the next step, and move on; after the last of an epoch the next epoch begins."""
        count = self._global_count()
        begin = self._consumed + count * self._rank // self._size
        end = self._consumed + count * (self._rank + 1) // self._size
        indices = torch.from_numpy(self._order[begin:end].copy())
        self._consumed += count
        share = Share(indices, count, self._epoch, ends_epoch=self._consumed == self._samples)
        if share.ends_epoch:
            self._epoch, self._consumed = self._epoch + 1, 0
            self._order = self._draw_order()
        return share

    def state_dict(self) -> dict[str, int]:
        """Return the position, equal on all ranks and free of their number: seed, epoch, consumed, samples, shuffle."""
        return {
            "seed": self._seed,
            "epoch": self._epoch,
            "consumed": self._consumed,
            "samples": self._samples,
            "shuffle": int(self._shuffle),
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Return nothing: go on where `state` was taken, in its order (its seed counts, not this sampler's).

        Raises:
            ConfigError: the state is incomplete, out of range, or that of other data or another order.
        """
        mine = self.state_dict()
        if missing := sorted(mine.keys() - state.keys()):
            raise ConfigError(f"the state of the sampler lacks {', '.join(missing)}: it was not made by this sampler")
        for key in ("samples", "shuffle"):
            if int(state[key]) != mine[key]:
                raise ConfigError(
                    f"the state of the sampler has {key} {int(state[key])}, this run has {mine[key]}: "
                    "go on with the same data and order, or start anew"
                )
        seed, epoch, consumed = int(state["seed"]), int(state["epoch"]), int(state["consumed"])
        if not (0 <= seed < 2**64 and 0 <= epoch < 2**64 and 0 <= consumed < self._samples):
            raise ConfigError(
                f"the state of the sampler has seed {seed}, epoch {epoch}, consumed {consumed}: none may be negative, "
                f"and consumed is below the {counted(self._samples, 'sample')}"
            )
        self._seed, self._epoch, self._consumed = seed, epoch, consumed
        self._order = self._draw_order()

    def _global_count(self) -> int:
        """Return how many samples all ranks together take in the next step."""
        left = self._samples - self._consumed
        count = min(self._batch * self._size, left)
        return left if left - count < self._size else count

    def _steps(self, left: int) -> int:
        """Return the number of steps that `left` samples make."""
        full, rest = divmod(left, self._batch * self._size)
        return full + 1 if rest >= self._size or (rest and not full) else full

    def _draw_order(self) -> NDArray[np.int64]:
        """Return the order of the samples in the current epoch, int64 of shape (samples,).

        Sorting raw Philox output, rather than `Generator.permutation`, gives the same order under every version of
        numpy, which a run that goes on elsewhere needs. Two equal keys of 64 bits keep their order: no harm.
        """
        if not self._shuffle:
            return np.arange(self._samples, dtype=np.int64)
        # The last word is a step that no run reaches, so these draws are none of a sparsifier's of the same seed.
        counter = np.array([0, 0, 0, 2**64 - 1], np.uint64)
        key = np.array([self._seed, self._epoch], np.uint64)
        bits = np.random.Philox(key=key, counter=counter).random_raw(self._samples)
        return np.argsort(bits, kind="stable").astype(np.int64)


def shard_range(samples: int, rank: int, size: int) -> range:
    """Return the samples that a rank evaluates: contiguous, each sample on exactly one rank, possibly none.

    Raises:
        ConfigError: the rank is not one of `size`.
    """
    if not 0 <= rank < size:
        raise ConfigError(f"rank {rank} is outside 0 to {size - 1}, the ranks of {size}")
    return range(samples * rank // size, samples * (rank + 1) // size)
