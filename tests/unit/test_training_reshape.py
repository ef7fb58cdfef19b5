"""A training run that P ranks began goes on with Q: nothing is lost, no sample comes twice, all replicas stay equal."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mpisparse.checkpoint import Checkpointer, open_checkpoint
from mpisparse.comm import Communicator, run_ranks
from mpisparse.errors import CheckpointError
from mpisparse.training.evaluate import evaluate
from mpisparse.training.reshape import Reshaper
from mpisparse.training.trainer import Trainer
from mpisparse.words import counted
from tests.paths import CHECKOUT
from tests.unit.test_trainer import DIGITS, make

Vector = NDArray[np.float64]

SIZES = list(itertools.product(range(1, 5), repeat=2))
TRAINING = {"length": "2 epochs", "batch": 40}
RULES: dict[str, dict[str, Any]] = {
    "topk": {},
    "tracked": {"sparsifier": {"name": "tracked_topk", "density": 0.05}, "exchange": {"granularity": "tensor"}},
    "momentum": {"optimizer": {"name": "SGD", "lr": 0.05}, "memory": {"name": "momentum_correction"}},
    "gspar": {"sparsifier": {"name": "gspar", "density": 0.1}, "optimizer": {"name": "Adam", "lr": 0.001}},
    "norm": {"model": {"name": "cnn", "channels": 2, "hidden": 8}},
}


class Watched:
    """A trainer on one rank, and the samples that it took of each epoch."""

    def __init__(self, comm: Communicator, rule: str, **changes: object) -> None:
        self.comm = comm
        self.trainer: Trainer = make(comm, **{"training": TRAINING, **RULES[rule], **changes})
        self.seen: dict[int, list[int]] = {}
        deal = self.trainer.sampler.next

        def watch() -> Any:
            share = deal()
            self.seen.setdefault(share.epoch, []).extend(share.indices.tolist())
            return share

        self.trainer.sampler.next = watch  # type: ignore[method-assign]

    def take(self, steps: int) -> None:
        for _ in range(steps):
            self.trainer.step()

    def save(self, directory: Path) -> None:
        trainer = self.trainer
        Checkpointer(directory, comm=self.comm).save(
            trainer.steps_done, trainer.replicated_state(), trainer.rank_state()
        )

    def restore(self, directory: Path, reshaper: Reshaper | None) -> None:
        restored = Checkpointer(directory, comm=self.comm).restore(reshape=reshaper)
        assert restored is not None
        self.trainer.load_state(restored.replicated, restored.per_rank)

    def parameters(self) -> NDArray[np.float32]:
        return np.concatenate([p.detach().numpy().reshape(-1) for p in self.trainer.model.parameters()])


def pending(directory: Path) -> dict[str, tuple[Vector, Vector]]:
    """Return, of each vector of the memories, the mean over the ranks that saved and the mean of magnitudes."""
    saved = open_checkpoint(directory)
    memories = [saved.rank(rank)["exchange"]["memory"] for rank in range(saved.ranks)]
    found = {}
    for name in memories[0]:
        flat = [np.concatenate([v.double().numpy().reshape(-1) for v in memory[name].values()]) for memory in memories]
        found[name] = (np.mean(flat, axis=0), np.mean(np.abs(flat), axis=0))
    return found


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("old", "new"), SIZES)
def test_a_run_goes_on_with_another_number_of_ranks(old: int, new: int, rule: str, tmp_path: Path) -> None:
    def begin(comm: Communicator) -> dict[str, Any]:
        watched = Watched(comm, rule)
        watched.take(5)
        watched.save(tmp_path / "before")
        trainer = watched.trainer
        loss = evaluate(comm, trainer.model, trainer.loss, DIGITS.test)["loss"]
        return {"seen": watched.seen[0], "loss": loss, "rate": trainer.optimizer.param_groups[0]["lr"]}

    def go_on(comm: Communicator) -> dict[str, Any]:
        watched = Watched(comm, rule)
        reshaper = Reshaper("redistribute")
        watched.restore(tmp_path / "before", reshaper)
        watched.save(tmp_path / "after")
        trainer = watched.trainer
        found: dict[str, Any] = {
            "loss": evaluate(comm, trainer.model, trainer.loss, DIGITS.test)["loss"],
            "rate": trainer.optimizer.param_groups[0]["lr"],
            "line": reshaper.describe(old, new, comm),
        }
        watched.take(trainer.sampler.steps_left)
        assert (trainer.sampler.epoch, trainer.position) == (1, trainer.sampler.steps_per_epoch)
        watched.take(2)
        return {**found, "seen": watched.seen[0], "parameters": watched.parameters()}

    before, after = run_ranks(old, begin), run_ranks(new, go_on)
    seen = [sample for found in (*before, *after) for sample in found["seen"]]
    assert sorted(seen) == list(range(len(DIGITS.train)))
    for found in after:
        assert np.array_equal(found["parameters"], after[0]["parameters"])
        assert found["loss"] == pytest.approx(before[0]["loss"], rel=1e-6)
        # A step of one number of ranks is another part of an epoch than one of another.
        assert found["rate"] == pytest.approx(before[0]["rate"], rel=0.05)
    expected, conserved = pending(tmp_path / "before"), pending(tmp_path / "after")
    assert expected.keys() == conserved.keys() == {
        "momentum": {"velocity", "accumulated"}, "gspar": set()
    }.get(rule, {"residual"})  # fmt: skip
    for name, (mean, _) in expected.items():
        now, magnitude = conserved[name]
        assert mean.any()
        assert (np.abs(now - mean) <= magnitude * 2.0**-24 * (1 + 1e-9) + 1e-15 * np.abs(mean) + 2.0**-150).all()
    if old != new:
        assert len({found["line"] for found in after}) == 1
        assert after[0]["line"].startswith(f"reshaped from {old} to {counted(new, 'rank')} (redistribute); ")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("size", [1, 3])
def test_the_same_number_of_ranks_goes_on_bit_for_bit(size: int, rule: str, tmp_path: Path) -> None:
    def straight(comm: Communicator) -> Any:
        watched = Watched(comm, rule)
        watched.take(4)
        watched.save(tmp_path)
        watched.take(4)
        return watched.parameters()

    def resumed(comm: Communicator) -> Any:
        watched = Watched(comm, rule)
        watched.restore(tmp_path, Reshaper("redistribute"))
        watched.take(4)
        return watched.parameters()

    for expected, found in zip(run_ranks(size, straight), run_ranks(size, resumed), strict=True):
        assert np.array_equal(expected, found)


@pytest.mark.parametrize(("old", "new"), [(2, 4), (4, 2), (3, 2)])
def test_there_and_back_sees_every_sample_of_every_epoch_once(old: int, new: int, tmp_path: Path) -> None:
    """P ranks, then Q, then P again, until the two epochs end: schedule and length follow the epochs."""
    total: list[int] = []

    def part(comm: Communicator, steps: int | None, source: Path | None, target: Path) -> dict[int, list[int]]:
        watched = Watched(comm, "topk")
        trainer = watched.trainer
        if source is not None:
            watched.restore(source, Reshaper("redistribute"))
        length = trainer.options.length.steps(trainer.sampler.steps_per_epoch)
        watched.take(length - trainer.progress if steps is None else steps)
        if steps is None:
            assert (trainer.progress, trainer.sampler.epoch) == (length, 2)
            # The next rate of a cosine that is over.
            assert trainer.optimizer.param_groups[0]["lr"] == 0.0
        if comm.rank == 0:
            total.append(trainer.steps_done)
        watched.save(target)
        return watched.seen

    seen = [
        *run_ranks(old, lambda comm: part(comm, 3, None, tmp_path / "1")),
        *run_ranks(new, lambda comm: part(comm, 8, tmp_path / "1", tmp_path / "2")),
        *run_ranks(old, lambda comm: part(comm, None, tmp_path / "2", tmp_path / "3")),
    ]
    for epoch in range(2):
        samples = [sample for found in seen for sample in found.get(epoch, [])]
        assert sorted(samples) == list(range(len(DIGITS.train)))
    assert total[:2] == [3, 11]
    assert open_checkpoint(tmp_path / "3").replicated()["gradients_done"] == 2 * len(DIGITS.train)


def test_a_length_in_steps_counts_steps(tmp_path: Path) -> None:
    training = {"length": "20 steps", "batch": 40}

    def begin(comm: Communicator) -> None:
        watched = Watched(comm, "topk", training=training)
        watched.take(5)
        watched.save(tmp_path)

    def go_on(comm: Communicator) -> tuple[int, int, float]:
        watched = Watched(comm, "topk", training=training)
        watched.restore(tmp_path, Reshaper("redistribute"))
        trainer = watched.trainer
        return trainer.steps_done, trainer.progress, trainer.optimizer.param_groups[0]["lr"]

    run_ranks(2, begin)
    for done, progress, rate in run_ranks(4, go_on):
        assert (done, progress) == (5, 5)
        assert rate == pytest.approx(0.1 * 0.5 * (1 + np.cos(np.pi / 4)))


def test_random_states_of_new_ranks_follow_from_seed_step_and_rank(tmp_path: Path) -> None:
    def begin(comm: Communicator) -> None:
        watched = Watched(comm, "topk")
        watched.take(2)
        watched.save(tmp_path)

    run_ranks(2, begin)
    saved = open_checkpoint(tmp_path)
    twice = [[state["random"] for state in Reshaper("drop").all_ranks(saved, 3)] for _ in range(2)]
    old = [saved.rank(rank)["random"] for rank in range(2)]
    assert all(torch.equal(one, other) for one, other in zip(*twice, strict=True))
    for one, other in itertools.combinations([*twice[0], *old], 2):
        if not (one is old[0] and other is old[1]):  # ranks that are threads share one generator
            assert not torch.equal(one, other)
    torch.Generator().set_state(twice[0][0])


def test_dropped_memories_are_said_and_empty(tmp_path: Path) -> None:
    def begin(comm: Communicator) -> None:
        watched = Watched(comm, "topk")
        watched.take(2)
        watched.save(tmp_path)

    run_ranks(2, begin)
    reshaper = Reshaper("drop")
    states = list(reshaper.all_ranks(open_checkpoint(tmp_path), 3))
    assert not any(v.any() for state in states for v in state["exchange"]["memory"]["residual"].values())
    assert "(drop); residual: norm " in reshaper.describe(2, 3)
    assert reshaper.describe(2, 3).count(" and 0 ") == 2
    assert reshaper.before.norms()["residual"].pending > 0


@pytest.mark.parametrize(
    "tree", [None, [1], {"exchange": {}}, {"exchange": 0, "random": 0, "buffers": {}}, {"residual": torch.ones(3)}]
)
def test_a_program_s_own_state_is_refused_with_the_way_out(tree: Any, tmp_path: Path) -> None:
    run_ranks(2, lambda comm: Checkpointer(tmp_path, comm=comm).save(1, {}, tree))
    with pytest.raises(CheckpointError, match=r"restore\(reshape=\.\.\.\)|no state of an exchange"):
        run_ranks(1, lambda comm: Checkpointer(tmp_path, comm=comm).restore(reshape=Reshaper("drop")))


def test_the_program_on_the_page_reshapes(tmp_path: Path) -> None:
    page = (CHECKOUT / "docs" / "user-guide.md").read_text()
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "def other_ranks" in block]
    names: dict[str, Any] = {}
    exec(code, names)

    def begin(comm: Communicator) -> None:
        watched = Watched(comm, "topk")
        watched.take(3)
        watched.save(tmp_path)

    run_ranks(2, begin)
    saved = open_checkpoint(tmp_path)
    for rank in range(3):
        found, expected = (make_part(saved, rank, 3) for make_part in (names["other_ranks"], Reshaper("redistribute")))
        for name, part in expected["exchange"]["memory"]["residual"].items():
            assert torch.equal(part, found["exchange"]["memory"]["residual"][name])
    restored = Checkpointer(tmp_path).restore(reshape=names["other_ranks"])
    assert restored is not None
    assert (restored.ranks, restored.per_rank["exchange"]["size"]) == (2, 1)
