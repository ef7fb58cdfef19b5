"""One file for all ranks over MPI: through parallel HDF5 where h5py has it; a rank that fails keeps nobody waiting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import pytest

from tests.launch import mpirun
from tests.stamps import contents, images

SIZES = [2, pytest.param(3, marks=pytest.mark.long)]


def share(size: int, directory: Path) -> dict[str, Any]:
    outcome = mpirun(size, "-m", "tests.mpi.sharing", str(directory), timeout=120)
    assert outcome.code == 0, outcome.text
    told: dict[str, Any] = json.loads(outcome.stdout.splitlines()[-1])
    return told


@pytest.mark.parametrize("size", SIZES)
def test_a_save_fails_on_all_ranks_alike_and_harms_nothing(size: int, tmp_path: Path) -> None:
    said = share(size, tmp_path)["said"]
    assert (said.pop("well"), said.pop("each its part")) == (None, None)
    who = f"rank {size - 1} of {size}: "
    assert said.pop("limit of the last rank").startswith(f"{who}ranks.h5 cannot be written to ")
    assert said.pop("limit of rank 0").startswith(f"rank 0 of {size}: ranks.h5 cannot be written to ")
    assert len(said) >= 2
    assert all(text.startswith(who) and text.endswith("Input/output error") for text in said.values()), said


@pytest.mark.skipif(not h5py.get_config().mpi, reason="h5py was built without MPI: see docs/install.md")
@pytest.mark.parametrize("size", SIZES)
def test_parallel_hdf5_writes_what_each_rank_writes_by_itself(size: int, tmp_path: Path) -> None:
    assert share(size, tmp_path)["parallel"]
    together, apart = (tmp_path / name / "step-00000001" for name in ("together", "apart"))
    assert contents(together / "state.h5") == contents(apart / "state.h5")
    assert [contents(image) for image in images(together)] == [contents(image) for image in images(apart)]
