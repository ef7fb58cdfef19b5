"""A limit on how long MPI may take to start.

A rank that starts MPI waits for all others, and for the launcher's process manager, without any limit, and nothing else
of it is there yet that could tell of that. A process manager can lose a message: Slurm's pmi2 was seen to, upon which
eight ranks waited until somebody ended them.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from mpisparse.comm.launcher import promised_rank
from mpisparse.errors import ConfigError
from mpisparse.words import visible

VARIABLE = "MPISPARSE_START_LIMIT"
#: Seconds. Ranks whose Python comes from a busy network file system are minutes apart.
DEFAULT = 600.0


def start_limit(environ: Mapping[str, str] = os.environ) -> float:
    """Return the seconds that MPI may take to start: what the environment says, 0 for no limit.

    Raises:
        ConfigError: it says something else than a number that is not negative.
    """
    text = environ.get(VARIABLE, "")
    try:
        seconds = float(text) if text else DEFAULT
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ConfigError(f"{VARIABLE}={text!r:.40} is no number of seconds: give one such as 600, or 0 for no limit")
    return seconds


def words_of(seconds: float, environ: Mapping[str, str] = os.environ) -> str:
    """Return what a process says that ends because MPI did not start within `seconds`."""
    return (
        f"mpisparse: HangError: MPI did not start within {seconds:g} s on rank {promised_rank(environ) or 0} "
        f"({os.uname().nodename}): other ranks did not come to it, or the launcher's process manager does not answer. "
        f"This process ends itself. Look for the launcher's own words, and start again; "
        f"{VARIABLE} gives it more seconds"
    )


@contextmanager
def ended_after(seconds: float, words: str) -> Iterator[None]:
    """Say `words` on stderr and kill this process when the block takes more than `seconds`; 0 for no limit.

    A child watches: MPI starts inside a call that holds Python's lock, so that no thread could.
    """
    with interruptible():
        if not seconds:
            yield
            return
        with _watched(seconds, words):
            yield


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C end the process at once inside the block, where Python would wait for a call of MPI to return."""
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def _watched(seconds: float, words: str) -> Iterator[None]:
    alive, ours = os.pipe()
    with warnings.catch_warnings():
        # The child does nothing that threads of this process could have locked.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        _watch(alive, ours, seconds, words)
    os.close(alive)
    try:
        yield
    finally:
        os.close(ours)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(child, 0)


def _watch(alive: int, ours: int, seconds: float, words: str) -> None:
    """Wait until the other end of a pipe is closed, as it is when the parent is done or dead, and end this process."""
    try:
        os.close(ours)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        parent = os.getppid()
        ready, _, _ = select.select([alive], [], [], seconds)
        if not ready and os.getppid() == parent:
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"{visible(words)}\n".encode())
            os.kill(parent, signal.SIGKILL)
    finally:
        os._exit(0)
