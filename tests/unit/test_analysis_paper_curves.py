"""Curves and their tuning: what a run's lines become, and which learning rate is chosen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.load import load_run
from analysis.method import Method, method_of, short
from analysis.paper.curves import curve, final, total_bits
from analysis.paper.place import place_of
from analysis.paper.record import Record, record_of
from analysis.paper.tuning import doubles, tune
from tests.unit.paper_runs import (
    BATCH,
    DENSE,
    RANKS,
    TERNGRAD,
    bits_of,
    change_config,
    convex_config,
    gspar,
    qsgd,
    uniform,
    write,
    write_cnn,
    write_convex,
    write_svm,
)


def load(directory: Path) -> Record:
    return record_of(load_run(directory))


def sgd(directory: Path, rule: dict[str, Any], lr: float = 0.1, **changes: Any) -> Record:
    return load(write_convex(directory, convex_config("paper-sgd", rule, lr, **changes)))


def test_suboptimality_lies_at_passes_and_at_bits_sent_so_far(tmp_path: Path) -> None:
    record = sgd(tmp_path / "run", gspar(0.1))
    passes = curve([record], "passes", "suboptimality")
    assert passes.x[:3].tolist() == [0.0, 0.5, 1.0]
    assert passes.y[0] == 0.69
    assert (np.diff(passes.y) < 0).all()
    bits = curve([record], "bits", "suboptimality")
    a_step = 8 * int(RANKS * bits_of(gspar(0.1)) / 8)
    assert bits.x[:2].tolist() == [0.0, 16 * a_step]
    headers = curve([record], "bits_with_headers", "suboptimality")
    assert headers.x[1] == 16 * (a_step + 8 * 48 * RANKS)
    assert total_bits(record, headers=False) == bits.x[-1]
    assert total_bits(record, headers=True) == headers.x[-1]


def test_var_and_spa_are_those_of_the_whole_run(tmp_path: Path) -> None:
    record = sgd(tmp_path / "run", gspar(0.1))
    assert record.var == pytest.approx(4.6)
    assert record.spa == pytest.approx(0.1, rel=1e-3)
    assert record.method.legend(record.var, record.spa) == "GSpar, var 4.6, spa 0.10"
    svm = load(write_svm(tmp_path / "svm", uniform(0.1), 2))
    assert svm.var is None
    assert svm.spa == pytest.approx(0.1)


def test_old_runs_lack_the_new_keys(tmp_path: Path) -> None:
    run = write_convex(tmp_path / "run", convex_config("paper-sgd", gspar(0.1), 0.1))
    new = {"coding_bytes", "messages", "gradients", "gradient_square", "sent_square", "passes"}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = [{key: value for key, value in line.items() if key not in new} for line in lines]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    record = load(run)
    assert record.var is None
    assert np.isnan(total_bits(record, headers=False))
    assert len(curve([record], "bits", "suboptimality").x) == 0
    assert curve([record], "passes", "suboptimality").x[-1] == 15


def test_training_loss_is_the_mean_of_an_epoch_by_samples(tmp_path: Path) -> None:
    step = {"kind": "step", "received_bytes": 100, "coding_bytes": 1, "payload_bytes": 2, "count": 1, "entries": 2}
    lines = [
        {"kind": "start", "step": 0, "ranks": 2, "steps": 3},
        {**step, "step": 1, "epoch": 0, "samples": 30, "loss": 1.0},
        {**step, "step": 2, "epoch": 0, "samples": 10, "loss": 2.0},
        {**step, "step": 3, "epoch": 1, "samples": 40, "loss": 0.5},
        {"kind": "end", "step": 3},
    ]
    write(tmp_path / "run", {"name": "paper-cnn", "sparsifier": DENSE}, lines, ranks=2)
    record = load(tmp_path / "run")
    epochs = curve([record], "epochs", "train_loss")
    assert (epochs.x.tolist(), epochs.y.tolist()) == ([1.0, 2.0], [1.25, 0.5])
    assert curve([record], "bytes", "train_loss").x.tolist() == [100.0, 150.0]
    assert final(record, "train_loss") == 0.5


def test_repeats_make_a_mean_with_a_band(tmp_path: Path) -> None:
    records = [load(write_cnn(tmp_path / str(seed), gspar(0.05), seed=seed)) for seed in range(3)]
    together = curve(records, "epochs", "accuracy")
    alone = np.array([curve([record], "epochs", "accuracy").y for record in records])
    np.testing.assert_allclose(together.y, alone.mean(axis=0))
    np.testing.assert_allclose(together.high - together.y, alone.std(axis=0, ddof=1))


def test_a_run_that_ends_in_nan_is_infinitely_bad(tmp_path: Path) -> None:
    run = write_convex(tmp_path / "run", convex_config("paper-sgd", DENSE, 0.1))
    lines = (run / "metrics.jsonl").read_text().splitlines()
    last = max(i for i, line in enumerate(lines) if '"evaluation"' in line)
    lines[last] = json.dumps(json.loads(lines[last]) | {"suboptimality": float("nan")})
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert final(load(run), "suboptimality") == float("inf")
    assert len(curve([load(run)], "passes", "suboptimality").x) == 30


def test_the_rate_that_ends_lowest_is_chosen(tmp_path: Path) -> None:
    rates = (0.01, 0.05, 0.2, 0.8)
    records = [sgd(tmp_path / f"{lr}", DENSE, lr) for lr in rates]
    (chosen,) = tune(records)
    assert (chosen.lr, chosen.edge, len(chosen.records)) == (0.2, "", 1)
    assert sorted(chosen.scores) == list(rates)
    assert chosen.score == min(chosen.scores.values()) == final(records[2], "suboptimality")


@pytest.mark.parametrize(("rates", "edge"), [((0.2, 0.8), "lowest"), ((0.05, 0.2), "highest"), ((0.2,), "")])
def test_a_rate_at_the_edge_of_the_grid_is_told(tmp_path: Path, rates: tuple[float, ...], edge: str) -> None:
    (chosen,) = tune(sgd(tmp_path / f"{lr}", DENSE, lr) for lr in rates)
    assert (chosen.lr, chosen.edge) == (0.2, edge)


def test_a_failed_run_spoils_its_rate_for_all_seeds(tmp_path: Path) -> None:
    config = {lr: convex_config("paper-sgd", DENSE, lr) for lr in (0.05, 0.2)}
    runs = [write_convex(tmp_path / f"{lr}-{seed}", {**config[lr], "seed": seed}) for lr in config for seed in range(2)]
    (runs[-1] / "failed.json").write_text('{"error": "NonFiniteError", "message": "NaN", "step": 3}')
    (chosen,) = tune(load(run) for run in runs)
    assert (chosen.lr, chosen.failed) == (0.05, [0.2])
    assert [record.seed for record in chosen.records] == [0, 1]
    for run in runs:
        (run / "failed.json").write_text('{"error": "NonFiniteError", "message": "NaN", "step": 3}')
    (chosen,) = tune(load(run) for run in runs)
    assert (chosen.records, chosen.failed) == ((), [0.05, 0.2])


def test_places_name_figure_and_panel(tmp_path: Path) -> None:
    places = [
        place_of(sgd(tmp_path / "1", DENSE, data_c2=1 / 16)),
        place_of(sgd(tmp_path / "2", DENSE, model_l2=2e-3, model_halved=True, svrg_form="whole")),
        place_of(load(write_svm(tmp_path / "3", DENSE, 1))),
        place_of(load(write_cnn(tmp_path / "4", DENSE))),
    ]
    assert [place.panel for place in places if place] == [
        "λ = 1/(10N), C₂ = 1/16",
        "λ = 0.001, whole vector, C₂ = 1/4",
        "λ = 0.05, 1 rank",
        "",
    ]
    real = convex_config("paper-real", DENSE, 0.1) | {"data": {"name": "libsvm", "train": "libsvm/a9a.bz2"}}
    place = place_of(load(write_convex(tmp_path / "5", real)))
    assert place is not None
    assert place.figure == ("a9a", "a9a")
    change_config(tmp_path / "5", name="other")
    assert place_of(load(tmp_path / "5")) is None


def test_dense_svrg_is_lent_to_the_form_that_has_none(tmp_path: Path) -> None:
    rows = [("difference", DENSE), ("difference", gspar(0.1)), ("whole", gspar(0.1))]
    records = [
        load(write_convex(tmp_path / str(i), convex_config("paper-svrg", rule, 0.1, svrg_form=form)))
        for i, (form, rule) in enumerate(rows)
    ]
    curves = tune(records)
    assert [(each.place.row[1], each.method.name) for each in curves] == [
        ("λ = 1/(10N), whole vector", "dense"),
        ("λ = 1/(10N), whole vector", "GSpar 0.1"),
        ("λ = 1/(10N), difference only", "dense"),
        ("λ = 1/(10N), difference only", "GSpar 0.1"),
    ]


def test_two_curves_of_one_method_are_told_apart_by_their_keys(tmp_path: Path) -> None:
    records = [sgd(tmp_path / "1", gspar(0.1)), sgd(tmp_path / "2", gspar(0.1), training_batch=2 * BATCH)]
    ((_, _, keys),) = doubles(tune(records))
    assert keys == ["training.batch"]


def test_methods_look_the_same_everywhere_and_unlike_each_other() -> None:
    rules = [DENSE, gspar(0.1), gspar(0.02), gspar(0.004), uniform(0.1), qsgd(2), qsgd(4), qsgd(8), TERNGRAD]
    made = [method_of({"sparsifier": rule}) for rule in rules]
    assert len({(str(method.look), method.name) for method in made}) == len(rules)
    assert len({str(method.look) for method in made}) == len(rules)
    assert method_of({"sparsifier": {"name": "gspar", "variance": 0.5}}).name == "GSpar ε = 0.5"
    assert method_of({}) == Method("dense")


@pytest.mark.parametrize(
    ("number", "text"),
    [(4.54, "4.5"), (0.1, "0.10"), (49.6, "50"), (0.004, "0.0040"), (123.4, "123"), (0, "0"), (2e-6, "2.0e-06")],
)
def test_numbers_have_two_digits(number: float, text: str) -> None:
    assert short(number) == text
