"""The process that has imported everything, and forks programs for stubs.

Started by `tests.warm.Server`. It ends with its standard input, and kills then what still runs.
"""

from __future__ import annotations

import array
import atexit
import ctypes
import fcntl
import gc
import importlib
import json
import os
import random
import runpy
import selectors
import signal
import socket
import sys
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType
from typing import NoReturn

import mpi4py.run
import numpy as np

from mpisparse.memory import ErrorFeedback, MomentumCorrection, NoMemory
from mpisparse.rehearsal import rehearse
from mpisparse.wire import ValueCoding, Wire

#: What exchanges of programs have in common: their kernels are loaded once, here.
_MEMORIES = (NoMemory(), ErrorFeedback(), MomentumCorrection())
_VALUES: tuple[ValueCoding, ...] = ("auto", "float32", "sign")

#: What programs import. None of it starts a thread, or MPI.
_IMPORTED = (
    "mpisparse", "mpisparse.cli", "mpisparse.training", "mpisparse.bench", "analysis", "analysis.__main__", "jobs",
    "torch.utils.data", "torch.optim", "numba", "h5py", "pytest",
)  # fmt: skip

#: Files of a program are first moved up here, so that none lies where another is to be.
_ABOVE = 512


@dataclass(frozen=True)
class Request:
    """A program to start: what Python's command line, environment and open files are to be.

    files: the number that each file has here, by the number that it is to have.
    """

    directory: str
    arguments: list[str]
    environment: dict[str, str]
    files: dict[int, int]


@dataclass(frozen=True)
class Child:
    """A process that was forked, and whom to tell how it ended."""

    stub: socket.socket
    process: int


class Forks:
    """Forks a process for each stub that comes, and tells it how that ended."""

    def __init__(self, path: str) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(path)
        self._listener.listen(64)
        self._children: dict[int, Child] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(sys.stdin, selectors.EVENT_READ)
        self._selector.register(self._listener, selectors.EVENT_READ)

    def serve(self) -> Request | None:
        """Return what to start in each process that was forked, and None in the server when its input has ended."""
        while True:
            for key, _ in self._selector.select():
                if self._selector.get_map().get(key.fd) is not key:
                    continue  # Closed on the way, by what came before it.
                if key.fileobj is sys.stdin:
                    self._kill_all()
                    return None
                if key.fileobj is self._listener:
                    request = self._start()
                    if request is not None:
                        return request
                elif key.data is None:
                    self._ended(key.fd)
                elif key.data in self._children:
                    # The stub was killed, and whoever did that meant the process.
                    self._selector.unregister(key.fileobj)
                    self._kill(self._children[key.data])

    def _start(self) -> Request | None:
        stub, _ = self._listener.accept()
        request = _receive(stub)
        if request is None or not request.arguments:
            if request is not None:
                self._end_abandoned()
                _tell(stub, 0)
            stub.close()
            return None
        process = os.fork()
        if process == 0:
            self._forget(stub)
            return request
        for file in request.files.values():
            os.close(file)
        child = Child(stub, process)
        pidfd = os.pidfd_open(process)
        self._children[pidfd] = child
        self._selector.register(pidfd, selectors.EVENT_READ, None)
        self._selector.register(stub, selectors.EVENT_READ, pidfd)
        _tell(stub, process)
        return None

    def _ended(self, pidfd: int) -> None:
        child = self._children.pop(pidfd)
        _, status = os.waitpid(child.process, 0)
        self._selector.unregister(pidfd)
        os.close(pidfd)
        with suppress(KeyError):
            self._selector.unregister(child.stub)
        _tell(child.stub, status)
        child.stub.close()

    def _end_abandoned(self) -> None:
        """Kill the processes whose stubs are gone, and return when they have ended."""
        for pidfd, child in list(self._children.items()):
            with suppress(BlockingIOError):
                if not child.stub.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
                    self._kill(child)
                    self._ended(pidfd)

    def _forget(self, stub: socket.socket) -> None:
        """Close in a new process what is the server's."""
        self._selector.close()
        self._listener.close()
        stub.close()
        for pidfd, child in self._children.items():
            os.close(pidfd)
            child.stub.close()

    def _kill_all(self) -> None:
        for child in self._children.values():
            self._kill(child)

    def _kill(self, child: Child) -> None:
        with suppress(ProcessLookupError):
            os.kill(child.process, signal.SIGKILL)


def _receive(stub: socket.socket) -> Request | None:
    """Return what a stub asks for, or None if it has ended."""
    numbers = array.array("i")
    head, ancillary, _, _ = stub.recvmsg(8, socket.CMSG_SPACE(256 * numbers.itemsize))
    for _, _, data in ancillary:
        numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
    body = b""
    while len(head) == 8 and len(body) < int.from_bytes(head, "little"):
        more = stub.recv(1 << 20)
        if not more:
            break
        body += more
    if len(head) < 8 or len(body) < int.from_bytes(head, "little"):
        for file in numbers:
            os.close(file)
        return None
    said = json.loads(body)
    files = dict(zip(said["files"], numbers, strict=True))
    return Request(said["directory"], said["arguments"], said["environment"], files)


def _tell(stub: socket.socket, number: int) -> None:
    with suppress(OSError):
        stub.sendall(number.to_bytes(8, "little"))


def _become(request: Request) -> None:
    """Make this process what Python is when it begins the program."""
    raised = {number: fcntl.fcntl(file, fcntl.F_DUPFD, _ABOVE) for number, file in request.files.items()}
    for file in request.files.values():
        os.close(file)
    for number, file in raised.items():
        os.dup2(file, number)
        os.close(file)
    os.setsid()
    os.chdir(request.directory)
    os.environ.clear()
    os.environ.update(request.environment)
    tempfile.tempdir = None
    random.seed()
    np.random.seed()  # noqa: NPY002 - programs draw from it


def _run(arguments: list[str]) -> None:
    """Run a program as `python ARGUMENTS` does."""
    kind, rest = arguments[0], arguments[1:]
    if kind == "-u":
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(write_through=True)  # type: ignore[union-attr]
        kind, *rest = rest
    # The directory of the server's own program comes first, which is the checkout.
    if kind == "-m":
        sys.path[0] = os.getcwd()
        sys.argv = ["-m", *rest[1:]]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.path[0] = ""
        sys.argv = ["-c", *rest[1:]]
        module = sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), vars(module))
    else:
        sys.path[0] = os.path.dirname(os.path.abspath(kind))
        sys.argv = [kind, *rest]
        runpy.run_path(kind, run_name="__main__")


def _record_abort_status() -> list[int]:
    """Return a list that gets what `mpi4py.run.set_abort_status` is told: mpi4py itself heeds it where Python ends."""
    told: list[int] = []
    mpi4py.run.set_abort_status = lambda status: told.append(_code(status))
    return told


def _code(error: BaseException | None) -> int:
    """Return what a process exits with that ends by an error, or by none."""
    if isinstance(error, SystemExit):
        return error.code & 255 if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    return int(error is not None)


def _leave(error: BaseException | None, aborts: list[int]) -> NoReturn:
    """End this process as Python does after an error or none, but without taking all of its modules down first.

    That would write to each of their pages, which are the server's until then.
    """
    if isinstance(error, SystemExit):
        if isinstance(error.code, str):
            sys.stderr.write(error.code + "\n")
    elif error is not None:
        sys.excepthook(type(error), error, error.__traceback__)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(ValueError, OSError):
            stream.flush()
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is not None and mpi.Is_initialized() and not mpi.Is_finalized():
        if aborts:
            mpi.COMM_WORLD.Abort(aborts[0])
        # Without letting go of Python's lock: its other threads have stopped when it ends MPI itself.
        ctypes.PyDLL(mpi.__file__).MPI_Finalize()
    if isinstance(error, KeyboardInterrupt):
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    # By the C library, whose handlers tell the launcher that MPI has ended.
    ctypes.PyDLL(None).exit(_code(error))
    raise AssertionError("exit() came back")


def main(path: str) -> None:
    """Serve; in each process that is forked, be the program, and end as it does."""
    for name in _IMPORTED:
        importlib.import_module(name)
    rehearse("biased", ErrorFeedback(), Wire())
    for memory in _MEMORIES:
        for kind in ("dense", "biased", "amplifying", "drawing"):
            rehearse(kind, memory, Wire())
    threads = os.listdir("/proc/self/task")
    if len(threads) > 1 or "mpi4py.MPI" in sys.modules:
        sys.exit(f"{len(threads)} threads, MPI {'mpi4py.MPI' in sys.modules}: neither lives through a fork")
    gc.collect()
    gc.freeze()
    forks = Forks(path)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    request = forks.serve()
    del forks
    if request is None:
        return
    _become(request)
    aborts = _record_abort_status()
    try:
        _run(request.arguments)
    except BaseException as error:  # noqa: BLE001 - whatever a program ends by
        _leave(error, aborts)
    _leave(None, aborts)
