"""run_asynchronous: a whole run of ranks that share their parameters, from a configuration to the closing table."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from mpisparse import random
from mpisparse.checkpoint import Checkpointer, claimed
from mpisparse.comm import Communicator, SharedWindow, Window, agreed, gather_json
from mpisparse.errors import ConfigError
from mpisparse.kernels import linear
from mpisparse.kernels.linear import Choice, Samples
from mpisparse.rehearsal import leaders_first
from mpisparse.runtime import Surroundings
from mpisparse.training.asynchronous.report import summary_rows, write_metrics, write_rank
from mpisparse.training.asynchronous.shares import Shares
from mpisparse.training.asynchronous.snapshots import Snapshot, Snapshots, objectives
from mpisparse.training.asynchronous.worker import CompiledWorker, Record, StepwiseWorker, Worker, total
from mpisparse.training.build import build_model, build_sparsifier, learning_rate_factor
from mpisparse.training.command import Command
from mpisparse.training.config import (
    DenseSparsifier,
    GsparSparsifier,
    LogisticModel,
    RunConfig,
    SvmModel,
    UniformSparsifier,
)
from mpisparse.training.configfile import to_tree
from mpisparse.training.console import Console
from mpisparse.training.data import Dataset, Split
from mpisparse.training.directory import describe_optimum, describe_run, failure_recorded, open_directory, record_end
from mpisparse.training.evaluate import evaluate
from mpisparse.training.models import LinearSVM, LogisticRegression, MarginLoss
from mpisparse.training.optimum import Optimum
from mpisparse.version import __version__
from mpisparse.words import counted

#: Shares between two snapshots at least, so that these can be taken about when they are due.
_SHARES_A_SNAPSHOT = 4

#: In the place of a step: what a rank draws for the table that its updates read.
_TABLE = 2**64 - 2


def run_asynchronous(
    comm: Communicator,
    surroundings: Surroundings,
    config: RunConfig,
    data: Split,
    optimum: Optimum | None,
    *,
    run_dir: Path | None,
    resume: str,
    command: Command | None,
    quiet: bool,
) -> tuple[Path, dict[str, float], dict[str, Any]]:
    """Return the run directory, the last evaluation, and what the run came to. Collective.

    Arguments are those of `run_training`, its data and the optimum of its objective. The log is written as a whole at
    the end, so a run that was stopped leaves none, and is made again from its start.

    Raises:
        MpiSparseError: see `errors`; raised on all ranks alike.
    """
    with agreed(comm):
        if resume not in ("auto", "never"):
            raise ConfigError(f"--resume {resume}: an asynchronous run is made in one go, leave this out")
        run = _Run(comm, config, data)
    directory = open_directory(comm, config, run_dir)
    with claimed(comm, directory):
        with agreed(comm):
            if (directory / "metrics.jsonl").exists():
                raise ConfigError(
                    f"{directory} holds a run, and an asynchronous one cannot go on: use another --run-dir"
                )
            if comm.rank == 0:
                describe_run(directory, config, surroundings)
                if optimum is not None:
                    describe_optimum(directory, optimum)
        with failure_recorded(comm, directory):
            result = run.finish(directory, optimum, command, quiet)
        record_end(comm, directory, run.updates)
        return result


def check_asynchronous(comm: Communicator, config: RunConfig, data: Split) -> None:
    """Raise the MpiSparseError that `run_asynchronous` would, as far as the configuration and the data tell."""
    _Run(comm, config, data)


class _Run:
    """The course of a run: all updates, then what was seen of them, then what is written down."""

    def __init__(self, comm: Communicator, config: RunConfig, data: Split) -> None:
        section, options, training = config.model, config.asynchronous, config.training
        assert isinstance(section, LogisticModel)
        assert options is not None
        assert training.batch is not None
        self.comm, self.config, self.section, self.options = comm, config, section, options
        self.data = data
        model, loss = build_model(section, self.data, 0.0)
        assert isinstance(model, LogisticRegression | LinearSVM)
        assert isinstance(loss, MarginLoss)
        self.loss: MarginLoss = loss
        self.model: LogisticRegression | LinearSVM = model
        self.rule = build_sparsifier(config.sparsifier)
        self.batch, samples = training.batch, len(self.data.train)
        per_pass = -(-samples // self.batch)
        self.updates = training.length.steps(per_pass)
        if not self.updates:
            raise ConfigError("training.length is 0: asynchronous training makes at least one update")
        self.factor = learning_rate_factor(config.schedule, self.updates, per_pass)
        self.every = self.updates / options.snapshots
        finest = int(self.every / (_SHARES_A_SNAPSHOT * comm.size))
        self.shares = Shares(samples, self.batch, self.updates, finest, config.seed, shuffle=training.shuffle)

    def finish(
        self, directory: Path, optimum: Optimum | None, command: Command | None, quiet: bool
    ) -> tuple[Path, dict[str, float], dict[str, Any]]:
        """Make all updates, evaluate what was seen of them, and write it down. Collective."""
        comm = self.comm
        with Console(comm.rank == 0 and not quiet, 0, 0) as console:
            console.say(f"{self.data.train.describe()} | asynchronous, {self.rule!r}")
            console.say(f"writing to {directory}")
            record, snapshots, seconds, end = self._work(console)
            evaluations = self._evaluate(snapshots, optimum)
        self._save(directory)
        with agreed(comm):
            write_rank(directory, comm.rank, self.updates, record | {"wall_seconds": seconds, "window": end["window"]})
        with agreed(comm):
            if comm.rank == 0:
                write_metrics(directory, comm.size, evaluations, end)
        self._summarise(console, evaluations, end, directory, command)
        return directory, evaluations[-1], end

    def _work(self, console: Console) -> tuple[dict[str, Any], list[Snapshot], float, dict[str, Any]]:
        """Make all updates; return this rank's record, the snapshots, this rank's seconds, and the record of all."""
        comm = self.comm
        samples = make_samples(self.section, self.data.train)
        with comm.open_window(self.model.weight.numel(), self.options.window) as window:
            worker, news = leaders_first(comm, lambda: self._worker(window, samples))
            console.say(news)
            snapshots = Snapshots(window, self.every)
            if comm.rank == 0:
                snapshots.take(0.0)
            comm.barrier()
            begin = perf_counter()
            with agreed(comm):
                self._take_shares(window, worker, snapshots, begin)
                seconds = perf_counter() - begin
            wall = perf_counter() - begin
            if comm.rank == 0:
                snapshots.take(wall)
            seen = snapshots.to_all(comm)
        own = worker.finish()
        everyone = total([Record.of(fields) for fields in gather_json(comm, own.fields())])
        wall = gather_json(comm, wall)[0]
        return own.fields(), seen, seconds, everyone.fields() | {"wall_seconds": wall, "window": window.kind}

    def _take_shares(self, window: Window, worker: Worker, snapshots: Snapshots, begin: float) -> None:
        """Claim shares and make their updates until none is left. Waits for nobody."""
        rate, rank = self.config.optimizer.lr, self.comm.rank
        while (share := self.shares.share(window.claim())) is not None:
            if rank == 0:
                snapshots.take_if_due(share.first, perf_counter() - begin)
            worker.update(share.samples, rate * self.factor(share.first))

    def _worker(self, window: Window, samples: Samples) -> Worker:
        seed, rank = self.config.seed, self.comm.rank
        if not isinstance(window, SharedWindow):
            return StepwiseWorker(window, samples, self.batch, self.rule, seed, rank)
        choice = make_choice(self.config, window.numel, random.generator(seed, rank, _TABLE, 0))
        return CompiledWorker(window, samples, self.batch, choice)

    def _evaluate(self, snapshots: list[Snapshot], optimum: Optimum | None) -> list[dict[str, Any]]:
        """Return the fields of every evaluation. Collective. The model holds the last parameters from then on."""
        weights, samples = np.stack([snapshot.weights for snapshot in snapshots]), len(self.data.train)
        values = objectives(self.comm, weights, self.loss, curvature_of(self.section), self.data.train)
        evaluations = []
        for snapshot, value in zip(snapshots, values, strict=True):
            fields: dict[str, Any] = {"step": snapshot.step, "milliseconds": round(1e3 * snapshot.seconds, 6)}
            fields |= {"passes": snapshot.step * self.batch / samples, "objective": value}
            if optimum is not None:
                fields["suboptimality"] = value - optimum.objective
            evaluations.append(fields)
        with torch.no_grad():
            self.model.weight.copy_(torch.from_numpy(weights[-1]))
        evaluations[-1] |= evaluate(self.comm, self.model, self.loss, self.data.test)
        return evaluations

    def _save(self, directory: Path) -> None:
        checkpointer = Checkpointer(
            directory / "checkpoints",
            keep=self.config.checkpoint.keep,
            comm=self.comm,
            shared=self.config.checkpoint.shared,
        )
        about = {"config": to_tree(self.config), "mpisparse": __version__}
        checkpointer.save(self.updates, {"model": self.model.state_dict(), **about})

    def _summarise(
        self,
        console: Console,
        evaluations: list[dict[str, Any]],
        end: dict[str, Any],
        directory: Path,
        command: Command | None,
    ) -> None:
        size = self.comm.size
        rows = summary_rows(evaluations, end, self.model.weight.numel(), size)
        rows.append(("run directory", str(directory)))
        change = ["sparsifier.name=dense"]
        if self.config.sparsifier.name == "dense":
            change = ["sparsifier.name=gspar", "sparsifier.density=0.1"]
        title = f"{self.config.name}: asynchronous, {self.rule!r}, {counted(size, 'rank')}"
        console.summary(rows, title, "" if command is None else f"To compare, try: {command.changed(*change)}")


def make_samples(section: LogisticModel, data: Dataset) -> Samples:
    """Return all samples as the compiled loop takes them, dense: 4 bytes an entry on every rank."""
    inputs, targets = data.batch(torch.arange(len(data), device="cpu"))
    rows = np.ascontiguousarray(inputs.flatten(1).numpy())
    signs = np.where(targets.numpy() == 1, 1, -1).astype(np.float32)
    return Samples(rows, signs, isinstance(section, SvmModel), np.float32(curvature_of(section)))


def curvature_of(section: LogisticModel) -> float:
    """Return the number whose half, times ||w||^2, is the penalty."""
    return section.l2 if section.halved else 2 * section.l2


def make_choice(config: RunConfig, numel: int, generator: np.random.Generator) -> Choice:
    """Return the rule of a configuration as the compiled loop takes it."""
    section, draws = config.sparsifier, linear.make_draws(numel, generator)
    density = 1.0 if isinstance(section, DenseSparsifier) else getattr(section, "density", None)
    assert isinstance(density, float)
    if density == 1:
        return Choice(linear.DENSE, 1.0, 0, draws)
    if isinstance(section, UniformSparsifier):
        return Choice(linear.UNIFORM, density, 0, draws)
    assert isinstance(section, GsparSparsifier)
    return Choice(linear.GSPAR, density, -1 if section.iterations is None else section.iterations, draws)
