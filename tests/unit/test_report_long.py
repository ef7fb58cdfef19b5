"""A report of a gigabyte of logs: memory stays bounded. Its time is measured, not asserted."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.paths import CHECKOUT
from tests.unit.report_runs import config, step_line, write_run

#: Bytes of all logs together, and the most that one process may take for them.
TOTAL, MOST = 2**30, 600 * 2**20


def lengthen(run: Path, size: int, ranks: int) -> int:
    """Make the log of a run of as many steps as take `size` bytes in all files, and return their number."""
    seconds = dict.fromkeys(json.loads((run / "metrics.jsonl").read_text().splitlines()[1])["seconds"], 0.001234567)
    line = json.dumps({"schema": 1, **step_line(7, ranks, 0.01, False, 64, seconds), "seconds_slowest": seconds})
    own = json.dumps({"schema": 1, "step": 7, "samples": 32, "payload_bytes": 80048, "seconds": seconds})
    steps = size // (len(line) + ranks * len(own))
    for path, text in [(run / "metrics.jsonl", line), *((path, own) for path in (run / "ranks").iterdir())]:
        before, _, after = text.partition('"step": 7,')
        with path.open("w") as file:
            if path.name == "metrics.jsonl":
                file.write(json.dumps({"schema": 1, "kind": "start", "step": 0, "ranks": ranks, "steps": steps}) + "\n")
            file.writelines(f'{before}"step": {step},{after}\n' for step in range(1, steps + 1))
            if path.name == "metrics.jsonl":
                file.write(json.dumps({"schema": 1, "kind": "end", "step": steps}) + "\n")
    return steps


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("runs", [6, 1000])
def test_a_gigabyte_of_logs_fits_in_memory(tmp_path: Path, runs: int, capsys: pytest.CaptureFixture[str]) -> None:
    lines = 0
    for i in range(runs):
        ranks = (1, 2, 4)[i % 3]
        settings = config(density=(0.1, 0.01)[i // 3 % 2])
        run = write_run(tmp_path / "runs" / f"{i:04d}", settings, ranks=ranks, seed=i, steps=1)
        lines += lengthen(run, TOTAL // runs, ranks) * (1 + ranks)
    size = sum(path.stat().st_size for path in (tmp_path / "runs").rglob("*.jsonl"))
    assert size > 0.95 * TOTAL
    begin = time.perf_counter()
    before = os.times()
    command = [sys.executable, "-m", "analysis", "report", str(tmp_path / "runs"), "-o", str(tmp_path / "page")]
    outcome = subprocess.run(command, capture_output=True, text=True, cwd=CHECKOUT, check=False)
    seconds, after = time.perf_counter() - begin, os.times()
    assert outcome.returncode == 0, outcome.stderr
    # Of the largest process, those that it started included.
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    busy = after.children_user - before.children_user + after.children_system - before.children_system
    with capsys.disabled():
        print(f"\n{runs} runs, {size / 1e9:.2f} GB, {lines:,} lines: {seconds:.0f} s, {busy:.0f} s of processors, "
              f"{peak / 2**20:.0f} MiB in the largest process")  # fmt: skip
    assert peak < MOST
