"""run_training: one whole run, from a configuration to the closing table."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import torch

from mpisparse.checkpoint import Checkpointer, Restored, claimed, list_checkpoints, step_of
from mpisparse.comm import Communicator, agreed
from mpisparse.errors import CheckpointError, ConfigError, MpiSparseError
from mpisparse.phases import Phases
from mpisparse.runtime import Preemption, Surroundings, Watchdog
from mpisparse.training.asynchronous import run_asynchronous
from mpisparse.training.build import build_trainer
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
    command: str = "mpisparse train CONFIG.toml",
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
        command: how the run was started, to suggest the next one.
        kept: data and optima of runs before this one; a run that is alone makes its own.
        quiet: print nothing.
        preemption: what may want the run to end; nothing by default.

    Raises:
        MpiSparseError: see `errors`; raised on all ranks alike.
    """
    # Until the run directory is known, a hang is written down where the program was started.
    crash = (run_dir or Path()).absolute() / "crash"
    with Watchdog(comm, limit=config.training.watchdog, directory=crash) as watchdog:
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
        directory = open_directory(comm, config, run_dir)
        watchdog.directory = directory.absolute() / "crash"
        with claimed(comm, directory) as check_claim:
            checkpointer = Checkpointer(
                directory / "checkpoints", keep=config.checkpoint.keep, comm=comm, shared=config.checkpoint.shared
            )
            # Dropout must differ between ranks, and nothing before this may.
            torch.manual_seed((config.seed * 2**20 + comm.rank) % 2**63)
            resumed = _resume(comm, trainer, checkpointer, resume, config, allow_changes)
            with agreed(comm):
                if comm.rank == 0:
                    describe_run(directory, config, surroundings)
                    if optimum is not None:
                        describe_optimum(directory, optimum)
            preemption = preemption or Preemption()
            preemption.time_limit = config.training.time_limit
            with failure_recorded(comm, directory), preemption.holding_interrupts(), checkpointer:
                run = Course(
                    comm, config, directory, trainer, data.test, checkpointer, optimum, preemption, check_claim
                )
                with closing(run.log):
                    result = run.finish(resumed, command, quiet)
            record_end(comm, directory, trainer.steps_done, result.exit_code, result.stopped)
            return result


def _resume(
    comm: Communicator,
    trainer: Trainer,
    checkpointer: Checkpointer,
    resume: str,
    config: RunConfig,
    allow_changes: bool,
) -> str:
    """Take up a checkpoint if there is one to take up, and return what to say of it. Collective.

    Args:
        config: what the checkpoint's configuration must agree with, unless changes are allowed.
    """
    if resume == "never":
        with agreed(comm):
            if list_checkpoints(checkpointer.directory):
                raise ConfigError(
                    f"{checkpointer.directory} holds checkpoints, and --resume never does not write over them: "
                    "use another --run-dir, or --resume auto to go on"
                )
        return ""
    residual = config.checkpoint.reshape
    reshaper = None if residual == "refuse" else Reshaper(residual)
    restored = checkpointer.restore("auto" if resume == "auto" else Path(resume), reshape=reshaper)
    if restored is None:
        return ""
    with agreed(comm):
        _refuse_two_courses(checkpointer.directory, restored)
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


def _refuse_two_courses(directory: Path, restored: Restored) -> None:
    """Raise ConfigError if going on from `restored` would mix what follows with another course of the run."""
    there = list_checkpoints(directory)
    own = restored.path.parent == directory
    if any(step_of(path) > restored.step for path in there) or (there and not own):
        raise ConfigError(
            f"{directory} holds checkpoints that {restored.path} does not lead to, such as {there[-1].name}: "
            "remove them, or use another --run-dir"
        )
