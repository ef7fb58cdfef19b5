"""One file for all ranks: it holds what files of their own would, whoever writes it and however many they are."""

from __future__ import annotations

import io
import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from mpisparse.checkpoint import Checkpointer, Disk, Saved, find_flaws, open_checkpoint, verify, write_alike
from mpisparse.checkpoint.digest import DIGESTS
from mpisparse.checkpoint.manifest import Manifest
from mpisparse.comm import Communicator, run_ranks
from mpisparse.errors import CheckpointError
from tests.unit.test_checkpoint_behind import states
from tests.unit.test_checkpoint_checkpointer import names
from tests.unit.test_checkpoint_tree import same

SIZES = [1, 2, 3, 4]
STEP = "step-00000007"


def write(directory: Path, size: int, *, shared: bool = True) -> Path:
    """Return a checkpoint of `size` ranks, whose files differ in length."""
    run_ranks(size, lambda comm: Checkpointer(directory, comm=comm, shared=shared).save(7, *states(comm.rank, 7)))
    return directory / STEP


@pytest.mark.usefixtures("one_save")
@pytest.mark.parametrize("size", SIZES)
def test_it_holds_the_files_of_the_ranks_byte_for_byte(size: int, tmp_path: Path) -> None:
    apart, together = write(tmp_path / "apart", size, shared=False), write(tmp_path / "together", size)
    assert sorted(path.name for path in together.iterdir()) == ["manifest.json", "ranks.h5", "state.h5"]
    assert (apart / "state.h5").read_bytes() == (together / "state.h5").read_bytes()
    manifest = verify(together)
    assert (manifest.version, manifest.ranks) == (4, size)
    files = [(apart / f"rank-{rank:05d}.h5").read_bytes() for rank in range(size)]
    with h5py.File(together / "ranks.h5", "r") as file:
        assert list(file) == ["ranks"]
        assert file["ranks"][:].tobytes() == b"".join(files)
    for rank, content in enumerate(files):
        place = manifest.place(f"rank-{rank:05d}.h5")
        assert (together / place.file).read_bytes()[place.start : place.stop] == content


@pytest.mark.parametrize("size", SIZES)
def test_it_is_restored(size: int, tmp_path: Path) -> None:
    write(tmp_path, size)
    for rank, restored in enumerate(run_ranks(size, lambda comm: Checkpointer(tmp_path, comm=comm).restore())):
        assert restored is not None
        assert restored.skipped == []
        assert same((restored.replicated, restored.per_rank), states(rank, 7))


@pytest.mark.parametrize("size", SIZES)
def test_other_ranks_read_what_they_need(size: int, tmp_path: Path) -> None:
    write(tmp_path, 3)

    def reshape(saved: Saved, rank: int, size: int) -> object:
        return [saved.rank(old) for old in range(saved.ranks)]

    for restored in run_ranks(size, lambda comm: Checkpointer(tmp_path, comm=comm).restore(reshape=reshape)):
        assert restored is not None
        if size != 3:
            assert same(restored.per_rank, [states(old, 7)[1] for old in range(3)])


@pytest.mark.usefixtures("one_save")
def test_a_tool_takes_it_apart(tmp_path: Path) -> None:
    saved = open_checkpoint(write(tmp_path / "together", 3))
    written = write_alike(saved, tmp_path / "apart", (saved.rank(rank) for rank in range(3)))
    expected = write(tmp_path / "expected", 3, shared=False)
    assert {path.name: path.read_bytes() for path in written.iterdir()} == {
        path.name: path.read_bytes() for path in expected.iterdir()
    }


def test_training_waits_for_it(tmp_path: Path) -> None:
    def rank(comm: Communicator) -> None:
        with Checkpointer(tmp_path, comm=comm, shared=True) as checkpointer:
            checkpointer.start(7, *states(comm.rank, 7))
            state = states(comm.rank, 7)
            outcome = checkpointer.finish()
            assert outcome is not None
            assert outcome.expect() == tmp_path / STEP
            assert outcome.bytes == sum(entry.bytes for entry in verify(tmp_path / STEP).files)
            restored = checkpointer.restore()
            assert restored is not None
            assert same(restored.per_rank, state[1])

    run_ranks(2, rank)


class ForgetfulDisk(Disk):
    """A disk that says that it wrote, and did not."""

    def write(self, file: int, content: memoryview, start: int) -> int:
        return len(content)


def test_a_file_system_that_loses_what_ranks_write_is_found_out(tmp_path: Path) -> None:
    def rank(comm: Communicator) -> str:
        disk = ForgetfulDisk() if comm.rank == 1 else Disk()
        with pytest.raises(CheckpointError) as caught:
            Checkpointer(tmp_path, comm=comm, disk=disk, shared=True).save(7, *states(comm.rank, 7))
        return str(caught.value)

    (message,) = set(run_ranks(2, rank))
    assert message.startswith("rank 1 of 2: ranks.h5 does not hold what was written to it")
    assert message.endswith("set checkpoint.shared to false")
    assert names(tmp_path) == []


def test_a_rank_that_does_not_see_the_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rank(comm: Communicator) -> str:
        if comm.rank == 0:
            monkeypatch.setattr("mpisparse.checkpoint.shared.Path.is_file", lambda path: False)
        with pytest.raises(CheckpointError) as caught:
            Checkpointer(tmp_path, comm=comm, shared=True).save(7, None)
        return str(caught.value)

    (message,) = set(run_ranks(2, rank))
    assert "which rank 0 made, is not there: all ranks need to see the same directory" in message


@pytest.mark.parametrize("where", ["front", "rank"])
def test_what_is_damaged_is_named_once(where: str, tmp_path: Path) -> None:
    path = write(tmp_path, 3)
    place = verify(path).place("rank-00001.h5")
    content = bytearray((path / "ranks.h5").read_bytes())
    content[5 if where == "front" else place.start + 900] ^= 1
    (path / "ranks.h5").write_bytes(content)
    (flaw,) = find_flaws(path)
    named = "ranks.h5, outside the files of the ranks, is" if where == "front" else "rank-00001.h5 in ranks.h5 is"
    assert flaw.startswith(f"{named} damaged: its digest is ")


@pytest.mark.parametrize(
    "change",
    [
        {"start": -1},
        {"start": 10**9},
        {"start": True},
        {"name": "../ranks.h5"},
        {"more": 1},
    ],
)
def test_a_manifest_that_places_them_elsewhere_is_refused(change: dict[str, object], tmp_path: Path) -> None:
    path = write(tmp_path, 2)
    body = json.loads((path / "manifest.json").read_bytes())
    body["shared"].update(change)
    del body["xxh3_128"]
    body["xxh3_128"] = DIGESTS[3].of_bytes(json.dumps(body).encode())
    with pytest.raises(CheckpointError, match=r"manifest\.json is damaged: "):
        Manifest.from_bytes(json.dumps(body, indent=2).encode() + b"\n")


def test_a_file_of_a_rank_is_audited_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = io.BytesIO()
    with h5py.File(hostile, "w") as file:
        file["structure"] = h5py.ExternalLink("/etc/passwd", "/")
        file["arrays"] = np.zeros(3)
    monkeypatch.setattr("mpisparse.checkpoint.save.image_of", lambda encoded: hostile.getbuffer())
    saved = open_checkpoint(write(tmp_path, 1))
    with pytest.raises(CheckpointError, match="structure is a soft or external link"):
        saved.rank(0)
