"""A checkpoint of each version of the format, written once and kept: what reads it today has to read it for good."""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mpisparse.checkpoint import Checkpointer, FileEntry, read_manifest, read_tree, verify, write_tree
from mpisparse.checkpoint.hdf5 import read_image
from mpisparse.checkpoint.manifest import VERSION
from mpisparse.checkpoint.saved import Saved
from mpisparse.checkpoint.writer import write_alike
from mpisparse.comm.base import Communicator
from mpisparse.comm.local import run_ranks
from mpisparse.errors import CheckpointError
from tests.stamps import contents
from tests.unit.test_checkpoint_tree import same

TESTS = Path(__file__).resolve().parent.parent
GOLDEN = {version: TESTS / "golden" / f"checkpoint-v{version}" for version in (1, 2, 3, 4)}
STEPS = {version: golden / "step-00000042" for version, golden in GOLDEN.items()}
STEP = STEPS[4]
#: Version 4 with a file that the ranks share.
SHARED = TESTS / "golden" / "checkpoint-v4-shared" / "step-00000042"
PAGE = TESTS.parent / "docs" / "checkpoint-format.md"


def replicated() -> dict[str, Any]:
    weights = OrderedDict(weight=torch.tensor([[0.5, -0.0], [float("inf"), 1e-45]]), bias=torch.zeros(2))
    vars(weights)["_metadata"] = OrderedDict({"": {"version": 2}})
    (nan,) = struct.unpack(">d", bytes.fromhex("7ff8000000000abc"))
    return {
        "model": weights,
        "optimizer": {
            "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.tensor([1.5, -2.5], dtype=torch.bfloat16)}},
            "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999), "foreach": None, "params": [0, 1]}],
        },
        "schedule": {"milestones": Counter({2: 1, 5: 2}), "best": float("-inf"), "odd": nan},
        "kinds": [True, 2**64 - 1, 2**64, -(2**63), -0.0, "naïve\n\0", b"\x00\xff", (), {}, [], {"0": 0, 0: "0"}],
        "arrays": [
            np.array([[1, 2, 3]], np.uint16),
            np.array(2.5),
            np.array([1 + 2j], np.complex64),
            np.array([True, False]),
            np.float32(1.0),
        ],
        "tensors": [
            torch.empty(2, 0, 3, dtype=torch.float64),
            torch.tensor([[True], [False]]),
            torch.tensor([1.0, 0.25], dtype=torch.float16),
            torch.tensor(-(2**63)),
            torch.tensor([0x38, 0xFF], dtype=torch.uint8).view(torch.float8_e4m3fn),
            torch.tensor([1 - 1j], dtype=torch.complex128),
        ],
    }


def per_rank(rank: int) -> dict[str, Any]:
    return {"residual": torch.full((3,), rank + 0.5), "seed": rank, "empty": torch.empty(0)}


def write(directory: Path, *, shared: bool = False) -> None:
    """Write the golden checkpoint. Those kept were made by this, with h5py 3.16 and HDF5 2.0."""

    def save(comm: Communicator) -> None:
        Checkpointer(directory, comm=comm, shared=shared).save(42, replicated(), per_rank(comm.rank))

    run_ranks(2, save)


@pytest.mark.parametrize("version", GOLDEN)
def test_the_golden_checkpoint_verifies(version: int) -> None:
    manifest = verify(STEPS[version])
    assert (manifest.step, manifest.ranks, manifest.version) == (42, 2, version)
    assert (GOLDEN[version] / "latest").read_text() == "step-00000042\n"


@pytest.mark.parametrize("version", GOLDEN)
def test_the_golden_checkpoint_restores_to_these_literals(version: int) -> None:
    restored = run_ranks(2, lambda comm: Checkpointer(GOLDEN[version], comm=comm).restore())
    for rank, found in enumerate(restored):
        assert found is not None
        assert (found.step, found.path, found.skipped) == (42, STEPS[version], [])
        assert same(found.replicated, replicated())
        assert same(found.per_rank, per_rank(rank))


def test_a_version_1_that_is_damaged_is_told(tmp_path: Path) -> None:
    damaged = shutil.copytree(STEPS[1], tmp_path / "step-00000042")
    content = bytearray((damaged / "rank-00001.h5").read_bytes())
    content[-1] ^= 1
    (damaged / "rank-00001.h5").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"^rank-00001\.h5 is damaged: its digest is"):
        verify(damaged)


def test_a_version_1_on_other_ranks_is_written_as_the_version_of_today(tmp_path: Path) -> None:
    saved = Saved(STEPS[1], read_manifest(STEPS[1]))
    written = write_alike(saved, tmp_path, [per_rank(rank) for rank in range(3)])
    manifest = verify(written)
    assert (manifest.step, manifest.ranks, manifest.version) == (42, 3, VERSION)
    assert same(read_tree(written / "state.h5"), replicated())


@pytest.mark.parametrize("version", [1, 2, 4])
@pytest.mark.parametrize("name", ["state.h5", "rank-00000.h5", "rank-00001.h5"])
def test_what_is_written_today_is_what_was_written_then(name: str, version: int, tmp_path: Path) -> None:
    write(tmp_path)
    today, then = contents(tmp_path / STEP.name / name), contents(STEPS[version] / name)
    assert today == then
    assert json.dumps(today[0]) == json.dumps(then[0])


@pytest.mark.parametrize(("shared", "apart"), [(STEPS[3], STEPS[2]), (SHARED, STEPS[4])], ids=["3", "4"])
def test_a_shared_file_holds_the_files_of_the_ranks(shared: Path, apart: Path) -> None:
    manifest = verify(shared)
    for rank in range(2):
        place = manifest.place(f"rank-{rank:05d}.h5")
        assert place.file == "ranks.h5"
        image = (shared / place.file).read_bytes()[place.start : place.stop]
        assert same(read_image(place.file, image), per_rank(rank))
        assert image == (apart / f"rank-{rank:05d}.h5").read_bytes()


def test_the_reader_on_the_page_reads_it() -> None:
    code, _ = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    tree, arrays = names["load"](STEP / "state.h5")
    items = dict(tree["dict"])
    number = dict(items["model"]["ordered"]["items"])["weight"]["tensor"]
    dtype, shape, values = arrays[number]
    assert (dtype, shape) == ("float32", [2, 2])
    assert values.tobytes() == np.array([[0.5, -0.0], [np.inf, 1e-45]], "<f4").tobytes()
    (brain,) = [values for dtype, shape, values in arrays if dtype == "bfloat16"]
    assert (brain.astype("uint32") << 16).view("float32").tolist() == [1.5, -2.5]


def test_the_reader_of_a_shared_file_on_the_page_reads_it() -> None:
    reader, shared = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(reader + shared, names)
    for rank in range(2):
        image = names["image_of"](SHARED, f"rank-{rank:05d}.h5")
        tree, arrays = names["load"](image)
        number = dict(tree["dict"])["residual"]["tensor"]
        assert arrays[number][2].tolist() == [rank + 0.5] * 3


def test_the_manifest_on_the_page_has_the_members_of_a_real_one() -> None:
    example, shared = re.findall(r"```json\n(.*?)```", PAGE.read_text(), re.DOTALL)
    real = json.loads((SHARED / "manifest.json").read_bytes())
    assert json.loads(f"{{{shared}}}") == {"shared": real["shared"]}
    body = json.loads(example.replace(",\n    ...", ""))
    real = json.loads((STEP / "manifest.json").read_bytes())
    assert list(body) == list(real)
    assert list(body["files"][0]) == list(real["files"][0])
    assert read_manifest(STEP).files[0] == FileEntry(*real["files"][0].values())


def test_a_state_read_and_written_again_is_the_same_file(tmp_path: Path) -> None:
    for name in ("first.h5", "second.h5"):
        write_tree(tmp_path / name, read_tree(STEP / "state.h5"))
    assert (tmp_path / "first.h5").read_bytes() == (tmp_path / "second.h5").read_bytes()
    assert same(read_tree(tmp_path / "first.h5"), replicated())
