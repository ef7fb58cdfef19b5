"""The abort hook: an exception that nobody caught on one rank ends the job, instead of leaving the others waiting."""

from __future__ import annotations

import array
import fcntl
import os
import stat
import sys
import termios
import threading
import traceback
from time import monotonic, sleep
from types import TracebackType
from typing import NoReturn, TextIO

from mpi4py import MPI
from mpi4py.run import set_abort_status

from mpisparse.errors import MpiSparseError

#: Seconds that a launcher gets to read what a rank said last; it reads within milliseconds unless the machine is full.
_HEARD_LIMIT = 5.0


def install_abort_hook(rank: int, size: int) -> None:
    """Make an uncaught exception print its traceback with the rank on every line, and end the job.

    Needs no `python -m mpi4py`. So does `sys.exit` with a status that is not 0. Errors that all ranks raise alike are
    printed by rank 0 alone.
    """

    def report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if rank != 0 and isinstance(error, MpiSparseError) and error.on_all_ranks:
            return
        text = "".join(traceback.format_exception(kind, error, trace))
        sys.stderr.write("".join(f"[rank {rank} of {size}] {line}\n" for line in text.splitlines()))
        wait_until_heard(sys.stderr)

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        report(kind, error, trace)
        if size > 1:
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
            set_abort_status(SystemExit(status))
        raise SystemExit(status)

    sys.exit = leave
    sys.excepthook = hook
    threading.excepthook = thread_hook


def abort_job(code: int) -> None:
    """End all ranks of the job with exit code `code`; return only when this process is the whole job."""
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
