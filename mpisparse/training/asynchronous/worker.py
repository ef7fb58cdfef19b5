"""Workers: what one rank of an asynchronous run does with its samples, and what it remembers of that."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpisparse import random
from mpisparse.comm import SharedWindow, Window
from mpisparse.errors import CommError, NonFiniteError
from mpisparse.kernels import linear
from mpisparse.kernels.linear import Choice, Samples
from mpisparse.kernels.vectors import Vector
from mpisparse.sparsifiers import Sparsifier

#: Times that the cost of undisturbed writes is measured; the least counts.
_TRIES = 200


@dataclass
class Record:
    """What updates came to, of one rank or of several.

    staleness: updates by others between read and write: their sum, the largest, and how many updates had 0, 1, 2 to 3,
    4 to 7 and so on.
    conflicts, waiting: see `Worker`.
    """

    updates: int = 0
    entries: int = 0
    conflicts: int | None = 0
    waiting: float = 0.0
    stale_sum: int = 0
    stalest: int = 0
    bins: NDArray[np.int64] = field(default_factory=lambda: np.zeros(linear.BINS, np.int64))

    @staticmethod
    def of(fields: dict[str, Any]) -> Record:
        """Return the record that gave these fields."""
        stale, bins = fields["staleness"], np.zeros(linear.BINS, np.int64)
        for low, count in stale["histogram"]:
            bins[int(low).bit_length()] = count
        updates = fields["updates"]
        stale_sum = round(stale["mean"] * updates)
        entries, conflicts, waiting = (fields[key] for key in ("entries_written", "conflicts", "waiting_seconds"))
        return Record(updates, entries, conflicts, waiting, stale_sum, stale["max"], bins)

    def fields(self) -> dict[str, Any]:
        """Return the record as the run log has it."""
        lows = [0, *(2**bin_ for bin_ in range(linear.BINS - 1))]
        histogram = [[low, count] for low, count in zip(lows, self.bins.tolist(), strict=True) if count]
        mean = self.stale_sum / max(1, self.updates)
        return {
            "updates": self.updates,
            "entries_written": self.entries,
            "conflicts": self.conflicts,
            "waiting_seconds": round(self.waiting, 9),
            "staleness": {"mean": mean, "max": self.stalest, "histogram": histogram},
        }


def total(records: list[Record]) -> Record:
    """Return what the updates of several ranks came to."""
    known = [record.conflicts for record in records if record.conflicts is not None]
    return Record(
        updates=sum(record.updates for record in records),
        entries=sum(record.entries for record in records),
        conflicts=sum(known) if len(known) == len(records) else None,
        waiting=sum(record.waiting for record in records),
        stale_sum=sum(record.stale_sum for record in records),
        stalest=max(record.stalest for record in records),
        bins=np.sum([record.bins for record in records], axis=0),
    )


class Worker(ABC):
    """Reads the parameters, computes a gradient, chooses entries and adds them, again and again.

    The gradient is that of the loss on the samples plus that of the penalty, and the rule is put to their sum. So the
    mean of what is added is the whole gradient, and a sparse update writes few entries. (Adding the penalty's gradient
    apart from the rule would write every entry in every update.)

    Its record's `conflicts` are compare-and-swap attempts that failed, None where nobody counts them; `waiting` are the
    seconds that other ranks, or the network, cost it.
    """

    @abstractmethod
    def update(self, order: NDArray[np.int64], rate: float) -> None:
        """Make one update for every batch of `order`, rows of the samples, at that learning rate.

        Raises:
            NonFiniteError: the parameters have diverged.
        """

    @abstractmethod
    def finish(self) -> Record:
        """Return what all updates came to."""


class CompiledWorker(Worker):
    """A worker on shared memory, whose updates are made in compiled code, and draw from a table.

    Of every 16 updates, the first has its writes timed. What the same number of writes takes that nobody disturbs,
    measured beforehand, is subtracted, and the rest, scaled to all updates, is the time waited: for entries that moved
    to another core, and in failed attempts. Waiting for what is read is not in it, and neither are the few timed
    updates that took over a millisecond, as the rank lost its core there.
    """

    def __init__(self, window: SharedWindow, samples: Samples, batch: int, choice: Choice) -> None:
        self._window, self._samples, self._batch, self._choice = window, samples, batch, choice
        self._position = 0
        self._scratch, self._tally = linear.make_scratch(window.numel), linear.make_tally()
        self._undisturbed = self._rehearse()

    def update(self, order: NDArray[np.int64], rate: float) -> None:
        """Make updates; see `Worker.update`."""
        self._position = self._run(self._window.parameters, self._window.updates, order, rate, self._tally)

    def finish(self) -> Record:
        """Return what all updates came to, the time waited included."""
        counts, staleness = self._tally
        fixed, each = self._undisturbed
        timed = int(counts[linear.TIMED_UPDATES])
        alone = fixed * timed + each * int(counts[linear.TIMED_ENTRIES])
        disturbed = max(0.0, int(counts[linear.TIMED_NANOSECONDS]) - alone) * 1e-9
        return Record(
            updates=int(counts[linear.UPDATES]),
            entries=int(counts[linear.ENTRIES]),
            conflicts=int(counts[linear.CONFLICTS]),
            waiting=disturbed * int(counts[linear.UPDATES]) / max(1, timed),
            stale_sum=int(counts[linear.STALENESS]),
            stalest=int(counts[linear.STALEST]),
            bins=staleness,
        )

    def _run(
        self, parameters: Vector, updates: NDArray[np.int64], order: NDArray[np.int64], rate: float, tally: linear.Tally
    ) -> int:
        position = linear.update(
            parameters,
            updates,
            self._samples,
            order,
            self._batch,
            np.float32(rate),
            self._choice,
            self._position,
            self._scratch,
            tally,
        )
        if position == linear.DIVERGED:
            _refuse_divergence(rate)
        if position < 0:
            raise CommError("the arrays of an update do not fit each other: this is a mistake in mpisparse")
        return int(position)

    def _rehearse(self) -> tuple[float, float]:
        """Compile or load the loop; return nanoseconds that timing no write takes, and that each write adds to it."""
        numel = self._window.numel
        own, updates = np.zeros(numel, np.float32), np.zeros(1, np.int64)
        self._run(own, updates, np.zeros(1, np.int64), 1e-3, linear.make_tally())
        values = np.zeros(numel, np.float32)
        empty = min(linear.time_writes(own, values[:0]) for _ in range(_TRIES))
        full = min(linear.time_writes(own, values) for _ in range(_TRIES))
        return float(empty), (full - empty) / numel


class StepwiseWorker(Worker):
    """A worker on any window, with any unbiased rule: each step is a call, as befits a network that takes far longer.

    The time waited is that in which MPI was asked to finish what this rank reads or adds; conflicts are not counted.
    """

    def __init__(self, window: Window, samples: Samples, batch: int, rule: Sparsifier, seed: int, rank: int) -> None:
        self._window, self._samples, self._batch, self._rule = window, samples, batch, rule
        self._seed, self._rank = seed, rank
        self._weights, self._gradient = np.zeros((2, window.numel), np.float32)
        self._record = Record(conflicts=window.counters.conflicts)
        linear.gradient_of(samples, np.zeros(1, np.int64), self._weights, self._gradient)
        rule.select(self._gradient)

    def update(self, order: NDArray[np.int64], rate: float) -> None:
        """Make updates; see `Worker.update`."""
        for first in range(0, order.size, self._batch):
            seen = self._window.read(self._weights)
            chosen = order[first : first + self._batch]
            if not linear.gradient_of(self._samples, chosen, self._weights, self._gradient):
                _refuse_divergence(rate)
            before = self._write(np.float32(rate))
            self._note(before - seen)

    def finish(self) -> Record:
        """Return what all updates came to."""
        done = self._window.counters
        record = self._record
        record.updates, record.entries = done.updates, done.entries
        record.conflicts, record.waiting = done.conflicts, done.waiting
        return record

    def _write(self, rate: np.float32) -> int:
        if self._rule.sends_everything:
            return self._window.add_dense(-rate * self._gradient)
        draws = random.generator(self._seed, self._rank, self._window.counters.updates, 0)
        chosen = self._rule.select(self._gradient, draws)
        return self._window.add(chosen.indices, -rate * chosen.values)

    def _note(self, others: int) -> None:
        # Counts that were on their way together with what they count may be off by a few.
        others = max(0, others)
        self._record.stale_sum += others
        self._record.stalest = max(self._record.stalest, others)
        self._record.bins[min(others.bit_length(), linear.BINS - 1)] += 1


def _refuse_divergence(rate: float) -> None:
    raise NonFiniteError(
        f"a score is NaN or infinite at learning rate {rate:g}: the shared parameters have diverged; lower optimizer.lr"
    )
