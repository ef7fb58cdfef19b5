"""From P ranks to Q: what memories will apply is conserved, entry by entry; the rest follows by rule."""

from __future__ import annotations

import doctest
import itertools
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpisparse.checkpoint import Tally, reshape, reshape_exchange
from mpisparse.checkpoint.reshape import Blend, begins_in, shares
from mpisparse.comm import Communicator, run_ranks
from mpisparse.errors import CheckpointError

SIZES = list(itertools.product(range(1, 5), repeat=2))
LARGER = [*SIZES, (7, 3), (3, 7), (1, 16), (16, 1), (13, 12)]

#: Half a unit in the last place of float32, of a normal number and of the least one.
ROUNDING, LEAST = 2.0**-24, 2.0**-150


def state(rank: int, size: int, names: tuple[str, ...] = ("residual",), step: int = 9) -> dict[str, Any]:
    """Return an exchange state whose entries differ by rank, over the whole range of float32."""
    generator = torch.Generator().manual_seed(100 * size + rank)

    def vector(*shape: int) -> Tensor:
        scale = torch.randint(-140, 120, shape, generator=generator).float().exp2()
        return torch.randn(shape, generator=generator) * scale

    memory = {name: {"weight": vector(13, 7), "bias": vector(5)} for name in names}
    tracked = [{"threshold": 0.5 + rank, "age": 3, "drift": 0.1}, {"threshold": 0.25, "age": 1, "drift": 0.0}]
    return {"step": step, "seed": 7, "rank": rank, "size": size, "memory": memory, "tracked": tracked}


def states(size: int, *names: str) -> list[dict[str, Any]]:
    return [state(rank, size, names or ("residual",)) for rank in range(size)]


def reshaped(old: list[dict[str, Any]], size: int, **options: Any) -> list[dict[str, Any]]:
    return [reshape_exchange(old.__getitem__, len(old), rank, size, **options) for rank in range(size)]


def flat(state: dict[str, Any], name: str) -> NDArray[np.float64]:
    return np.concatenate([tensor.double().numpy().reshape(-1) for tensor in state["memory"][name].values()])


def mean(some: list[dict[str, Any]], name: str) -> NDArray[np.float64]:
    """Return the mean over ranks, which is what the memories will apply, in float64."""
    return np.asarray(np.stack([flat(state, name) for state in some]).mean(axis=0))


# Who takes over what --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("old", "new"), LARGER)
def test_every_new_rank_takes_a_mean_and_every_old_one_is_given_away_whole(old: int, new: int) -> None:
    given: dict[int, Fraction] = dict.fromkeys(range(old), Fraction(0))
    for rank in range(new):
        taken = shares(old, rank, new)
        assert sum(share.units for share in taken) == old
        assert all(share.units > 0 for share in taken)
        assert [share.rank for share in taken] == list(range(taken[0].rank, taken[-1].rank + 1))
        for share in taken:
            given[share.rank] += Fraction(share.units, old * new)
    assert set(given.values()) == {Fraction(1, old)}
    reads = sum(len(shares(old, rank, new)) for rank in range(new))
    assert reads <= old + new - 1
    for rank in range(old):
        assert rank in {share.rank for share in shares(old, begins_in(rank, old, new), new)}


def test_the_example_of_the_module_runs() -> None:
    assert doctest.testmod(reshape).failed == 0


# The law --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("residual",), ("velocity", "accumulated")], ids="+".join)
@pytest.mark.parametrize(("old", "new"), LARGER)
def test_what_will_be_applied_is_conserved_entry_by_entry(old: int, new: int, names: tuple[str, ...]) -> None:
    """The mean over ranks differs by the rounding of the new entries to float32 alone."""
    before = states(old, *names)
    after = reshaped(before, new)
    for name in names:
        allowed = np.mean([np.abs(flat(state, name)) for state in after], axis=0) * ROUNDING + LEAST
        exact = 1e-15 * np.mean([np.abs(flat(state, name)) for state in before], axis=0)
        assert (np.abs(mean(after, name) - mean(before, name)) <= allowed * (1 + 1e-9) + exact).all()


@pytest.mark.parametrize("size", range(1, 5))
def test_the_same_number_of_ranks_changes_no_bit(size: int) -> None:
    before = states(size)
    for old, new in zip(before, reshaped(before, size), strict=True):
        assert all(
            torch.equal(old["memory"]["residual"][name], new["memory"]["residual"][name]) for name in ("weight",)
        )
        assert np.array_equal(flat(old, "residual"), flat(new, "residual"))


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_there_and_back(old: int, new: int) -> None:
    """To a multiple and back is exact; every way there and back conserves the mean."""
    before = states(old)
    back = reshaped(reshaped(before, new), old)
    if new % old == 0:
        for first, last in zip(before, back, strict=True):
            assert np.array_equal(flat(first, "residual"), flat(last, "residual"))
    size = np.max([np.abs(flat(state, "residual")) for state in before], axis=0)
    assert (np.abs(mean(back, "residual") - mean(before, "residual")) <= 2 * ROUNDING * size + 2 * LEAST).all()


def test_the_rest_of_the_state_follows_by_rule() -> None:
    for rank, new in enumerate(reshaped(states(3), 2)):
        assert (new["rank"], new["size"], new["step"], new["seed"]) == (rank, 2, 9, 7)
        assert new["tracked"] == 2 * [{"threshold": 0.0, "age": 0, "drift": 0.0}]
        assert [tensor.dtype for tensor in new["memory"]["residual"].values()] == [torch.float32, torch.float32]


def test_drop_starts_every_memory_empty() -> None:
    for new in reshaped(states(3, "velocity", "accumulated"), 4, residual="drop"):
        assert not flat(new, "velocity").any()
        assert not flat(new, "accumulated").any()
        assert new["memory"]["velocity"]["weight"].shape == (13, 7)


def test_a_state_without_memory_or_tracked_thresholds_stays_without() -> None:
    old = [{"step": 1, "seed": 0, "rank": rank, "size": 2, "memory": {}} for rank in range(2)]
    assert reshaped(old, 1) == [{"step": 1, "seed": 0, "rank": 0, "size": 1, "memory": {}}]


def test_the_source_is_left_as_it_is() -> None:
    before, reference = states(4), states(4)
    reshaped(before, 3)
    for one, other in zip(before, reference, strict=True):
        assert np.array_equal(flat(one, "residual"), flat(other, "residual"))


Change = Callable[[dict[str, Any]], Any]
WRONG: dict[str, tuple[Change, str]] = {
    "another step": (lambda s: s.update(step=8), "step 9 and 8: they are of two runs"),
    "another seed": (lambda s: s.update(seed=8), "seed 7 and 8: they are of two runs"),
    "another rank": (lambda s: s.update(rank=0), "says that it is of rank 0 of 2"),
    "another size": (lambda s: s.update(size=3), "says that it is of rank 1 of 3"),
    "another shape": (lambda s: s["memory"]["residual"].update(bias=torch.ones(4)), "differ in form"),
    "another dtype": (lambda s: s["memory"]["residual"].update(bias=torch.ones(5).double()), "differ in form"),
    "another name": (lambda s: s["memory"].update(velocity=s["memory"].pop("residual")), "differ in form"),
    "something unknown": (lambda s: s.update(more=1), "no state of an exchange that this version can reshape"),
    "something less": (lambda s: s.pop("memory"), "no state of an exchange"),
    "no memory": (lambda s: s.update(memory=torch.ones(3)), "is no memory"),
    "a flat memory": (lambda s: s.update(memory={"residual": torch.ones(3)}), "is no memory"),
    "no tensors": (lambda s: s["memory"]["residual"].update(bias=[1.0]), "residual/bias is a list"),
}


@pytest.mark.parametrize("name", WRONG)
def test_states_that_do_not_belong_together_are_refused(name: str) -> None:
    change, words = WRONG[name]
    old = states(2)
    change(old[1])
    with pytest.raises(CheckpointError) as caught:
        reshaped(old, 1)
    assert words in str(caught.value)


# Buffers --------------------------------------------------------------------------------------------------------------


def test_statistics_keep_their_mean_and_counts_their_kind() -> None:
    def buffers(rank: int) -> dict[str, Tensor]:
        return {
            "mean": torch.tensor([1.0, 2.0]) * (rank + 1),
            "half": torch.tensor([rank + 0.5], dtype=torch.bfloat16),
            "exact": torch.tensor([rank / 3], dtype=torch.float64),
            "wave": torch.tensor([rank + 1j]),
            "seen": torch.tensor(10 + rank),
            "on": torch.tensor([rank == 0]),
        }

    blend = Blend(3)
    for rank, units in shares(3, 1, 2):
        blend.add(buffers(rank), units)
    found = blend.result()
    assert torch.equal(found["mean"], torch.tensor([8.0, 16.0]) / 3)
    assert found["half"].dtype is torch.bfloat16
    assert found["exact"].item() == pytest.approx(5 / 9, rel=1e-15)
    assert found["wave"].item() == pytest.approx(8 / 3 + 1j - 1, rel=1e-6)
    assert (found["seen"].item(), found["on"].item()) == (11, False)


def test_a_mean_of_a_part_of_the_ranks_is_refused() -> None:
    blend = Blend(3)
    blend.add({"mean": torch.ones(2)}, 2)
    with pytest.raises(CheckpointError, match="2 parts of 3"):
        blend.result()


# Norms ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_norms_are_those_of_the_mean_and_of_a_rank(old: int, new: int) -> None:
    """Counted on one process or on as many as there will be ranks; the pending one is conserved."""

    def normal(rank: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(rank)
        vector = torch.randn(2000, generator=generator)
        return {"step": 1, "seed": 0, "rank": rank, "size": old, "memory": {"residual": {"weight": vector}}}

    before = [normal(rank) for rank in range(old)]
    after = reshaped(before, new)

    def both(comm: Communicator) -> tuple[Any, Any]:
        tallies = Tally(), Tally()
        for share in shares(old, comm.rank, new):
            counts = begins_in(share.rank, old, new) == comm.rank
            tallies[0].add(before[share.rank]["memory"], counts=counts)
        tallies[1].add(after[comm.rank]["memory"])
        return tallies[0].norms(comm), tallies[1].norms(comm)

    for some, index in ((before, 0), (after, 1)):
        alone = Tally()
        for one in some:
            alone.add(one["memory"])
        norms = alone.norms()["residual"]
        assert norms.pending == pytest.approx(np.linalg.norm(mean(some, "residual")), rel=1e-12)
        squares = [np.linalg.norm(flat(one, "residual")) ** 2 for one in some]
        assert norms.rank == pytest.approx(np.sqrt(np.mean(squares)), rel=1e-12)
        for together in run_ranks(new, both):
            assert together[index]["residual"].pending == pytest.approx(norms.pending, rel=1e-6)
            assert together[index]["residual"].rank == pytest.approx(norms.rank, rel=1e-12)
            assert together[1]["residual"].pending == pytest.approx(together[0]["residual"].pending, rel=1e-6)
