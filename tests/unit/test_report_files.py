"""Runs in brief: what is said of files that are not in order, and that the rest counts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from analysis.__main__ import cli
from analysis.brief import Brief, read_brief
from analysis.columns import PHASES, read_columns
from analysis.many import read_briefs
from tests.unit.report_runs import append, config, page_of, seconds_of, write_run


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
    assert any("1 step of negative time" in problem for problem in brief.problems)
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
