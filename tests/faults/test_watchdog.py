"""A rank that does not come: the job ends in time, with code 74, and the words say which rank it was and where."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from mpisparse.runtime.dump import read_dumps
from mpisparse.runtime.hang import explain
from tests.faults.program import LIMIT, PLACES
from tests.launch import Outcome, find_mpirun, mpirun, run

#: Seconds after the limit in which every process has to be gone.
GRACE = 10.0


def hang(directory: Path, faults: str = "", place: str = "") -> Outcome:
    """Return how a job of three ranks ended, after asserting that it took no longer than it may."""
    arguments = ["-m", "tests.faults.program", str(directory), *([place] if place else [])]
    outcome = mpirun(3, *arguments, timeout=120, env={"MPISPARSE_FAULTS": faults})
    # Until rank 1 fails to come there are a few small steps.
    begin = next(float(line.split()[1]) for line in outcome.stderr.splitlines() if line.startswith("begin "))
    while survivors(directory):  # the kernel is still clearing away what the launcher has killed
        assert time.time() - begin < LIMIT + GRACE, outcome.text
        time.sleep(0.05)
    gone = time.time() - begin
    print(f"every process was gone {gone:.1f} s after the first step")
    assert gone < LIMIT + GRACE, outcome.text
    return outcome


def survivors(directory: Path) -> list[str]:
    """Return the processes that still run with this directory among their arguments."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
        except OSError:
            continue
        if str(directory).encode() in words:
            found.append(path.parent.name)
    return found


def said(outcome: Outcome) -> str:
    """Return the one line that the watchdog said."""
    lines = [line for line in outcome.stderr.splitlines() if "HangError" in line]
    assert len(lines) == 1, outcome.text
    return lines[0]


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("late:rank=1,step=4,seconds=100", "it was in its own code for"),
        pytest.param("loop:rank=1,step=4", "in _loop", marks=pytest.mark.long),
        ("stop:rank=1,step=4", "it told nothing, process"),
        ("leave:rank=1,step=4", "its program had ended, after 4 steps"),
    ],
)
def test_a_rank_that_does_not_come_is_named(fault: str, told: str, tmp_path: Path) -> None:
    outcome = hang(tmp_path / "crash", fault)
    assert outcome.code == 74, outcome.text
    line = said(outcome)
    assert line.startswith("mpisparse: HangError: ranks 0, 2 of 3 waited for 3."), line
    assert 'of communicator "optimizer", after 4 steps; rank 1 did not come: ' in line
    assert told in line
    assert "The limit for a wait is 3 s" in line
    assert ("is stopped by a signal" in line) == fault.startswith("stop")
    dumps = read_dumps(tmp_path / "crash")
    assert sorted(dumps) == ([0, 2] if fault.startswith("stop") else [0, 1, 2])
    for rank, dump in dumps.items():
        assert (dump["steps"], dump["rank"], dump["limit"]) == (4, rank, LIMIT)
        assert (dump["waiting"] is not None) == (rank != 1)
        assert "(most recent call first)" in (tmp_path / "crash" / f"rank-{rank:05d}.stacks").read_text()
    waiting = dumps[0]["waiting"]
    assert waiting["operation"] == "allgather"
    assert waiting["begun_seconds_ago"] >= LIMIT
    assert [call["sequence"] for call in dumps[0]["calls"] if call["lane"] == waiting["lane"]][-1] == waiting[
        "sequence"
    ]
    assert not list((tmp_path / "crash").glob(".*"))


@pytest.mark.parametrize(
    "place",
    [pytest.param(place, marks=[] if place == "flight" else [pytest.mark.long]) for place in PLACES],
)
def test_every_place_where_ranks_wait_is_watched(place: str, tmp_path: Path) -> None:
    outcome = hang(tmp_path / "crash", place=place)
    assert outcome.code == 74, outcome.text
    # Ranks that have sent everything during backward meet before they look at what came.
    operation = "allgather" if place == "flight" else place
    assert re.search(rf"ranks 0, 2 of 3 waited for \d\.\d s in {operation} \d+ of ", said(outcome)), outcome.text
    assert "rank 1 did not come: it was in its own code" in said(outcome)
    assert "tests/faults/program.py" in said(outcome)


def test_a_job_that_was_suspended_as_a_whole_goes_on(tmp_path: Path) -> None:
    outcome = hang(tmp_path / "crash", place="suspended")
    assert outcome.code == 0, outcome.text
    assert outcome.stdout.count("end") == 3
    assert not (tmp_path / "crash").exists()


def test_training_writes_into_its_run_directory_and_a_person_can_read_it(tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text(
        'name = "try"\n[data]\nname = "digits"\n[model]\nname = "mlp"\n[training]\nlength = "20 steps"\nbatch = 10\n'
        "watchdog = 20\n"
    )
    command = [find_mpirun(), "-n", "2", "mpisparse", "train", str(config), "--run-dir", "out"]
    outcome = run(command, timeout=240, cwd=tmp_path, env={"MPISPARSE_FAULTS": "loop:rank=1,step=7"})
    assert outcome.code == 74, outcome.text
    assert f"mpisparse explain-hang {tmp_path}/out/crash" in said(outcome)
    told = run(["mpisparse", "explain-hang", "out"], timeout=60, cwd=tmp_path)
    assert told.code == 0, told.text
    assert told.stdout.splitlines() == explain(read_dumps(tmp_path / "out" / "crash"))
    assert "rank 1 did not come: it was in its own code" in told.stdout
    assert "in _loop" in told.stdout
    nothing = run(["mpisparse", "explain-hang", "."], timeout=60, cwd=tmp_path)
    assert nothing.code == 78, nothing.text
    assert "holds no dump" in nothing.stderr
