"""make_here: the runs of a study on this machine, one after another."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from jobs.plan import Batch
from jobs.prepare import STATE
from mpisparse.errors import ConfigError
from mpisparse.files import write_text
from mpisparse.terminal import Screen
from mpisparse.training.study import describe
from mpisparse.words import counted, visible

#: Exit codes after which no other run follows: saved to go on later, a configuration that is wrong, Ctrl-C.
_ENDING = (75, 78, 130)

MPIRUN = "mpirun -n {ranks}"


def make_here(directory: Path, batches: Sequence[Batch], options: Sequence[str], launcher: str, command: str) -> int:
    """Return 0 when all runs were made, or the exit code of the first that failed.

    What a run prints goes to local.out in the directory of its batch. Lines say which run begins and how it ended; on a
    terminal a bar shows how many are made.

    Args:
        launcher: what starts `mpisparse sweep` on {ranks} ranks.
        command: what makes the runs that are left.

    Raises:
        ConfigError: the launcher does not say how many ranks, or cannot be started.
    """
    if "{ranks}" not in launcher:
        raise ConfigError(
            f"the launcher {launcher!r} does not say where the number of ranks goes: write {MPIRUN!r} or so"
        )
    try:
        shlex.split(launcher)
    except ValueError as error:
        raise ConfigError(f"the launcher {launcher!r} is no command of a shell: {error}") from error
    runs = [(batch, run) for batch in batches for run in batch.runs]
    codes: list[int] = []
    with _Screen(len(runs)) as screen:
        screen.say(f"{counted(len(runs), 'run')} to make in {directory}; what they print: ranks-*/local.out there")
        for number, (batch, run) in enumerate(runs, 1):
            place = f"{number}/{len(runs)} on {counted(batch.ranks, 'rank')}"
            name = f"{run.directory} ({describe(run.settings)})"
            screen.begins(f"{place}: {name}")
            begin = perf_counter()
            words = [*_launch(launcher, batch.ranks), "mpisparse"]
            codes.append(_make(directory / batch.directory, run.index, words, options))
            ending = f": exit code {codes[-1]}, see {directory / batch.directory / 'local.out'}" if codes[-1] else ""
            screen.ended(f"{place}, {perf_counter() - begin:.1f} s: {name}{ending}")
            if codes[-1] in _ENDING:
                screen.say(f"stopped after {number} of {counted(len(runs), 'run')}; go on with: {command}")
                return codes[-1]
        if failed := sum(map(bool, codes)):
            again = command if "--retry" in shlex.split(command) else f"{command} --retry"
            screen.say(f"{failed} of {counted(len(runs), 'run')} failed; make them again with: {again}")
    return next((code for code in codes if code), 0)


class _Screen:
    """Lines on standard output, and on a terminal a bar below them with the run that is being made."""

    def __init__(self, runs: int) -> None:
        self._console = Screen()
        self._progress = Progress(
            TextColumn("runs"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}", markup=False),
            console=self._console,
            disable=not self._console.is_shown,
            transient=True,
        )
        self._task = self._progress.add_task("", total=runs)

    def __enter__(self) -> _Screen:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def say(self, line: str) -> None:
        """Print one line, above the bar if there is one."""
        self._console.say(line)

    def begins(self, line: str) -> None:
        """Show which run begins: beside the bar, or in a line of its own."""
        self._progress.update(self._task, description=visible(line))
        if self._progress.disable:
            self.say(f"{line} begins")

    def ended(self, line: str) -> None:
        """Print how a run ended."""
        self._progress.advance(self._task)
        self.say(line)


def _launch(launcher: str, ranks: int) -> list[str]:
    return [word.replace("{ranks}", str(ranks)) for word in shlex.split(launcher)]


def _make(place: Path, index: int, command: list[str], options: Sequence[str]) -> int:
    state = place / STATE / str(index)
    _note(state, f"running local-{os.getpid()}\n")
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
            state.write_text(f"ended {ConfigError.exit_code}\n", encoding="utf-8")
            raise ConfigError(f"cannot start {command[0]}: {error.strerror}. Give another --launcher") from error
        code = _wait(child)
    code = 128 - code if code < 0 else code
    _note(state, f"ended {code}\n")
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


def _note(state: Path, text: str) -> None:
    """Write what becomes of a run."""
    try:
        write_text(state, text)
    except OSError as error:
        raise ConfigError(f"{state} cannot be written: {error.strerror}") from error
