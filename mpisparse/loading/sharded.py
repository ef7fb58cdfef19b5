"""ShardedLoader: iterates over this rank's batches, and knows its place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any
from weakref import ref

import numpy as np
import torch
from torch.utils.data import DataLoader

from mpisparse.comm import Communicator
from mpisparse.errors import ConfigError
from mpisparse.loading.draw import SETTING
from mpisparse.loading.epochs import Epochs
from mpisparse.loading.plan import Plan, emptied
from mpisparse.sampler import check_seed

_END = object()


@dataclass(slots=True, eq=False)
class _Progress:
    """How far an iterator came. It outlives the iterator, so that a loop that was left can still be saved.

    epoch, position: of what comes next. stream: 0, or which of several iterators that began together.
    era: how often the loader was set to another place before. handed: batches given out. clock: calls of optimizers at
    the last of these. nested: it began while another one was under way. counted: the next epoch is another one.
    """

    epoch: int
    position: int
    stream: int
    era: int
    nested: bool
    handed: int = 0
    clock: int | None = None
    counted: bool = False
    ended: bool = False


class ShardedLoader:
    """Iterates over this rank's batches of one epoch; the next `iter` is the next epoch, in a new order.

    All ranks make the same number of steps, and each sample is used once an epoch, on any number of ranks. The loader's
    batch size is that of one rank; in the last steps of an epoch ranks may hold other numbers of samples, which differ
    by one at most. With `drop_last` all ranks have full batches always, and a rest is not used.

    Each iterator has a place of its own. One becomes an epoch when training goes on with it: when an optimizer stepped
    between two of its batches, or, in programs without a `DistributedOptimizer` on the loader's communicator, when a
    second batch is asked of it or it ends. Before that it is a look: `next(iter(loader))`, also on one rank alone, uses
    up nothing and changes no rank's order. Iterators that begin together, as in `zip(loader, loader)`, have different
    orders of the same epoch.

    `state_dict` is the place of the batches that were handed out, whatever workers fetched in advance, and
    `load_state_dict` that at which the next `iter` begins.

    All other attributes, such as `dataset` or `batch_size`, are those of the loader that was given to `shard`.
    """

    def __init__(self, loader: DataLoader[Any], epochs: Epochs, seed: int, comm: Communicator) -> None:
        self._given, self._epochs, self._seed, self._comm = loader, epochs, seed, comm
        self._planned: tuple[tuple[int, int, int], Plan] | None = None
        self._start = (0, 0)
        self._era = 0
        #: The iterator under way, the last one that gave a batch out, and those that gave none yet.
        self._main: _Progress | None = None
        self._latest: _Progress | None = None
        self._main_pass: ref[_Pass] | None = None
        self._fresh: list[ref[_Pass]] = []
        #: Where worker processes persist: the loader that has them, and who iterates over it.
        self._pool: DataLoader[Any] | None = None
        self._pool_user: ref[_Pass] | None = None

    @property
    def epoch(self) -> int:
        """Return the epoch under way, or the next one between two; from 0. What is set begins with the next `iter`."""
        progress = self._under_way()
        return self._start[0] if progress is None else progress.epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self.set_epoch(epoch)

    def set_epoch(self, epoch: int) -> None:
        """Have the next `iter` begin this epoch; where `load_state_dict` stopped in it, it goes on from there."""
        if epoch < 0:
            raise ConfigError(f"epoch {epoch} is negative: the first is 0")
        self._go_to((epoch, 0) if epoch != self._start[0] else self._start)

    def __iter__(self) -> Iterator[Any]:
        self._settle()
        epoch, position = self._start
        self._fresh = [made for made in self._fresh if (one := made()) is not None and one.is_fresh(self._era)]
        under_way = self._main is not None and not self._main.ended and self._pass_of_main() is not None
        progress = _Progress(epoch, position, len(self._fresh), self._era, under_way)
        one = _Pass(self, progress, self._plan(epoch, progress.stream))
        self._fresh.append(ref(one))
        return one

    def __len__(self) -> int:
        return self._plan(self.epoch, 0).steps(0)

    def __getattr__(self, name: str) -> Any:
        if name in ("_given", "__setstate__"):
            raise AttributeError(name)
        return getattr(self._given, name)

    def state_dict(self) -> dict[str, int]:
        """Return the place of the batches handed out, equal on all ranks and free of their number.

        Raises:
            ConfigError: within an epoch whose batches come in no fixed order, as `in_order=False` makes them.
        """
        epoch, position = self._place()
        if position and self._given.num_workers and not getattr(self._given, "in_order", True):
            raise ConfigError(
                "with in_order=False batches are handed out in no fixed order, and a place within the epoch cannot be "
                "saved: leave in_order out, or save between epochs"
            )
        return {
            "seed": self._seed,
            "epoch": epoch,
            "consumed": position,
            "samples": self._epochs.samples,
            "shuffle": self._epochs.shuffle,
            "batches": self._epochs.batches,
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Return nothing: the next `iter` goes on where `state` was taken, in its order (its seed counts).

        Raises:
            ConfigError: the state is incomplete, out of range, or that of other data or of another kind of sampler.
        """
        mine = self.state_dict()
        if missing := sorted(mine.keys() - state.keys()):
            raise ConfigError(
                f"the state of the loader lacks {', '.join(missing)}: it was not made by shard()'s loader"
            )
        for key in ("samples", "shuffle", "batches"):
            if int(state[key]) != mine[key]:
                raise ConfigError(
                    f"the state of the loader has {key} {int(state[key])}, this run has {mine[key]}: "
                    "go on with the same data and sampler, or start anew"
                )
        seed, epoch, consumed = int(state["seed"]), int(state["epoch"]), int(state["consumed"])
        check_seed(seed)
        if not 0 <= epoch < 2**64:
            raise ConfigError(f"the state of the loader has epoch {epoch}: the first is 0")
        entries = len(self._epochs.plan(seed, epoch).order)
        if not 0 <= consumed <= entries:
            raise ConfigError(f"the state of the loader has consumed {consumed}: epoch {epoch} has 0 to {entries}")
        self._seed = seed
        self._go_to((epoch, consumed))

    # Where iterators are ----------------------------------------------------------------------------------------------

    def _go_to(self, place: tuple[int, int]) -> None:
        self._start, self._main, self._latest = place, None, None
        self._era += 1

    def _place(self) -> tuple[int, int]:
        """Return epoch and position of what comes after the batches handed out to training."""
        progress = self._under_way()
        if progress is None:
            return self._start
        done = not self._plan(progress.epoch, progress.stream).count(progress.position)
        return (progress.epoch + 1, 0) if done else (progress.epoch, progress.position)

    def _under_way(self) -> _Progress | None:
        """Return the iterator that training goes on with, also when it was left."""
        latest, main = self._latest, self._main
        if latest is not None and not latest.ended and self._may_count(latest) and self._stepped(latest) is not False:
            return latest
        return main if main is not None and not main.ended and main.epoch + 1 == self._start[0] else None

    def _may_count(self, progress: _Progress) -> bool:
        current = progress.era == self._era and progress.epoch >= self._start[0]
        return current and not progress.counted and not progress.stream and not progress.nested and progress.handed > 0

    def _stepped(self, progress: _Progress) -> bool | None:
        """Return whether an optimizer stepped since an iterator gave out its last batch; None where none is known."""
        clock = self._clock()
        return None if clock is None or progress.clock is None else clock != progress.clock

    def _clock(self) -> int | None:
        """Return how many calls optimizers made: they move on all ranks together, as each is collective."""
        calls = [lane.begun for lane in self._comm.lane.recorder.lanes if lane.kind == "optimizer"]
        return sum(calls) if calls else None

    def _settle(self) -> None:
        """Count an iterator that was left after its last batch, when training had gone on with that."""
        if self._latest is not None and self._may_count(self._latest) and self._stepped(self._latest):
            self._count(self._latest, None)

    def _count(self, progress: _Progress, one: _Pass | None) -> None:
        progress.counted = True
        if progress.epoch + 1 >= self._start[0]:
            self._main, self._main_pass = progress, None if one is None else ref(one)
            if progress.epoch >= self._start[0]:
                self._start = (progress.epoch + 1, 0)

    def _pass_of_main(self) -> _Pass | None:
        return None if self._main_pass is None else self._main_pass()

    def asked(self, progress: _Progress, one: _Pass) -> None:
        """Note that a batch is asked for."""
        if progress.counted or progress.stream or not progress.handed or progress.era != self._era:
            return
        stepped = self._stepped(progress)
        other = self._main is not None and not self._main.ended and self._pass_of_main() is not None
        if stepped or (stepped is None and not other):
            self._count(progress, one)

    def handed(self, progress: _Progress, entries: int) -> None:
        """Note that a batch was given out."""
        progress.position += entries
        progress.handed += 1
        progress.clock = self._clock()
        if not progress.stream and progress.era == self._era:
            self._latest = progress

    def ended(self, progress: _Progress, one: _Pass) -> None:
        """Note that an iterator came to its end."""
        progress.ended = True
        counts = not progress.handed or self._stepped(progress) is None
        if counts and not progress.counted and not progress.stream and progress.era == self._era:
            self._count(progress, one)

    # How batches are made ---------------------------------------------------------------------------------------------

    def _plan(self, epoch: int, stream: int) -> Plan:
        key = (self._seed, epoch, stream)
        if self._planned is None or self._planned[0] != key:
            self._planned = key, self._epochs.plan(*key)
        return self._planned[1]

    def batches(self, progress: _Progress, plan: Plan, one: _Pass) -> Iterator[Any]:
        """Return an iterator of torch over the batches of a plan, from a position on."""
        feed = _Feed(plan, progress.position, single=self._epochs.single)
        if not self._given.persistent_workers:
            return _begun(self._fed(feed, progress))
        user = None if self._pool_user is None else self._pool_user()
        if self._pool is None or (user is not None and not user.progress.ended):
            self._pool = self._fed(feed, progress)
        else:
            own: Any = self._pool.batch_sampler if self._pool.batch_sampler is not None else self._pool.sampler
            own.point(feed)
        self._pool_user = ref(one)
        return _begun(self._pool)

    def _fed(self, feed: _Feed, progress: _Progress) -> DataLoader[Any]:
        """Return a loader like the one that was given, of its class and with its options, whose keys are `feed`'s."""
        loader = copy(self._given)
        changes: dict[str, Any] = {"_iterator": None}
        changes["sampler" if loader.batch_sampler is None else "batch_sampler"] = feed
        if progress.position:
            # torch seeds workers by a draw, from its global generator if need be: a resumed run makes none for an epoch
            # whose beginning has made it already.
            words = [self._seed, progress.epoch, progress.stream, progress.position, self._comm.rank]
            seed = int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0]) >> 1
            changes["generator"] = torch.Generator().manual_seed(seed)
            changes["in_order"] = True  # A step may leave ranks without samples here, and has to be found again.
        loader.__dict__.update(changes)  # torch refuses to set some of these
        return loader

    @property
    def ranks(self) -> int:
        """Return the number of ranks."""
        return self._comm.size


def _begun(loader: DataLoader[Any]) -> Iterator[Any]:
    """Return an iterator of torch, which draws from the global generator when it begins."""
    with SETTING:
        return iter(loader)


class _Pass(Iterator[Any]):
    """One iterator over a loader."""

    def __init__(self, loader: ShardedLoader, progress: _Progress, plan: Plan) -> None:
        self._loader, self.progress, self._plan = loader, progress, plan
        self._left = plan.steps(progress.position)
        self._batches = loader.batches(progress, plan, self)

    def __next__(self) -> Any:
        self._loader.asked(self.progress, self)
        position = self.progress.position
        try:
            batch = next(self._batches, _END)
        except Exception:
            self._loader.handed(self.progress, self._plan.count(position))
            raise
        if batch is _END:
            self._loader.ended(self.progress, self)
            raise StopIteration
        count = self._plan.count(position)
        if count < self._loader.ranks and not self._plan.mine(position):
            batch = self._empty(batch)
        self._loader.handed(self.progress, count)
        return batch

    def __len__(self) -> int:
        return self._left

    def is_fresh(self, era: int) -> bool:
        """Return True until a batch was given out."""
        return self.progress.era == era and not self.progress.handed and not self.progress.ended

    def _empty(self, lent: Any) -> Any:
        """Return a batch of no samples, as the loader makes one or in the structure of one with a sample."""
        try:
            samples = [] if self._loader.batch_sampler is not None else self._loader.dataset[[]]
            return self._loader.collate_fn(samples)
        except Exception:  # noqa: BLE001 - of the user's, and most fail on nothing
            return emptied(lent)


class _Feed:
    """The keys of this rank's batches, as torch asks for them."""

    def __init__(self, plan: Plan, position: int, *, single: bool) -> None:
        self._plan, self._position, self._single = plan, position, single

    def point(self, other: _Feed) -> None:
        """Give the keys of another feed from the next `iter` on."""
        self._plan, self._position = other._plan, other._position

    def __iter__(self) -> Iterator[Any]:
        return self._keys(self._plan, self._position)

    def __len__(self) -> int:
        return self._plan.steps(self._position)

    def _keys(self, plan: Plan, position: int) -> Iterator[Any]:
        while count := plan.count(position):
            keys = plan.mine(position) or plan.lent(position)
            yield keys[0] if self._single else keys
            position += count
