"""Asynchronous training: shares, records, what it refuses, and whole runs on ranks that are threads."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import mpisparse as ms
from mpisparse.checkpoint import read_tree
from mpisparse.comm import Communicator, SharedWindow, run_ranks, solo
from mpisparse.errors import ConfigError, NonFiniteError
from mpisparse.kernels import linear
from mpisparse.kernels.linear import Choice, Samples
from mpisparse.runtime import Surroundings
from mpisparse.training.asynchronous.shares import Shares
from mpisparse.training.asynchronous.snapshots import objectives
from mpisparse.training.asynchronous.worker import CompiledWorker, Record, StepwiseWorker, total
from mpisparse.training.configfile import parse_config
from mpisparse.training.course import Result
from mpisparse.training.data import synthetic
from mpisparse.training.evaluate import objective
from mpisparse.training.models import LinearSVM, LogisticRegression
from mpisparse.training.run import run_training

SURROUNDINGS = Surroundings("0", 1, 1, "threads", "no MPI", "multiple", 1, "a test")


def tree(**changes: Any) -> dict[str, Any]:
    """Return a small configuration; `section__key=value` changes a key, and None leaves it out."""
    whole: dict[str, Any] = {
        "name": "try",
        "seed": 3,
        "data": {"name": "synthetic_svm", "samples": 1500, "features": 40},
        "model": {"name": "svm", "l2": 0.05, "halved": False},
        "training": {"length": "3 epochs", "batch": 1},
        "optimizer": {"name": "SGD", "lr": 0.02},
        "sparsifier": {"name": "gspar", "density": 0.2, "iterations": 2},
        "asynchronous": {"snapshots": 10},
    }
    for path, value in changes.items():
        section, _, key = path.partition("__")
        if key:
            whole.setdefault(section, {})[key] = value
        else:
            whole[section] = value
    return whole


def train(comm: Communicator, directory: Path, resume: str = "auto", **changes: Any) -> Result:
    return run_training(comm, SURROUNDINGS, parse_config(tree(**changes), "test"), run_dir=directory, resume=resume)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# Shares ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("samples", "batch", "updates", "finest"),
    [(100, 1, 300, 7), (100, 7, 45, 1000), (10, 3, 8, 1), (5, 8, 3, 0), (600, 1, 601, 10_000)],
)
def test_each_sample_is_used_once_a_pass(samples: int, batch: int, updates: int, finest: int) -> None:
    shares = Shares(samples, batch, updates, finest, seed=1, shuffle=True)
    per_pass = -(-samples // batch)
    sizes: list[int] = []
    used: list[int] = []
    number = 0
    while (share := shares.share(number)) is not None:
        assert share.first == len(sizes)
        pieces = [share.samples[i : i + batch] for i in range(0, share.samples.size, batch)]
        assert len(pieces) <= max(1, min(finest, 256))
        sizes += [piece.size for piece in pieces]
        used += share.samples.tolist()
        number += 1
    assert len(sizes) == updates
    assert all(share is None for share in (shares.share(number + 1), shares.share(10 * number + 10)))
    passes, rest = divmod(updates, per_pass)
    counts = Counter(used)
    assert set(counts.values()) <= {passes, passes + 1}
    assert sum(sizes) == passes * samples + min(rest * batch, samples)
    assert sorted(used[:samples]) == list(range(samples)) or updates < per_pass


def test_passes_are_in_different_orders_unless_told_otherwise() -> None:
    def orders(shuffle: bool) -> list[NDArray[np.int64]]:
        shares = Shares(50, 1, 100, 1000, seed=1, shuffle=shuffle)
        found = [shares.share(number) for number in range(2)]
        return [share.samples for share in found if share is not None]

    first, second = orders(shuffle=True)
    assert not np.array_equal(first, second)
    assert all(np.array_equal(order, np.arange(50)) for order in orders(shuffle=False))


# Workers --------------------------------------------------------------------------------------------------------------


def samples_of(curvature: float = 0.1) -> Samples:
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((400, 24)).astype(np.float32)
    return Samples(rows, np.where(rows[:, 0] > 0, 1, -1).astype(np.float32), True, np.float32(curvature))


def test_both_workers_end_with_the_same_bits_when_everything_is_added() -> None:
    samples, order = samples_of(), np.random.default_rng(1).permutation(400)
    ends = []
    for compiled in (True, False):
        with solo().open_window(24) as window:
            assert isinstance(window, SharedWindow)
            dense = Choice(linear.DENSE, 1.0, 0, linear.make_draws(24, np.random.default_rng(2)))
            worker = (
                CompiledWorker(window, samples, 3, dense)
                if compiled
                else StepwiseWorker(window, samples, 3, ms.Dense(), 0, 0)
            )
            worker.update(order, 0.05)
            record = worker.finish()
            assert (record.updates, record.entries, record.conflicts) == (134, 134 * 24, 0)
            assert (record.stale_sum, record.stalest, record.bins[0]) == (0, 0, 134)
            assert record.waiting >= 0
            ends.append(window.parameters.tobytes())
    assert ends[0] == ends[1]


@pytest.mark.parametrize("rule", [ms.GSpar(density=0.2), ms.Uniform(density=0.2)])
def test_a_stepwise_worker_adds_what_its_rule_chooses(rule: ms.GSpar | ms.Uniform) -> None:
    samples = samples_of()
    with solo().open_window(24) as window:
        worker = StepwiseWorker(window, samples, 1, rule, 0, 0)
        worker.update(np.arange(400), 0.01)
        record = worker.finish()
        assert 0.1 < record.entries / (400 * 24) < 0.3
        out = np.empty(24, np.float32)
        assert window.read(out) == 400
        margins = samples.signs * (samples.rows @ out)
        assert np.maximum(0, 1 - margins).mean() < 0.7


def test_a_worker_says_that_parameters_diverged() -> None:
    samples = samples_of(curvature=50.0)
    with solo().open_window(24) as window:
        assert isinstance(window, SharedWindow)
        dense = Choice(linear.DENSE, 1.0, 0, linear.make_draws(24, np.random.default_rng(2)))
        for worker in (
            CompiledWorker(window, samples, 1, dense),
            StepwiseWorker(window, samples, 1, ms.Dense(), 0, 0),
        ):
            with pytest.raises(NonFiniteError, match=r"learning rate 1: .* have diverged; lower optimizer\.lr"):
                worker.update(np.arange(400), 1.0)


def test_records_add_up_and_read_back() -> None:
    bins = np.zeros(linear.BINS, np.int64)
    bins[[0, 1, 3]] = [5, 2, 1]
    one = Record(updates=8, entries=20, conflicts=3, waiting=0.5, stale_sum=8, stalest=6, bins=bins)
    fields = one.fields()
    assert fields["staleness"] == {"mean": 1.0, "max": 6, "histogram": [[0, 5], [1, 2], [4, 1]]}
    both = total([Record.of(fields), Record(updates=8, entries=4, conflicts=1)])
    assert both.fields() == {
        "updates": 16,
        "entries_written": 24,
        "conflicts": 4,
        "waiting_seconds": 0.5,
        "staleness": {"mean": 0.5, "max": 6, "histogram": [[0, 5], [1, 2], [4, 1]]},
    }
    assert total([one, Record(conflicts=None)]).conflicts is None


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("kind", [LinearSVM, LogisticRegression])
def test_objectives_are_those_of_an_evaluation(size: int, kind: type[LinearSVM | LogisticRegression]) -> None:
    data = synthetic.load_svm(samples=2500, features=30).train
    weights = np.random.default_rng(0).standard_normal((4, 30)).astype(np.float32)

    def one(comm: Communicator) -> tuple[list[float], list[float]]:
        model = kind((30,))
        loss = model.loss(l2=0.3, halved=False)
        expected = []
        for row in weights:
            with torch.no_grad():
                model.weight.copy_(torch.from_numpy(row))
            expected.append(objective(comm, model, loss, data))
        return objectives(comm, weights, loss, 0.6, data), expected

    for found, expected in run_ranks(size, one):
        assert found == pytest.approx(expected, rel=1e-12)


# Whole runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["svm", "logistic"])
@pytest.mark.parametrize(
    "rule",
    [
        {"name": "dense"},
        {"name": "gspar", "density": 0.2, "iterations": 2},
        {"name": "gspar", "density": 0.2},
        {"name": "uniform", "density": 0.5},
    ],
)
def test_the_objective_falls(tmp_path: Path, model: str, rule: dict[str, Any]) -> None:
    result = train(solo(), tmp_path / "run", model__name=model, sparsifier=rule)
    lines = read(tmp_path / "run" / "metrics.jsonl")
    objectives = [line["objective"] for line in lines if line["kind"] == "evaluation"]
    assert objectives[0] == pytest.approx(1.0 if model == "svm" else np.log(2))
    assert objectives[-1] < objectives[0] - 0.02
    assert result.metrics["objective"] == objectives[-1]
    assert result.metrics["accuracy"] > 0.55


def test_a_run_directory_says_what_happened(tmp_path: Path) -> None:
    directory, size = tmp_path / "run", 3
    run_ranks(size, lambda comm: train(comm, directory))
    lines = read(directory / "metrics.jsonl")
    assert {line["schema"] for line in lines} == {1}
    assert lines[0] == {
        "schema": 1,
        "kind": "start",
        "step": 0,
        "ranks": size,
        "steps": 4500,
        "mpisparse": ms.__version__,
    }
    evaluations, end = lines[1:-1], lines[-1]
    assert {line["kind"] for line in evaluations} == {"evaluation"}
    assert 2 <= len(evaluations) <= 12
    for before, after in pairwise(evaluations):
        assert before["step"] <= after["step"]
        assert before["milliseconds"] < after["milliseconds"]
        assert "accuracy" not in before
    assert all(line["passes"] == pytest.approx(line["step"] / 1500) for line in evaluations)
    assert (evaluations[0]["step"], evaluations[0]["milliseconds"]) == (0, 0)
    assert evaluations[-1]["step"] == end["step"] == end["updates"] == 4500
    assert evaluations[-1]["milliseconds"] == pytest.approx(1e3 * end["wall_seconds"])
    assert {"loss", "accuracy"} <= set(evaluations[-1])
    assert end["window"] == "shared"
    assert 0.1 < end["entries_written"] / (4500 * 40) < 0.21
    ranks = [read(directory / "ranks" / f"rank-{rank:05d}.jsonl") for rank in range(size)]
    assert [len(own) for own in ranks] == [1] * size
    for key in ("updates", "entries_written", "conflicts"):
        assert end[key] == sum(own[0][key] for own in ranks)
    assert end["waiting_seconds"] == pytest.approx(sum(own[0]["waiting_seconds"] for own in ranks))
    assert end["staleness"]["max"] == max(own[0]["staleness"]["max"] for own in ranks)
    assert sum(count for _, count in end["staleness"]["histogram"]) == 4500
    assert 'name = "synthetic_svm"' in (directory / "config.toml").read_text()
    assert (directory / "environment.json").exists()


def test_the_checkpoint_holds_the_parameters_that_were_judged_last(tmp_path: Path) -> None:
    train(solo(), tmp_path / "run", model__l2=0.0)
    last = read(tmp_path / "run" / "metrics.jsonl")[-2]
    saved = read_tree(tmp_path / "run" / "checkpoints" / "step-00004500" / "state.h5")
    data = synthetic.load_svm(samples=1500, features=40).train
    inputs, _ = data.batch(torch.arange(1500))
    scores = inputs.double() @ saved["model"]["weight"][0].double()
    objective = (1 - (2 * data.targets - 1) * scores).relu().mean()
    assert last["objective"] == pytest.approx(float(objective), rel=1e-12)


def test_one_rank_gives_the_same_bits_twice(tmp_path: Path) -> None:
    objectives = []
    for name in ("a", "b"):
        train(solo(), tmp_path / name)
        objectives.append(
            [line["objective"] for line in read(tmp_path / name / "metrics.jsonl") if "objective" in line]
        )
        end = read(tmp_path / name / "metrics.jsonl")[-1]
        assert end["staleness"] == {"mean": 0.0, "max": 0, "histogram": [[0, 4500]]}
        assert end["conflicts"] == 0
    assert objectives[0] == objectives[1]


def test_the_distance_to_the_optimum_is_told_where_it_is_known(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"training__objective": True, "optimizer__lr": 0.05, "schedule__name": "inverse"}
    train(solo(), tmp_path / "run", model__name="logistic", training__length="20 epochs", **changes)
    evaluations = [line for line in read(tmp_path / "run" / "metrics.jsonl") if line["kind"] == "evaluation"]
    optimum = json.loads((tmp_path / "run" / "optimum.json").read_text())
    for line in evaluations:
        assert line["suboptimality"] == pytest.approx(line["objective"] - optimum["objective"])
        assert line["suboptimality"] > -1e-9
    assert evaluations[-1]["suboptimality"] < 0.05 * evaluations[0]["suboptimality"]


def test_updates_can_be_counted_instead_of_passes(tmp_path: Path) -> None:
    result = train(solo(), tmp_path / "run", training__length="700 steps", training__batch=4)
    assert result.totals["updates"] == 700
    assert result.metrics["passes"] == pytest.approx(700 * 4 / 1500)


def test_a_finished_run_is_not_written_over(tmp_path: Path) -> None:
    train(solo(), tmp_path / "run")
    with pytest.raises(ConfigError, match="holds a run, and an asynchronous one cannot go on"):
        train(solo(), tmp_path / "run")
    with pytest.raises(ConfigError, match="made in one go"):
        train(solo(), tmp_path / "other", resume="some/checkpoint")


def test_divergence_is_an_error_of_all_ranks(tmp_path: Path) -> None:
    def one(comm: Communicator) -> str:
        with pytest.raises(NonFiniteError) as raised:
            train(comm, tmp_path / "run", model__l2=100.0, optimizer__lr=1.0)
        assert raised.value.on_all_ranks
        return str(raised.value)

    messages = run_ranks(2, one)
    assert messages[0] == messages[1]
    assert "lower optimizer.lr" in messages[0]
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    # It left no log, so the directory takes a run that works.
    train(solo(), tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": {"name": "mlp"}}, "model mlp: only logistic and svm"),
        ({"model__bias": True}, "model.bias"),
        ({"model__penalty": "local"}, "model.penalty local"),
        ({"sparsifier": {"name": "topk", "density": 0.1}}, "sparsifier topk: only dense, gspar and uniform"),
        ({"sparsifier": {"name": "gspar", "variance": 1.0}}, "sparsifier.variance: give density"),
        (
            {"sparsifier": {"name": "uniform", "density": 0.1, "schedule": {"name": "dense_warmup", "steps": 3}}},
            "sparsifier.schedule",
        ),
        ({"memory": {"name": "error_feedback"}}, "memory error_feedback"),
        ({"svrg": {}}, "svrg: leave this section out"),
        ({"resparsify": {"name": "gspar", "density": 0.1}}, "resparsify: leave this section out"),
        ({"exchange__values": "bfloat16"}, "there is no exchange"),
        ({"optimizer__momentum": 0.9}, "only plain SGD"),
        ({"optimizer__name": "Adam"}, "only plain SGD"),
        ({"training": {"length": "1 epoch", "global_batch": 4}}, "training.global_batch: "),
        ({"training__microbatch": 1}, "training.microbatch: "),
        ({"training__clip_norm": 1.0}, "training.clip_norm: "),
        ({"training__evaluate": "2 epochs"}, "training.evaluate: "),
        ({"training__log_every": 5}, "training.log_every: "),
        ({"asynchronous__window": "global"}, "asynchronous.window"),
        ({"asynchronous__snapshot": 3}, "Did you mean 'snapshots'?"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_config(tree(**changes), "test")
    assert words in str(raised.value)


def test_settings_that_are_written_out_are_no_others() -> None:
    config = parse_config(tree(), "test")
    assert parse_config(json.loads(json.dumps(config.model_dump(mode="json", exclude_none=True))), "again") == config


def test_windows_that_threads_do_not_have_and_empty_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no MPI to accumulate with"):
        train(solo(), tmp_path / "a", asynchronous__window="accumulate")
    with pytest.raises(ConfigError, match="length is 0"):
        train(solo(), tmp_path / "b", training__length="0 steps")
