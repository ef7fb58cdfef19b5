"""`mpisparse train` with shared parameters on real ranks, through both kinds of window, and how it fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.launch import Outcome, find_mpirun, mpirun, run

CONFIG = """
name = "try"
[data]
name = "synthetic_svm"
samples = 3000
features = 64
[model]
name = "svm"
l2 = 0.05
halved = false
[training]
length = "2 epochs"
batch = 1
[optimizer]
lr = 0.02
[sparsifier]
name = "gspar"
density = 0.2
iterations = 2
[asynchronous]
snapshots = 8
"""


def train(config: Path, *settings: str, size: int) -> Outcome:
    words = [word for setting in settings for word in ("--set", setting)]
    return run(
        [find_mpirun(), "-n", str(size), "mpisparse", "train", config.name, *words], timeout=200, cwd=config.parent
    )


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "run.toml"
    file.write_text(CONFIG)
    return file


@pytest.mark.parametrize(
    ("window", "rule"),
    [
        ("shared", "gspar"),
        ("accumulate", "dense"),
        pytest.param("shared", "dense", marks=pytest.mark.long),
        pytest.param("accumulate", "gspar", marks=pytest.mark.long),
    ],
)
def test_ranks_train_together_through_a_window(config: Path, window: str, rule: str) -> None:
    outcome = train(config, f"asynchronous.window={window}", f"sparsifier.name={rule}", size=2)
    assert outcome.code == 0, outcome.text
    directory = config.parent / "runs" / "try-001"
    lines = read(directory / "metrics.jsonl")
    evaluations, end = lines[1:-1], lines[-1]
    assert (lines[0]["kind"], lines[0]["ranks"]) == ("start", 2)
    assert (end["kind"], end["window"], end["updates"]) == ("end", window, 6000)
    assert (end["conflicts"] is None) == (window == "accumulate")
    assert evaluations[0]["objective"] == 1.0
    assert evaluations[-1]["objective"] < 0.95
    assert evaluations[-1]["step"] == 6000
    share = end["entries_written"] / (6000 * 64)
    assert share == 1 if rule == "dense" else 0.1 < share < 0.21
    ranks = [read(directory / "ranks" / f"rank-{rank:05d}.jsonl")[0] for rank in range(2)]
    assert sum(own["updates"] for own in ranks) == 6000
    assert sum(own["entries_written"] for own in ranks) == end["entries_written"]
    assert end["waiting_seconds"] == pytest.approx(sum(own["waiting_seconds"] for own in ranks))
    for words in ("train objective", "updates of others", "mpirun -n 2 mpisparse train run.toml", window):
        assert words in outcome.stdout, outcome.text


@pytest.mark.parametrize("window", ["shared", pytest.param("accumulate", marks=pytest.mark.long)])
def test_divergence_is_said_once(config: Path, window: str) -> None:
    outcome = train(config, f"asynchronous.window={window}", "model.l2=100.0", "optimizer.lr=1.0", size=3)
    assert outcome.code == 70, outcome.text
    messages = [line for line in outcome.stderr.splitlines() if line.startswith("mpisparse: ")]
    assert len(messages) == 1, outcome.text
    assert "have diverged; lower optimizer.lr" in messages[0]
    assert "Traceback" not in outcome.stderr, outcome.text


@pytest.mark.parametrize("window", ["shared", "accumulate"])
def test_a_rank_that_fails_ends_the_others_in_the_midst_of_their_updates(window: str) -> None:
    code = (
        "import numpy as np, mpisparse as ms\n"
        "comm = ms.init(banner=False)\n"
        f"with comm.open_window(8, {window!r}) as window:\n"
        "    while True:\n"
        "        window.add_dense(np.ones(8, np.float32))\n"
        "        if comm.rank == 1 and window.counters.updates == 50:\n"
        "            raise KeyError('lost in update 50')\n"
    )
    outcome = mpirun(3, "-c", code, timeout=60)
    assert outcome.code == 1, outcome.text
    assert "[rank 1 of 3] KeyError: 'lost in update 50'" in outcome.stderr
    assert outcome.stderr.count("Traceback") == 1, outcome.text
