"""The report: what it claims, what it refuses to claim, and what it says of files that are not in order."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from analysis.__main__ import cli
from analysis.brief import read_brief
from analysis.columns import PHASES
from analysis.drawing.drawing import to_csv
from analysis.many import read_briefs
from analysis.report.build import sections_of
from analysis.report.tables import density_text
from analysis.scaling import ratio, series_of
from analysis.study import differing, flat, method_names, studies_of
from tests.unit.report_runs import config, page_of, seconds_of, write_run, write_study

FIGURES = {
    "strong",
    "phases",
    "balance",
    "bytes",
    "waiting",
    "learning",
    "model-fit",
    "model-prediction",
    "model-crossover",
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a whole report."""
    directory = tmp_path_factory.mktemp("report")
    write_study(directory / "runs", steps=40, methods=[(None, False), (0.01, False)])
    files = ["--extra-p", str(directory / "p.jsonl"), "--mllog", str(directory / "ml.log")]
    outcome = CliRunner().invoke(cli, ["report", str(directory / "runs"), "-o", str(directory / "page"), *files])
    assert outcome.exit_code == 0, outcome.output
    assert f"{len(FIGURES)} figures and the page" in outcome.output
    return directory


def test_all_figures_are_there_with_their_numbers(report: Path) -> None:
    page = report / "page"
    assert {path.stem for path in page.glob("*.png")} == {f"try-{name}" for name in FIGURES}
    for name in FIGURES:
        assert (page / f"try-{name}.svg").read_text().startswith("<?xml")
        with (page / f"try-{name}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert rows, name
        assert all(row["figure"] == f"try-{name}" for row in rows)


def test_the_page_needs_no_other_file(report: Path) -> None:
    html = (report / "page" / "index.html").read_text()
    targets = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert len(targets) == 3 * len(FIGURES)
    assert all(target.startswith("data:") for target in targets)
    assert html.count("data:image/svg+xml;base64,") == 2 * len(FIGURES)


def test_speed_up_is_what_the_times_say(report: Path) -> None:
    text = " ".join((report / "page" / "index.md").read_text().split())
    assert "Base: 1 rank, the smallest number there is" in text
    assert "the first tenth of its steps is left out, no fewer than 5 and no more than 50" in text
    assert "**Held out**" in text
    assert "Points are of 3 repeats or more" in text
    with (report / "page" / "try-strong.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["panel"] == "speed-up" and row["method"] == "TopK 1 %"]
    times = {ranks: sum(seconds_of(ranks, 0.01).values()) for ranks in (1, 2, 4)}
    for row in rows:
        ranks = int(float(row["x"]))
        assert float(row["low"]) <= float(row["y"]) <= float(row["high"])
        assert float(row["y"]) == pytest.approx(times[1] / times[ranks], rel=0.08)
        assert len(row["run directory"].split()) == 9


def test_bars_of_phases_add_up_to_the_median_step(report: Path) -> None:
    with (report / "page" / "try-phases.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for panel, bar in {(row["panel"], row["bar"]) for row in rows}:
        parts = {row["part"]: float(row["height"]) for row in rows if (row["panel"], row["bar"]) == (panel, bar)}
        median, low, high = parts.pop("median step"), parts.pop("low"), parts.pop("high")
        assert len(parts) == len(PHASES)
        assert sum(parts.values()) == pytest.approx(median)
        assert low <= median <= high


def test_waiting_and_pop_metrics_are_those_of_the_ranks(tmp_path: Path) -> None:
    """The last rank computes a quarter longer, and the others wait for it."""
    seconds = {"compute": 0.010, "agree": 0.001, "exchange": 0.004}
    brief = read_brief(write_run(tmp_path / "run", ranks=4, seconds=seconds, noise=0.0))
    waiting = brief.waiting
    assert waiting is not None
    assert waiting.load_balance == pytest.approx((3 * 10 + 12.5) / 4 / 12.5)
    assert waiting.communication_efficiency == pytest.approx(12.5 / 17.5)
    assert waiting.map.shape[0] == 4
    assert waiting.map[:, 0] == pytest.approx([0.0035, 0.0035, 0.0035, 0.001])


def test_weak_scaling_is_told_from_the_samples(tmp_path: Path) -> None:
    settings = config(training__global_batch=None, training__batch=32)
    for ranks in (1, 2, 4):
        for seed in range(3):
            where = tmp_path / f"{ranks}-{seed}"
            write_run(where, settings, ranks=ranks, seed=seed, batch=32 * ranks, steps=30)
    (study,), _ = studies_of(read_briefs([tmp_path])[0])
    series = series_of("dense", study.runs["dense"], np.random.default_rng(0))
    assert (series.kind, series.refused) == ("weak", "")
    assert series.law is not None
    assert series.law.name == "Gustafson"
    last = series.steps[-1]
    times = [sum(seconds_of(ranks, None, batch=32 * ranks).values()) for ranks in (1, 4)]
    assert last.efficiency.value == pytest.approx(times[0] / times[1], rel=0.1)
    assert last.speed_up.value == pytest.approx(4 * last.efficiency.value)


def test_a_changed_global_batch_is_no_strong_scaling(tmp_path: Path) -> None:
    for ranks, batch in ((1, 64), (2, 64), (4, 96)):
        write_run(tmp_path / str(ranks), config(training__global_batch=batch), ranks=ranks, batch=batch)
    text = page_of(tmp_path)
    assert "**Refused: a speed-up of dense**: the samples of a step change with the ranks" in text
    assert "64 on 1 rank, 64 on 2 ranks, 96 on 4 ranks" in text
    assert "speed-up |" not in text
    assert "median step" in text


def test_mixed_configurations_are_refused_with_keys_and_values(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", config(optimizer__lr=0.2, density=0.1))
    outcome = CliRunner().invoke(cli, ["report", str(tmp_path), "-o", str(tmp_path / "page")])
    assert outcome.exit_code == 78
    assert "2 runs named 'try' differ in optimizer.lr: 0.1, 0.2" in outcome.stderr
    assert "sparsifier" not in outcome.stderr
    write_run(tmp_path / "c", config("other"))
    text = page_of(tmp_path)
    assert "> **Refused: try**, 2 runs." in text
    assert "## other" in text


def test_two_batches_on_as_many_ranks_are_mixed(tmp_path: Path) -> None:
    write_run(tmp_path / "a", batch=64)
    write_run(tmp_path / "b", config(training__global_batch=128), batch=128)
    _, (refusal,) = studies_of(read_briefs([tmp_path])[0])
    assert refusal.reason == "training.global_batch: 64, 128"


def test_what_does_not_matter_to_a_step_may_differ(tmp_path: Path) -> None:
    write_run(tmp_path / "a", seed=0)
    write_run(tmp_path / "b", config(training__log_every=7, checkpoint={"every": "1 epoch"}), seed=1)
    (study,), refusals = studies_of(read_briefs([tmp_path])[0])
    assert not refusals
    assert len(study.runs["dense"][2]) == 2


def test_few_repeats_have_a_banner(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    assert "> **Fewer than 3 repeats**: some points are of 1 run." in page_of(tmp_path)


def test_a_base_of_several_ranks_is_said(tmp_path: Path) -> None:
    for ranks in (2, 4):
        write_run(tmp_path / str(ranks), ranks=ranks)
    text = page_of(tmp_path)
    assert "Base: 2 ranks, the smallest number there is" in text
    assert "nothing is extrapolated to it" in text
    assert "No rank count can be held out" in text


def test_what_runs_ran_on_is_told_where_it_differs(tmp_path: Path) -> None:
    write_run(tmp_path / "a", ranks=2, library="MPICH 5.0.2", processors=["Xeon"])
    write_run(tmp_path / "b", ranks=4, library="Open MPI v5", processors=["Xeon", "EPYC"])
    text = page_of(tmp_path)
    assert "library differ: MPICH 5.0.2 (on 2 ranks); Open MPI v5 (on 4 ranks)" in text
    assert "processors differ" in text


@pytest.mark.parametrize(
    ("machine", "threads", "sharing"),
    [
        ({"ranks": 8, "cores": 2}, 1, 4),
        ({"ranks": 8, "cores": 64, "quotas": []}, 16, 2),
        ({"ranks": 8, "cores": 2, "quotas": 8 * [{"ranks": 1, "cores": 0.2}]}, 1, 1),
        ({"ranks": 8, "cores": 2, "quotas": 8 * [{"ranks": 1, "cores": 0.5}]}, 1, 2),
        ({"ranks": 4, "cores": 64, "quotas": [{"ranks": 4, "cores": 2.0}]}, 1, 2),
        ({"ranks": 2, "cores": 64, "quotas": [{"ranks": 2, "cores": 0.5}]}, 1, 2),
        ({"ranks": 4, "cores": 2, "quotas": [{"ranks": 2, "cores": 1.0}]}, 1, 3),
    ],
)
def test_threads_for_a_core_are_told_by_machines_and_quotas(
    tmp_path: Path, machine: dict[str, Any], threads: int, sharing: float
) -> None:
    brief = read_brief(write_run(tmp_path / "run", threads=threads, machines=[{"ranks": 1, "cores": 64}, machine]))
    assert brief.sharing == pytest.approx(sharing)


def test_a_study_in_which_dense_always_wins_has_no_figure_of_the_crossover(tmp_path: Path) -> None:
    for density in (None, 0.1):
        for seed in range(3):
            times = seconds_of(2, density)
            times |= {"sparsify": 1.0 if density else 0.0}
            write_run(tmp_path / f"{density}-{seed}", config(density=density), seed=seed, seconds=times)
    done = CliRunner().invoke(cli, ["report", str(tmp_path), "-o", str(tmp_path / "page")])
    assert done.exit_code == 0, done.output
    assert not list((tmp_path / "page").glob("*crossover*"))
    text = (tmp_path / "page" / "index.md").read_text()
    assert "By this model dense is faster at any density" in text
    assert "| as measured | dense always |" in text


@pytest.mark.parametrize(
    ("density", "words"),
    [(0.0, "dense always"), (1.0, "sparse always"), (0.9999, "100 %"), (0.123, "12 %"), (0.0123, "1.2 %")],
)
def test_crossover_densities_in_words(density: float, words: str) -> None:
    assert density_text(density) == words


def test_different_quotas_are_told(tmp_path: Path) -> None:
    for ranks, cores in ((2, 0.5), (4, 0.25)):
        machines = [{"ranks": ranks, "cores": 8, "quotas": ranks * [{"ranks": 1, "cores": cores}]}]
        write_run(tmp_path / str(ranks), ranks=ranks, machines=machines)
    text = page_of(tmp_path)
    assert "quotas differ: [0.5] (on 2 ranks); [0.25] (on 4 ranks)" in text
    assert "| cores by quota | 0.5; 0.25 |" in text


def test_the_baseline_of_each_rank_count_is_dense(tmp_path: Path) -> None:
    write_study(tmp_path, ranks=(2,), repeats=3, noise=0.005, steps=30)
    (study,), _ = studies_of(read_briefs([tmp_path])[0])
    series = {name: series_of(name, runs, np.random.default_rng(0)) for name, runs in study.runs.items()}
    assert list(series) == ["dense", "dense, 16 bits", "TopK 10 %", "TopK 1 %", "TopK 0.1 %"]
    found = ratio(series["TopK 1 %"].steps[0], series["dense"].steps[0])
    assert found.value == pytest.approx(sum(seconds_of(2, None).values()) / sum(seconds_of(2, 0.01).values()), rel=0.03)
    assert found.low < found.value < found.high


def test_the_same_runs_make_the_same_numbers(tmp_path: Path) -> None:
    write_run(tmp_path / "a", steps=30)
    write_run(tmp_path / "b", steps=30, ranks=4)
    studies, _ = studies_of(read_briefs([tmp_path])[0])
    one, other = ([to_csv(drawing) for drawing in section.drawings]
                  for sections in (sections_of(studies), sections_of(studies)) for section in sections)  # fmt: skip
    assert one == other


def test_methods_that_differ_in_more_than_their_rule_are_told_apart() -> None:
    plain = config(density=0.01)
    other = config(density=0.01, memory={"name": "momentum_correction"})
    half = config(density=0.01, exchange__values="bfloat16")
    names = method_names([plain, other, half, config()])
    assert names[0] != names[1]
    assert "memory.name momentum_correction" in names[1]
    assert names[2].startswith("TopK 1 %, bfloat16")
    assert names[3] == "dense"


def test_differing_keys_are_dotted() -> None:
    one: dict[str, Any] = {"a": 1, "b": {"c": 2, "d": {"e": 3}}}
    other: dict[str, Any] = {"a": 1, "b": {"c": 4, "d": {}}}
    assert differing([one, other]) == {"b.c": [2, 4], "b.d.e": [3, None]}
    assert flat(one) == {"a": 1, "b.c": 2, "b.d.e": 3}


def test_what_it_takes_to_a_target(tmp_path: Path) -> None:
    """The accuracy of all is 1 - 3 / step, evaluated every 20 steps: within a point of its end only at the end."""
    write_run(tmp_path / "a", seconds={"compute": 0.01}, noise=0.0)
    write_run(tmp_path / "b", config(density=0.01), seconds={"compute": 0.02}, noise=0.0)
    text = page_of(tmp_path)
    assert "To an accuracy of 94.00%" in text
    assert "| dense | 2 | 1 of 1 | 60 | 600 ms | 240 MB |" in text
    assert "| TopK 1 % | 2 | 1 of 1 | 60 | 1.20 s | 4.80 MB |" in text
    assert "| 6,400 |" in text
