"""shard: this rank's part of a DataLoader."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler

from mpisparse.comm import Communicator, world
from mpisparse.errors import ConfigError
from mpisparse.sampler import Sampler


class ShardedLoader:
    """Iterates over this rank's batches of one epoch; the next `iter` is the next epoch, in a new order.

    epoch: the one that the next `iter` begins, from 0. Set it to go on where an earlier run stopped.

    All ranks make the same number of steps, and each sample is seen exactly once an epoch, on any number of ranks. The
    loader's batch size is that of one rank; in the last step ranks may hold numbers of samples that differ by one.
    """

    def __init__(self, loader: DataLoader[Any], sampler: Sampler) -> None:
        self.epoch = 0
        self._sampler = sampler
        self._loader: DataLoader[Any] = DataLoader(
            loader.dataset,
            batch_sampler=_Batches(sampler),
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            timeout=loader.timeout,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
            generator=loader.generator,
            prefetch_factor=loader.prefetch_factor,
            persistent_workers=loader.persistent_workers,
        )

    def __iter__(self) -> Iterator[Any]:
        self._sampler.start_epoch(self.epoch)
        self.epoch += 1
        return iter(self._loader)

    def __len__(self) -> int:
        return self._sampler.steps_per_epoch


class _Batches:
    """The batches of the epoch that is under way, as DataLoader wants to be told them."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def __iter__(self) -> Iterator[list[int]]:
        ends = False
        while not ends:
            share = self._sampler.next()
            ends = share.ends_epoch
            yield share.indices.tolist()

    def __len__(self) -> int:
        return self._sampler.steps_left


def shard(loader: DataLoader[Any], *, seed: int = 0, comm: Communicator | None = None) -> ShardedLoader:
    """Return this rank's part of `loader`, shuffled if it shuffles. Call it once, before the first epoch.

    Args:
        loader: over a data set with a length, with a batch size, with shuffle=True or False.
        seed: of the order, the same on all ranks.
        comm: the ranks; those that the launcher started by default.

    Raises:
        ConfigError: the loader has a sampler of its own, no batch size, or a data set without a length; or there are
            fewer samples than ranks.
    """
    if isinstance(loader.dataset, IterableDataset):
        raise ConfigError(
            "an IterableDataset has no length to be shared by: let each rank read its own part, no shard()"
        )
    if loader.batch_size is None:
        raise ConfigError("the loader has no batch size: give DataLoader(batch_size=...), not a batch sampler")
    if type(loader.sampler) not in (RandomSampler, SequentialSampler):
        raise ConfigError(
            f"the loader has a {type(loader.sampler).__name__}: shard() deals the samples itself, "
            "so give DataLoader(shuffle=True) or (shuffle=False)"
        )
    if isinstance(loader.sampler, RandomSampler) and (
        loader.sampler.replacement or loader.sampler.num_samples != len(loader.sampler.data_source)
    ):
        raise ConfigError("the loader samples with replacement or a part: shard() deals each sample once an epoch")
    if loader.drop_last:
        raise ConfigError("drop_last=True would lose samples; every rank has full steps anyway: leave it out")
    comm = comm or world()
    shuffle = isinstance(loader.sampler, RandomSampler)
    samples = len(loader.dataset)  # type: ignore[arg-type]
    return ShardedLoader(loader, Sampler(samples, loader.batch_size, seed, comm.rank, comm.size, shuffle=shuffle))
