"""Sweeps on real ranks: made once, resumed, each run what it would be alone, divergence noted."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.launch import environment, find_mpirun, forked, kill_tree, run
from tests.paths import CHECKOUT
from tests.rundirs import states

STUDY = """
[base]
name = "small"
[base.data]
name = "synthetic"
samples = 60
features = 30
test_samples = 20
[base.model]
name = "logistic"
l2 = 0.1
[base.training]
length = "3 epochs"
batch = 5
objective = true
[base.checkpoint]
every = "4 steps"
[axes]
sparsifier = [{ name = "gspar", density = 0.2 }, { name = "topk", density = 0.1 }]
"optimizer.lr" = [0.1, 0.5]
"""


def numbers(path: Path) -> list[dict[str, Any]]:
    """Return what a run's log says, without times."""
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if "second" not in key}
        for line in lines
        if line["kind"] in ("step", "evaluation")
    ]


def run_sweep(tmp_path: Path, *words: str, ranks: int = 2, text: str = STUDY) -> tuple[int, str]:
    study = tmp_path / "study.toml"
    study.write_text(text)
    command = [find_mpirun(), "-n", str(ranks), "mpisparse", "sweep", str(study)]
    outcome = run([*command, "--run-dir", str(tmp_path / "sweep"), *words], timeout=240)
    return outcome.code, outcome.text


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return a directory with a finished sweep, and what it printed."""
    directory = tmp_path_factory.mktemp("swept")
    code, text = run_sweep(directory)
    assert code == 0, text
    return directory, text


def test_every_run_has_its_directory(swept: tuple[Path, str]) -> None:
    directory, text = swept
    names = ["000-gspar-0.2-lr-0.1", "001-gspar-0.2-lr-0.5", "002-topk-0.1-lr-0.1", "003-topk-0.1-lr-0.5"]
    assert sorted(path.name for path in (directory / "sweep").iterdir() if path.is_dir()) == names
    assert "4 runs made, 0 were finished before, 0 failed" in text
    assert "small: 4 of 4 runs to make in" in text
    assert "[3/4] 002-topk-0.1-lr-0.1 | test loss" in text
    assert "above the least" in text
    about = json.loads((directory / "sweep" / "sweep.json").read_text())
    assert about == {"study": "small", "reduced": False, "runs": 4}
    assert (directory / "sweep" / "study.toml").read_text() == STUDY
    assert len((directory / "sweep" / "runs.csv").read_text().splitlines()) == 5


@pytest.mark.parametrize("name", [pytest.param("001-gspar-0.2-lr-0.5", marks=pytest.mark.long), "003-topk-0.1-lr-0.5"])
def test_a_run_of_a_sweep_is_what_it_is_alone(swept: tuple[Path, str], tmp_path: Path, name: str) -> None:
    """Nothing that runs before it leave behind in the process reaches it: the same bits, down to the random states."""
    directory, _ = swept
    last = directory / "sweep" / name
    command = [find_mpirun(), "-n", "2", "mpisparse", "train", str(last / "config.toml")]
    outcome = run([*command, "--run-dir", str(tmp_path / "alone")], timeout=60)
    assert outcome.code == 0, outcome.text
    assert numbers(tmp_path / "alone") == numbers(last)
    assert json.loads((last / "optimum.json").read_text()) == json.loads((tmp_path / "alone/optimum.json").read_text())
    ours, theirs = states(last, 2), states(tmp_path / "alone", 2)
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert torch.equal(value, theirs[key]) if isinstance(value, torch.Tensor) else value == theirs[key], key


def test_what_is_finished_is_left_alone(swept: tuple[Path, str]) -> None:
    directory, _ = swept
    before = {path: path.stat().st_mtime_ns for path in (directory / "sweep").glob("*/*.jsonl")}
    code, text = run_sweep(directory)
    assert code == 0, text
    assert "0 runs made, 4 were finished before" in text
    assert "[1/" not in text
    assert before == {path: path.stat().st_mtime_ns for path in (directory / "sweep").glob("*/*.jsonl")}


def test_another_study_in_the_same_place_is_refused(swept: tuple[Path, str]) -> None:
    directory, _ = swept
    code, text = run_sweep(directory, text=STUDY.replace("[0.1, 0.5]", "[0.1, 0.4]"))
    assert code == 78
    assert "runs of another study" in text
    assert "Use another --run-dir" in text
    run_sweep(directory)  # writes the study back


@pytest.mark.long
def test_only_some_runs(tmp_path: Path) -> None:
    code, text = run_sweep(tmp_path, "--only", "1:3")
    assert code == 0, text
    made = sorted(path.name[:3] for path in (tmp_path / "sweep").iterdir() if path.is_dir())
    assert made == ["001", "002"]
    code, text = run_sweep(tmp_path, "--only", "4")
    assert code == 78
    assert "has 0 to 3" in text
    code, text = run_sweep(tmp_path, "--only", "x")
    assert code == 2
    assert "--only 'x'" in text


def test_divergence_is_noted_and_the_next_run_follows(tmp_path: Path) -> None:
    text = STUDY.replace('"optimizer.lr" = [0.1, 0.5]', '"optimizer.lr" = [1e38, 0.5]').replace("objective = true", "")
    code, said = run_sweep(tmp_path, text=text)
    assert code == 0, said
    assert "2 runs made, 0 were finished before, 2 failed" in said
    run = tmp_path / "sweep" / "000-gspar-0.2-lr-1e-38"
    failure = json.loads((run / "failed.json").read_text())
    steps = [line["step"] for line in numbers(run)]
    assert failure["error"] == "NonFiniteError"
    assert steps == list(range(1, failure["step"])), "the log says what led to it"
    assert f"{run.name} │ NonFiniteError at step {failure['step']}" in said
    code, said = run_sweep(tmp_path, text=text)
    assert "0 of 4 runs to make" in said
    assert "2 finished before, 2 failed before: --retry makes them again" in said
    assert code == 0, said
    code, said = run_sweep(tmp_path, "--retry", "--only", "0", text=text)
    assert "failed: after" in said
    assert "0 runs made, 0 were finished before, 1 failed" in said


@pytest.mark.long
def test_another_failure_is_noted_and_makes_the_exit_code(tmp_path: Path) -> None:
    """An optimum that float64 cannot certify; the other half of the runs has one."""
    text = STUDY.replace('"optimizer.lr" = [0.1, 0.5]', '"model.l2" = [1e-300, 0.1]')
    code, said = run_sweep(tmp_path, text=text)
    assert code == 70, said
    assert "2 runs made, 0 were finished before, 2 failed" in said
    failure = json.loads((tmp_path / "sweep" / "000-gspar-0.2-l2-1e-300" / "failed.json").read_text())
    assert failure["error"] == "MpiSparseError"
    assert failure["step"] is None
    code, said = run_sweep(tmp_path, "--only", "1", text=text)
    assert code == 0, said


def test_a_run_that_was_stopped_before_its_last_line_gets_it(swept: tuple[Path, str], tmp_path: Path) -> None:
    directory, _ = swept
    shutil.copytree(directory / "sweep", tmp_path / "sweep")
    run = tmp_path / "sweep" / "001-gspar-0.2-lr-0.5"
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    assert json.loads(lines[-1])["kind"] == "end"
    (run / "metrics.jsonl").write_text("".join(lines[:-1]))
    code, said = run_sweep(tmp_path)
    assert "1 run made, 3 were finished before" in said
    assert code == 0, said
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["kind"] == "end"
    assert numbers(run) == numbers(directory / "sweep" / run.name)
    assert "0 runs made, 4 were finished before" in run_sweep(tmp_path)[1]


def test_missing_data_is_an_error_unless_it_may_be_missing(tmp_path: Path) -> None:
    text = STUDY.replace(
        'name = "synthetic"\nsamples = 60\nfeatures = 30\ntest_samples = 20', 'name = "mnist"\npath = "none"'
    )
    text = text.replace('name = "logistic"\nl2 = 0.1', 'name = "mlp"')
    code, said = run_sweep(tmp_path, text=text)
    assert code == 78, said
    code, said = run_sweep(tmp_path, "--if-data", text=text)
    assert code == 0, said
    assert "small is left out: " in said


def test_a_killed_sweep_goes_on_where_it_was(swept: tuple[Path, str], tmp_path: Path) -> None:
    """kill -9 of everything in the middle; the same command again ends as if nothing had happened."""
    directory, _ = swept
    (tmp_path / "study.toml").write_text(STUDY)
    command = [find_mpirun(), "-n", "2", "mpisparse", "sweep", str(tmp_path / "study.toml")]
    child = subprocess.Popen(
        forked([*command, "--run-dir", str(tmp_path / "sweep")]),
        cwd=CHECKOUT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not list((tmp_path / "sweep").glob("001-*/metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.005)
    kill_tree(child.pid)
    assert child.wait() == -signal.SIGKILL
    code, text = run_sweep(tmp_path)
    assert code == 0, text
    for path in sorted((directory / "sweep").glob("0*")):
        assert numbers(tmp_path / "sweep" / path.name) == numbers(path), path.name


def test_the_list_needs_no_mpi(tmp_path: Path) -> None:
    study = tmp_path / "study.toml"
    study.write_text(STUDY)
    outcome = run(["mpisparse", "sweep", str(study), "--list", "--json"], timeout=60)
    assert [planned["index"] for planned in json.loads(outcome.stdout)] == [0, 1, 2, 3]
    outcome = run(["mpisparse", "sweep", str(study), "--list", "--only", "1:3"], timeout=60)
    assert outcome.stdout.splitlines() == [
        "   1  sparsifier gspar 0.2, optimizer.lr 0.5",
        "   2  sparsifier topk 0.1, optimizer.lr 0.1",
    ]
