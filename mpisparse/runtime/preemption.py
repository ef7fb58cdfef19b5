"""Preemption: a job that is told to end, or whose time runs out, ends where it can go on later."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from time import CLOCK_BOOTTIME, clock_gettime, monotonic
from types import FrameType, TracebackType

from mpisparse.arguments import is_number, short
from mpisparse.errors import ConfigError

#: The exit code of a job that saved its state and is to be started again: EX_TEMPFAIL of sysexits.h.
EXIT_CODE = 75

#: Signals by which schedulers and people announce the end.
SIGNALS = (signal.SIGUSR1, signal.SIGTERM)

#: Seconds that a save is taken for until one was measured, or this part of the limit if that is less.
_SAVE, _PART = 30.0, 0.25

#: Time is kept back for so many saves and steps of the longest kind, and for leaving.
_TIMES, _LEAVE = 2.0, 1.0


class Preemption:
    """Notes on this rank that the job is to end: a signal came, or little is left of its time.

    A context that takes over SIGUSR1 and SIGTERM of the process while it is open. One of them is only noted; a second
    SIGTERM is not, and ends the process, as somebody is in a hurry. Left by SystemExit, it has the process ignore both
    until its end; else what was there before is back.

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

    Raises:
        ConfigError: a limit below 0.
    """

    def __init__(self, time_limit: float = 0.0) -> None:
        self.time_limit = time_limit
        self._signal = ""
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

    def __enter__(self) -> Preemption:
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
        if self._signal and number == signal.SIGTERM:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        self._signal = self._signal or signal.Signals(number).name


def _age() -> float:
    """Return for how many seconds this process has been there; 0 where the system does not tell."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
        return max(0.0, clock_gettime(CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK"))
    except (OSError, IndexError, ValueError):
        return 0.0
