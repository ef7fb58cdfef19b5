"""The user guide's program, killed at any moment, several times: started again, it ends with the same bits."""

from __future__ import annotations

import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.launch import environment, find_mpirun, forked, kill_tree, mpirun
from tests.paths import CHECKOUT

PROGRAM = CHECKOUT / "examples" / "resume.py"
STEPS, EVERY, KILLS = 60, 4, 2


def options(directory: Path, workers: int) -> list[str]:
    return [str(PROGRAM), str(STEPS), "--every", str(EVERY), "--workers", str(workers), "--directory", str(directory)]


def results(output: str) -> list[str]:
    found = sorted(re.findall(rf"rank \d+: {STEPS} steps, epoch \d+, sum of parameters -?[\d.]+(?:e-?\d+)?", output))
    assert len(found) == 2, output
    return found


def test_the_guide_shows_the_program() -> None:
    code = PROGRAM.read_text().split('"""\n\n', 1)[1]
    assert f"```python\n{code}```" in (CHECKOUT / "docs" / "user-guide.md").read_text()


def saved(directory: Path) -> int:
    """Return the step of the newest checkpoint."""
    return max((int(path.name[5:]) for path in directory.glob("step-????????")), default=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_program_that_is_killed_goes_on_within_the_epoch_with_the_same_bits(tmp_path: Path, workers: int) -> None:
    whole = mpirun(2, *options(tmp_path / "whole", workers), cwd=tmp_path)
    assert whole.code == 0, whole.text
    draw = random.Random(workers)
    directory = tmp_path / "killed"
    for number in range(KILLS):
        # From the checkpoint before the kill on there is more to do each time, and the last kill leaves some, too.
        after = draw.randrange((number + 1) * STEPS // (KILLS + 2), (number + 2) * STEPS // (KILLS + 2))
        kill_once_saved(directory, after, workers, tmp_path)
        if number == 0:
            assert 0 < saved(directory) < STEPS, "it was killed before its end"
    ended = mpirun(2, *options(directory, workers), cwd=tmp_path)
    assert ended.code == 0, ended.text
    assert results(ended.stdout) == results(whole.stdout)


def kill_once_saved(directory: Path, step: int, workers: int, cwd: Path) -> None:
    """Start the program, and kill all its processes at once when it has saved the step or a later one."""
    command = forked([find_mpirun(), "-n", "2", sys.executable, *options(directory, workers)])
    with (cwd / "output").open("w") as output:
        job = subprocess.Popen(
            command, cwd=cwd, env=environment(), stdout=output, stderr=output, start_new_session=True
        )
        until = time.monotonic() + 240
        while saved(directory) < step // EVERY * EVERY and job.poll() is None and time.monotonic() < until:
            time.sleep(0.002)
        assert not job.poll(), (cwd / "output").read_text()
        kill_tree(job.pid)
        job.wait()
