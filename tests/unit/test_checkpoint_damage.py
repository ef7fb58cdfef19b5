"""Bytes flipped, cut off, added or lost at random places of a checkpoint: every time it is seen, never read as good."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mpisparse.checkpoint import Checkpointer, find_flaws, open_checkpoint, verify
from mpisparse.comm import Communicator, run_ranks
from mpisparse.errors import CheckpointError

#: Trials in the normal suite, and in the long one.
FEW, MANY = 100, 1000
KINDS = (
    "flip a bit",
    "change a byte",
    "lose bytes",
    "insert bytes",
    "cut off",
    "zero a run",
    "swap two runs",
    "append",
)


@dataclass(frozen=True)
class Damage:
    """What is done to which file, and where."""

    name: str
    kind: str
    place: int
    length: int
    bit: int


def replicated() -> dict[str, Any]:
    return {"model": {"weight": torch.arange(40.0), "bias": torch.zeros(3)}, "steps_done": 7, "note": "x" * 100}


def own(rank: int) -> dict[str, Any]:
    return {"residual": torch.full((64,), rank + 0.5), "random": torch.arange(200, dtype=torch.uint8), "rank": rank}


def write(directory: Path, *, shared: bool = False) -> Path:
    """Return a small checkpoint of two ranks in a directory that holds nothing else."""

    def save(comm: Communicator) -> None:
        Checkpointer(directory, comm=comm, shared=shared).save(7, replicated(), own(comm.rank))

    run_ranks(2, save)
    return directory / "step-00000007"


def draw(generator: np.random.Generator, lengths: dict[str, int]) -> Damage:
    """Return damage at a random place of the checkpoint: large files are hit more often, each now and then."""
    names = sorted(lengths)
    weights = np.array([lengths[name] for name in names], float)
    weights = 0.5 * weights / weights.sum() + 0.5 / len(names)
    name = str(generator.choice(names, p=weights))
    return Damage(
        name,
        str(generator.choice(KINDS)),
        int(generator.integers(lengths[name])),
        int(generator.integers(1, 65)),
        int(generator.integers(8)),
    )


def damaged(content: bytes, damage: Damage) -> bytes:
    """Return the content with the damage done; the same content where that changes nothing."""
    changed, place, length = bytearray(content), damage.place, damage.length
    run = slice(place, place + length)
    match damage.kind:
        case "flip a bit":
            changed[place] ^= 1 << damage.bit
        case "change a byte":
            changed[place] = (changed[place] + length) % 256
        case "lose bytes":
            del changed[run]
        case "insert bytes":
            changed[place:place] = bytes(length)
        case "cut off":
            del changed[place:]
        case "zero a run":
            changed[run] = bytes(len(changed[run]))
        case "swap two runs":
            changed[run], changed[:length] = changed[:length], changed[run]
        case "append":
            changed += bytes(length)
    return bytes(changed)


def trial(path: Path, damage: Damage) -> bool | None:
    """Return True when the damage was found by every way in, None when it changed nothing; the file is mended."""
    file = path / damage.name
    content = file.read_bytes()
    changed = damaged(content, damage)
    if changed == content:
        return None
    file.write_bytes(changed)
    try:
        return all(
            (refused(lambda: verify(path)), bool(find_flaws(path)), refused_by_restore(path), refused_by_reader(path))
        )
    finally:
        file.write_bytes(content)


def refused(action: Any) -> bool:
    try:
        action()
    except CheckpointError:
        return True
    return False


def refused_by_restore(path: Path) -> bool:
    """Return True when two ranks that restore it both refuse, also where the file is the other's."""
    outcome = run_ranks(2, lambda comm: refused(lambda: Checkpointer(path.parent, comm=comm).restore()))
    return outcome == [True, True]


def refused_by_reader(path: Path) -> bool:
    def read() -> None:
        saved = open_checkpoint(path)
        saved.replicated()
        for rank in range(saved.ranks):
            saved.rank(rank)

    return refused(read)


def run_trials(path: Path, count: int, seed: int) -> dict[str, int]:
    """Return how often each outcome came of `count` trials that changed something."""
    generator = np.random.default_rng(seed)
    lengths = {name: (path / name).stat().st_size for name in os.listdir(path)}
    outcome = {"detected": 0, "read as good": 0}
    while sum(outcome.values()) < count:
        found = trial(path, draw(generator, lengths))
        if found is not None:
            outcome["detected" if found else "read as good"] += 1
    assert find_flaws(path) == []
    assert refused_by_reader(path) is False
    assert refused_by_restore(path) is False
    return outcome


@pytest.mark.parametrize("shared", [False, True])
def test_damage_at_random_places_is_always_found(shared: bool, tmp_path: Path) -> None:
    assert run_trials(write(tmp_path, shared=shared), FEW, seed=1) == {"detected": FEW, "read as good": 0}


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("shared", [False, True])
def test_damage_at_a_thousand_random_places_is_always_found(shared: bool, tmp_path: Path) -> None:
    assert run_trials(write(tmp_path, shared=shared), MANY, seed=2) == {"detected": MANY, "read as good": 0}


@pytest.mark.parametrize("shared", [False, True])
def test_every_file_missing_or_emptied_is_found(shared: bool, tmp_path: Path) -> None:
    path = write(tmp_path, shared=shared)
    for name in sorted(os.listdir(path)):
        content = (path / name).read_bytes()
        (path / name).write_bytes(b"")
        assert find_flaws(path), name
        (path / name).unlink()
        (flaw,) = find_flaws(path)
        assert name in flaw
        (path / name).write_bytes(content)
    assert find_flaws(path) == []


def test_all_flaws_are_named_at_once(tmp_path: Path) -> None:
    path = write(tmp_path)
    (path / "state.h5").unlink()
    (path / "note.txt").touch()
    content = bytearray((path / "rank-00001.h5").read_bytes())
    content[1000] ^= 1
    (path / "rank-00001.h5").write_bytes(content)
    assert [flaw[:24] for flaw in find_flaws(path, contents=False)] == [
        "state.h5 is missing",
        "note.txt does not belong"[:24],
    ]
    missing, extra, changed = find_flaws(path)
    assert missing == "state.h5 is missing"
    assert extra.startswith("note.txt does not belong to the checkpoint")
    assert changed.startswith("rank-00001.h5 is damaged: its digest is ")
