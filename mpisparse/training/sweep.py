"""run_sweep: all runs of a study, one after another, each in a directory of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter

from mpisparse.comm import Communicator, from_root, require_same
from mpisparse.errors import ConfigError, DataError, LaunchError, MpiSparseError, NonFiniteError
from mpisparse.runtime import Preemption, Surroundings
from mpisparse.runtime.preemption import EXIT_CODE
from mpisparse.training.console import SweepConsole
from mpisparse.training.course import Result
from mpisparse.training.kept import Kept
from mpisparse.training.run import run_training
from mpisparse.training.study import Planned, Study
from mpisparse.training.sweepfiles import Failure, chosen_runs, claim, forget_failure, look_up, table, write_failure
from mpisparse.words import counted

#: What a person has to put right, and what would meet the next run as well.
_ENDING = (ConfigError, DataError, LaunchError)


@dataclass(slots=True)
class Tally:
    """How the runs of a sweep ended: how many were made now, how many had been before, and which failed, then or now.

    failed: by directory of the run.
    stopped: why the sweep ended before its last run, with the state of the one it was at saved; empty when it did not.
    stopped_code: what it exits with then.
    """

    done: int = 0
    before: int = 0
    failed: dict[str, Failure] = field(default_factory=dict)
    stopped: str = ""
    stopped_code: int = EXIT_CODE

    @property
    def exit_code(self) -> int:
        """Return 0, unless a run failed otherwise than by diverging, or the sweep is to be started again."""
        if self.stopped:
            return self.stopped_code
        return next((failure.exit_code for failure in self.failed.values() if not failure.diverged), 0)


def run_sweep(
    comm: Communicator,
    surroundings: Surroundings,
    study: Study,
    directory: Path,
    *,
    only: range | None = None,
    retry: bool = False,
    preemption: Preemption | None = None,
    command: str = "",
) -> Tally:
    """Return how the runs of `study` ended, having made those that were not finished. Collective.

    A finished run is left alone, one that was interrupted goes on from its newest checkpoint. One that fails on all
    ranks alike, as by NaN at too large a step, has that written to its failed.json, and the next run follows.

    Args:
        directory: of the sweep; each run has one of its own in it.
        only: indices of the runs to make; all by default.
        retry: make again what failed before.
        preemption: what may want the sweep to end; nothing by default.
        command: what goes on with the sweep when it was stopped; nothing is said of it by default.

    Raises:
        ConfigError: `directory` belongs to another study, or `only` names no run.
        MpiSparseError: what a run raises on some ranks, or for want of configuration, data or launch.
    """
    chosen = chosen_runs(study, only)
    require_same(comm, "the studies", table(study).splitlines())
    from_root(comm, lambda: claim(directory, study))
    states = from_root(comm, lambda: [look_up(directory / run.directory, run.config) for run in chosen])
    failures = {run.directory: Failure(**state) for run, state in zip(chosen, states, strict=True) if state}
    due = [run for run, state in zip(chosen, states, strict=True) if state is None or (state and retry)]
    tally, kept = Tally(before=sum(state == {} for state in states)), Kept()
    tally.failed |= {} if retry else failures
    following = f"; go on with: {command}" if command else ""
    with SweepConsole(comm.rank, len(due)) as console:
        console.say(_opening(study, directory, len(chosen), tally, len(due)))
        for run in due:
            begin = perf_counter()
            try:
                found = _make(comm, surroundings, run, directory / run.directory, kept, preemption)
            except BaseException as error:
                if command:
                    error.add_note(f"what is finished is kept; go on with: {command}")
                raise
            if isinstance(found, Result):
                tally.stopped, tally.stopped_code = found.stopped, found.exit_code
                console.say(f"stopped in {run.directory} ({found.stopped}): its state is saved{following}")
                return tally
            if isinstance(found, Failure):
                tally.failed[run.directory] = found
                console.ended(run.directory, f"failed: {found.message}", {}, perf_counter() - begin)
            else:
                tally.done += 1
                console.ended(run.directory, "", found, perf_counter() - begin)
        console.summary({name: failure.text for name, failure in tally.failed.items()}, tally.done, tally.before)
    return tally


def _make(
    comm: Communicator,
    surroundings: Surroundings,
    run: Planned,
    path: Path,
    kept: Kept,
    preemption: Preemption | None,
) -> dict[str, float] | Failure | Result:
    """Return a run's last evaluation, or how it failed on all ranks alike, or what it came to when it was stopped.

    Collective.
    """
    from_root(comm, partial(forget_failure, path))
    # What the run duplicates goes with it: MPI has room for about two thousand communicators. After an error that other
    # ranks do not know of, giving back would wait for them, and is left out.
    scope = comm.duplicate()
    found: dict[str, float] | Failure | Result
    try:
        result = run_training(
            scope, surroundings, run.config, run_dir=path, kept=kept, quiet=True, preemption=preemption
        )
        found = result if result.stopped else result.metrics
    except MpiSparseError as error:
        if not error.on_all_ranks or isinstance(error, _ENDING):
            raise
        failure = error
        diverged = isinstance(error, NonFiniteError)
        found = Failure(**from_root(comm, lambda: write_failure(path, failure, at_a_step=diverged)))
    scope.free()
    return found


def _opening(study: Study, directory: Path, chosen: int, tally: Tally, due: int) -> str:
    version = " (reduced version)" if study.reduced else ""
    failed = f", {len(tally.failed)} failed before: --retry makes them again" if tally.failed else ""
    finished = f", {tally.before} finished before" if tally.before else ""
    return f"{study.name}{version}: {due} of {counted(chosen, 'run')} to make in {directory}{finished}{failed}"
