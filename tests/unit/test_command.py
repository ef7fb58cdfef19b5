"""The commands that a run is said to go on with: what a shell makes of them is what was given."""

from __future__ import annotations

import json
import shlex
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

import mpisparse as ms
from mpisparse.checkpoint import Checkpointer
from mpisparse.checkpoint.saved import open_checkpoint
from mpisparse.comm import solo
from mpisparse.comm.launcher import launch_words
from mpisparse.errors import NonFiniteError
from mpisparse.runtime import start
from mpisparse.training.command import Command
from mpisparse.training.configfile import parse_config
from mpisparse.training.run import run_training
from mpisparse.words import counted
from tests.paths import CHECKOUT

CONFIG = {
    "name": "try",
    "data": {"name": "digits"},
    "model": {"name": "mlp", "hidden": [4]},
    "training": {"length": "6 steps", "batch": 60, "evaluate": "100 steps"},
    "checkpoint": {"every": "2 steps", "asynchronous": False},
}
SETTINGS = ("sparsifier.name=topk", "training.length=4 epochs", "name=it's")


@pytest.mark.parametrize(
    ("size", "environ", "words"),
    [
        (1, {}, []),
        (4, {}, ["mpirun", "-n", "4"]),
        (4, {"PMI_SIZE": "4", "MPI_LOCALNRANKS": "2"}, ["mpirun", "-n", "4"]),
        (4, {"OMPI_COMM_WORLD_SIZE": "4"}, ["mpirun", "-n", "4"]),
        (4, {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0", "PMI_SIZE": "4"}, ["srun", "-n", "4"]),
        (1, {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, ["srun", "-n", "1"]),
        # An mpirun within a step of Slurm, of as many tasks by chance, and of fewer.
        (2, {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0", "MPI_LOCALNRANKS": "1"}, ["mpirun", "-n", "2"]),
        (2, {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0", "OMPI_COMM_WORLD_SIZE": "2"}, ["mpirun", "-n", "2"]),
        (8, {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"}, ["mpirun", "-n", "8"]),
        (1, {"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "0"}, []),
    ],
)
def test_the_launcher_is_the_one_that_started_the_ranks(
    size: int, environ: Mapping[str, str], words: list[str]
) -> None:
    assert launch_words(size, environ) == words


def test_a_command_goes_on_with_all_that_was_given() -> None:
    command = Command("train", Path("my run.toml"), SETTINGS, ("--allow-changes",), 2)
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    expected = ["mpirun", "-n", "2", "mpisparse", "train", "my run.toml", *settings]
    assert shlex.split(command.going_on(Path("runs/a b"), {})) == [
        *expected,
        "--run-dir",
        "runs/a b",
        "--allow-changes",
    ]
    assert command.going_on(Path("d"), {}).startswith("mpirun -n 2 mpisparse train 'my run.toml' --set sparsifier.name")


def test_another_rule_takes_the_place_of_the_sparsifier() -> None:
    command = Command("train", Path("-odd.toml"), SETTINGS)
    assert shlex.split(command.changed("sparsifier.name=dense", environ={})) == [
        *("mpisparse", "train", "./-odd.toml", "--set", "training.length=4 epochs", "--set", "name=it's"),
        *("--set", "sparsifier.name=dense"),
    ]


def test_a_failure_names_the_newest_checkpoint_and_the_command(tmp_path: Path) -> None:
    command = Command("train", Path("run.toml"))
    assert command.after_failure(tmp_path, {}) == ""
    with Checkpointer(tmp_path / "checkpoints", comm=solo()) as checkpointer:
        for step in (3, 12):
            checkpointer.save(step, {"x": 1})
    assert command.after_failure(tmp_path, {}) == (
        f"step-00000012 is saved; to go on from there: mpisparse train run.toml --run-dir {tmp_path}"
    )


def test_nouns_agree_with_their_numbers() -> None:
    assert [counted(number, "rank") for number in (0, 1, 2)] == ["0 ranks", "1 rank", "2 ranks"]


def test_a_run_that_fails_notes_the_command_and_one_that_saved_nothing_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = parse_config(CONFIG, "here")
    comm, surroundings = start(solo(), banner=False)
    command = Command("train", Path("run.toml"))
    for step, notes in ((1, []), (4, [command.after_failure])):
        directory = tmp_path / str(step)
        monkeypatch.setenv("MPISPARSE_FAULTS", f"nan:rank=0,step={step}")
        with pytest.raises(NonFiniteError) as caught:
            run_training(comm, surroundings, config, run_dir=directory, command=command, quiet=True)
        assert getattr(caught.value, "__notes__", []) == [note(directory) for note in notes]


def test_the_version_is_one_and_is_written_down(tmp_path: Path) -> None:
    comm, surroundings = start(solo(), banner=False)
    run_training(comm, surroundings, parse_config(CONFIG, "here"), run_dir=tmp_path, quiet=True)
    first = json.loads((tmp_path / "metrics.jsonl").read_text().partition("\n")[0])
    environment = json.loads((tmp_path / "environment.json").read_text())
    replicated = open_checkpoint(tmp_path / "checkpoints").replicated()
    assert isinstance(replicated, dict)
    assert {first["mpisparse"], environment["mpisparse"], replicated["mpisparse"]} == {ms.__version__}
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert ms.__version__ in (CHECKOUT / project["tool"]["hatch"]["version"]["path"]).read_text()
    assert f"## {ms.__version__.partition('.dev')[0]} (unreleased)" in (CHECKOUT / "CHANGELOG.md").read_text()
