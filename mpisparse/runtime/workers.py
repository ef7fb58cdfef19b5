"""Worker processes: what schedulers send to all processes of a rank is meant for the rank, and ends no worker of it."""

from __future__ import annotations

import os
import signal
import threading
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
    _hold_sigterm_in_forks()


def _hold_sigterm_in_forks() -> None:
    """Have a process that is forked find a SIGTERM that was sent to it before Python was itself again in it.

    Python forgets in a new child what came until then: a worker that is ended in the moment of its start would live on.
    """
    masks = threading.local()

    def block() -> None:
        masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))

    def restore() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, masks.before)

    os.register_at_fork(before=block, after_in_parent=restore, after_in_child=restore)


def _after_fork(_: object) -> None:
    """In a worker that was forked: forget the handlers of the rank, SIGTERM's as well, which would not end it."""
    for number in _OF_THE_RANK:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
