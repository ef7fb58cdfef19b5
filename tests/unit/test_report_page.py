"""The report: what it claims, what it refuses to claim, and what it says of files that are not in order."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from analysis.__main__ import cli
from analysis.brief import Brief, read_brief
from analysis.columns import PHASES, read_columns
from analysis.drawing.drawing import to_csv
from analysis.many import read_briefs
from analysis.report.build import sections_of
from analysis.report.page import to_markdown
from analysis.scaling import ratio, series_of
from analysis.study import differing, flat, method_names, studies_of
from tests.unit.report_runs import append, config, seconds_of, write_run, write_study

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


def page_of(*paths: Path) -> str:
    briefs, left_out = read_briefs(paths)
    studies, refusals = studies_of(briefs)
    return to_markdown(sections_of(studies), refusals, left_out, datetime.now(UTC))


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
    assert "64 on 1 ranks, 64 on 2 ranks, 96 on 4 ranks" in text
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


def test_the_baseline_of_each_rank_count_is_dense(tmp_path: Path) -> None:
    write_study(tmp_path, ranks=(2,), repeats=3, noise=0.005, steps=30)
    (study,), _ = studies_of(read_briefs([tmp_path])[0])
    series = {name: series_of(name, runs, np.random.default_rng(0)) for name, runs in study.runs.items()}
    assert list(series) == ["dense", "dense, 16 bits", "TopK 10 %", "TopK 1 %", "TopK 0.1 %"]
    found = ratio(series["TopK 1 %"].steps[0], series["dense"].steps[0])
    assert found.value == pytest.approx(sum(seconds_of(2, None).values()) / sum(seconds_of(2, 0.01).values()), rel=0.03)
    assert found.low < found.value < found.high


def damaged(change: Callable[[Path], None]) -> Callable[[Path], Brief]:
    def made(tmp_path: Path) -> Brief:
        run = write_run(tmp_path / "run", ranks=2, noise=0.0)
        change(run)
        return read_brief(run)

    return made


def test_a_torn_last_line_is_said(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", end=False)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"schema":1,"kind":"step","st')
    brief = read_brief(run)
    assert brief.steps == 60
    assert "metrics.jsonl: the last line is torn and left out" in brief.problems
    assert brief.state == "going on"
    text = page_of(run)
    assert "> **1 run not at their end**" in text
    assert "the last line is torn" in text


def test_ranks_without_a_file_are_named(tmp_path: Path) -> None:
    def remove(run: Path) -> None:
        (run / "ranks" / "rank-00001.jsonl").unlink()

    brief = damaged(remove)(tmp_path)
    assert "ranks/: 1 of 2 ranks have no file (1)" in brief.problems
    assert brief.waiting is not None
    assert np.isnan(brief.waiting.map[1]).all()
    assert not np.isnan(brief.waiting.map[0]).any()


def test_no_file_of_ranks_at_all(tmp_path: Path) -> None:
    def remove(run: Path) -> None:
        for path in (run / "ranks").iterdir():
            path.unlink()

    assert damaged(remove)(tmp_path).waiting is None
    assert "try-waiting" not in page_of(tmp_path)


def test_steps_that_were_made_again_count_once(tmp_path: Path) -> None:
    def rewind(run: Path) -> None:
        seconds = {"seconds": {"compute": 7.0}, "received_bytes": 0, "loss": 1.0}
        append(run / "metrics.jsonl", {"kind": "start", "step": 50, "ranks": 2, "steps": 60},
               *({"kind": "step", "step": step, **seconds} for step in range(51, 61)),
               {"kind": "end", "step": 60})  # fmt: skip

    brief = damaged(rewind)(tmp_path)
    assert brief.steps == 60
    assert any("10 steps were made again after a resume" in problem for problem in brief.problems)
    assert brief.times[-1] == 7.0
    # Five steps after each start are left out: 1 to 6 (a tenth of 60 made after the first) and 51 to 55.
    assert len(brief.times) == 60 - 5 - 5


def test_a_clock_that_was_set_back_is_said_and_changes_no_time(tmp_path: Path) -> None:
    def set_back(run: Path) -> None:
        path = run / "metrics.jsonl"
        path.write_text(path.read_text().replace('"unix_seconds": 1000000040.0', '"unix_seconds": 999996400.0'))

    brief = damaged(set_back)(tmp_path)
    assert any("the clock was set back by 3,620 s" in problem for problem in brief.problems)
    assert brief.median_step == pytest.approx(sum(seconds_of(2, None).values()), rel=1e-5)


def test_negative_times_do_not_count(tmp_path: Path) -> None:
    def negate(run: Path) -> None:
        lines = (run / "metrics.jsonl").read_text().splitlines()
        line = json.loads(lines[30])
        line["seconds"]["compute"] = -5.0
        lines[30] = json.dumps(line)
        (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")

    brief = damaged(negate)(tmp_path)
    assert any("1 steps of negative time" in problem for problem in brief.problems)
    assert (brief.times > 0).all()
    assert np.isfinite(brief.curve["seconds"]).all()


def test_lines_that_are_no_json_are_counted(tmp_path: Path) -> None:
    def spoil(run: Path) -> None:
        path = run / "metrics.jsonl"
        path.write_text("spoilt\n[1]\n" + path.read_text())

    brief = damaged(spoil)(tmp_path)
    assert brief.steps == 60
    assert "metrics.jsonl: 2 lines are no JSON objects and left out" in brief.problems


def test_missing_steps_are_said(tmp_path: Path) -> None:
    def cut(run: Path) -> None:
        lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
        (run / "metrics.jsonl").write_text("".join(lines[:10] + lines[15:]))

    assert any("5 steps are missing" in problem for problem in damaged(cut)(tmp_path).problems)


def test_what_cannot_be_reported_is_left_out_with_its_reason(tmp_path: Path) -> None:
    write_run(tmp_path / "good")
    failed = write_run(tmp_path / "failed")
    (failed / "failed.json").write_text('{"error": "NonFiniteError", "message": "NaN"}')
    write_run(tmp_path / "asynchronous", config(asynchronous={"window": "auto"}))
    write_run(tmp_path / "short", steps=4)
    bare = write_run(tmp_path / "bare")
    (bare / "metrics.jsonl").unlink()
    other = write_run(tmp_path / "schema")
    (other / "metrics.jsonl").write_text('{"schema": 9}\n')
    briefs, left_out = read_briefs([tmp_path])
    assert [brief.directory.name for brief in briefs] == ["good"]
    reasons = dict(line.split(": ", 1) for line in left_out)
    told = {Path(path).name: reason for path, reason in reasons.items()}
    assert "failed" in told["failed"]
    assert "asynchronous" in told["asynchronous"]
    assert "none of them after the warm-up" in told["short"]
    assert "no run directory" in told["bare"]
    assert "schema 9" in told["schema"]


def test_nothing_to_report_is_an_error(tmp_path: Path) -> None:
    outcome = CliRunner().invoke(cli, ["report", str(tmp_path), "-o", str(tmp_path / "page")])
    assert (outcome.exit_code, outcome.stderr[:24]) == (78, "analysis: no run that a ")


def test_the_same_runs_make_the_same_numbers(tmp_path: Path) -> None:
    write_run(tmp_path / "a", steps=30)
    write_run(tmp_path / "b", steps=30, ranks=4)
    studies, _ = studies_of(read_briefs([tmp_path])[0])
    one, other = ([to_csv(drawing) for drawing in section.drawings]
                  for sections in (sections_of(studies), sections_of(studies)) for section in sections)  # fmt: skip
    assert one == other


def test_columns_are_those_of_the_lines(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ranks=2)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "step"]
    columns = read_columns(run / "metrics.jsonl")
    for key, values in columns.steps.items():
        assert values.tolist() == [line[key] for line in steps]
    assert columns.seconds == pytest.approx(np.array([[line["seconds"][phase] for phase in PHASES] for line in steps]))
    assert columns.evaluations == [line for line in lines if line["kind"] == "evaluation"]
    assert not columns.problems


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
