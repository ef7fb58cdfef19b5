"""`mpisparse train` on real ranks: what it writes, that it goes on bit for bit after a kill, and plain torch's bits."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from mpisparse.checkpoint import verify
from mpisparse.phases import NAMES
from mpisparse.words import counted
from tests.launch import Outcome, environment, find_mpirun, forked, kill_tree, mpirun, run
from tests.paths import CHECKOUT
from tests.rundirs import assert_same_end, read_lines, states

CONFIG = """
name = "try"
seed = 7
[data]
name = "digits"
[model]
name = "mlp"
hidden = [32]
[training]
length = "4 epochs"
batch = 60
evaluate = "2 epochs"
log_every = 4
[optimizer]
name = "SGD"
lr = 0.05
momentum = 0.9
[schedule]
name = "cosine"
[sparsifier]
name = "topk"
density = 0.05
[checkpoint]
every = "7 steps"
keep = 100
"""


def train(config: Path, *options: str, size: int = 2) -> Outcome:
    command = [find_mpirun(), "-n", str(size), "mpisparse", "train", config.name, *options]
    return run(command, timeout=200, cwd=config.parent)


def settings(*pairs: str) -> list[str]:
    return [word for pair in pairs for word in ("--set", pair)]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "run.toml"
    file.write_text(CONFIG)
    return file


def test_a_run_directory_says_what_happened(config: Path) -> None:
    outcome = train(config, size=3)
    assert outcome.code == 0, outcome.text
    directory = config.parent / "runs" / "try-001"
    steps = 4 * -(-1438 // 180)
    lines = read_lines(directory / "metrics.jsonl")
    records = [line for line in lines if line["kind"] == "step"]
    assert [record["step"] for record in records] == list(range(1, steps + 1))
    assert sum(record["samples"] for record in records) == 4 * 1438
    assert [line["step"] for line in lines if line["kind"] == "evaluation"] == [steps // 2, steps]
    assert {line["schema"] for line in lines} == {1}
    per_rank = [read_lines(directory / "ranks" / f"rank-{rank:05d}.jsonl") for rank in range(3)]
    for i, record in enumerate(records):
        for key in ("payload_bytes", "received_bytes", "count", "samples"):
            assert record[key] == sum(lines[i][key] for lines in per_rank)
        assert set(record["seconds"]) == set(NAMES)
        for name in NAMES:
            assert record["seconds_slowest"][name] == max(lines[i]["seconds"][name] for lines in per_rank)
        assert record["received_bytes"] < record["dense_bytes"]
    environment_file = json.loads((directory / "environment.json").read_text())
    assert environment_file["ranks"] == 3
    assert "density = 0.05" in (directory / "config.toml").read_text()
    for words in ("test accuracy", "sparsify", "times as much", "runs/try-001", "mpirun -n 3 mpisparse train run.toml"):
        assert words in outcome.stdout, outcome.text
    assert "\x1b" not in outcome.stderr, "no progress bar where there is no terminal"
    assert "epoch 2 | step" in outcome.stderr


def kill_after_checkpoint(config: Path, directory: Path, step: int, *options: str) -> None:
    """Start a run, and kill all of it at once when a checkpoint of `step` or later is there."""
    command = [find_mpirun(), "-n", "2", "mpisparse", "train", str(config), "--run-dir", str(directory), *options]
    child = subprocess.Popen(
        forked(command), cwd=config.parent, env=environment(), stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not any(int(path.name[5:]) >= step for path in directory.glob("checkpoints/step-????????")):
        assert child.poll() is None, "the run ended before it was killed"
        assert time.monotonic() < deadline, "no checkpoint came"
        time.sleep(0.002)
    kill_tree(child.pid)
    child.wait()


RULES = {
    "topk": [],
    "momentum": [
        "memory.name=momentum_correction",
        "optimizer.momentum=0.0",
        "sparsifier.schedule={name='exponential',steps=100}",
    ],
    "gspar": ["sparsifier.name=gspar", "optimizer={name='AdamW',lr=0.001}", "model={name='cnn',channels=4,hidden=16}"],
}


@pytest.mark.parametrize(
    "rule", [*(pytest.param(rule, marks=pytest.mark.long) for rule in ("topk", "gspar")), "momentum"]
)
def test_a_killed_run_goes_on_bit_for_bit(config: Path, rule: str) -> None:
    """The same command after `kill -9` of everything ends with the same bits as a run that was never stopped."""
    options = settings("training.length=60 epochs", *RULES[rule])
    straight, killed = config.parent / "straight", config.parent / "killed"
    outcome = train(config, "--run-dir", str(straight), *options)
    assert outcome.code == 0, outcome.text
    kill_after_checkpoint(config, killed, 200, *options)
    partial = max(int(path.name[5:]) for path in killed.glob("checkpoints/step-????????"))
    outcome = train(config, "--run-dir", str(killed), *options)
    assert outcome.code == 0, outcome.text
    assert re.search(rf"resumed from .*step-{partial:08d}", outcome.stderr), outcome.text
    assert_same_end(straight, killed, 2)
    ours, theirs = (
        [line for line in read_lines(d / "metrics.jsonl") if line["kind"] == "step"] for d in (straight, killed)
    )
    assert [line["loss"] for line in ours] == [line["loss"] for line in theirs]
    assert [line["received_bytes"] for line in ours] == [line["received_bytes"] for line in theirs]


@pytest.mark.parametrize(
    ("before", "after", "rule"),
    [
        pytest.param(*ranks, rule, marks=[] if number == place == 0 else [pytest.mark.long])
        for number, ranks in enumerate([(2, 3), (4, 2), (3, 1)])
        for place, rule in enumerate(RULES)
    ],
)
def test_a_run_goes_on_with_another_number_of_ranks(config: Path, before: int, after: int, rule: str) -> None:
    """One line says so, with norms; the log goes on, and every epoch sees every sample exactly once."""
    options = ["--run-dir", "out", *settings("training.batch=40", *RULES[rule])]
    # Ends in the middle of the second epoch; the same run then gets its full length.
    first = -(-1438 // (40 * before)) + 5
    outcome = train(config, *options, "--set", f"training.length={first} steps", size=before)
    assert outcome.code == 0, outcome.text
    outcome = train(config, *options, size=after)
    assert outcome.code == 0, outcome.text
    assert f"reshaped from {before} to {counted(after, 'rank')} (redistribute); " in outcome.stderr, outcome.text
    norms = re.findall(r"norm (\S+) before and (\S+) after in the mean over ranks", outcome.stderr)
    assert len(norms) == {"topk": 1, "momentum": 2, "gspar": 0}[rule], outcome.text
    for earlier, later in norms:
        assert float(later) == pytest.approx(float(earlier), rel=1e-5)
        assert float(earlier) > 0
    directory = config.parent / "out"
    lines = read_lines(directory / "metrics.jsonl")
    starts = [line for line in lines if line["kind"] == "start"]
    records = [line for line in lines if line["kind"] == "step"]
    assert [(line["step"], line["ranks"]) for line in starts] == [(0, before), (first, after)]
    assert [record["step"] for record in records] == list(range(1, starts[-1]["steps"] + 1))
    for epoch in range(4):
        assert sum(record["samples"] for record in records if record["epoch"] == epoch) == 1438
    assert records[-1]["epoch"] == 3
    files = sorted((directory / "ranks").iterdir())
    assert [path.name for path in files] == [f"rank-{rank:05d}.jsonl" for rank in range(after)]
    for rank, path in enumerate(files):
        there = [line["step"] for line in read_lines(path)]
        assert there == list(range(1 if rank < before else first + 1, len(records) + 1))
    newest = max(directory.glob("checkpoints/step-*"))
    assert verify(newest).ranks == after
    assert train(config, *options, size=after).code == 0


@pytest.mark.long
def test_another_number_of_ranks_can_be_dropped_or_refused(config: Path) -> None:
    options = ["--run-dir", "out", *settings("training.length=10 steps")]
    assert train(config, *options, size=2).code == 0
    longer = ["--run-dir", "out", *settings("training.length=12 steps")]
    refused = train(config, *longer, *settings("checkpoint.reshape=refuse"), size=3)
    assert refused.code == 70, refused.text
    assert "was saved with 2 ranks, but 3 are running: run with 2 ranks, or allow another number" in refused.stderr
    outcome = train(config, *longer, *settings("checkpoint.reshape=drop"), size=3)
    assert outcome.code == 0, outcome.text
    assert re.search(r"reshaped from 2 to 3 ranks \(drop\); residual: norm \d\.\d+ before and 0 after", outcome.stderr)


@pytest.mark.long
def test_a_reshaped_checkpoint_is_resumed_as_it_is(config: Path) -> None:
    """Reshaped by the tool or on the way, a run ends with the same bits."""
    assert train(config, "--run-dir", "start", *settings("training.length=10 steps"), size=2).code == 0
    words = ["mpisparse", "checkpoint", "reshape", "start", "--ranks", "3", "-o", "new"]
    assert run(words, timeout=120, cwd=config.parent).code == 0
    longer = settings("training.length=16 steps")
    for name, source in {"direct": "start", "made": "new"}.items():
        outcome = train(config, "--run-dir", name, "--resume", source, *longer, size=3)
        assert outcome.code == 0, outcome.text
        assert ("reshaped from" in outcome.stderr) == (name == "direct"), outcome.text
    direct, made = (states(config.parent / name, 3) for name in ("direct", "made"))
    assert direct.keys() == made.keys()
    for name, value in direct.items():
        assert torch.equal(value, made[name]) if isinstance(value, torch.Tensor) else value == made[name], name


def test_a_run_that_is_done_stays_done(config: Path) -> None:
    assert train(config, "--run-dir", "out").code == 0
    before = (config.parent / "out" / "checkpoints" / "latest").read_text()
    outcome = train(config, "--run-dir", "out")
    assert outcome.code == 0, outcome.text
    assert "resumed from" in outcome.stderr
    assert (config.parent / "out" / "checkpoints" / "latest").read_text() == before


PLAIN = """
import sys, torch
from torch import nn
torch.set_num_threads(1)
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
optimizer = torch.optim.{name}(model.parameters(), **{options})
{wrap}
for step in range(20):
    inputs = torch.randn(8, 1, 8, 8)
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(inputs), torch.randint(10, (8,))).backward()
    optimizer.step()
torch.save(model.state_dict(), sys.argv[1])
"""


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}),
        pytest.param("Adam", {"lr": 0.01}, marks=pytest.mark.long),
    ],
)
def test_one_rank_equals_a_plain_script_bit_for_bit(tmp_path: Path, name: str, options: dict[str, float]) -> None:
    plain = PLAIN.format(name=name, options=options, wrap="")
    wrap = (
        "import mpisparse as ms; comm = ms.init(); optimizer = ms.DistributedOptimizer(optimizer, model, comm=comm{})"
    )
    for i, code in enumerate([plain, *(PLAIN.format(name=name, options=options, wrap=wrap.format(extra)) for extra in (
        "", ", sparsifier=ms.TopK(density=1.0)"))]):  # fmt: skip
        outcome = mpirun(1, "-c", code, str(tmp_path / f"{i}.pt"), env={"OMP_NUM_THREADS": "1"})
        assert outcome.code == 0, outcome.text
    first, *others = (torch.load(tmp_path / f"{i}.pt", weights_only=True) for i in range(3))
    for other in others:
        assert all(torch.equal(first[key], other[key]) for key in first)


def test_density_one_equals_dense_bit_for_bit(config: Path) -> None:
    for name, options in {"dense": ["sparsifier.name=dense"], "topk": ["sparsifier.density=1.0"]}.items():
        outcome = train(config, "--run-dir", name, *settings(*options), size=3)
        assert outcome.code == 0, outcome.text
    dense, topk = (states(config.parent / name, 3) for name in ("dense", "topk"))
    weights = [name for name in dense if name.startswith("state.h5.model")]
    assert weights
    assert all(torch.equal(dense[name], topk[name]) for name in weights)


def test_the_example_trains_and_its_diff_stands_in_the_readme() -> None:
    outcome = mpirun(3, "examples/digits_mpisparse.py", timeout=200)
    assert outcome.code == 0, outcome.text
    accuracy = re.search(r"test accuracy ([\d.]+)%", outcome.stdout)
    assert accuracy is not None, outcome.text
    assert float(accuracy[1]) > 95
    plain, ours = (
        (CHECKOUT / "examples" / f"digits_{name}.py").read_text().splitlines() for name in ("plain", "mpisparse")
    )
    added = [line for line in ours[6:] if line not in plain]
    readme = (CHECKOUT / "README.md").read_text()
    for line in added:
        assert f"+{line}" in readme, line


def test_ranks_are_data_parallel_not_copies(config: Path) -> None:
    """Ranks see different samples: the losses of a step differ between ranks, the parameters do not."""
    outcome = train(config, "--run-dir", "out", "--set", "sparsifier.name=dense", size=2)
    assert outcome.code == 0, outcome.text
    found = states(config.parent / "out", 2)
    own, other = (found[f"rank-{rank:05d}.h5.random"] for rank in range(2))
    assert not np.array_equal(own, other)
