"""Phases: how many seconds of a step went where."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter_ns

#: What a step is made of, in the order it happens. "agree" is waiting for the slowest rank, and the checks that all
#: ranks make together; "exchange" is moving the payloads.
NAMES = ("data", "compute", "agree", "sparsify", "encode", "exchange", "decode", "apply")


class Phases:
    """Nanoseconds spent in each phase since the last `take`. Reading the clock twice a phase is all it costs.

    A phase inside another takes its time away from that one, so that phases add up to the time that passed.
    """

    def __init__(self) -> None:
        self._spent = dict.fromkeys(NAMES, 0)
        self._inside = 0

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add the time the block takes to phase `name`, also when it ends in an exception."""
        before, self._inside = self._inside, 0
        begin = perf_counter_ns()
        try:
            yield
        finally:
            whole = perf_counter_ns() - begin
            self._spent[name] += whole - self._inside
            self._inside = before + whole

    def take(self) -> dict[str, float]:
        """Return the seconds of every phase, and start again from zero."""
        seconds = {name: spent * 1e-9 for name, spent in self._spent.items()}
        self._spent = dict.fromkeys(NAMES, 0)
        return seconds
