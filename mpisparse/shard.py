"""shard: this rank's part of a DataLoader."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader, Dataset, IterableDataset

from mpisparse.comm import Communicator, agreed, require_same, world
from mpisparse.errors import ConfigError
from mpisparse.loading import Epochs, ShardedLoader, Stream, StreamLoader
from mpisparse.sampler import check_seed
from mpisparse.terminal import say


def shard(
    loader: DataLoader[Any], *, seed: int = 0, comm: Communicator | None = None, stream: Stream | None = None
) -> ShardedLoader | StreamLoader:
    """Return this rank's part of `loader`, with its options. Collective; call it once, before the first epoch.

    Any sampler or batch sampler may stand behind the loader. What it gives is dealt to the ranks, which all draw the
    same, as random numbers of torch, numpy and Python are set from `seed` and epoch while it draws. An
    `IterableDataset` is read by each rank, and the ranks end together.

    Args:
        loader: a torch DataLoader.
        seed: of the order, the same on all ranks.
        comm: the ranks; those that the launcher started by default.
        stream: of an IterableDataset: "own", each rank reads samples of its own; "same", all read the same ones, and
            each uses every `comm.size`-th. By default "own", and an error if all ranks begin with the same batch.

    Raises:
        ConfigError: not a DataLoader, or one that is shared already or cannot be; or fewer samples than ranks.
        RankMismatchError: the ranks' loaders differ.
    """
    if comm is not None and not isinstance(comm, Communicator):
        raise ConfigError(f"comm is a {_article(comm)}: give what ms.init() returns, or leave it out")
    comm = comm or world()
    with agreed(comm):
        _check_loader(loader, stream)
        check_seed(seed)
        streams = isinstance(loader.dataset, IterableDataset)
        epochs = None if streams else Epochs(loader, comm.rank, comm.size)
    lines = [f"stream={stream!r}"] if epochs is None else [f"seed {seed}", *epochs.describe()]
    require_same(comm, "the loaders given to shard()", [f"batches of {loader.batch_size}", *lines])
    if epochs is None:
        return StreamLoader(loader, comm, stream)
    if epochs.lost and comm.rank == 0:
        say(
            f"mpisparse: without a batch size each rank takes one item per step, so {epochs.lost} of an epoch's items "
            f"are not used on {comm.size} ranks",
            error=True,
        )
    return ShardedLoader(loader, epochs, seed, comm)


def _check_loader(loader: object, stream: object) -> None:
    """Raise ConfigError unless `loader` is a DataLoader that nobody shared yet."""
    if isinstance(loader, ShardedLoader | StreamLoader):
        raise ConfigError("the loader is shared by shard() already: call it once")
    if isinstance(loader, Communicator):
        raise ConfigError("shard() was given a communicator for a loader: call shard(loader, comm=comm)")
    if isinstance(loader, Dataset):
        raise ConfigError(
            f"shard() takes a DataLoader, not a data set ({type(loader).__name__}): give "
            "shard(DataLoader(dataset, batch_size=32, shuffle=True))"
        )
    if not isinstance(loader, DataLoader):
        raise ConfigError(
            f"shard() takes a torch.utils.data.DataLoader, not a {_article(loader)}: put the samples into one, "
            "shard(DataLoader(samples, batch_size=32)); of batches that are made already, DataLoader(batches, "
            "batch_size=None)"
        )
    if stream not in (None, "own", "same"):
        raise ConfigError(f'stream {stream!r} is unknown: give "own" or "same", or leave it out')
    if stream is not None and not isinstance(loader.dataset, IterableDataset):
        raise ConfigError(
            f'stream="{stream}" is for an IterableDataset, and {type(loader.dataset).__name__} is none: leave it out'
        )


def _article(thing: object) -> str:
    return thing.__name__ + " class" if isinstance(thing, type) else type(thing).__name__
