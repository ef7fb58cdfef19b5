"""Files of two saves are never taken for one checkpoint, although every digest is made to fit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from mpisparse.checkpoint import (
    Checkpointer,
    FileEntry,
    find_flaws,
    hdf5,
    open_checkpoint,
    read_manifest,
    verify,
)
from mpisparse.checkpoint.manifest import SHARED, STATE, Frame, Manifest, verify_file
from mpisparse.checkpoint.stamp import Stamp, new_save
from mpisparse.cli import cli
from mpisparse.comm import Communicator, run_ranks
from mpisparse.errors import CheckpointError
from tests.unit.test_checkpoint_tree import same

SIZES = [1, 2, 3, 4]
GOLDEN = Path(__file__).resolve().parent.parent / "golden"


def states(rank: int, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
    model = {"weight": torch.arange(40.0) + step, "count": torch.tensor(step), "empty": torch.zeros(0), "name": "x"}
    return {"model": model}, {"residual": torch.full((5,), step + rank / 8)}


def write(directory: Path, step: int, ranks: int = 2, *, shared: bool = False) -> Path:
    """Return a checkpoint of a step."""

    def save(comm: Communicator) -> Path:
        return Checkpointer(directory, 9, comm, shared=shared).save(step, *states(comm.rank, step))

    return run_ranks(ranks, save)[0]


def repair(step: Path, **changes: Any) -> None:
    """Let the manifest vouch for the files that lie there now, and say something else."""
    manifest = read_manifest(step)
    entries = tuple(FileEntry.of(step / entry.name) for entry in manifest.files)
    (step / "manifest.json").write_bytes(replace(manifest, files=entries, **changes).to_bytes())


def other_step(ours: Path, theirs: Path) -> None:
    older = write(theirs, 390)
    shutil.copy(older / STATE, ours / STATE)


def other_run(ours: Path, theirs: Path) -> None:
    shutil.copy(write(theirs, 400) / "rank-00001.h5", ours / "rank-00001.h5")


def other_state(ours: Path, theirs: Path) -> None:
    shutil.copy(write(theirs, 400) / STATE, ours / STATE)


def other_size(ours: Path, theirs: Path) -> None:
    shutil.copy(write(theirs, 400, 3) / "rank-00000.h5", ours / "rank-00000.h5")


def traded(ours: Path, theirs: Path) -> None:
    first, second = (ours / f"rank-{rank:05d}.h5" for rank in range(2))
    first.rename(ours / "x")
    second.rename(first)
    (ours / "x").rename(second)


def state_for_rank(ours: Path, theirs: Path) -> None:
    shutil.copy(ours / STATE, ours / "rank-00001.h5")


def other_manifest(ours: Path, theirs: Path) -> None:
    shutil.copy(write(theirs, 400) / "manifest.json", ours / "manifest.json")


def older_format(ours: Path, theirs: Path) -> None:
    shutil.copy(GOLDEN / "checkpoint-v2" / "step-00000042" / "rank-00000.h5", ours / "rank-00000.h5")


MIXES: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "state of another step": (other_step, r"state\.h5 .* its step is 390, not 400"),
    "rank of another run": (other_run, r"rank-00001\.h5 .* its save is [0-9a-f]{16}\.\.\., not"),
    "state of another run": (other_state, r"state\.h5 .* its save is "),
    "rank of another size": (other_size, r"rank-00000\.h5 .* its number of ranks is 3, not 2"),
    "ranks traded": (traded, r"rank-0000[01]\.h5 .* its rank is [01], not [01]"),
    "state in a rank's place": (state_for_rank, r"rank-00001\.h5 .* its rank is none, not 1"),
    "manifest of another save": (other_manifest, r"\.h5 .* its save is "),
    "a file of an older format": (older_format, r"rank-00000\.h5 .* it names none, and the manifest does"),
}


@pytest.mark.parametrize("name", MIXES)
def test_files_of_two_saves_are_refused_by_every_reader(name: str, tmp_path: Path) -> None:
    mix, words = MIXES[name]
    ours = write(tmp_path / "run", 400)
    mix(ours, tmp_path / "other")
    repair(ours)
    with pytest.raises(CheckpointError, match=words):
        verify(ours)
    assert any("of another save" in flaw for flaw in find_flaws(ours))

    def read() -> None:
        checkpoint = open_checkpoint(ours)
        checkpoint.replicated()
        for rank in range(2):
            checkpoint.rank(rank)

    with pytest.raises(CheckpointError, match=words):
        read()

    def restore(comm: Communicator) -> str:
        with pytest.raises(CheckpointError, match="of another save") as caught:
            Checkpointer(ours.parent, comm=comm).restore()
        return str(caught.value)

    assert len(set(run_ranks(2, restore))) == 1
    result = CliRunner().invoke(cli, ["checkpoint", "verify", str(ours)])
    assert result.exit_code == CheckpointError.exit_code
    assert "of another save" in result.output


@pytest.mark.parametrize("command", ["show", "export", "reshape"])
def test_tools_make_nothing_of_files_of_two_saves(command: str, tmp_path: Path) -> None:
    ours = write(tmp_path / "run", 400)
    other_step(ours, tmp_path / "other")
    repair(ours)
    options = {"show": [], "export": ["-o", str(tmp_path / "new")]}.get(
        command, ["--ranks", "1", "-o", str(tmp_path / "new")]
    )
    result = CliRunner().invoke(cli, ["checkpoint", command, str(ours), *options])
    assert isinstance(result.exception, CheckpointError)
    assert not (tmp_path / "new").exists() or not list((tmp_path / "new").iterdir())


def test_an_older_checkpoint_that_is_whole_is_fallen_back_to(tmp_path: Path) -> None:
    whole, mixed = write(tmp_path / "run", 390), write(tmp_path / "run", 400)
    shutil.copy(whole / STATE, mixed / STATE)
    repair(mixed)
    for restored in run_ranks(2, lambda comm: Checkpointer(tmp_path / "run", comm=comm).restore()):
        assert restored is not None
        assert restored.step == 390
        (line,) = restored.skipped
        assert line.startswith("step-00000400: ")
        assert "its step is 390, not 400" in line


def test_a_shared_file_of_another_save_is_refused(tmp_path: Path) -> None:
    ours, theirs = (write(tmp_path / name, 400, shared=True) for name in ("run", "other"))
    shutil.copy(theirs / SHARED, ours / SHARED)
    manifest, other = read_manifest(ours), read_manifest(theirs)
    files = (manifest.files[0], *other.files[1:])
    (ours / "manifest.json").write_bytes(replace(manifest, files=files, frame=other.frame).to_bytes())
    assert isinstance(other.frame, Frame)
    with pytest.raises(CheckpointError, match=r"rank-00000\.h5 .* its save is "):
        verify(ours)
    assert len(find_flaws(ours)) == 2


def test_a_new_file_in_a_checkpoint_of_an_older_format_is_refused(tmp_path: Path) -> None:
    old = shutil.copytree(GOLDEN / "checkpoint-v2" / "step-00000042", tmp_path / "step-00000042")
    shutil.copy(GOLDEN / "checkpoint-v4" / "step-00000042" / STATE, old / STATE)
    manifest = read_manifest(old)
    files = tuple(FileEntry.of(old / entry.name) for entry in manifest.files)
    (old / "manifest.json").write_bytes(Manifest(42, 2, files, 2).to_bytes())
    with pytest.raises(CheckpointError, match=r"state\.h5 .* it names one, and the manifest, of an older format, none"):
        verify(old)


def test_a_manifest_cannot_be_taken_for_one_of_an_older_format(tmp_path: Path) -> None:
    ours = write(tmp_path, 400)
    repair(ours, version=2, save=None)
    with pytest.raises(CheckpointError, match="of another save"):
        verify(ours)


def test_every_save_has_a_number_of_its_own() -> None:
    assert len({new_save() for _ in range(100)}) == 100


@pytest.mark.parametrize(
    "change",
    [{"save": "x"}, {"save": None}, {"save": "0" * 31}, {"step": "7"}, {"step": 1.0}, {"rank": "0"}, {"ranks": True},
     {"more": 1}],
    ids=str,
)  # fmt: skip
def test_a_stamp_that_is_none_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="does not say which save it belongs to"):
        Stamp.from_json(Stamp(new_save(), 7, 2, 0).to_json() | change)


# What rank 0 reads for all -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_rank_0_alone_reads_the_replicated_state(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 7, size)
    looked: list[str] = []

    def noted(path: Path, manifest: Manifest, name: str) -> None:
        looked.append(name)
        verify_file(path, manifest, name)

    monkeypatch.setattr("mpisparse.checkpoint.saved.verify_file", noted)
    found = run_ranks(size, lambda comm: Checkpointer(tmp_path, comm=comm).restore())
    assert sorted(looked) == sorted([STATE, *(f"rank-{rank:05d}.h5" for rank in range(size))])
    for rank, restored in enumerate(found):
        assert restored is not None
        assert same((restored.replicated, restored.per_rank), states(rank, 7))
    # Each rank has a state of its own: what one does to it is not seen by another.
    found[0].replicated["model"]["weight"].fill_(-1)  # type: ignore[union-attr]
    for restored in found[1:]:
        assert same(restored.replicated, states(0, 7)[0])  # type: ignore[union-attr]


@pytest.mark.parametrize("size", [2, 3])
def test_what_rank_0_cannot_read_is_an_error_of_all_ranks(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second array of the replicated state cannot be read, when the first has travelled already."""
    write(tmp_path, 7, size)
    load = hdf5._load

    def spoiled(dataset: Any, declared: Any) -> Any:
        if dataset.name.endswith("model.count"):
            raise OSError(5, "Input/output error")
        return load(dataset, declared)

    monkeypatch.setattr(hdf5, "_load", spoiled)

    def restore(comm: Communicator) -> str:
        with pytest.raises(CheckpointError) as caught:
            Checkpointer(tmp_path, comm=comm).restore()
        assert caught.value.on_all_ranks
        return str(caught.value)

    (message,) = set(run_ranks(size, restore))
    assert f"rank 0 of {size}: state.h5 cannot be read: Input/output error" in message


def test_the_replicated_state_travels_in_pieces_that_one_call_may_move(tmp_path: Path) -> None:
    write(tmp_path, 7, 3)

    def restore(comm: Communicator) -> None:
        comm._call_limit = 7
        restored = Checkpointer(tmp_path, comm=comm).restore()
        assert restored is not None
        assert same((restored.replicated, restored.per_rank), states(comm.rank, 7))

    run_ranks(3, restore)
