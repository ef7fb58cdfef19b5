"""Whatever fails on one rank fails on all alike, and a kill at any moment leaves a good checkpoint behind."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch

from mpisparse.checkpoint import Checkpointer, list_checkpoints, verify
from mpisparse.comm.base import Communicator
from mpisparse.comm.local import run_ranks
from mpisparse.errors import CheckpointError
from tests.unit.test_checkpoint_checkpointer import check, names, restore, save, save_all, together


@contextmanager
def largest_file(limit: int) -> Iterator[None]:
    """Let the system refuse to write more than `limit` bytes to any one file, as a full disk would."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def expect_untouched(directory: Path, size: int) -> None:
    """Assert that the checkpoint of step 1 is there as if nothing had happened, and that saving goes on from it."""
    assert names(directory) == ["latest", "step-00000001"]
    assert (directory / "latest").read_text() == "step-00000001\n"
    for rank, found in enumerate(run_ranks(size, partial(restore, directory=directory))):
        check(found, 1, rank)
    save_all(size, directory, 2)
    assert names(directory) == ["latest", "step-00000001", "step-00000002"]


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_disk_that_is_full_for_one_rank_fails_all_alike(failing: int, tmp_path: Path) -> None:
    save_all(3, tmp_path, 1)
    large = torch.rand(100_000)

    def attempt(comm: Communicator) -> None:
        Checkpointer(tmp_path, comm=comm).save(2, {}, large if comm.rank == failing else None)

    with largest_file(100_000):
        message = together(3, attempt)
    assert message.startswith(f"rank {failing} of 3: rank-{failing:05d}.h5 cannot be written to {tmp_path}")
    assert message.endswith("File too large")
    expect_untouched(tmp_path, 3)


MARKER = 777


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("name", ["state.h5", "rank-00000.h5", "rank-00002.h5"])
def test_an_hdf5_error_on_one_rank_fails_all_alike(
    name: str, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_all(3, tmp_path, 1)
    create_dataset = h5py.Group.create_dataset

    def fail(group: h5py.Group, title: str, **options: Any) -> Any:
        if options["data"].size == MARKER:
            raise OSError(errno.ENOSPC, "Can't write data")
        return create_dataset(group, title, **options)

    def attempt(comm: Communicator) -> None:
        trees = [torch.zeros(MARKER) if name == file else 0 for file in ("state.h5", f"rank-{comm.rank:05d}.h5")]
        Checkpointer(tmp_path, comm=comm).save(step, *trees)

    with monkeypatch.context() as patch:
        patch.setattr(h5py.Group, "create_dataset", fail)
        message = together(3, attempt)
    rank = 2 if name == "rank-00002.h5" else 0
    assert message.startswith(f"rank {rank} of 3: {name} cannot be written to {tmp_path}")
    assert message.endswith("No space left on device")
    expect_untouched(tmp_path, 3)


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_state_that_cannot_be_saved_on_one_rank_fails_all_alike(failing: int, tmp_path: Path) -> None:
    save_all(3, tmp_path, 1)

    def attempt(comm: Communicator) -> None:
        Checkpointer(tmp_path, comm=comm).save(2, {}, {"sampler": {"seen": {1} if comm.rank == failing else 1}})

    message = together(3, attempt)
    assert f"rank {failing} of 3: rank-{failing:05d}.h5 cannot be written: sampler.seen is a set" in message
    expect_untouched(tmp_path, 3)


@pytest.mark.parametrize("failing", [os.rename, os.fsync, os.mkdir], ids=lambda function: str(function.__name__))
@pytest.mark.parametrize("step", [1, 2])
def test_a_failing_system_call_fails_all_alike(
    failing: Callable[..., Any], step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_all(3, tmp_path, 1)

    def fail(*arguments: Any, **options: Any) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, failing.__name__, fail)
        message = together(3, lambda comm: save(comm, tmp_path, step))
    assert "Input/output error" in message
    expect_untouched(tmp_path, 3)


def test_the_second_rename_of_a_replacement_failing_brings_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_all(3, tmp_path, 1)
    rename = os.rename

    def fail(source: Path, target: Path) -> None:
        if Path(source).suffix == ".tmp":
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", fail)
        assert "Disk quota exceeded" in together(3, lambda comm: save(comm, tmp_path, 1))
    expect_untouched(tmp_path, 3)


def test_a_temporary_directory_that_cannot_be_removed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_all(2, tmp_path, 1)

    def fail(*arguments: Any, **options: Any) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", fail)
        patch.setattr(os, "rmdir", fail)
        message = together(2, lambda comm: save(comm, tmp_path, 2))
    assert f"could not be removed: remove {tmp_path / 'step-00000002.tmp'} (Input/output error)" in message
    assert names(tmp_path) == ["latest", "step-00000001", "step-00000002.tmp"]
    for rank, found in enumerate(run_ranks(2, partial(restore, directory=tmp_path))):
        check(found, 1, rank)
    save_all(2, tmp_path, 3)
    assert names(tmp_path) == ["latest", "step-00000001", "step-00000003"]


def test_tidying_up_that_fails_says_that_the_checkpoint_is_safe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        message = together(2, lambda comm: save(comm, tmp_path, 1))
    assert message.startswith("rank 0 of 2: step-00000001 is complete and safe, but tidying up after it failed")
    for rank, found in enumerate(run_ranks(2, partial(restore, directory=tmp_path))):
        check(found, 1, rank)


def test_a_directory_that_cannot_be_made_fails_all_alike(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = together(2, lambda comm: save(comm, tmp_path / "file", 1))
    assert message.startswith(f"rank 0 of 2: no checkpoint can be written to {tmp_path / 'file'}: ")


def test_ranks_that_do_not_share_the_directory_are_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    is_dir = Path.is_dir
    with monkeypatch.context() as patch:
        patch.setattr(Path, "is_dir", lambda path: path.suffix != ".tmp" and is_dir(path))
        message = together(2, lambda comm: save(comm, tmp_path, 1))
    assert "which rank 0 made, is not there: all ranks need to see the same directory" in message


# Kills ----------------------------------------------------------------------------------------------------------------


class KilledError(BaseException):
    """Stands for the end of the process: nothing in the package may catch it."""


CALLS = ["mkdir", "fsync", "rename", "replace", "unlink", "rmdir"]


@contextmanager
def killed_after(count: int, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """End the process at its call number `count` that changes the disk, as far as this process can tell."""
    done = 0

    def guard(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal done
            if done >= count:
                raise KilledError
            done += 1
            return function(*arguments, **options)

        return call

    with patch.context() as inner:
        for name in CALLS:
            inner.setattr(os, name, guard(getattr(os, name)))
        yield


@pytest.mark.parametrize("step", [3, 4], ids=["again", "new"])
@pytest.mark.parametrize("keep", [1, 2])
def test_a_kill_at_any_moment_leaves_a_good_checkpoint(
    step: int, keep: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for moment in range(200):
        directory = tmp_path / str(moment)
        checkpoints = Checkpointer(directory, keep)
        for earlier in (2, 3):
            checkpoints.save(earlier, {"take": 1}, {"step": earlier})
        try:
            with killed_after(moment, monkeypatch):
                checkpoints.save(step, {"take": 2}, {"step": step})
        except KilledError:
            restored = Checkpointer(directory, keep).restore()
            assert restored is not None
            assert restored.skipped == []
            assert (restored.step, restored.replicated) in [(3, {"take": 1}), (step, {"take": 2})]
            assert restored.per_rank == {"step": restored.step}
            assert all(verify(path).ranks == 1 for path in list_checkpoints(directory))
            Checkpointer(directory, keep).save(step, {"take": 3}, {"step": step})
        else:
            break
    else:
        pytest.fail("the save was never let through")
    assert moment > 8
    for path in tmp_path.iterdir():
        kept = sorted({2, 3, step})[-keep:]
        assert names(path) == ["latest", *(f"step-{there:08d}" for there in kept)]
        assert (path / "latest").read_text() == f"step-{step:08d}\n"
        for there in kept:
            assert verify(path / f"step-{there:08d}").step == there


def test_a_replacement_cut_short_survives_a_save_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpointer(tmp_path, keep=1)
    checkpoints.save(5, {"take": 1}, None)
    rename = os.rename

    def end(source: Path, target: Path) -> None:
        if Path(source).suffix == ".tmp":
            raise KilledError
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", end)
        with pytest.raises(KilledError):
            checkpoints.save(5, {"take": 2}, None)
    assert names(tmp_path) == ["latest", "step-00000005.replaced", "step-00000005.tmp"]
    with pytest.raises(CheckpointError, match="is a set"):
        checkpoints.save(6, {1}, None)
    assert names(tmp_path) == ["latest", "step-00000005"]
    restored = checkpoints.restore()
    assert restored is not None
    assert restored.replicated == {"take": 1}
