"""Preemption: a job that is told to end, or whose time runs out, ends where it can go on later."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import CLOCK_BOOTTIME, clock_gettime, monotonic
from types import FrameType, TracebackType

from mpisparse.arguments import is_number, short
from mpisparse.errors import ConfigError
from mpisparse.runtime.workers import shield_workers

#: The exit code of a job that saved its state and is to be started again: EX_TEMPFAIL of sysexits.h.
EXIT_CODE = 75

#: The same of one that somebody interrupted at the keyboard, as shells have it.
INTERRUPTED = 130

#: Signals by which schedulers and people announce the end.
SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)

#: Seconds in which further SIGINTs are the same Ctrl-C: a terminal sends it to all processes, and launchers pass it on.
SAME_INTERRUPT = 1.0

#: Seconds that a save is taken for until one was measured, or this part of the limit if that is less.
_SAVE, _PART = 30.0, 0.25

#: Time is kept back for so many saves and steps of the longest kind, and for leaving.
_TIMES, _LEAVE = 2.0, 1.0


class Preemption:
    """Notes on this rank that the job is to end: a signal came, or little is left of its time.

    A context that takes over SIGUSR1, SIGTERM and SIGINT (Ctrl-C) of the process while it is open. They are only noted,
    SIGUSR1 and SIGTERM however often they come, as schedulers send them to launchers and to ranks. A second Ctrl-C, a
    second or more after the first, raises KeyboardInterrupt: somebody is in a hurry. Left by SystemExit, the context
    has the process ignore all three until its end; else what was there before is back.

    Ask `reason` between steps, tell the others by `DistributedOptimizer.request_stop`, and save once `stopping` says
    that all ranks know: after the same step on all of them. Launchers pass signals on to all ranks, but one is enough.

    Example:
        >>> with Preemption() as preemption:
        ...     os.kill(os.getpid(), signal.SIGUSR1)
        ...     preemption.reason
        'SIGUSR1'

    Args:
        time_limit: seconds from the start of this process until it will be ended; 0 is no limit. It is to stop in time
            for twice the longest step (with all that came between steps) and twice the longest save that were told.
        interrupts: whether a first SIGINT is noted from the start. If not, it raises KeyboardInterrupt, except
            inside `holding_interrupts`, where there is something to save.

    Raises:
        ConfigError: a limit below 0.
    """

    def __init__(self, time_limit: float = 0.0, *, interrupts: bool = True) -> None:
        self.time_limit = time_limit
        self._signal = ""
        self._holds = interrupts
        self._interrupted: float | None = None
        self._process = os.getpid()
        self._before: dict[signal.Signals, object] = {}
        self._started = monotonic() - _age()
        self._stepped: float | None = None
        self._longest_step = 0.0
        self._longest_save: float | None = None

    @property
    def time_limit(self) -> float:
        """Return the seconds that the process has, from its start; 0 is no limit."""
        return self._limit

    @time_limit.setter
    def time_limit(self, seconds: float) -> None:
        if not is_number(seconds) or not seconds >= 0:
            raise ConfigError(f"the time limit is {short(seconds)} s: give seconds, such as 3600, or 0 to do without")
        self._limit = seconds

    @property
    def reason(self) -> str:
        """Return why this rank's job is to end, or nothing while it is not."""
        if self._signal or not self._limit:
            return self._signal
        left = self._started + self._limit - monotonic()
        needed = self.needed
        return f"{left:.0f} s are left, and stopping may take {needed:.0f} s" if left < needed else ""

    @property
    def needed(self) -> float:
        """Return the seconds that are kept back for stopping."""
        save = min(_SAVE, _PART * self._limit) if self._longest_save is None else self._longest_save
        return _TIMES * (self._longest_step + save) + _LEAVE

    def stepped(self) -> None:
        """Note that a step has ended."""
        now = monotonic()
        if self._stepped is not None:
            self._longest_step = max(self._longest_step, now - self._stepped)
        self._stepped = now

    def saved(self, seconds: float) -> None:
        """Note how long a save took."""
        self._longest_save = max(self._longest_save or 0.0, seconds)

    @property
    def exit_code(self) -> int:
        """Return what a program exits with that has saved for `reason`, were this its only rank."""
        return exit_code_of([self._signal])

    @property
    def interrupts_that_end(self) -> int:
        """Return how many SIGINTs it takes, from the first one on, until the program is to end at once."""
        return 2 if self._holds else 1

    @contextmanager
    def holding_interrupts(self) -> Iterator[None]:
        """Note a first SIGINT inside the block, as the others are."""
        before, self._holds = self._holds, True
        try:
            yield
        finally:
            self._holds = before

    def __enter__(self) -> Preemption:
        shield_workers()
        # Python lets the main thread alone take over signals; ranks that are threads do without.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A program that is leaving is not to be killed by a signal that is sent twice: its exit code would be lost.
        leaves = isinstance(error, SystemExit)
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if leaves else handler)  # type: ignore[arg-type]
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            # A child that was forked this moment, and has not forgotten its parent's handlers yet.
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        if number == signal.SIGINT:
            now = monotonic()
            again = self._interrupted is not None and now - self._interrupted >= SAME_INTERRUPT
            if again or not self._holds:
                raise KeyboardInterrupt
            self._interrupted = self._interrupted or now
        self._signal = self._signal or signal.Signals(number).name


def exit_code_of(reasons: Iterable[str]) -> int:
    """Return what a job exits with that has saved, from every rank's `Preemption.reason`: 130 after Ctrl-C, else 75."""
    return INTERRUPTED if signal.SIGINT.name in reasons else EXIT_CODE


def _age() -> float:
    """Return for how many seconds this process has been there; 0 where the system does not tell."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
        return max(0.0, clock_gettime(CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK"))
    except (OSError, IndexError, ValueError):
        return 0.0
