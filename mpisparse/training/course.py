"""Course: the steps of a run with what comes between them, from its first one to the closing table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from mpisparse.checkpoint import Checkpointer
from mpisparse.comm import Communicator, from_root, gather_json
from mpisparse.errors import NonFiniteError
from mpisparse.phases import NAMES
from mpisparse.runtime import Preemption
from mpisparse.runtime.preemption import exit_code_of
from mpisparse.runtime.runlog import RunLog
from mpisparse.training.command import Command
from mpisparse.training.config import RunConfig
from mpisparse.training.configfile import to_tree
from mpisparse.training.console import Console, summary_rows
from mpisparse.training.data import Dataset
from mpisparse.training.evaluate import CutShortError, evaluate, objective
from mpisparse.training.optimum import Optimum
from mpisparse.training.saving import Saving
from mpisparse.training.trainer import Trainer
from mpisparse.version import __version__
from mpisparse.words import counted


@dataclass(frozen=True, slots=True)
class Result:
    """What a run came to: its directory, the last evaluation, and what it cost.

    That is what `summary_rows` takes, or for an asynchronous run the fields of its log's last line.

    stopped: why the run ended before its time, with its state saved; empty when it did not.
    exit_code: of the command, were this its only run.
    """

    directory: Path
    metrics: dict[str, float]
    totals: dict[str, Any]
    stopped: str = ""
    exit_code: int = 0


class Course:
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
        check_claim: Callable[[], None],
    ) -> None:
        per_epoch = trainer.sampler.steps_per_epoch
        self.comm, self.config, self.directory = comm, config, directory
        self.trainer, self.test = trainer, test
        self.optimum, self.preemption, self.check_claim = optimum, preemption, check_claim
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

    def finish(self, resumed: str, command: Command | None, quiet: bool) -> Result:
        """Take the steps that are left, and return the result. Collective."""
        trainer, comm = self.trainer, self.comm
        if trainer.steps_done < self.steps:
            self.log.event("start", trainer.steps_done, ranks=comm.size, steps=self.steps, mpisparse=__version__)
        with Console(comm.rank == 0 and not quiet, self.steps, trainer.steps_done) as console:
            console.say(f"{trainer.data.describe()} | {trainer.optimizer.describe()}")
            console.say(resumed or f"writing to {self.directory}")
            if command is not None:
                console.say(f"after an interruption, go on with: {command.going_on(self.directory)}")
            trainer.optimizer.say_with(console.say)
            self.saving.say_with(console.say)
            metrics = self._train(console)
            if metrics is None:
                return self._stop(console, command)
        self.saving.last(trainer.steps_done)
        totals = {name: self.totals[name] for name in ("steps", "count", "entries", "skipped")}
        moved = {f"{name}_bytes": self.totals[name] for name in ("payload", "received", "dense")}
        # A run may have been stopped between its last checkpoint and this line.
        if trainer.steps_done > self.done_before or not self.log.ended:
            self.log.event("end", trainer.steps_done, wall_seconds=self.totals["wall"], **totals, **moved)
        self.log.close()
        self._summarise(console, metrics, command)
        return Result(self.directory, metrics, self.totals)

    def _train(self, console: Console) -> dict[str, float] | None:
        """Take the steps that are left, and return the last evaluation; None when a rank is to stop. Collective."""
        trainer = self.trainer
        metrics: dict[str, float] | None = None
        try:
            if self.config.training.objective and trainer.steps_done == 0 < self.steps:
                self._evaluate(console)
            if self._evaluation_was_left_out():
                metrics = self._evaluate(console)
            while trainer.steps_done < self.steps:
                self._step()
                done = trainer.steps_done
                if trainer.optimizer.stopping:
                    return None
                evaluates = trainer.is_due(self.config.training.evaluate)
                if done % self.config.training.log_every == 0 or evaluates or done == self.steps:
                    self._flush(console)
                metrics = self._evaluate(console) if evaluates else None
                if trainer.is_due(self.config.checkpoint.every):
                    # A resumed run takes up the log where it takes up the state: nothing may be missing in between.
                    self._flush(console)
                    self.log.sync()
                    self.saving.start(done)
            return metrics or self._evaluate(console)
        except CutShortError:
            return None

    def _step(self) -> None:
        """Take one step, after asking whether this rank's job is to end."""
        self.check_claim()
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

    def _stop(self, console: Console, command: Command | None) -> Result:
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
        following = "" if command is None else f"; go on with: {command.going_on(self.directory)}"
        console.say(f"stopped after step {step} of {self.steps} ({told}): the state is saved{following}")
        return Result(self.directory, {}, self.totals, told, exit_code_of(reasons))

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

    def _stops(self) -> str:
        return self.preemption.reason

    def _evaluate(self, console: Console) -> dict[str, float]:
        trainer = self.trainer
        metrics = evaluate(self.comm, trainer.model, trainer.loss, self.test, self._stops)
        if self.config.training.objective:
            metrics["objective"] = objective(self.comm, trainer.model, trainer.loss, trainer.data, self._stops)
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
        about = {"config": to_tree(self.config), "mpisparse": __version__}
        return {**self.trainer.replicated_state(), **about}, self.trainer.rank_state()

    def _summarise(self, console: Console, metrics: dict[str, float], command: Command | None) -> None:
        rows = summary_rows(metrics, self.totals, self.comm.size)
        rows.append(("run directory", str(self.directory)))
        change = "sparsifier.name=topk" if self.config.sparsifier.name == "dense" else "sparsifier.name=dense"
        size = self.comm.size
        title = f"{self.config.name}: {self.trainer.optimizer.exchange.sparsifier!r}, {counted(size, 'rank')}"
        console.summary(rows, title, "" if command is None else f"To compare, try: {command.changed(change)}")
