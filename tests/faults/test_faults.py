"""Faults on one rank of `mpisparse train`: how the job ends, what it says, and how soon."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.launch import Outcome, find_mpirun, run

CONFIG = """
name = "try"
[data]
name = "digits"
[model]
name = "mlp"
hidden = [8]
[training]
length = "10 steps"
batch = 10
check_replicas = 2
[sparsifier]
name = "topk"
density = 0.1
"""


@dataclass(frozen=True)
class Case:
    """A fault, and how the job is to end.

    code: exit code; None is any but 0, as launchers tell of a kill in their own ways. words: on stderr.
    """

    faults: str
    code: int | None
    words: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()


def from_rank(rank: int) -> str:
    """Return what a message says of a damaged one that a rank sent in these cases."""
    return f"of 3 cannot use what came from rank {rank} for bucket 0 after 5 steps: "


CASES = {
    "exception": Case(
        "exception:rank=1,step=5", 1, ("[rank 1 of 3] RuntimeError: the exception that", "of rank 1 after 5 steps")
    ),
    "kill": Case("kill:rank=2,step=5", None),
    "corrupt": Case("corrupt:rank=1,step=5", 70, ("WireError", from_rank(1), "it was damaged", "checkpoint")),
    "corrupt while backward runs": Case(
        "corrupt:rank=1,step=5",
        70,
        ("WireError", from_rank(1), "it was damaged"),
        ('exchange.overlap="on"', 'exchange.granularity="tensor"', "exchange.bucket_mib=0.0001"),
    ),
    "short": Case("short:rank=0,step=5", 70, ("WireError", from_rank(0), "it was cut short")),
    "long": Case("long:rank=2,step=5", 70, ("WireError", from_rank(2), "something was added to it")),
    "stale": Case("stale:rank=1,step=5", 70, ("WireError", from_rank(1), "of step 4 came where step 5 was due")),
    "nan": Case("nan:rank=1,step=5", 70, ("NonFiniteError: after 5 steps", "rank 1 in", "skip")),
    "flip": Case(
        "flip:rank=1,step=5,entry=3,bit=2",
        70,
        ("RankMismatchError: replicas differ: rank 1 of 3 held other bits", "checksums of", 'diverged="broadcast"'),
    ),
    "unknown": Case("explode:rank=1,step=5", 78, ("ConfigError: MPISPARSE_FAULTS: 'explode:rank=1,step=5'", "corrupt")),
}


def train(folder: Path, faults: str, *settings: str) -> Outcome:
    config = folder / "run.toml"
    config.write_text(CONFIG)
    options = [word for setting in settings for word in ("--set", setting)]
    command = [find_mpirun(), "-n", "3", "mpisparse", "train", str(config), "--run-dir", "out", *options]
    return run(command, timeout=240, cwd=folder, env={"MPISPARSE_FAULTS": faults})


#: Cases that are tried with every change; the others differ from these in the message alone.
CHOSEN = ("exception", "kill", "corrupt", "short", "nan", "flip")


@pytest.mark.parametrize(
    "name", [*CHOSEN, *(pytest.param(name, marks=pytest.mark.long) for name in CASES if name not in CHOSEN)]
)
def test_a_fault_ends_the_job(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    outcome = train(tmp_path, case.faults, *case.settings)
    assert (outcome.code == case.code) if case.code is not None else (outcome.code != 0), outcome.text
    # What MPI itself says when a job is ended names ranks as well: that does not count.
    ours = [line for line in outcome.stderr.splitlines() if line.startswith(("mpisparse: ", "[rank "))]
    for word in case.words:
        assert any(word in line for line in ours), outcome.text
    assert "test accuracy" not in outcome.stdout
    started = tmp_path / "out" / "environment.json"  # written before the first step
    if case.code != 78:
        seconds = time.time() - started.stat().st_mtime
        print(f"{name}: ended {seconds:.1f} s after the run began")
        assert seconds < (10 if case.code else 30)


def test_a_late_rank_is_waited_for(tmp_path: Path) -> None:
    outcome = train(tmp_path, "late:rank=1,step=5,seconds=2")
    assert outcome.code == 0, outcome.text
    steps = [line for line in metrics(tmp_path) if line["kind"] == "step"]
    assert max(steps, key=lambda line: line["seconds_slowest"]["agree"])["step"] == 6
    assert steps[5]["seconds_slowest"]["agree"] > 1.5


def test_a_skipped_step_is_counted_and_leaves_nothing(tmp_path: Path) -> None:
    outcome = train(tmp_path, "nan:rank=1,step=5", 'exchange.nonfinite="skip"')
    assert outcome.code == 0, outcome.text
    assert "1 step, as a gradient held NaN" in outcome.stdout
    lines = metrics(tmp_path)
    skipped = [line for line in lines if "skipped" in line and line["kind"] == "step"]
    assert [(line["step"], line["skipped"].partition(" in ")[0]) for line in skipped] == [(6, "rank 1")]
    assert next(line for line in lines if line["kind"] == "end")["skipped"] == 1
    # What was NaN is in no memory and no parameter: the losses after it are numbers.
    assert all(line["loss"] < 10 for line in lines if line["kind"] == "step")


@pytest.mark.long
def test_replicas_that_differ_are_mended_where_that_is_wanted(tmp_path: Path) -> None:
    outcome = train(tmp_path, "flip:rank=1,step=5,entry=3,bit=2", 'training.diverged="broadcast"')
    assert outcome.code == 0, outcome.text
    assert "replicas mended" in outcome.stdout
    assert "after 6 steps rank 1 of 3 held other bits than most in" in outcome.stderr
    mended = [line for line in metrics(tmp_path) if line["kind"] == "mended"]
    assert [(line["step"], line["ranks"]) for line in mended] == [(6, [1])]


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "out" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]
