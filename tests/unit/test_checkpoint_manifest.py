"""A checkpoint is trusted only as its manifest says: every damage is found, and named."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash

from mpisparse.checkpoint import Checkpointer, FileEntry, Manifest, list_checkpoints, read_manifest, verify
from mpisparse.comm.local import run_ranks
from mpisparse.errors import CheckpointError

NAMES = ["state.h5", "rank-00000.h5", "rank-00001.h5"]


def manifest_of(ranks: int, step: int = 7) -> Manifest:
    names = ["state.h5", *(f"rank-{rank:05d}.h5" for rank in range(ranks))]
    return Manifest(step, ranks, tuple(FileEntry(name, 100, f"{index:032x}") for index, name in enumerate(names)))


def sealed(body: dict[str, Any]) -> bytes:
    """Return a manifest of any contents, with a digest that fits."""
    body = {key: value for key, value in body.items() if key != "xxh3_128"}
    body["xxh3_128"] = xxhash.xxh3_128(json.dumps(body).encode()).hexdigest()
    return json.dumps(body, indent=2).encode() + b"\n"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Return the directory of a checkpoint of two ranks."""

    def save(comm: Any) -> Path:
        return Checkpointer(tmp_path, comm=comm).save(7, {"weight": torch.arange(100.0)}, {"rank": comm.rank})

    return run_ranks(2, save)[0]


@pytest.mark.parametrize("ranks", [1, 2, 13])
def test_a_manifest_comes_back_as_it_was(ranks: int) -> None:
    manifest = manifest_of(ranks)
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest
    assert sealed(json.loads(manifest.to_bytes())) == manifest.to_bytes()


def test_every_flipped_bit_of_a_manifest_is_found() -> None:
    content = manifest_of(1).to_bytes()
    for place in range(len(content)):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            with pytest.raises(CheckpointError, match=r"^manifest\.json is "):
                Manifest.from_bytes(bytes(damaged))


def test_every_truncation_of_a_manifest_is_found() -> None:
    content = manifest_of(1).to_bytes()
    for length in range(len(content)):
        with pytest.raises(CheckpointError, match=r"^manifest\.json is damaged"):
            Manifest.from_bytes(content[:length])


WRONG: list[dict[str, Any]] = [
    {"format": "another"},
    {"version": 1},
    {"version": 3},
    {"version": True},
    {"version": [2]},
    {"version": None},
    {"step": -1},
    {"step": 1.0},
    {"step": True},
    {"step": "7"},
    {"ranks": 0},
    {"ranks": 2},
    {"ranks": 10**9},
    {"ranks": -1},
    {"files": []},
    {"files": {}},
    {"files": [1, 2]},
    {"more": 1},
]
WRONG_FILES: list[dict[str, Any]] = [
    {"name": "../state.h5"},
    {"name": "/etc/passwd"},
    {"name": "rank-00000.h5"},
    {"name": None},
    {"bytes": -1},
    {"bytes": 1.5},
    {"bytes": "100"},
    {"xxh3_128": "00"},
    {"xxh3_128": "Z" * 32},
    {"xxh3_128": None},
    {"more": 1},
]


@pytest.mark.parametrize("change", WRONG, ids=str)
def test_a_manifest_that_says_something_impossible_is_refused(change: dict[str, Any]) -> None:
    body = json.loads(manifest_of(1).to_bytes())
    with pytest.raises(CheckpointError, match=r"^manifest\.json is "):
        Manifest.from_bytes(sealed(body | change))


@pytest.mark.parametrize("change", WRONG_FILES, ids=str)
def test_a_manifest_with_an_impossible_file_is_refused(change: dict[str, Any]) -> None:
    body = json.loads(manifest_of(1).to_bytes())
    body["files"][0] |= change
    with pytest.raises(CheckpointError, match=r"^manifest\.json is damaged"):
        Manifest.from_bytes(sealed(body))


def test_a_newer_format_is_told_from_damage() -> None:
    body = json.loads(manifest_of(1).to_bytes()) | {"version": 5, "compression": "zstd"}
    with pytest.raises(CheckpointError, match=r"of format version 5, and this mpisparse reads 1 to 4: use the release"):
        Manifest.from_bytes(sealed(body))


# The files of a checkpoint --------------------------------------------------------------------------------------------


def test_a_sound_checkpoint_verifies(checkpoint: Path) -> None:
    manifest = verify(checkpoint)
    assert (manifest.step, manifest.ranks, [entry.name for entry in manifest.files]) == (7, 2, NAMES)
    assert manifest == verify(str(checkpoint)) == read_manifest(checkpoint)
    assert [entry.bytes for entry in manifest.files] == [(checkpoint / name).stat().st_size for name in NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_a_flipped_bit_anywhere_in_a_file_is_found_and_named(name: str, checkpoint: Path) -> None:
    content = (checkpoint / name).read_bytes()
    for place in [*range(0, len(content), 211), len(content) - 1]:
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        (checkpoint / name).write_bytes(damaged)
        with pytest.raises(CheckpointError, match=rf"^{name} is damaged: its digest is"):
            verify(checkpoint)
    (checkpoint / name).write_bytes(content)
    assert verify(checkpoint).step == 7


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_another_length_is_found_and_named(name: str, checkpoint: Path) -> None:
    content = (checkpoint / name).read_bytes()
    for other in (b"", content[:-1], content[: len(content) // 2], content + b"\0"):
        (checkpoint / name).write_bytes(other)
        with pytest.raises(CheckpointError, match=rf"^{name} is damaged: it has {len(other)} bytes, not"):
            verify(checkpoint)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_is_found_and_named(name: str, checkpoint: Path) -> None:
    (checkpoint / name).unlink()
    with pytest.raises(CheckpointError, match=rf"^{name} is missing$"):
        verify(checkpoint)


@pytest.mark.parametrize("name", ["rank-00002.h5", "notes.txt", ".hidden"])
def test_a_file_too_many_is_found_and_named(name: str, checkpoint: Path) -> None:
    (checkpoint / name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=rf"^{name} does not belong to the checkpoint"):
        verify(checkpoint)


def test_files_that_trade_places_are_found(checkpoint: Path) -> None:
    first, second = (checkpoint / name for name in NAMES[1:])
    contents = first.read_bytes(), second.read_bytes()
    second.write_bytes(contents[0])
    first.write_bytes(contents[1])
    with pytest.raises(CheckpointError, match=r"^rank-00000\.h5 is damaged"):
        verify(checkpoint)


def test_a_link_in_the_place_of_a_file_is_refused(checkpoint: Path) -> None:
    moved = checkpoint.parent / "elsewhere.h5"
    (checkpoint / "state.h5").rename(moved)
    (checkpoint / "state.h5").symlink_to(moved)
    with pytest.raises(CheckpointError, match=r"^state\.h5 is not a regular file$"):
        verify(checkpoint)


def test_a_directory_in_the_place_of_a_file_is_refused(checkpoint: Path) -> None:
    (checkpoint / "state.h5").unlink()
    (checkpoint / "state.h5").mkdir()
    with pytest.raises(CheckpointError, match=r"^state\.h5 is not a regular file$"):
        verify(checkpoint)


@pytest.mark.parametrize("damage", ["missing", "empty", "huge", "directory"])
def test_a_manifest_that_cannot_be_read_is_named(damage: str, checkpoint: Path) -> None:
    path = checkpoint / "manifest.json"
    path.unlink()
    if damage == "directory":
        path.mkdir()
    elif damage != "missing":
        path.touch()
        os.truncate(path, 2**40 if damage == "huge" else 0)
    with pytest.raises(CheckpointError, match=r"manifest\.json (is damaged|cannot be read)"):
        verify(checkpoint)


def test_a_directory_of_another_step_is_refused_but_any_other_name_will_do(checkpoint: Path) -> None:
    copy = shutil.copytree(checkpoint, checkpoint.with_name("best"))
    assert verify(copy).step == 7
    wrong = copy.rename(copy.with_name("step-00000008"))
    with pytest.raises(CheckpointError, match=r"^manifest\.json is of step 7, but the directory is step-00000008$"):
        verify(wrong)


def test_no_directory_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"manifest\.json cannot be read: No such file or directory"):
        verify(tmp_path / "step-00000001")
    assert list_checkpoints(tmp_path / "nowhere") == []


def test_checkpoints_are_listed_by_step_and_nothing_else_is(tmp_path: Path) -> None:
    names = ["step-00000010", "step-00000009", "step-123456789", "step-00000011.replaced"]
    for name in [*names, "step-00000009.replaced", "step-00000012.tmp", "step-1", "best", "step-000000xx"]:
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000013").touch()
    expected = ["step-00000009", "step-00000010", "step-00000011.replaced", "step-123456789"]
    assert [path.name for path in list_checkpoints(str(tmp_path))] == expected
