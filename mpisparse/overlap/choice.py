"""Choice: whether to overlap, found out by trying."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter_ns
from typing import Literal

from mpisparse.comm import Communicator
from mpisparse.terminal import say

Overlap = Literal["auto", "on", "off"]

#: A trial: whether each of its steps overlaps. The first ones look at how the program goes about its gradients, and let
#: buffers grow; the others, in turn so that a drift hits both, are measured.
_WARM_UP = (False, False, False, True, True)
_MEASURED = (False, True) * 6


class Choice:
    """Whether the next step overlaps. The same on all ranks, as it depends on nothing that one rank alone knows.

    "on" and "off" are what they say. "auto" takes a few steps each way, with the same numerical results, compares the
    medians of the slowest rank's times, and stays with the faster.
    """

    def __init__(self, mode: Overlap, comm: Communicator, say: Callable[[str], None] | None = None) -> None:
        self.overlaps = mode == "on"
        self.settled = mode != "auto"
        self.say = say or say_on_stderr
        self._comm = comm
        self._steps = 0
        self._ended: int | None = None
        self._times: list[int] = []

    def settle(self, overlaps: bool, reason: str = "") -> None:
        """End the trial, and say why on rank 0 if there is something to say. Every rank has to do the same."""
        self.overlaps, self.settled = overlaps, True
        if reason and self._comm.rank == 0:
            self.say(f"overlap: {'on' if overlaps else 'off'}, {reason}")

    def step_ended(self, counts: bool) -> None:
        """Note that a step has ended. Collective where a trial comes to its end.

        Args:
            counts: whether there was something to overlap in it.
        """
        if self.settled:
            return
        before, self._ended = self._ended, perf_counter_ns()
        if not counts or before is None:
            return
        if self._steps >= len(_WARM_UP):
            self._times.append(self._ended - before)
        self._steps += 1
        plan = _WARM_UP + _MEASURED
        if self._steps < len(plan):
            self.overlaps = plan[self._steps]
        else:
            self._compare()

    def _compare(self) -> None:
        slowest = self._comm.allgather(self._times).max(axis=0)
        without, overlapped = (
            1e-6 * median(slowest[i] for i, overlaps in enumerate(_MEASURED) if overlaps == wanted)
            for wanted in (False, True)
        )
        if overlapped < without:
            self.settle(True, f"{overlapped:.1f} ms a step against {without:.1f} ms without")
        else:
            self.settle(False, f"{without:.1f} ms a step against {overlapped:.1f} ms with")


def say_on_stderr(line: str) -> None:
    """Print a line for people."""
    say(line, error=True)
