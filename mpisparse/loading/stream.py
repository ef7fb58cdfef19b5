"""Streams: data sets that can only be read from their beginning, shared by ranks that end together."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from copy import copy
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from mpisparse.comm import Communicator
from mpisparse.errors import ConfigError, alike
from mpisparse.terminal import say

Stream = Literal["own", "same"]

_END = object()


class StreamLoader:
    """Iterates over this rank's batches of a stream, until any rank has no further batch.

    Before each batch the ranks tell each other, in one small Allgather, whether they still have one. So all make the
    same number of steps, and every rank has to take batches equally often. What ranks with more batches have left is
    not used; standard error says so once.

    epoch: the one under way, or the next one between two. A data set with `set_epoch` is told it.
    All other attributes are those of the loader that was given to `shard`.
    """

    def __init__(self, loader: DataLoader[Any], comm: Communicator, stream: Stream | None) -> None:
        self._given, self._comm, self._stream = loader, comm.duplicate("batches"), stream
        self._loader = copy(loader)
        self._loader.__dict__["_iterator"] = None
        if stream == "same" and comm.size > 1:
            self._loader.__dict__["dataset"] = _EveryNth(loader.dataset, comm.rank, comm.size)
        self._epoch = self._taken = 0
        self._begun = self._told = False
        self._checked = stream is not None or comm.size == 1

    @property
    def epoch(self) -> int:
        """Return the epoch under way, or the next one between two."""
        return self._epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self.set_epoch(epoch)

    def set_epoch(self, epoch: int) -> None:
        """Have the next `iter` begin this epoch; where `load_state_dict` stopped in it, it goes on from there."""
        if epoch != self._epoch or self._begun:
            self._epoch, self._taken, self._begun = epoch, 0, False

    def __iter__(self) -> Iterator[Any]:
        if self._begun:
            self._epoch, self._taken = self._epoch + 1, 0
        self._begun = True
        dataset = self._given.dataset
        if callable(set_epoch := getattr(dataset, "set_epoch", None)):
            set_epoch(self._epoch)
        return self._batches(self._epoch, self._taken)

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        if name in ("_given", "__setstate__"):
            raise AttributeError(name)
        return getattr(self._given, name)

    def state_dict(self) -> dict[str, int]:
        """Return the place of the batches handed out: epoch, batches of each rank, ranks. Equal on all ranks."""
        return {"epoch": self._epoch, "batches": self._taken, "ranks": self._comm.size}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Return nothing: the next `iter` goes on where `state` was taken, by reading the batches before it again.

        Raises:
            ConfigError: the state is not one of a stream, or of another number of ranks.
        """
        if missing := sorted(self.state_dict().keys() - state.keys()):
            raise ConfigError(f"the state of the stream lacks {', '.join(missing)}: it was not made by this loader")
        epoch, batches, ranks = int(state["epoch"]), int(state["batches"]), int(state["ranks"])
        if ranks != self._comm.size:
            raise ConfigError(
                f"the state of the stream was saved by {ranks} ranks, here are {self._comm.size}: a place in a stream "
                "means nothing to another number of ranks, so go on with as many, or begin the epoch anew"
            )
        if epoch < 0 or batches < 0:
            raise ConfigError(f"the state of the stream has epoch {epoch}, batches {batches}: none may be negative")
        self._epoch, self._taken, self._begun = epoch, batches, False

    def _batches(self, epoch: int, skip: int) -> Iterator[Any]:
        batches = iter(self._loader)
        taken = sum(1 for _ in islice(batches, skip))
        while True:
            batch = next(batches, _END)
            if not self._all_have(batch, taken):
                break
            taken += 1
            if epoch == self._epoch:
                self._taken = taken
            yield batch
        if epoch == self._epoch:
            self._epoch, self._taken, self._begun = epoch + 1, 0, False

    def _all_have(self, batch: Any, taken: int) -> bool:
        """Return whether every rank has a batch, having compared the first ones of all. Collective."""
        digest = None if self._checked or batch is _END else _digest(batch)
        # What cannot be compared is told as a number that no other rank gives.
        reports = self._comm.allgather([int(batch is not _END), -self._comm.rank if digest is None else digest + 1])
        have = reports[:, 0] != 0
        if have.all() and not self._checked:
            self._checked = True
            if (reports[:, 1] == reports[0, 1]).all():
                raise alike(
                    ConfigError(
                        f"all {self._comm.size} ranks begin with the same batch: give "
                        'shard(loader, stream="same"), and each rank gets its part of the stream; '
                        'or stream="own", if each rank reads a part of its own'
                    )
                )
        if have.any() and not have.all() and not self._told and self._comm.rank == 0:
            self._told = True
            say(
                f"mpisparse: the epoch ended after {taken} batches on each rank: "
                f"{_ranks(~have)} had no more, and what {_ranks(have)} had left was not used",
                error=True,
            )
        return bool(have.all())


class _EveryNth(IterableDataset[Any]):
    """Every `size`-th sample of a stream that all ranks, or a worker process of each, read alike.

    Attributes are those of the stream, also when they are set: a `worker_init_fn` may give each worker its part.
    """

    def __init__(self, stream: Any, rank: int, size: int) -> None:
        self.__dict__.update(_stream=stream, _rank=rank, _size=size)

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self._stream), self._rank, None, self._size)

    def __len__(self) -> int:
        return len(range(self._rank, len(self._stream), self._size))

    def __getattr__(self, name: str) -> Any:
        if "_stream" not in self.__dict__:  # while it is unpickled
            raise AttributeError(name)
        return getattr(self._stream, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._stream, name, value)


def _digest(batch: Any) -> int | None:
    """Return a checksum of what a batch holds; None where that cannot be known."""
    if isinstance(batch, Tensor):
        try:
            return zlib.crc32(batch.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        except RuntimeError:  # sparse and other tensors without plain memory
            return None
    if isinstance(batch, np.ndarray) and batch.dtype != object:
        return zlib.crc32(batch.tobytes())
    if isinstance(batch, str | bytes | int | float | bool | None):
        return zlib.crc32(repr(batch).encode())
    parts = [*batch.items()] if isinstance(batch, Mapping) else batch
    if not isinstance(parts, list | tuple):
        return None
    digests = [_digest(part) for part in parts]
    return None if None in digests else zlib.crc32(repr(digests).encode())


def _ranks(which: np.ndarray[Any, Any]) -> str:
    numbers = np.flatnonzero(which)
    shown = ", ".join(map(str, numbers[:8])) + (f" and {len(numbers) - 8} more" if len(numbers) > 8 else "")
    return f"rank{'s' if len(numbers) > 1 else ''} {shown}"
