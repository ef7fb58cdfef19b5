"""The disk fails in any one operation of a save: all ranks are told, older checkpoints stay, saving goes on."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from pathlib import Path

import pytest

from mpisparse.checkpoint import Checkpointer, FaultyDisk, Outcome
from mpisparse.checkpoint.disk import Disk
from mpisparse.checkpoint.faulty import disk_of
from mpisparse.comm.local import run_ranks
from mpisparse.errors import CheckpointError, ConfigError
from mpisparse.faults import VARIABLE, DiskFault, disk_faults_of, faults_of
from tests.unit.disks import (
    CASES,
    WAYS,
    RecordingDisk,
    assert_recovers,
    assert_whole,
    faulty,
    places,
    prepare,
    quick_directory,
    save_all,
)
from tests.unit.test_checkpoint_checkpointer import names

ERRORS = ["ENOSPC", "EDQUOT", "EROFS", "EIO", "short"]


def assert_fails_well(size: int, template: Path, directory: Path, case: str, fault: DiskFault, way: str) -> None:
    """Assert all that holds of a save in which one operation fails, or, with EROFS, all from there on."""
    _, step, keep = CASES[case]
    if template.exists():
        shutil.copytree(template, directory)
    disks = faulty(size, fault.rank, fault)
    outcome = save_all(size, directory, step, take=1, keep=keep, disks=disks, way=way)
    if fault.error == "short":
        assert outcome.failure is None
    else:
        assert outcome.failure is not None
        assert os.strerror(getattr(errno, fault.error)) in outcome.failure
        assert size == 1 or f"rank {fault.rank} of {size}: " in outcome.failure
    take = assert_whole(size, directory, case)
    assert (take == 1) == (outcome.path is not None)
    leftovers = [path.name for path in directory.glob("*.tmp")] if directory.exists() else []
    assert not leftovers or outcome.path is not None or fault.times == 0, leftovers
    assert_recovers(size, directory, case)


def try_places(size: int, case: str, way: str, stride: int) -> int:
    """Return how many places of a save were tried, of which every one went well."""
    with quick_directory() as folder:
        # For the first save of a run its directory is not there either.
        inside = Path("run", "checkpoints")
        prepare(size, folder / "template" / inside, case)
        tried = places(size, folder / "count" / inside, case, way)[::stride]
        for (rank, operation), error in zip(tried, itertools.cycle(ERRORS), strict=False):
            fault = DiskFault(rank, operation, error, times=int(error != "EROFS"))
            try:
                assert_fails_well(size, folder / "template" / inside, folder / "now" / inside, case, fault, way)
            except BaseException as failure:
                failure.add_note(f"{case}: {fault}")
                raise
            shutil.rmtree(folder / "now")
    return len(tried)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES)
def test_an_error_in_one_of_many_places_fails_all_alike_and_harms_nothing(case: str, way: str) -> None:
    # A shared file is written in fewer operations.
    assert try_places(2, case, way, 4) > (10 if way == "shared" else 15)


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_an_error_in_any_place_fails_all_alike_and_harms_nothing(size: int, case: str, way: str) -> None:
    tried = try_places(size, case, way, 1)
    print(f"{tried} places of a save by {size} ranks, {case}")
    assert tried > (30 if way == "shared" else 50)


def test_save_raises_what_start_and_finish_tell(tmp_path: Path) -> None:
    fault = DiskFault(1, 5, "ENOSPC")

    def attempt(checkpointer: Checkpointer) -> str:
        with pytest.raises(CheckpointError) as caught:
            checkpointer.save(1, {}, None)
        assert caught.value.on_all_ranks
        return str(caught.value)

    disks = faulty(3, 1, fault)
    (message,) = set(run_ranks(3, lambda comm: attempt(Checkpointer(tmp_path, comm=comm, disk=disks[comm.rank]))))
    assert message.startswith("rank 1 of 3: rank-00001.h5 cannot be written to ")
    assert message.endswith("No space left on device")


# The order of operations ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES)
def test_everything_is_on_the_disk_before_anything_depends_on_it(case: str, way: str, tmp_path: Path) -> None:
    _, step, keep = CASES[case]
    directory = tmp_path / "run" / "checkpoints"
    prepare(2, directory, case)
    disks = [RecordingDisk(), RecordingDisk()]
    assert save_all(2, directory, step, take=1, keep=keep, disks=disks, way=way).failure is None
    operations = disks[0].operations
    temporary = directory / f"step-{step:08d}.tmp"
    written = (["state.h5", "ranks.h5"], []) if way == "shared" else (["state.h5", "rank-00000.h5"], ["rank-00001.h5"])
    for rank, own_files in enumerate(written):
        for name in own_files:
            own = [operation for operation, path in disks[rank].operations if path == temporary / name]
            assert (own[0], own[-1]) == ("create", "sync")
    if way == "shared":
        shared = temporary / "ranks.h5"
        assert [operation for operation, path in disks[1].operations if path == shared] == ["write", "sync"]
        # There is room for all before anything is written to it.
        own = [operation for operation, path in operations if path == shared]
        assert own[own.index("reserve") :] == ["reserve", "sync", "write", "sync"]
    # What the other rank did was reported to rank 0 when it was done.
    order = [
        ("mkdir", temporary),
        ("sync", temporary / "state.h5"),
        ("sync", temporary / written[0][1]),
        ("create", temporary / "manifest.json"),
        ("write", temporary / "manifest.json"),
        ("sync", temporary / "manifest.json"),
        ("sync_directory", temporary),
        *([("rename", directory / f"step-{step:08d}")] if case == "again" else []),
        ("rename", temporary),
        ("sync_directory", directory),
        *([("rmdir", directory / f"step-{step:08d}.replaced")] if case == "again" else []),
        ("sync", directory / "latest.tmp"),
        ("replace", directory / "latest.tmp"),
        ("sync_directory", directory),
        *([("rmdir", directory / f"step-{old:08d}.tmp") for old in (1, 2)] if case == "prunes" else []),
    ]
    places = [operations.index(order[0])]
    for operation in order[1:]:
        places.append(operations.index(operation, places[-1] + 1))
    durable = places[order.index(("sync_directory", directory))]
    assert not [operation for operation, _ in operations[:durable] if operation in ("unlink", "rmdir")]
    latest = places[order.index(("replace", directory / "latest.tmp"))]
    assert not [path for operation, path in operations[:latest] if operation == "rmdir" and path.suffix == ".tmp"]


def test_a_directory_that_is_made_is_made_durable(tmp_path: Path) -> None:
    disk = RecordingDisk()
    Checkpointer(tmp_path / "run" / "checkpoints", disk=disk).save(1, None)
    assert disk.operations[:4] == [
        ("mkdir", tmp_path / "run"),
        ("sync_directory", tmp_path),
        ("mkdir", tmp_path / "run" / "checkpoints"),
        ("sync_directory", tmp_path / "run"),
    ]


# Faults that the environment asks for ---------------------------------------------------------------------------------


def test_the_environment_makes_one_operation_of_one_save_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "disk:rank=0,operation=4,error=EDQUOT,save=2; late:rank=0,step=900")
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(1, {"take": 1})
    with pytest.raises(CheckpointError, match=r"^state\.h5 cannot be written to .*: Disk quota exceeded$"):
        checkpointer.save(2, {"take": 2})
    assert checkpointer.save(3, {"take": 3}).name == "step-00000003"
    assert names(tmp_path) == ["latest", "step-00000001", "step-00000003"]


def test_a_disk_without_faults_is_an_ordinary_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert type(disk_of(0)) is Disk
    monkeypatch.setenv(VARIABLE, "disk:rank=1,operation=1,error=EIO;kill:rank=0,step=4")
    assert type(disk_of(0)) is Disk
    assert type(disk_of(1)) is FaultyDisk
    assert faults_of(1) is None
    assert disk_faults_of(1) == [DiskFault(1, 1, "EIO")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("disk:rank=0,operation=1", r"lacks \['error'\]"),
        ("disk:rank=0,operation=1,error=ENOENT", "has no error that there is: use one of ENOSPC"),
        ("disk:rank=0,operation=first,error=EIO", "no number"),
        ("disk:rank=0,operation=1,error=EIO,step=3", r"\['step'\] too much"),
    ],
)
def test_what_cannot_be_read_is_refused(text: str, said: str) -> None:
    for read in (faults_of, disk_faults_of):
        with pytest.raises(ConfigError, match=said):
            read(0, {VARIABLE: text})


def test_an_outcome_without_a_checkpoint_is_never_taken_for_one() -> None:
    with pytest.raises(CheckpointError, match="the reason") as caught:
        Outcome(3, None, "the reason").expect()
    assert caught.value.on_all_ranks
    assert Outcome(3, Path("there")).expect() == Path("there")
