"""The abort hook: an exception that nobody caught on one rank ends the job, instead of leaving the others waiting."""

from __future__ import annotations

import sys
import threading
import traceback
from types import TracebackType
from typing import NoReturn

from mpi4py import MPI
from mpi4py.run import set_abort_status

from mpisparse.errors import MpiSparseError


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
        sys.stderr.flush()

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
        sys.stderr.flush()
        MPI.COMM_WORLD.Abort(code)
