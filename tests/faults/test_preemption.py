"""A job that is told to end: all ranks save after the same step, exit 75, and the same command goes on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mpisparse.checkpoint import list_checkpoints, verify
from tests.launch import Outcome, environment, find_mpirun, kill_tree, run
from tests.rundirs import assert_same_end, read_lines

CONFIG = """
name = "try"
[data]
name = "digits"
[model]
name = "mlp"
hidden = [8]
[training]
length = "6 epochs"
batch = 120
evaluate = "1 epoch"
[sparsifier]
name = "topk"
density = 0.1
[checkpoint]
keep = 100
"""
SIZE = 3


def command(folder: Path, out: str, *settings: str) -> list[str]:
    (folder / "run.toml").write_text(CONFIG)
    options = [word for setting in settings for word in ("--set", setting)]
    return [find_mpirun(), "-n", str(SIZE), "mpisparse", "train", "run.toml", "--run-dir", out, *options]


def train(folder: Path, out: str, *settings: str, faults: str = "") -> Outcome:
    return run(command(folder, out, *settings), timeout=200, cwd=folder, env={"MPISPARSE_FAULTS": faults})


def end_of(directory: Path) -> tuple[str, int, int, str]:
    """Return what end.json tells."""
    record = json.loads((directory / "end.json").read_text())
    assert (record["schema"], record["ranks"]) == (1, SIZE)
    return record["status"], record["exit_code"], record["step"], record["reason"]


def train_and(act: Callable[[int], None], folder: Path, *settings: str) -> Outcome:
    """Return how a run ended whose launcher, by its process number, `act` is let loose on once some steps are done."""
    log = folder / "out" / "metrics.jsonl"
    child = subprocess.Popen(
        command(folder, "out", *settings), cwd=folder, env=environment(), text=True, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    begin = time.monotonic()
    try:
        while not (log.exists() and '"kind":"step"' in log.read_text()):
            assert child.poll() is None, "no step was made"
            assert time.monotonic() < begin + 120, "no step was made"
            time.sleep(0.01)
        act(child.pid)
        stdout, stderr = child.communicate(timeout=60)
    finally:
        kill_tree(child.pid)
    return Outcome(child.returncode, stdout, stderr, time.monotonic() - begin)


def test_a_signal_to_a_rank_saves_once_and_the_same_command_goes_on_bit_for_bit(tmp_path: Path) -> None:
    outcome = train(tmp_path, "out", faults="usr1:rank=1,step=10;term:rank=2,step=10")
    assert outcome.code == 75, outcome.text
    # The step in which the signal came ends; in the next one all ranks hear of it; that is the end of an epoch.
    assert [path.name for path in list_checkpoints(tmp_path / "out" / "checkpoints")] == ["step-00000012"]
    verify(tmp_path / "out" / "checkpoints" / "step-00000012")
    assert "stopped after step 12 of 24 (rank 1: SIGUSR1; rank 2: SIGTERM)" in outcome.stderr, outcome.text
    assert read_lines(tmp_path / "out" / "metrics.jsonl")[-1]["kind"] == "stopped"
    assert end_of(tmp_path / "out") == ("stopped", 75, 12, "rank 1: SIGUSR1; rank 2: SIGTERM")
    assert "test accuracy" not in outcome.stdout
    # What is printed goes on when it is pasted into a shell.
    (following,) = re.findall(r"stopped after .*; go on with: (.*)", outcome.stderr)
    again = run(["sh", "-c", following], timeout=200, cwd=tmp_path)
    assert again.code == 0, again.text
    assert "resumed from" in again.stderr
    assert end_of(tmp_path / "out") == ("finished", 0, 24, "")
    straight = train(tmp_path, "straight")
    assert straight.code == 0, straight.text
    assert_same_end(tmp_path / "straight", tmp_path / "out", SIZE)
    # The evaluation that was due where it stopped is made when it goes on.
    ours, theirs = (
        [
            (line["kind"], line["step"], line["loss"])
            for line in read_lines(tmp_path / name / "metrics.jsonl")
            if line["kind"] in ("step", "evaluation")
        ]
        for name in ("out", "straight")
    )
    assert ours == theirs


@pytest.mark.parametrize(
    ("numbers", "code"),
    [
        ((signal.SIGUSR1, signal.SIGUSR1), 75),
        ((signal.SIGINT,), 130),
        pytest.param((signal.SIGTERM, signal.SIGTERM), 75, marks=pytest.mark.long),
    ],
)
def test_a_signal_to_the_launcher_stops_a_run_that_saves_all_the_time(
    tmp_path: Path, numbers: tuple[signal.Signals, ...], code: int
) -> None:
    """Twice is as good as once; most of the time of these runs goes into saving. Ctrl-C saves as well."""

    def tell(launcher: int) -> None:
        for number in numbers:
            os.kill(launcher, number)
            time.sleep(0.05)

    every = ("training.length=100000 steps", "training.log_every=1", "checkpoint.every=1 step", "checkpoint.keep=2")
    outcome = train_and(tell, tmp_path, *every)
    assert outcome.code == code, outcome.text
    newest = list_checkpoints(tmp_path / "out" / "checkpoints")[-1]
    step = read_lines(tmp_path / "out" / "metrics.jsonl")[-1]["step"]
    assert verify(newest).step == step
    assert end_of(tmp_path / "out")[:3] == ("stopped", code, step)


@pytest.mark.long
def test_a_run_stops_by_itself_before_its_time_is_over(tmp_path: Path) -> None:
    outcome = train(tmp_path, "out", "training.length=1000000 steps", "training.time_limit=16")
    assert outcome.code == 75, outcome.text
    assert "s are left, and stopping may take" in outcome.stderr, outcome.text
    (newest,) = list_checkpoints(tmp_path / "out" / "checkpoints")
    verify(newest)


STUDY = """
[base]
name = "two"
[base.data]
name = "digits"
[base.model]
name = "mlp"
hidden = [8]
[base.training]
length = "12 steps"
batch = 60

[axes]
seed = [1, 2]
"""


def test_a_sweep_stops_in_a_run_and_goes_on_with_it(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(STUDY)
    sweep = [find_mpirun(), "-n", "2", "mpisparse", "sweep", "study.toml", "--run-dir", "out"]
    outcome = run(sweep, timeout=200, cwd=tmp_path, env={"MPISPARSE_FAULTS": "usr1:rank=1,step=5"})
    assert outcome.code == 75, outcome.text
    (following,) = re.findall(r"stopped in 000-.*; go on with: (.*)", outcome.stderr)
    again = run(["sh", "-c", following], timeout=200, cwd=tmp_path)
    assert again.code == 0, again.text
    assert [read_lines(path)[-1]["kind"] for path in sorted(tmp_path.glob("out/*/metrics.jsonl"))] == ["end"] * 2
