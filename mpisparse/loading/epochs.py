"""Epochs: the plan of any epoch of a DataLoader, whatever sampler it has."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sized
from typing import Any, cast

from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler

from mpisparse.errors import ConfigError
from mpisparse.loading.draw import Draws, parts_of
from mpisparse.loading.plan import Batches, Indices, Keys, Plan
from mpisparse.sampler import Deal, check_samples, draw_order

#: What samplers call the number of ranks, or processes, among which they share the data themselves.
_SHARING = ("num_replicas", "num_processes", "world_size")


class Epochs:
    """Reads from a loader what each epoch consists of: single samples in some order, or batches that were made before.

    samples: in the data set, 0 where it has no length. shuffle: 1 where the order is drawn, by whomever.
    batches: 1 where positions count batches of a batch sampler, 0 where they count samples.
    single: True where the data set is asked for one key, as it has no batch size, and not for a list of keys.

    Raises:
        ConfigError: the loader's sampler shares the data already, draws in a way that cannot be repeated, or gives
            fewer samples than there are ranks.
    """

    def __init__(self, loader: DataLoader[Any], rank: int, size: int) -> None:
        self._rank, self._size = rank, size
        self.samples = _length(loader.dataset)
        made: Any = loader.batch_sampler if loader.batch_sampler is not None else loader.sampler
        _refuse_shared(made)
        self._batch, self._drop_last = 0, bool(getattr(made, "drop_last", False))
        # Only torch's own class is known to do nothing but cut what its sampler gives into batches.
        if type(made) is BatchSampler:
            self._batch, made = made.batch_size, made.sampler
        self._draws = None if _is_plain(made, self.samples) else Draws(made, loader.dataset)
        self.shuffle = int(not isinstance(made, SequentialSampler))
        self.sampler = type(made).__name__
        first = self._order(0, 0, 0)
        listed = bool(len(first)) and isinstance(first[0], list)
        self.single = not self._batch and loader.batch_sampler is None and not listed
        self.batches = int(not self._batch and not self.single)
        self.lost = len(first) % size if self.single else 0
        self._check(self.plan(0, 0, 0))

    def plan(self, seed: int, epoch: int, stream: int = 0) -> Plan:
        """Return the plan of an epoch, equal on all ranks but for whose it is."""
        order = self._order(seed, epoch, stream)
        if self.batches:
            return Batches(order, self._rank, self._size, drop_last=self._drop_last)
        if self.single:
            return Keys(order, self._rank, self._size)
        return Indices(order, Deal(self._batch, self._rank, self._size, self._drop_last))

    def describe(self) -> list[str]:
        """Return lines that are the same on all ranks, or the ranks would not share the same data."""
        lines = [f"{self.samples} samples", f"batch size {self._batch or None}", f"drop_last={self._drop_last}"]
        order = self._order(0, 0, 0) if self._draws is not None else []
        return [*lines, f"{self.sampler} with order {zlib.crc32(repr(list(order)).encode()):08x}"]

    def _order(self, seed: int, epoch: int, stream: int) -> Any:
        if self._draws is not None:
            return self._draws.order(seed, epoch, stream)
        return draw_order(self.samples, seed, epoch, shuffle=bool(self.shuffle), stream=stream)

    def _check(self, plan: Plan) -> None:
        if not self.batches:
            check_samples(len(plan.order), self._size)
        if not plan.count(0):
            raise ConfigError(
                f"an epoch of {len(plan.order)} {'batches' if self.batches else 'samples'} has no full step on "
                f"{self._size} ranks"
                + (f" of {self._batch} samples each" if self._batch else "")
                + ": use fewer ranks, smaller batches or more data"
                + (", or leave drop_last out" if self._drop_last else "")
            )
        if self.batches and sum(len(batch) for batch in plan.order) < self._size:
            check_samples(sum(len(batch) for batch in plan.order), self._size)


def _is_plain(sampler: object, samples: int) -> bool:
    """Return True for a sampler that gives every sample of the data set once, in order or at random."""
    if type(sampler) not in (RandomSampler, SequentialSampler):
        return False
    plain = cast("RandomSampler | SequentialSampler", sampler)
    if len(plain) != samples or _length(plain.data_source) != samples:
        return False
    return not getattr(plain, "replacement", False)


def _refuse_shared(sampler: Iterable[Any]) -> None:
    for part in parts_of(sampler):
        for name in _SHARING:
            ranks = getattr(part, name, None)
            if isinstance(ranks, int) and ranks > 1:
                raise ConfigError(
                    f"the loader's {type(part).__name__} deals the samples to {ranks} ranks already ({name}={ranks}): "
                    "give shard() a loader without it, such as DataLoader(shuffle=True), or do not call shard()"
                )


def _length(dataset: object) -> int:
    try:
        return len(cast("Sized", dataset))
    except (TypeError, NotImplementedError):
        return 0
