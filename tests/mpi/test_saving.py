"""Runs that save while they train, over MPI: the same bits as those that wait; when the disk fails they go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mpisparse.checkpoint import list_checkpoints, step_of, verify
from tests.launch import Outcome, find_mpirun, run
from tests.rundirs import assert_same_end, read_lines, states
from tests.stamps import contents
from tests.unit.test_checkpoint_tree import same

CONFIG = """
name = "try"
[data]
name = "digits"
[model]
name = "mlp"
hidden = [16]
[training]
length = "40 steps"
batch = 20
log_every = 7
[optimizer]
name = "Adam"
lr = 0.003
[sparsifier]
name = "topk"
density = 0.05
[memory]
name = "error_feedback"
[checkpoint]
every = "5 steps"
keep = 2
"""

#: Where a rank is killed in a save.
PLACES = [
    "rank=0,operation=1",  # making the directory
    "rank=0,operation=12",  # in state.h5
    "rank=1,operation=9",  # in the file of another rank
    "rank=1,operation=20",
    "rank=0,operation=60",  # the manifest, the name, what comes after it
    "rank=0,operation=64",
    "rank=0,operation=68",
    "rank=0,operation=72",
]
PLACES_OF_A_SHARED_FILE = [
    "rank=0,operation=12",
    "rank=1,operation=1",  # writing its part
    "rank=1,operation=2",  # having it on the disk
    "rank=0,operation=50",
]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(CONFIG)
    return path


def train(config: Path, name: str, *settings: str, size: int = 2, faults: str = "") -> Outcome:
    changes = [word for setting in settings for word in ("--set", setting)]
    command = [find_mpirun(), "-n", str(size), "mpisparse", "train", str(config), "--run-dir", name, *changes]
    return run(command, timeout=240, cwd=config.parent, env={"MPISPARSE_FAULTS": faults})


def saves(directory: Path) -> list[dict[str, Any]]:
    return [line for line in read_lines(directory / "metrics.jsonl") if line["kind"] == "save"]


def assert_same_state(left: Path, right: Path, size: int) -> None:
    """Assert that two runs ended with the same bits, whose configurations differ."""
    expected, found = (
        {name: value for name, value in states(path, size).items() if not name.startswith("state.h5.config")}
        for path in (left, right)
    )
    assert same(expected, found)


@pytest.mark.parametrize("size", [pytest.param(1, marks=pytest.mark.long), 2, pytest.param(3, marks=pytest.mark.long)])
def test_runs_that_save_behind_or_wait_or_share_a_file_or_fail_are_the_same_bit_for_bit(
    size: int, config: Path
) -> None:
    """In the last of them the second and the third save fail on the last rank."""
    last = size - 1
    faults = ";".join(f"disk:rank={last},operation=9,error=ENOSPC,save={save},times=4" for save in (2, 3))
    runs = {
        "behind": ("checkpoint.asynchronous=true", ""),
        "waits": ("checkpoint.asynchronous=false", ""),
        "shares": ("checkpoint.shared=true", ""),
        "fails": ("checkpoint.asynchronous=true", faults),
    }
    outcomes = {name: train(config, name, setting, size=size, faults=fault) for name, (setting, fault) in runs.items()}
    assert all(outcome.code == 0 for outcome in outcomes.values()), [outcome.text for outcome in outcomes.values()]
    behind, waits, shares, fails = (config.parent / name for name in runs)
    assert_same_state(behind, waits, size)
    assert_same_state(behind, shares, size)
    assert_same_end(behind, fails, size)
    for path in list_checkpoints(behind / "checkpoints"):
        for file in (f"rank-{rank:05d}.h5" for rank in range(size)):
            assert contents(path / file) == contents(waits / "checkpoints" / path.name / file)
        assert (shares / "checkpoints" / path.name / "ranks.h5").exists()
    for directory, failed in ((behind, ()), (waits, ()), (shares, ()), (fails, (10, 15))):
        told = saves(directory)
        assert [(line["step"], line["ok"]) for line in told] == [(s, s not in failed) for s in range(5, 41, 5)]
        for line in told:
            text = f"step {line['step']} could not be saved: "
            assert outcomes[directory.name].stderr.count(text) == 1 - line["ok"], outcomes[directory.name].text
            assert line["ok"] or size == 1 or f"rank {last} of {size}: " in line["failure"]


@pytest.mark.long
def test_the_last_save_is_tried_again_and_then_ends_the_run(config: Path) -> None:
    twice = ";".join(f"disk:rank=1,operation=5,error=EIO,save={save}" for save in (8, 9))
    ended = train(config, "twice", faults=twice)
    assert ended.code == 70, ended.text
    assert "CheckpointError: rank 1 of 2: rank-00001.h5 cannot be written" in ended.stderr
    newest = list_checkpoints(config.parent / "twice" / "checkpoints")[-1]
    assert (step_of(newest), verify(newest).ranks) == (35, 2)
    for name in ("twice", "whole"):
        outcome = train(config, name)
        assert outcome.code == 0, outcome.text
    assert_same_end(config.parent / "twice", config.parent / "whole", 2)


@pytest.mark.long
@pytest.mark.parametrize("asynchronous", ["true", "false"])
def test_a_run_may_be_told_to_end_when_a_save_fails(asynchronous: str, config: Path) -> None:
    settings = (f"checkpoint.asynchronous={asynchronous}", 'checkpoint.on_failure="raise"')
    outcome = train(config, "faulty", *settings, faults="disk:rank=0,operation=9,error=EDQUOT,save=2")
    assert outcome.code == 70, outcome.text
    assert outcome.stderr.count("mpisparse: CheckpointError: rank 0 of 2: ") == 1, outcome.text
    assert [step_of(path) for path in list_checkpoints(config.parent / "faulty" / "checkpoints")] == [5]


@pytest.mark.long
@pytest.mark.parametrize(
    ("place", "setting"),
    [
        *((place, every) for place in PLACES for every in ("checkpoint.every=5 steps", "checkpoint.every=1 steps")),
        *((place, "checkpoint.shared=true") for place in PLACES_OF_A_SHARED_FILE),
    ],
)
def test_a_run_that_is_killed_while_it_saves_goes_on_to_the_same_end(place: str, setting: str, config: Path) -> None:
    killed = train(config, "killed", setting, faults=f"disk:{place},error=kill,save=4")
    assert killed.code != 0, killed.text
    there = list_checkpoints(config.parent / "killed" / "checkpoints")
    assert all(verify(path).ranks == 2 for path in there)
    again = train(config, "killed", setting)
    assert again.code == 0, again.text
    assert "resumed from" in again.stderr
    whole = train(config, "whole", setting)
    assert whole.code == 0, whole.text
    assert_same_end(config.parent / "killed", config.parent / "whole", 2)
