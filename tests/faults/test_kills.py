"""`kill -9` of a rank or of the launcher at any moment: the same command goes on, and ends with the same bits."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from mpisparse.checkpoint import list_checkpoints
from tests.launch import environment, find_mpirun, kill_tree, run
from tests.rundirs import assert_same_end, read_lines

CONFIG = """
name = "try"
[data]
name = "digits"
[model]
name = "mlp"
hidden = [16]
[training]
length = "400 steps"
batch = 20
log_every = 7
[optimizer]
name = "Adam"
lr = 0.003
[sparsifier]
name = "topk"
density = 0.05
[checkpoint]
every = "5 steps"
keep = 2
"""
SIZE = 2
#: The environment variable by which the processes of a job are found, whoever their parent has become.
MARK = "MPISPARSE_TRIAL"


def command(out: str) -> list[str]:
    return [find_mpirun(), "-n", str(SIZE), "mpisparse", "train", "run.toml", "--run-dir", out]


def processes(mark: str) -> dict[int, str]:
    """Return the command of every process of a job, by its number."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            # One that has ended and was not waited for has no command.
            if words and f"{MARK}={mark}".encode() in (folder / "environ").read_bytes():
                found[int(folder.name)] = words
        except OSError:
            continue
    return found


def start_and_kill(folder: Path, mark: str, which: str, chance: random.Random) -> bool:
    """Start the run, kill one process of it after a while, and return whether it was there, once all are gone."""
    log, started = folder / "out" / "metrics.jsonl", time.monotonic()
    before = log.stat().st_mtime_ns if log.exists() else 0
    child = subprocess.Popen(
        command("out"), cwd=folder, env=environment({MARK: mark}), start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while child.poll() is None and not (log.exists() and log.stat().st_mtime_ns > before):
            assert time.monotonic() < started + 120, "no step was made"
            time.sleep(0.002)
        time.sleep(chance.expovariate(1 / 0.7))
        ranks = sorted(
            number for number, words in processes(mark).items() if " -n " not in words and "mpisparse train" in words
        )
        if child.poll() is not None or not ranks:
            return False
        victim = child.pid if which == "launcher" else chance.choice(ranks)
        os.kill(victim, signal.SIGKILL)
        killed = time.monotonic()
        while left := processes(mark):
            assert time.monotonic() < killed + 30, f"30 s after {which} was killed there still are {left}"
            child.poll()
            time.sleep(0.02)
        return True
    finally:
        kill_tree(child.pid)
        child.wait()


@pytest.mark.parametrize("kills", [1, pytest.param(100, marks=[pytest.mark.long, pytest.mark.timeout(7200)])])
def test_killed_at_any_moment_a_run_ends_with_the_same_bits(kills: int, tmp_path: Path) -> None:
    """As many runs as it takes, each of them killed up to ten times."""
    (tmp_path / "run.toml").write_text(CONFIG)
    straight = run(command("straight"), timeout=200, cwd=tmp_path)
    assert straight.code == 0, straight.text
    chance, told = random.Random(7), list[tuple[str, ...]]()
    for number in itertools.count():
        for trial in range(min(10, kills - len(told))):
            which = ("a rank", "launcher")[trial % 2]
            if not start_and_kill(tmp_path, f"{os.getpid()}.{number}.{trial}", which, chance):
                break  # It had ended.
            newest = [path.name for path in list_checkpoints(tmp_path / "out" / "checkpoints")][-1:]
            told.append((which, *newest))
        outcome = run(command("out"), timeout=200, cwd=tmp_path)
        assert outcome.code == 0, outcome.text
        assert_same_end(tmp_path / "straight", tmp_path / "out", SIZE)
        assert losses(tmp_path / "out") == losses(tmp_path / "straight")
        (tmp_path / "out").rename(tmp_path / f"out-{number}")
        if len(told) == kills:
            break
    print(f"killed: {told}")


def losses(directory: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in read_lines(directory / "metrics.jsonl") if line["kind"] == "step"]
