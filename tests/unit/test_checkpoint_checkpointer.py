"""All ranks save and restore together: whatever fails or is killed, there is a good checkpoint, and all agree on it."""

from __future__ import annotations

import doctest
import errno
import itertools
import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch

from mpisparse.checkpoint import (
    Checkpointer,
    FileEntry,
    Manifest,
    Restored,
    checkpointer,
    claim,
    list_checkpoints,
    verify,
)
from mpisparse.checkpoint.manifest import VERSION
from mpisparse.comm.base import Communicator
from mpisparse.comm.local import run_ranks
from mpisparse.errors import CheckpointError, ConfigError, MpiSparseError, RankMismatchError
from mpisparse.words import counted

SIZES = [1, 2, 3]


def replicated(step: int) -> dict[str, Any]:
    return {"weight": torch.full((50,), float(step)), "step": step}


def own(step: int, rank: int) -> dict[str, Any]:
    return {"residual": torch.full((rank,), step + rank / 8, dtype=torch.bfloat16), "rank": rank}


def save(comm: Communicator, directory: Path, *steps: int, keep: int = 3) -> None:
    checkpoints = Checkpointer(directory, keep, comm)
    for step in steps:
        checkpoints.save(step, replicated(step) if comm.rank == 0 else None, own(step, comm.rank))


def save_all(size: int, directory: Path, *steps: int, keep: int = 3) -> None:
    run_ranks(size, lambda comm: save(comm, directory, *steps, keep=keep))


def restore(comm: Communicator, directory: Path, which: str | Path = "auto") -> Restored | None:
    return Checkpointer(directory, comm=comm).restore(which)


def check(restored: Restored | None, step: int, rank: int) -> None:
    assert restored is not None
    assert (restored.step, restored.replicated["step"], restored.per_rank["rank"]) == (step, step, rank)
    assert torch.equal(restored.replicated["weight"], replicated(step)["weight"])
    assert torch.equal(restored.per_rank["residual"], own(step, rank)["residual"])


def names(directory: Path) -> list[str]:
    """Return what lies there, but for the claim of a checkpointer that is still open."""
    return sorted(set(os.listdir(directory)) - {claim.NAME})


def together(size: int, action: Callable[[Communicator], Any]) -> str:
    """Return the message of the one CheckpointError that `action` raises alike on every rank."""

    def attempt(comm: Communicator) -> MpiSparseError | None:
        try:
            action(comm)
        except CheckpointError as error:
            return error
        return None

    errors = run_ranks(size, attempt)
    assert all(error is not None and error.on_all_ranks for error in errors)
    (message,) = {str(error) for error in errors}
    return message


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


# Saving and restoring -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_every_rank_gets_back_what_it_saved(size: int, tmp_path: Path) -> None:
    def run(comm: Communicator) -> None:
        checkpoints = Checkpointer(tmp_path / "run" / "checkpoints", comm=comm)
        assert checkpoints.restore() is None
        path = checkpoints.save(1000, replicated(1000), own(1000, comm.rank))
        assert path == tmp_path / "run" / "checkpoints" / "step-00001000"
        for which in ("auto", path, str(path), path.parent, tmp_path / "run"):
            restored = checkpoints.restore(which)
            check(restored, 1000, comm.rank)
            assert restored is not None
            assert (restored.path, restored.skipped) == (path, [])

    run_ranks(size, run)
    files = [f"rank-{rank:05d}.h5" for rank in range(size)]
    assert names(tmp_path / "run/checkpoints/step-00001000") == ["manifest.json", *files, "state.h5"]


def test_a_single_process_needs_no_communicator(tmp_path: Path) -> None:
    checkpoints = Checkpointer(str(tmp_path))
    checkpoints.save(5, replicated(5), own(5, 0))
    check(checkpoints.restore(), 5, 0)
    checkpoints.save(6, None)
    restored = checkpoints.restore()
    assert restored is not None
    assert (restored.replicated, restored.per_rank) == (None, None)


def test_a_relative_directory_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    checkpoints = Checkpointer("run")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert checkpoints.save(1, None) == tmp_path / "run" / "step-00000001"


def test_the_directory_of_rank_0_counts(tmp_path: Path) -> None:
    run_ranks(2, lambda comm: save(comm, tmp_path / f"at-{comm.rank}", 1))
    assert names(tmp_path) == ["at-0"]
    assert verify(tmp_path / "at-0" / "step-00000001").ranks == 2


@pytest.mark.parametrize("keep", [1, 2, 3, 10])
def test_the_newest_are_kept_and_latest_names_the_last(keep: int, tmp_path: Path) -> None:
    for step in range(1, 6):
        save_all(2, tmp_path, step, keep=keep)
        expected = [f"step-{kept:08d}" for kept in range(max(1, step - keep + 1), step + 1)]
        assert names(tmp_path) == ["latest", *expected]
        assert (tmp_path / "latest").read_text() == f"step-{step:08d}\n"
        assert all(verify(path).ranks == 2 for path in list_checkpoints(tmp_path))


def test_steps_of_nine_digits_are_newer_than_those_of_eight(tmp_path: Path) -> None:
    checkpoints = Checkpointer(tmp_path, keep=2)
    for step in (99_999_998, 99_999_999, 100_000_000):
        checkpoints.save(step, replicated(step), own(step, 0))
    assert names(tmp_path) == ["latest", "step-100000000", "step-99999999"]
    check(checkpoints.restore(), 100_000_000, 0)


def test_going_back_removes_no_later_checkpoint(tmp_path: Path) -> None:
    save_all(1, tmp_path, 10, 20, 30, keep=3)
    save_all(1, tmp_path, 11, 12, keep=2)
    assert names(tmp_path) == ["latest", *(f"step-{step:08d}" for step in (11, 12, 20, 30))]
    assert (tmp_path / "latest").read_text() == "step-00000012\n"


@pytest.mark.parametrize("size", [1, 3])
def test_a_step_can_be_saved_again(size: int, tmp_path: Path) -> None:
    def run(comm: Communicator) -> None:
        checkpoints = Checkpointer(tmp_path, 1, comm)
        checkpoints.save(4, {"take": 1}, None)
        checkpoints.save(4, {"take": 2}, None)
        restored = checkpoints.restore()
        assert restored is not None
        assert restored.replicated == {"take": 2}

    run_ranks(size, run)
    assert names(tmp_path) == ["latest", "step-00000004"]


def test_other_files_of_the_directory_are_left_alone(tmp_path: Path) -> None:
    for name in ("notes.txt", "step-1", "step-00000001.backup", "best"):
        (tmp_path / name).mkdir()
    Checkpointer(tmp_path, keep=1).save(2, None)
    Checkpointer(tmp_path, keep=1).save(3, None)
    expected = ["best", "latest", "notes.txt", "step-00000001.backup", "step-00000003", "step-1"]
    assert names(tmp_path) == expected


@pytest.mark.parametrize("keep", [0, -1, 1.0, True, None, "3"])
def test_a_wrong_keep_is_refused(keep: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a positive integer: give how many"):
        Checkpointer(tmp_path, keep)


@pytest.mark.parametrize("step", [-1, 1.0, True, None, "7"])
def test_a_wrong_step_is_refused_on_every_rank(step: Any, tmp_path: Path) -> None:
    assert "is not a step" in together(2, lambda comm: Checkpointer(tmp_path, comm=comm).save(step, None))
    assert names(tmp_path) == []


def test_ranks_at_different_steps_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        RankMismatchError, match="the steps to save differ between ranks: 5 on rank 0 but 6 on rank 2"
    ) as caught:
        run_ranks(3, lambda comm: save(comm, tmp_path, 5 + comm.rank // 2))
    assert caught.value.on_all_ranks
    assert names(tmp_path) == []


def test_the_example_of_the_class_runs() -> None:
    assert doctest.testmod(checkpointer).failed == 0


# Damage ---------------------------------------------------------------------------------------------------------------


def remove(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def add(path: Path) -> None:
    path.touch()


def plant(path: Path) -> None:
    """Put an external link into a file, and a manifest beside it that vouches for it."""
    with h5py.File(path, "r+") as file:
        del file["structure"]
        file["structure"] = h5py.ExternalLink("/etc/hostname", "/")
    folder = path.parent
    manifest = json.loads((folder / "manifest.json").read_bytes())
    entries = tuple(FileEntry.of(folder / entry["name"]) for entry in manifest["files"])
    content = Manifest(manifest["step"], manifest["ranks"], entries, VERSION, save=manifest["save"]).to_bytes()
    (folder / "manifest.json").write_bytes(content)


FILES = ["state.h5", "rank-00000.h5", "rank-00002.h5"]
HARMS = [*itertools.product([damage, truncate, remove], [*FILES, "manifest.json"]), (add, "extra.h5")]
HARMS += itertools.product([plant], FILES)


@pytest.mark.parametrize(("harm", "name"), HARMS)
def test_damage_is_named_and_all_ranks_fall_back_together(
    harm: Callable[[Path], None], name: str, tmp_path: Path
) -> None:
    save_all(3, tmp_path, 1, 2, 3)
    harm(tmp_path / "step-00000003" / name)
    restored = run_ranks(3, partial(restore, directory=tmp_path))
    for rank, found in enumerate(restored):
        check(found, 2, rank)
    (skipped,) = {tuple(found.skipped) for found in restored if found is not None}
    (line,) = skipped
    assert line.startswith("step-00000003: ")
    assert name in line


def test_ranks_that_find_different_damage_agree(tmp_path: Path) -> None:
    save_all(3, tmp_path, 1, 2, 3)
    damage(tmp_path / "step-00000003" / "rank-00001.h5")
    damage(tmp_path / "step-00000003" / "rank-00002.h5")
    damage(tmp_path / "step-00000002" / "rank-00000.h5")
    restored = run_ranks(3, partial(restore, directory=tmp_path))
    for rank, found in enumerate(restored):
        check(found, 1, rank)
    (skipped,) = {tuple(found.skipped) for found in restored if found is not None}
    newest, second = skipped
    assert "step-00000003: rank 1 of 3: rank-00001.h5 is damaged" in newest
    assert "; rank 2 of 3: rank-00002.h5 is damaged" in newest
    assert second.startswith("step-00000002: rank 0 of 3: rank-00000.h5 is damaged")


@pytest.mark.parametrize("size", [1, 3])
def test_nothing_but_damage_is_an_error_that_names_it_all(size: int, tmp_path: Path) -> None:
    save_all(size, tmp_path, 1, 2)
    damage(tmp_path / "step-00000001" / "state.h5")
    (tmp_path / "step-00000002" / "manifest.json").unlink()
    message = together(size, partial(restore, directory=tmp_path))
    assert f"no checkpoint in {tmp_path} can be used: step-00000002: " in message
    assert "manifest.json cannot be read" in message
    assert "; step-00000001: " in message
    assert "state.h5 is damaged" in message


def test_a_damaged_checkpoint_asked_for_by_name_is_an_error(tmp_path: Path) -> None:
    save_all(2, tmp_path, 1, 2)
    damage(tmp_path / "step-00000002" / "rank-00001.h5")
    asked = tmp_path / "step-00000002"
    message = together(2, lambda comm: restore(comm, tmp_path, asked))
    assert "step-00000002: rank 1 of 2: rank-00001.h5 is damaged" in message


def test_a_path_without_a_checkpoint_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for asked in (tmp_path / "empty", tmp_path / "nowhere"):
        message = together(2, partial(restore, directory=tmp_path, which=asked))
        assert f"{asked} is no checkpoint and holds none" in message


def test_a_directory_that_cannot_be_listed_is_an_error_on_all_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> Iterator[Path]:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", fail)
    message = together(2, partial(restore, directory=tmp_path))
    assert message.startswith(f"rank 0 of 2: checkpoints cannot be looked for in {tmp_path}: Permission denied")


def test_ranks_that_ask_for_different_checkpoints_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RankMismatchError, match="the checkpoints to restore differ"):
        run_ranks(2, lambda comm: restore(comm, tmp_path, tmp_path / f"at-{comm.rank}"))


@pytest.mark.parametrize(("saved", "running"), [(1, 2), (2, 1), (3, 2), (2, 3)])
def test_another_number_of_ranks_is_refused_with_the_way_out(saved: int, running: int, tmp_path: Path) -> None:
    save_all(running, tmp_path, 1)
    save_all(saved, tmp_path, 2)
    for which in ("auto", tmp_path / "step-00000002", tmp_path):
        message = together(running, partial(restore, directory=tmp_path, which=which))
        ranks, verb = counted(saved, "rank"), "is" if running == 1 else "are"
        assert f"was saved with {ranks}, but {running} {verb} running: run with {ranks}" in message
