"""Bad input, tried as a new user would: one clear message, a non-zero exit on every rank, and no hang."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from tests.launch import Outcome, find_mpirun, run

DIGITS = """
name = "try"
[data]
name = "digits"
[model]
name = "mlp"
[training]
length = "2 epochs"
batch = 100
[sparsifier]
name = "topk"
density = 0.05
"""


def train(config: Path, *options: str, size: int = 2) -> Outcome:
    command = [find_mpirun(), "-n", str(size), "mpisparse", "train", str(config), *options]
    return run(command, timeout=120, cwd=config.parent)


def expect_one_message(outcome: Outcome, code: int, *words: str) -> None:
    """Assert that the job failed with `code` and said why exactly once, without a traceback."""
    assert outcome.code == code, outcome.text
    messages = [line for line in outcome.stderr.splitlines() if line.startswith("mpisparse: ")]
    assert len(messages) == 1, outcome.text
    assert "Traceback" not in outcome.stderr, outcome.text
    for word in words:
        assert word in messages[0], outcome.text


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    config = tmp_path / "run.toml"
    config.write_text(DIGITS)
    return config


def test_a_wrong_setting_is_said_once_for_all_ranks(digits: Path) -> None:
    outcome = train(digits, "--set", "sparsifier.densty=0.1")
    expect_one_message(outcome, 78, "sparsifier: unknown key 'densty'", "Did you mean 'density'?")
    outcome = train(digits, "--set", "exchange.dense_below=100000")
    expect_one_message(outcome, 78, "nothing to select from", "dense_below=0")


def test_wrong_combinations(digits: Path) -> None:
    around = ["--set", "sparsifier.name=uniform", "--set", "memory.name=error_feedback"]
    expect_one_message(train(digits, *around), 78, "error feedback around Uniform", "unbiased")
    twice = ["--set", "optimizer.momentum=0.9", "--set", "memory.name=momentum_correction"]
    expect_one_message(train(digits, *twice), 78, "momentum would count twice")


def test_missing_configuration(tmp_path: Path) -> None:
    expect_one_message(train(tmp_path / "none.toml"), 78, "none.toml", "No such file")


def test_configuration_that_is_no_toml(digits: Path) -> None:
    digits.write_text("name = ")
    expect_one_message(train(digits), 78, "is no TOML file")


def test_missing_and_damaged_data(tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text(DIGITS.replace('name = "digits"', 'name = "mnist"\npath = "data"', 1))
    expect_one_message(train(config), 78, "data")
    (tmp_path / "data").mkdir()
    for name in (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    ):
        (tmp_path / "data" / f"{name}.gz").write_bytes(gzip.compress(b"\x00\x00\x08\x03" + b"\x00" * 40)[:-9])
    expect_one_message(train(config), 78, "train-images-idx3-ubyte.gz")


def test_more_ranks_than_samples(tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("+1 1:1\n-1 2:1\n")
    (tmp_path / "test.txt").write_text("+1 1:1\n")
    config = tmp_path / "run.toml"
    data = 'name = "libsvm"\ntrain = "few.txt"\ntest = "test.txt"'
    config.write_text(DIGITS.replace('name = "digits"', data, 1))
    expect_one_message(train(config, size=3), 78, "2 samples cannot be shared by 3 ranks")


def test_a_loss_that_explodes_on_all_ranks(digits: Path) -> None:
    expect_one_message(train(digits, "--set", "optimizer.lr=1e30"), 70, "holds NaN or infinity", "rank 0", "rank 1")


@pytest.mark.long
def test_a_run_directory_of_another_configuration(digits: Path) -> None:
    assert train(digits, "--run-dir", "out").code == 0
    outcome = train(digits, "--run-dir", "out", "--set", "sparsifier.density=0.1")
    expect_one_message(outcome, 78, "sparsifier.density was 0.05, is 0.1", "--allow-changes")
    steps = sorted((digits.parent / "out" / "checkpoints").glob("step-*"))
    outcome = train(digits, "--run-dir", "out", "--set", "checkpoint.every='5 steps'", "--resume", str(steps[0]))
    assert outcome.code == 0, outcome.text
    longer = ["--set", "training.length='20 steps'", "--set", "checkpoint.every='5 steps'"]
    assert train(digits, "--run-dir", "out", *longer).code == 0
    outcome = train(digits, "--run-dir", "out", *longer, "--resume", str(steps[0]))
    expect_one_message(outcome, 78, "does not lead to, such as step-00000020")
    outcome = train(digits, "--run-dir", "new", "--resume", "out", "--set", "seed=3")
    expect_one_message(outcome, 78, "seed was 0, is 3")
    outcome = train(digits, "--run-dir", "out", "--resume", "never")
    expect_one_message(outcome, 78, "--resume never")
    outcome = train(digits, "--run-dir", "out", "--set", "checkpoint.reshape=refuse", size=3)
    expect_one_message(outcome, 70, "2 ranks", "3")


def test_wrong_usage_is_said_once(digits: Path) -> None:
    outcome = train(digits, "--frob")
    assert outcome.code == 2, outcome.text
    assert outcome.stderr.count("No such option") == 1, outcome.text
