"""make_here: the runs of a study on this machine, one after another."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter

from jobs.plan import Batch
from jobs.prepare import STATE
from mpisparse.errors import ConfigError
from mpisparse.training.study import describe

#: Exit codes after which no other run follows: saved to go on later, a configuration that is wrong, Ctrl-C.
_ENDING = (75, 78, 130)

MPIRUN = "mpirun -n {ranks}"


def make_here(
    directory: Path, batches: Sequence[Batch], options: Sequence[str], launcher: str, say: Callable[[str], None]
) -> int:
    """Return 0 when all runs were made, or the exit code of the first that failed.

    What a run prints goes to local.out in the directory of its batch.

    Args:
        launcher: what starts `mpisparse sweep` on {ranks} ranks.

    Raises:
        ConfigError: the launcher does not say how many ranks, or cannot be started.
    """
    if "{ranks}" not in launcher:
        raise ConfigError(
            f"the launcher {launcher!r} does not say where the number of ranks goes: write {MPIRUN!r} or so"
        )
    runs = [(batch, run) for batch in batches for run in batch.runs]
    worst = 0
    for number, (batch, run) in enumerate(runs, 1):
        begin = perf_counter()
        code = _make(directory / batch.directory, run.index, [*_launch(launcher, batch.ranks), "mpisparse"], options)
        ending = "" if code == 0 else f": exit code {code}, see {directory / batch.directory / 'local.out'}"
        place = f"{number}/{len(runs)} on {batch.ranks} rank{'s' * (batch.ranks > 1)}"
        say(f"{place}, {perf_counter() - begin:.1f} s: {run.directory} ({describe(run.settings)}){ending}")
        worst = worst or code
        if code in _ENDING:
            return code
    return worst


def _launch(launcher: str, ranks: int) -> list[str]:
    return [word.replace("{ranks}", str(ranks)) for word in shlex.split(launcher)]


def _make(place: Path, index: int, command: list[str], options: Sequence[str]) -> int:
    state = place / STATE / str(index)
    state.write_text(f"running local-{os.getpid()}\n", encoding="utf-8")
    command = [*command, "sweep", str(place / "study.toml"), "--run-dir", str(place), "--only", str(index), *options]
    # The mpirun and the mpisparse of this Python come before others.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    with (place / "local.out").open("ab") as log:
        log.write(f"$ {shlex.join(command)}\n".encode())
        log.flush()
        try:
            # In a group of its own, so that the terminal does not send Ctrl-C as well: two end MPICH's mpirun at once.
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PATH": path},
                process_group=0,
            )
        except OSError as error:
            raise ConfigError(f"cannot start {command[0]}: {error.strerror}. Give another --launcher") from error
        code = _wait(child)
    code = 128 - code if code < 0 else code
    state.write_text(f"ended {code}\n", encoding="utf-8")
    return code


def _wait(child: subprocess.Popen[bytes]) -> int:
    """Return a run's exit code. Ctrl-C is passed on to the run, which saves: it is waited for. A second one ends it."""
    interrupted = False
    while True:
        try:
            code = child.wait()
            return 130 if interrupted else code
        except KeyboardInterrupt:
            child.send_signal(signal.SIGKILL if interrupted else signal.SIGINT)
            interrupted = True
