"""`mpisparse check`: what it finds on ranks that are well, and what it says where something is not."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mpisparse.comm import Communicator, run_ranks
from mpisparse.runtime.check import Finding, examine
from mpisparse.runtime.machines import Limited, Machine
from mpisparse.runtime.startup import Surroundings, start

WHAT = ["MPI", "launcher", "ranks", "threads", "uneven exchange", "torch", "kernels", "HDF5", "file system"]


def look(ranks: int, directory: Path, **changes: object) -> list[Finding]:
    """Return what all ranks found, which has to be the same."""

    def on_a_rank(comm: Communicator) -> list[Finding]:
        surroundings: Surroundings = replace(start(comm, banner=False)[1], **changes)  # type: ignore[arg-type]
        return examine(comm, surroundings, directory)

    found = run_ranks(ranks, on_a_rank)
    assert all([each.ok for each in one] == [each.ok for each in found[0]] for one in found)
    return found[0]


def of(what: str, findings: list[Finding]) -> Finding:
    return next(finding for finding in findings if finding.what == what)


@pytest.mark.parametrize("ranks", [1, 3])
def test_ranks_that_are_well(tmp_path: Path, ranks: int) -> None:
    findings = look(ranks, tmp_path)
    assert [finding.what for finding in findings] == WHAT
    assert all(finding.ok for finding in findings), findings
    assert ("mpirun" in of("ranks", findings).hint) == (ranks == 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("threads", "machine", "words"),
    [
        (2, Machine(2, 4), ""),
        (1, Machine(9, 4), ""),
        (3, Machine(2, 4), "more threads than the 4 cores of 2 of the ranks"),
        (2, Machine(2, 64, (Limited(1, 0.5), Limited(1, 2.0))), "more threads than the 0.5 cores of 1 of the ranks"),
        (2, Machine(2, 64, (Limited(2, 4.0),)), ""),
        (1, Machine(2, 64, (Limited(2, 0.5),)), ""),
    ],
)
def test_more_threads_than_cores_or_than_a_quota(tmp_path: Path, threads: int, machine: Machine, words: str) -> None:
    finding = of("threads", look(2, tmp_path, threads=threads, machines=(Machine(1, 64), machine)))
    assert finding.ok == (not words)
    assert words in finding.hint
    assert finding.ok or "unset OMP_NUM_THREADS" in finding.hint


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    findings = look(2, tmp_path / "nowhere")
    assert [finding.what for finding in findings if not finding.ok] == ["HDF5", "file system"]
    assert of("file system", findings).found.startswith("rank 0: FileNotFoundError")


def test_a_disk_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda directory: SimpleNamespace(free=2**20))
    finding = of("file system", look(2, tmp_path))
    assert not finding.ok
    assert "only 0.00 GiB free" in finding.found


def test_a_network_that_mixes_messages_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = np.array_equal
    monkeypatch.setattr(np, "array_equal", lambda one, other: one.dtype != np.uint8 and right(one, other))
    finding = of("uneven exchange", look(3, tmp_path))
    assert not finding.ok
    assert "do not use this MPI" in finding.found


def test_a_launcher_that_promised_other_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "SLURM_STEP_NUM_TASKS", "4")
    finding = of("launcher", look(2, tmp_path))
    assert not finding.ok
    assert "but MPI knows of 2 ranks" in finding.hint
