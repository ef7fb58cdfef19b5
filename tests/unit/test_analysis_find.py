"""Finding runs: parents and sweeps at any depth, runs that failed, and logs without steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from analysis.find import find
from analysis.load import load_run
from tests.unit.paper_runs import DENSE, convex_config, write_coding, write_convex, write_svm, write_sweep


def test_runs_sweeps_and_files_are_found_at_any_depth(tmp_path: Path) -> None:
    sweep = tmp_path / "deep" / "sgd"
    runs = [write_convex(sweep / f"00{i}-x", convex_config("paper-sgd", DENSE, 0.1 * (i + 1))) for i in range(2)]
    write_sweep(sweep, "paper-sgd", reduced=True, runs=5)
    alone = write_svm(tmp_path / "alone", DENSE, 2)
    coding = write_coding(tmp_path / "deep" / "coding.json")
    (alone / "checkpoints" / "inside").mkdir(parents=True)
    (alone / "checkpoints" / "inside" / "config.toml").write_text("name = 'no run'")
    found = find([tmp_path, runs[0]])
    assert set(found.runs) == {*runs, alone}
    assert len(found.runs) == 3
    assert [(each.study, each.reduced, each.runs) for each in found.sweeps] == [("paper-sgd", True, 5)]
    assert found.files == [coding]


def test_a_run_of_a_sweep_tells_of_its_sweep(tmp_path: Path) -> None:
    run = write_convex(tmp_path / "000-x", convex_config("paper-sgd", DENSE, 0.1))
    write_sweep(tmp_path, "paper-sgd", reduced=False, runs=1)
    assert [sweep.directory for sweep in find([run]).sweeps] == [tmp_path]


def test_a_sweep_without_its_summary_counts_the_rows(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text('name = "mine"\n')
    (tmp_path / "runs.csv").write_text('index,directory,settings\n0,000-a,"x, y"\n1,001-b,z\n')
    assert [(each.study, each.reduced, each.runs) for each in find([tmp_path]).sweeps] == [("mine", False, 2)]


def test_what_is_not_there_or_no_sweep_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere does not exist"):
        find([tmp_path / "nowhere"])
    (tmp_path / "study.toml").write_text("no toml")
    with pytest.raises(ValueError, match="no sweep that can be read"):
        find([tmp_path])


def test_a_run_that_failed_needs_no_log(tmp_path: Path) -> None:
    run = write_convex(tmp_path / "run", convex_config("paper-sgd", DENSE, 9.0))
    (run / "failed.json").write_text(json.dumps({"error": "NonFiniteError", "message": "NaN", "step": 3}))
    (run / "metrics.jsonl").unlink()
    (run / "environment.json").unlink()
    loaded = load_run(run)
    assert loaded.failed == {"error": "NonFiniteError", "message": "NaN", "step": 3}
    assert (loaded.steps, loaded.environment, loaded.finished) == ([], {}, False)
    (run / "failed.json").write_text("[]")
    with pytest.raises(ValueError, match=r"failed\.json holds no object"):
        load_run(run)


def test_an_end_before_the_goal_is_none(tmp_path: Path) -> None:
    """A run that was made longer and stopped again has an end of its first part."""
    run = write_convex(tmp_path / "run", convex_config("paper-sgd", DENSE, 0.1))
    loaded = load_run(run)
    assert loaded.finished
    assert loaded.optimum is not None
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"schema": 1, "kind": "start", "step": 480, "ranks": 4, "steps": 960}\n')
    assert not load_run(run).finished


def test_an_asynchronous_run_has_no_steps(tmp_path: Path) -> None:
    loaded = load_run(write_svm(tmp_path / "run", DENSE, 2))
    assert (loaded.steps, loaded.finished, loaded.ends[0]["window"]) == ([], True, "shared")
