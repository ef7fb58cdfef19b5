"""The abort hook: an exception that nobody caught on one rank ends the job, instead of leaving the others waiting."""

from __future__ import annotations

import array
import atexit
import fcntl
import os
import stat
import sys
import termios
import threading
import traceback
from collections.abc import Callable
from functools import cache
from time import monotonic, sleep
from types import TracebackType
from typing import NoReturn, TextIO

from mpi4py import MPI
from mpi4py.run import set_abort_status

from mpisparse.comm.base import Communicator
from mpisparse.comm.recorder import ENDED
from mpisparse.errors import MpiSparseError
from mpisparse.words import visible

#: The exit code after Ctrl-C, as shells have it.
_INTERRUPTED = 130

#: Seconds between looks whether the others have ended, too.
_GOODBYE_PAUSE = 0.01

#: Seconds that a launcher gets to read what a rank said last; it reads within milliseconds unless the machine is full.
_HEARD_LIMIT = 5.0


def install_abort_hook(rank: int, size: int, before: Callable[[], object] = lambda: None) -> None:
    """Make an uncaught exception print its traceback with the rank on every line, and end the job.

    Needs no `python -m mpi4py`. So does `sys.exit` with a status that is not 0. Errors that all ranks raise alike are
    printed by rank 0 alone.

    Args:
        before: called when it is settled that this process will end the job as it exits.
    """

    def report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if rank != 0 and isinstance(error, MpiSparseError) and error.on_all_ranks:
            return
        text = "".join(traceback.format_exception(kind, error, trace))
        lines = text.rstrip("\n").split("\n")
        sys.stderr.write("".join(f"[rank {rank} of {size}] {visible(line)}\n" for line in lines))
        wait_until_heard(sys.stderr)

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        report(kind, error, trace)
        if isinstance(error, KeyboardInterrupt):
            # Other threads, and what a program does as it exits, may wait for ranks that are blocked in MPI.
            abort_job(_INTERRUPTED)
        if size > 1:
            before()
            set_abort_status(error)

    def thread_hook(args: threading.ExceptHookArgs) -> None:
        if isinstance(args.exc_value, SystemExit):
            return
        if args.exc_value is not None:
            report(args.exc_type, args.exc_value, args.exc_traceback)
        # The main thread may be inside a collective that never ends, so there is no waiting for interpreter exit.
        MPI.COMM_WORLD.Abort(1)

    def leave(status: str | int | None = None) -> NoReturn:
        # Nobody tells an exit hook the status, and a rank that left with one would be waited for when MPI ends.
        in_main = threading.current_thread() is threading.main_thread()
        if size > 1 and in_main and status not in (None, 0):
            before()
            set_abort_status(SystemExit(status))
        raise SystemExit(status)

    sys.exit = leave
    sys.excepthook = hook
    threading.excepthook = thread_hook


def install_goodbye(comm: Communicator, limit: float) -> Callable[..., None]:
    """Make a rank whose program has ended wait for the others in Python, and return what waits. Collective.

    MPI waits for them too, but only after the interpreter has gone, when nothing of this process can say that it has
    ended while another rank waits for it. Installed again, it takes the new limit.

    Args:
        limit: seconds after which it goes on to MPI's own waiting, which has none.
    """
    leaving = _leaving(comm.root)
    atexit.unregister(_wait_for_others)
    atexit.register(_wait_for_others, leaving, os.getpid(), limit)
    return _wait_for_others


@cache
def _leaving(root: Communicator) -> Communicator:
    """Return the communicator on which ranks wait whose programs have ended. Collective when it is called first."""
    return root.duplicate(ENDED)


def _wait_for_others(leaving: Communicator, process: int, limit: float) -> None:
    if os.getpid() != process or MPI.Is_finalized():
        return
    everyone, give_up = leaving.start_allgather([0]), monotonic() + limit
    while not everyone.test() and monotonic() < give_up:
        sleep(_GOODBYE_PAUSE)


def abort_job(code: int) -> None:
    """End all ranks of the job with exit code `code`; return when MPI is not up or this process is the whole job."""
    if not MPI.Is_initialized() or MPI.Is_finalized():
        return
    if MPI.COMM_WORLD.Get_size() > 1:
        wait_until_heard(sys.stderr)
        MPI.COMM_WORLD.Abort(code)


def wait_until_heard(stream: TextIO, limit: float = _HEARD_LIMIT) -> bool:
    """Return whether all that was written to `stream` has been read, waiting up to `limit` seconds for that.

    A launcher that is told to abort kills at once, and drops what it has not yet read from the pipes of its ranks:
    the words that say why. Only a pipe can be asked; anything else counts as read.
    """
    stream.flush()
    try:
        if not stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode):
            return True
    except (OSError, ValueError):
        return True
    unread = array.array("i", [0])
    give_up = monotonic() + limit
    while True:
        fcntl.ioctl(stream.fileno(), termios.FIONREAD, unread)
        if unread[0] == 0:
            return True
        if monotonic() > give_up:
            return False
        sleep(0.005)
