"""run_training: one whole run, from a configuration to the closing table."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import torch

from mpisparse.checkpoint import Checkpointer, Restored, claimed, find_checkpoints, list_checkpoints, step_of
from mpisparse.checkpoint.restore import restore
from mpisparse.comm import Communicator, agreed, from_root
from mpisparse.errors import CheckpointError, ConfigError, MpiSparseError
from mpisparse.phases import Phases
from mpisparse.runtime import Preemption, Surroundings, Watchdog
from mpisparse.training.asynchronous import run_asynchronous
from mpisparse.training.build import build_trainer
from mpisparse.training.command import Command
from mpisparse.training.config import RunConfig
from mpisparse.training.console import ignore
from mpisparse.training.course import Course, Result
from mpisparse.training.directory import (
    check_same_run,
    describe_optimum,
    describe_run,
    failure_recorded,
    open_directory,
    record_end,
)
from mpisparse.training.kept import Kept
from mpisparse.training.reshape import Reshaper
from mpisparse.training.trainer import Trainer


def run_training(
    comm: Communicator,
    surroundings: Surroundings,
    config: RunConfig,
    *,
    run_dir: Path | None = None,
    resume: str = "auto",
    allow_changes: bool = False,
    command: Command | None = None,
    kept: Kept | None = None,
    quiet: bool = False,
    preemption: Preemption | None = None,
) -> Result:
    """Return the result of training as `config` says, on all ranks. Collective.

    Args:
        run_dir: where to write; a new directory under runs/ by default.
        resume: "auto" goes on from the newest whole checkpoint in `run_dir` if there is one, "never" refuses to write
            over one, and a path goes on from that checkpoint.
        allow_changes: go on although the configuration changed.
        command: how the run was started, to say how it goes on, and to suggest the next one.
        kept: data and optima of runs before this one; a run that is alone makes its own.
        quiet: print nothing.
        preemption: what may want the run to end; nothing by default.

    Raises:
        MpiSparseError: see `errors`; raised on all ranks alike. Where a checkpoint is there to go on from, a note on
            any error says by which command.
    """
    # Until the run directory is known, a hang is written down where the program was started.
    crash = (run_dir or Path()).absolute() / "crash"
    with Watchdog(comm, limit=config.training.watchdog, directory=crash) as watchdog:
        if config.asynchronous is None:
            from_root(comm, lambda: _check_resume(run_dir, resume))
        kept = kept or Kept()
        data, optimum = kept.data(comm, config.data), kept.optimum(comm, config)
        torch.manual_seed(config.seed)
        phases = Phases()
        if config.asynchronous is not None:
            outcome = run_asynchronous(
                comm, surroundings, config, data, optimum, run_dir=run_dir, resume=resume, command=command, quiet=quiet
            )
            return Result(*outcome)
        trainer = build_trainer(config, data, comm, phases, say=ignore if quiet else None)
        with ExitStack() as held:
            there = run_dir is not None and from_root(comm, lambda: os.path.isdir(run_dir))
            if there:  # Nobody else may go on there from the checkpoint that is read next.
                directory = open_directory(comm, config, run_dir)
                check_claim = held.enter_context(claimed(comm, directory))
                from_root(comm, lambda: _check_resume(run_dir, resume))
            # Dropout must differ between ranks, and nothing before this may.
            torch.manual_seed((config.seed * 2**20 + comm.rank) % 2**63)
            resumed = _resume(comm, trainer, run_dir, resume, config, allow_changes)
            if not there:
                directory = open_directory(comm, config, run_dir)
                check_claim = held.enter_context(claimed(comm, directory))
                from_root(comm, lambda: _check_still_new(directory))
            watchdog.directory = directory.absolute() / "crash"
            checkpointer = Checkpointer(
                directory / "checkpoints", keep=config.checkpoint.keep, comm=comm, shared=config.checkpoint.shared
            )
            with agreed(comm):
                if comm.rank == 0:
                    describe_run(directory, config, surroundings)
                    if optimum is not None:
                        describe_optimum(directory, optimum)
            preemption = preemption or Preemption()
            preemption.time_limit = config.training.time_limit
            held.enter_context(failure_recorded(comm, directory))
            held.enter_context(preemption.holding_interrupts())
            with checkpointer, _saying_how_to_go_on(command, directory):
                run = Course(
                    comm, config, directory, trainer, data.test, checkpointer, optimum, preemption, check_claim
                )
                with closing(run.log):
                    result = run.finish(resumed, command, quiet)
            record_end(comm, directory, trainer.steps_done, result.exit_code, result.stopped)
            return result


@contextmanager
def _saying_how_to_go_on(command: Command | None, directory: Path) -> Iterator[None]:
    """Return a context that notes on an error with which command the run goes on from its newest checkpoint."""
    try:
        yield
    except BaseException as error:
        if command is not None and (words := command.after_failure(directory)):
            error.add_note(words)
        raise


def _resume(
    comm: Communicator,
    trainer: Trainer,
    run_dir: Path | None,
    resume: str,
    config: RunConfig,
    allow_changes: bool,
) -> str:
    """Take up a checkpoint if there is one to take up, and return what to say of it. Collective.

    Nothing is made on the disk, so that a run that cannot go on leaves nothing behind.

    Args:
        run_dir: where the run is to write, which need not be there; None for a directory that is still to be made.
        config: what the checkpoint's configuration must agree with, unless changes are allowed.
    """
    if resume == "never" or (resume == "auto" and run_dir is None):
        return ""
    where = None if run_dir is None else run_dir.absolute() / "checkpoints"
    residual = config.checkpoint.reshape
    reshaper = None if residual == "refuse" else Reshaper(residual)
    restored = restore(comm, where or Path(resume), "auto" if resume == "auto" else Path(resume), reshaper)
    if restored is None:
        return ""
    with agreed(comm):
        if where is not None:
            _refuse_two_courses(where, restored)
        try:
            replicated, own = dict(restored.replicated), dict(restored.per_rank)
            if not allow_changes:
                check_same_run(restored.path, replicated["config"], config)
            trainer.load_state(replicated, own)
        except (KeyError, ValueError, TypeError) as error:
            if isinstance(error, MpiSparseError):
                raise
            raise CheckpointError(f"{restored.path} does not fit this run: {error!r}") from error
    lines = [f"resumed from {restored.path} after step {restored.step}"]
    if reshaper is not None and restored.ranks != comm.size:
        lines.append(reshaper.describe(restored.ranks, comm.size, comm))
    return "\n".join([*lines, *(f"skipped: {reason}" for reason in restored.skipped)])


def _check_resume(run_dir: Path | None, resume: str) -> None:
    """Raise what is wrong with --resume, as far as can be told before anything is read or made. For rank 0 alone."""
    where = None if run_dir is None else run_dir.absolute() / "checkpoints"
    if resume == "never":
        if where is not None and list_checkpoints(where):
            raise ConfigError(
                f"{where} holds checkpoints, and --resume never does not write over them: "
                "use another --run-dir, or --resume auto to go on"
            )
    elif resume != "auto":
        find_checkpoints(resume)


def _check_still_new(directory: Path) -> None:
    """Raise ConfigError where another run has been made since this one saw that there was none. For rank 0 alone."""
    if list_checkpoints(directory / "checkpoints"):
        raise ConfigError(
            f"another run was made in {directory} while this one began: start this one again to go on from it, or use "
            "another --run-dir"
        )


def _refuse_two_courses(directory: Path, restored: Restored) -> None:
    """Raise ConfigError if going on from `restored` would mix what follows with another course of the run."""
    there = list_checkpoints(directory)
    own = restored.path.parent == directory
    if any(step_of(path) > restored.step for path in there) or (there and not own):
        raise ConfigError(
            f"{directory} holds checkpoints that {restored.path} does not lead to, such as {there[-1].name}: "
            "remove them, or use another --run-dir"
        )
