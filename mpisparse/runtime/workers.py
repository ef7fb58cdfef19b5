"""Worker processes: what schedulers send to all processes of a rank is meant for the rank, and ends no worker of it."""

from __future__ import annotations

import signal
from multiprocessing import util
from typing import Any

#: Signals by which a rank is told to save, and that its workers outlive: they are needed until it has.
_OF_THE_RANK = (signal.SIGUSR1, signal.SIGINT)


def shield_workers() -> None:
    """Have multiprocessing start processes with SIGUSR1 and SIGINT blocked, by any method. SIGTERM still ends them.

    Workers of a DataLoader among them, and the server that forks them. A started program keeps no handler of its
    parent, but does keep which signals were blocked; what was forked keeps those of the server. May be called again.
    """
    # The one place through which spawn, forkserver and the resource tracker start their programs.
    start = util.spawnv_passfds
    if getattr(start, "shields", False):
        return

    def start_shielded(*arguments: Any) -> Any:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_THE_RANK)
        try:
            return start(*arguments)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    start_shielded.shields = True  # type: ignore[attr-defined]
    util.spawnv_passfds = start_shielded  # type: ignore[assignment]
    util.register_after_fork(start_shielded, _after_fork)


def _after_fork(_: object) -> None:
    """In a worker that was forked: forget the handlers of the rank, SIGTERM's as well, which would not end it."""
    for number in _OF_THE_RANK:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
