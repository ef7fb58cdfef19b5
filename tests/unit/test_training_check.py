"""What a run cannot do is said before anything is made: by `mpisparse config --check`, and of --resume."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from mpisparse.cli import cli
from mpisparse.comm import Communicator, run_ranks
from mpisparse.errors import CheckpointError, ConfigError, DataError, MpiSparseError
from mpisparse.runtime import start
from mpisparse.training.check import check_run
from mpisparse.training.config import RunConfig
from mpisparse.training.configfile import read_text
from mpisparse.training.run import run_training

CONFIG = """
name = "try"
[data]
name = "digits"
[model]
name = "mlp"
hidden = [4]
[training]
length = "2 steps"
global_batch = 8
"""
ASYNCHRONOUS = """
name = "try"
[data]
name = "synthetic"
[model]
name = "logistic"
[training]
length = "0 steps"
batch = 8
[asynchronous]
"""

#: Settings that a run refuses, with what it says.
REFUSED: dict[str, tuple[type[MpiSparseError], str]] = {
    "exchange.values=levels": (ConfigError, "need the grid that QSGD's entries lie on"),
    "exchange.values=hybrid": (ConfigError, "need the magnitude that GSpar's entries share"),
    'optimizer={name="SGD", lr=0.1, nesterov=true}': (ConfigError, "optimizer SGD does not take these options"),
    'data={name="mnist", path="nowhere"}': (DataError, "nowhere"),
    'data={name="text", path="nowhere.txt"}': (DataError, "nowhere.txt"),
    'model={name="logistic"}': (ConfigError, ""),
    "training.global_batch=7": (ConfigError, "cannot be divided by 2 ranks"),
}


def config(*settings: str) -> RunConfig:
    return read_text(CONFIG, "it", settings)


def refusal_of_a_run(run: RunConfig, directory: Path) -> MpiSparseError | None:
    """Return what a run on two ranks raises."""

    def rank(comm: Communicator) -> MpiSparseError | None:
        comm, surroundings = start(comm, banner=False)
        try:
            run_training(comm, surroundings, run, run_dir=directory, quiet=True)
        except MpiSparseError as error:
            return error
        return None

    return run_ranks(2, rank)[0]


@pytest.mark.parametrize("setting", REFUSED)
def test_the_check_refuses_what_a_run_refuses_in_the_same_words(setting: str, tmp_path: Path) -> None:
    kind, words = REFUSED[setting]
    refusal = refusal_of_a_run(config(setting), tmp_path / "run")
    assert isinstance(refusal, kind)
    with pytest.raises(kind) as caught:
        check_run(config(setting), 2)
    assert str(caught.value) == str(refusal)
    assert words in str(refusal)
    assert not (tmp_path / "run").exists()


def test_the_check_takes_what_a_run_takes_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("it.toml").write_text(CONFIG)
    result = CliRunner().invoke(cli, ["config", "it.toml", "--check", "--ranks", "2"])
    assert result.exit_code == 0, result.output
    assert result.output.startswith("it.toml can be trained: digits")
    assert [path.name for path in tmp_path.iterdir()] == ["it.toml"]
    assert refusal_of_a_run(config(), tmp_path / "run") is None
    refused = CliRunner().invoke(cli, ["config", "it.toml", "--check", "--set", "exchange.values=levels"])
    assert isinstance(refused.exception, ConfigError)
    assert CliRunner().invoke(cli, ["config", "it.toml", "--ranks", "2"]).exit_code == 2


def test_the_check_knows_asynchronous_runs() -> None:
    with pytest.raises(ConfigError, match=r"training\.length is 0: asynchronous training makes at least one update"):
        check_run(read_text(ASYNCHRONOUS, "it"))


def resume(directory: Path | None, which: str, *settings: str) -> MpiSparseError | None:
    def rank(comm: Communicator) -> MpiSparseError | None:
        comm, surroundings = start(comm, banner=False)
        try:
            run_training(comm, surroundings, config(*settings), run_dir=directory, resume=which, quiet=True)
        except MpiSparseError as error:
            return error
        return None

    return run_ranks(2, rank)[0]


@pytest.mark.parametrize("named", [True, False], ids=["run-dir", "no run-dir"])
def test_a_resume_that_cannot_be_leaves_no_directory(
    named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert resume(Path("first"), "never") is None
    shutil.copytree("first", "damaged")
    for path in Path("damaged").glob("checkpoints/*/rank-00001.h5"):
        path.write_bytes(b"")
    Path("empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    directory = Path("new") if named else None
    for which, kind in (("nowhere", CheckpointError), ("empty", CheckpointError), ("damaged", CheckpointError)):
        assert isinstance(resume(directory, which), kind)
    # Another configuration than the checkpoint's.
    assert isinstance(resume(directory, "first", "optimizer.lr=0.5"), ConfigError)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_resume_from_a_path_goes_on_in_a_new_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resume(Path("first"), "never") is None
    for directory, made in ((Path("new"), Path("new")), (None, Path("runs/try-001"))):
        assert resume(directory, "first", "training.length=4 steps") is None
        assert (made / "checkpoints" / "step-00000004").is_dir()
    refused = resume(Path("first"), "never")
    assert isinstance(refused, ConfigError)
    assert "--resume never" in str(refused)
    refused = resume(Path("new"), "first", "training.length=4 steps")
    assert isinstance(refused, ConfigError)
    assert "does not lead to" in str(refused)
