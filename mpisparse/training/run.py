"""run_training: one whole run, from a configuration to the closing table."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from mpisparse.checkpoint import Checkpointer, Restored, list_checkpoints, step_of
from mpisparse.comm import Communicator, agreed, from_root, gather_json
from mpisparse.errors import CheckpointError, ConfigError, MpiSparseError, NonFiniteError
from mpisparse.phases import NAMES, Phases
from mpisparse.runtime import Preemption, Surroundings, Watchdog
from mpisparse.runtime.runlog import RunLog
from mpisparse.training.asynchronous import run_asynchronous
from mpisparse.training.build import build_trainer
from mpisparse.training.config import RunConfig
from mpisparse.training.configfile import to_tree
from mpisparse.training.console import Console, ignore, summary_rows
from mpisparse.training.data import Dataset
from mpisparse.training.directory import check_same_run, describe_optimum, describe_run, open_directory
from mpisparse.training.evaluate import evaluate, objective
from mpisparse.training.kept import Kept
from mpisparse.training.optimum import Optimum
from mpisparse.training.reshape import Reshaper
from mpisparse.training.saving import Saving
from mpisparse.training.trainer import Trainer


@dataclass(frozen=True, slots=True)
class Result:
    """What a run came to: its directory, the last evaluation, and what it cost.

    That is what `summary_rows` takes, or for an asynchronous run the fields of its log's last line.

    stopped: why the run ended before its time, with its state saved; empty when it did not.
    """

    directory: Path
    metrics: dict[str, float]
    totals: dict[str, Any]
    stopped: str = ""


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
    watchdog = Watchdog(comm, limit=config.training.watchdog, directory=(run_dir or Path()).absolute() / "crash")
    watchdog.start()
    try:
        result = _run(
            comm, surroundings, config, watchdog, run_dir, resume, allow_changes, command, kept, quiet, preemption
        )
    except MpiSparseError as error:
        if error.on_all_ranks:
            watchdog.stop()
        # Else it goes on: the others may wait for this rank, whose program is about to end.
        raise
    watchdog.stop()
    return result


def _run(
    comm: Communicator,
    surroundings: Surroundings,
    config: RunConfig,
    watchdog: Watchdog,
    run_dir: Path | None,
    resume: str,
    allow_changes: bool,
    command: str,
    kept: Kept | None,
    quiet: bool,
    preemption: Preemption | None,
) -> Result:
    """Return what `run_training` returns."""
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
    checkpointer = Checkpointer(directory / "checkpoints", keep=config.checkpoint.keep, comm=comm)
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
    with checkpointer:
        run = _Run(comm, config, directory, trainer, data.test, checkpointer, optimum, preemption)
        with closing(run.log):
            return run.finish(resumed, command, quiet)


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


class _Run:
    """The steps of a run with what comes between them: evaluation, checkpoints, the log and the screen."""

    def __init__(
        self,
        comm: Communicator,
        config: RunConfig,
        directory: Path,
        trainer: Trainer,
        test: Dataset,
        checkpointer: Checkpointer,
        optimum: Optimum | None,
        preemption: Preemption,
    ) -> None:
        per_epoch = trainer.sampler.steps_per_epoch
        self.comm, self.config, self.directory = comm, config, directory
        self.trainer, self.test = trainer, test
        self.optimum, self.preemption = optimum, preemption
        # Those done count as they were done, by whatever number of ranks; those left by this one's epochs.
        self.steps = trainer.steps_done + config.training.length.steps(per_epoch) - trainer.progress
        self.log = RunLog(directory, comm, trainer.steps_done)
        self.saving = Saving(checkpointer, config.checkpoint, self.log, self._state, preemption, trainer.steps_done)
        self.totals: dict[str, Any] = {
            **dict.fromkeys(("steps", "payload", "received", "dense", "count", "entries", "skipped", "mended"), 0),
            "seconds": dict.fromkeys(NAMES, 0.0),
            "hidden": 0.0,
            "wall": 0.0,
        }
        self.train_loss: float | None = None
        self.done_before = trainer.steps_done

    def finish(self, resumed: str, command: str, quiet: bool) -> Result:
        """Take the steps that are left, and return the result. Collective."""
        trainer, comm = self.trainer, self.comm
        if trainer.steps_done < self.steps:
            self.log.event("start", trainer.steps_done, ranks=comm.size, steps=self.steps)
        metrics: dict[str, float] | None = None
        with Console(comm.rank == 0 and not quiet, self.steps, trainer.steps_done) as console:
            console.say(f"{trainer.data.describe()} | {trainer.optimizer.describe()}")
            console.say(resumed or f"writing to {self.directory}")
            trainer.optimizer.say_with(console.say)
            self.saving.say_with(console.say)
            if self.config.training.objective and trainer.steps_done == 0 < self.steps:
                self._evaluate(console)
            if self._evaluation_was_left_out():
                metrics = self._evaluate(console)
            while trainer.steps_done < self.steps:
                self._step()
                done = trainer.steps_done
                if trainer.optimizer.stopping:
                    return self._stop(console)
                evaluates = trainer.is_due(self.config.training.evaluate)
                if done % self.config.training.log_every == 0 or evaluates or done == self.steps:
                    self._flush(console)
                metrics = self._evaluate(console) if evaluates else None
                if trainer.is_due(self.config.checkpoint.every):
                    # A resumed run takes up the log where it takes up the state: nothing may be missing in between.
                    self._flush(console)
                    self.log.sync()
                    self.saving.start(done)
            metrics = metrics or self._evaluate(console)
        self.saving.last(trainer.steps_done)
        totals = {name: self.totals[name] for name in ("steps", "count", "entries", "skipped")}
        moved = {f"{name}_bytes": self.totals[name] for name in ("payload", "received", "dense")}
        # A run may have been stopped between its last checkpoint and this line.
        if trainer.steps_done > self.done_before or not self.log.ended:
            self.log.event("end", trainer.steps_done, wall_seconds=self.totals["wall"], **totals, **moved)
        self.log.close()
        self._summarise(console, metrics, command)
        return Result(self.directory, metrics, self.totals)

    def _step(self) -> None:
        """Take one step, after asking whether this rank's job is to end."""
        trainer, begin = self.trainer, perf_counter()
        if self.preemption.reason:
            trainer.optimizer.request_stop()
        try:
            self.log.step(trainer.step())
        except NonFiniteError as error:
            self._leave_log(error)
            raise
        self.totals["wall"] += perf_counter() - begin
        self._note_mended()
        self.saving.stepped()
        self.preemption.stepped()

    def _stop(self, console: Console) -> Result:
        """Save, as the job is to end, and return the result. Collective.

        There may be no time to evaluate: what is due comes first when the run goes on.
        """
        reasons = gather_json(self.comm, self.preemption.reason)
        told = "; ".join(f"rank {rank}: {reason}" for rank, reason in enumerate(reasons) if reason)
        step = self.trainer.steps_done
        self._flush(console)
        self.log.sync()
        self.saving.last(step)
        self.log.event("stopped", step, reason=told)
        self.log.close()
        console.say(f"stopped after step {step} of {self.steps} ({told}): the state is saved, the same command goes on")
        return Result(self.directory, {}, self.totals, stopped=told)

    def _evaluation_was_left_out(self) -> bool:
        """Return True when the run was stopped where an evaluation was due, which has not been made since."""
        step = self.trainer.steps_done
        due = 0 < step < self.steps and self.trainer.is_due(self.config.training.evaluate)
        return due and from_root(self.comm, lambda: self.log.evaluated < step)

    def _leave_log(self, error: NonFiniteError) -> None:
        """Write what led to an error that all ranks raised in the same step. Collective."""
        if error.on_all_ranks:
            self.log.flush()
            self.log.close()

    def _flush(self, console: Console) -> None:
        """Write the log of the steps since the last time, and add them to the totals."""
        for line in self.log.flush():
            self.totals["steps"] += 1
            for name in ("payload", "received", "dense"):
                self.totals[name] += line[f"{name}_bytes"]
            self.totals["count"] += line["count"]
            self.totals["entries"] += line["entries"]
            self.totals["skipped"] += "skipped" in line
            for name in NAMES:
                self.totals["seconds"][name] += line["seconds"][name]
            self.totals["hidden"] += line["hidden_seconds"]
            self.train_loss = line["loss"]
            console.advance(line["step"], line["epoch"], line["loss"])

    def _note_mended(self) -> None:
        """Put into the log what replicas were mended of in the last step."""
        for found in self.trainer.optimizer.mended[self.totals["mended"] :]:
            self.totals["mended"] += 1
            self.log.event("mended", self.trainer.steps_done, tensors=list(found.tensors), ranks=list(found.ranks))

    def _evaluate(self, console: Console) -> dict[str, float]:
        trainer = self.trainer
        metrics = evaluate(self.comm, trainer.model, trainer.loss, self.test)
        if self.config.training.objective:
            metrics["objective"] = objective(self.comm, trainer.model, trainer.loss, trainer.data)
        if self.optimum is not None:
            metrics["suboptimality"] = metrics["objective"] - self.optimum.objective
        # Rank 0's log knows; the others write none.
        if self.log.evaluated < trainer.steps_done or trainer.steps_done == 0 < self.steps:
            passes = trainer.gradients_done / len(trainer.data)
            self.log.event("evaluation", trainer.steps_done, epoch=trainer.sampler.epoch, passes=passes, **metrics)
        console.evaluated(trainer.steps_done, trainer.sampler.epoch, self.train_loss, metrics)
        return metrics

    def _state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what a checkpoint holds: what all ranks hold alike, and what this rank alone holds."""
        return {**self.trainer.replicated_state(), "config": to_tree(self.config)}, self.trainer.rank_state()

    def _summarise(self, console: Console, metrics: dict[str, float], command: str) -> None:
        rows = summary_rows(metrics, self.totals, self.comm.size)
        rows.append(("run directory", str(self.directory)))
        change = "sparsifier.name=topk" if self.config.sparsifier.name == "dense" else "sparsifier.name=dense"
        launch = f"mpirun -n {self.comm.size} " if self.comm.size > 1 else ""
        title = f"{self.config.name}: {self.trainer.optimizer.exchange.sparsifier!r}, {self.comm.size} ranks"
        console.summary(rows, title, f"To compare, try: {launch}{command} --set {change}")
