"""Programs that start within tenths of a second: a server that has imported everything forks them.

Four fifths of a short job on real ranks are imports. `Server` is a process of one thread, without MPI, that has made
them once. In the place of Python a launcher starts `stub.py`, which hands the server directory, arguments, environment
and all open files, launchers' sockets among them, passes signals on to the process that is forked, and ends as it ends.

What differs from a start of Python's own: the ranks' parent is the server, their process group and session are their
own, and they share one seed of hashes. Tests of launches, of signals to groups, and of what is read at import start
Python.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

_HERE = Path(__file__).parent

#: Variables that libraries read when they are imported begin so: with other values than the server's, start Python.
_READ_AT_IMPORT = ("GOMP_", "KMP_", "LANG", "LC_", "LD_", "MKL_", "NUMBA_", "OMP_", "OPENBLAS_", "PYTHON", "TORCH_")


class Server:
    """Forks programs for stubs until this process ends."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = {**environment, "OMP_NUM_THREADS": "1"}
        # The path of a socket has 107 characters at most, which TMPDIR may have alone.
        self._folder = tempfile.mkdtemp(prefix="mpisparse-warm-", dir="/tmp")
        self._socket = str(Path(self._folder) / "socket")
        # Its standard input tells it when this process is gone, however that ends.
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from tests.warm.server import main; main({self._socket!r})"],
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self.close = weakref.finalize(self, _close, self._process, self._folder)
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"ready\n":
            raise RuntimeError(f"tests.warm.server did not start: exit code {self._process.wait()}")

    def may_start(self, environment: Mapping[str, str]) -> bool:
        """Return True when a program with this environment is the same if it is forked."""
        if self._process.poll() is not None:
            raise RuntimeError(f"tests.warm.server has ended with exit code {self._process.returncode}: see above why")
        mine = {k: v for k, v in self._environment.items() if k.startswith(_READ_AT_IMPORT)}
        theirs = {k: v for k, v in environment.items() if k.startswith(_READ_AT_IMPORT)}
        return {**theirs, "OMP_NUM_THREADS": theirs.get("OMP_NUM_THREADS", "1")} == mine

    def end_abandoned(self) -> None:
        """Return when no process runs any more whose stub was killed."""
        subprocess.run(self.command([]), check=True, stdin=subprocess.DEVNULL, timeout=60)

    def command(self, arguments: Sequence[str]) -> list[str]:
        """Return the command that starts what `python ARGUMENTS` would."""
        return [sys.executable, "-I", "-S", str(_HERE / "stub.py"), self._socket, *arguments]

    def write_program(self, folder: Path) -> None:
        """Write a program `mpisparse` that is forked, for a folder on the path of a shell."""
        program = folder / "mpisparse"
        command = shlex.join(self.command([str(Path(sys.executable).with_name("mpisparse"))]))
        program.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        program.chmod(0o755)


def _close(process: subprocess.Popen[bytes], folder: str) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    process.stdout.close()
    process.wait()
    for name in os.listdir(folder):
        os.unlink(os.path.join(folder, name))
    os.rmdir(folder)
