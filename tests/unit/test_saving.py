"""A run and its saves: what is told of them, and what becomes of a run whose disk fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mpisparse.checkpoint import checkpointer, list_checkpoints, step_of, verify
from mpisparse.comm import solo
from mpisparse.errors import CheckpointError, NonFiniteError
from mpisparse.faults import VARIABLE
from mpisparse.runtime import Surroundings
from mpisparse.training.configfile import parse_config
from mpisparse.training.run import run_training
from tests.rundirs import assert_same_end, read_lines
from tests.unit.disks import RecordingDisk

SURROUNDINGS = Surroundings("0", 1, 1, "threads", "no MPI", "multiple", 1, "a test")


def train(directory: Path, faults: str = "", **checkpoint: Any) -> None:
    """Train for 20 steps, saving every 5."""
    tree = {
        "name": "try",
        "data": {"name": "digits"},
        "model": {"name": "mlp", "hidden": [8]},
        "training": {"length": "20 steps", "batch": 10, "watchdog": 0},
        "checkpoint": {"every": "5 steps", **checkpoint},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, faults)
        run_training(solo(), SURROUNDINGS, parse_config(tree, "test"), run_dir=directory)


def saves(directory: Path) -> list[tuple[int, bool]]:
    lines = [line for line in read_lines(directory / "metrics.jsonl") if line["kind"] == "save"]
    return [(line["step"], line["ok"]) for line in lines]


def there(directory: Path) -> list[int]:
    found = list_checkpoints(directory / "checkpoints")
    assert all(verify(path).ranks == 1 for path in found)
    return [step_of(path) for path in found]


WAYS = pytest.mark.parametrize("asynchronous", [True, False], ids=["behind", "at once"])


@WAYS
def test_every_save_is_told_once(asynchronous: bool, tmp_path: Path) -> None:
    train(tmp_path, asynchronous=asynchronous)
    assert saves(tmp_path) == [(step, True) for step in (5, 10, 15, 20)]
    assert there(tmp_path) == [10, 15, 20]
    # A run that is done is started again and saves nothing.
    train(tmp_path, asynchronous=asynchronous)
    assert saves(tmp_path) == [(step, True) for step in (5, 10, 15, 20)]


@WAYS
def test_a_failed_save_is_told_and_training_goes_on(
    asynchronous: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path / "sound", asynchronous=asynchronous)
    assert "could not be saved" not in capsys.readouterr().err
    train(tmp_path / "full", "disk:rank=0,operation=9,error=ENOSPC,save=2,times=0", asynchronous=asynchronous)
    assert saves(tmp_path / "full") == [(step, step != 10) for step in (5, 10, 15, 20)]
    assert there(tmp_path / "full") == [5, 15, 20]
    said = capsys.readouterr().err
    assert said.count("step 10 could not be saved: state.h5 cannot be written to ") == 1
    assert said.count("No space left on device") == 2  # What was written could not be removed either.
    assert_same_end(tmp_path / "sound", tmp_path / "full", 1)


@WAYS
def test_a_run_ends_where_a_failed_save_is_to_be_raised(asynchronous: bool, tmp_path: Path) -> None:
    fault = "disk:rank=0,operation=9,error=EROFS,save=2"
    with pytest.raises(CheckpointError, match="Read-only file system") as caught:
        train(tmp_path, fault, asynchronous=asynchronous, on_failure="raise")
    assert caught.value.on_all_ranks
    assert there(tmp_path) == [5]
    assert saves(tmp_path) == [(5, True), (10, False)]


@WAYS
def test_the_last_save_is_tried_again_before_it_ends_the_run(asynchronous: bool, tmp_path: Path) -> None:
    train(tmp_path / "once", "disk:rank=0,operation=9,error=EIO,save=4", asynchronous=asynchronous)
    assert saves(tmp_path / "once") == [(5, True), (10, True), (15, True), (20, False), (20, True)]
    assert there(tmp_path / "once") == [10, 15, 20]
    faults = ";".join(f"disk:rank=0,operation=9,error=EIO,save={save}" for save in (4, 5))
    with pytest.raises(CheckpointError, match="Input/output error"):
        train(tmp_path / "twice", faults, asynchronous=asynchronous)
    assert there(tmp_path / "twice") == [5, 10, 15]
    train(tmp_path / "twice", asynchronous=asynchronous)
    assert_same_end(tmp_path / "once", tmp_path / "twice", 1)


def test_tidying_up_that_fails_is_told_of_a_checkpoint_that_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = RecordingDisk()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpointer, "disk_of", lambda rank: disk)
        train(tmp_path / "sound", keep=1)
    begins = [number for number, (operation, path) in enumerate(disk.operations) if path.name == "step-00000020.tmp"]
    last = len(disk.operations) - begins[0]
    assert disk.operations[-1][0] == "rmdir"
    train(tmp_path / "harmed", f"disk:rank=0,operation={last},error=EIO,save=4", keep=1)
    lines = [line for line in read_lines(tmp_path / "harmed" / "metrics.jsonl") if line["kind"] == "save"]
    assert [(line["step"], line["ok"], "failure" in line) for line in lines][-2:] == [
        (15, True, False),
        (20, True, True),
    ]
    assert (
        "step-00000020 is complete and safe, but tidying up after it failed: Input/output error"
        in capsys.readouterr().err
    )
    assert there(tmp_path / "harmed") == [20]


def test_nan_ends_a_run_after_the_save_that_is_going(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError):
        train(tmp_path, "nan:rank=0,step=10")
    assert there(tmp_path) == [5, 10]
    assert not list((tmp_path / "checkpoints").glob("*.tmp"))


def test_an_exception_in_a_step_abandons_the_save_that_is_going(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the exception that"):
        train(tmp_path, "exception:rank=0,step=10")
    assert there(tmp_path) in ([5], [5, 10])
    train(tmp_path)
    torch.manual_seed(0)
    train(tmp_path / "whole")
    assert_same_end(tmp_path, tmp_path / "whole", 1)
