"""Laws of the sampler: exactly once an epoch, equal steps on all ranks, a position that fits any number of ranks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpisparse.errors import ConfigError
from mpisparse.sampler import Sampler, Share, shard_range

SIZES = st.integers(1, 4)
BATCHES = st.integers(1, 7)


def samplers(samples: int, batch: int, size: int, seed: int = 1, shuffle: bool = True) -> list[Sampler]:
    return [Sampler(samples, batch, seed, rank, size, shuffle=shuffle) for rank in range(size)]


def step(ranks: list[Sampler]) -> list[Share]:
    """Return one step of all ranks, after checking what every step must satisfy."""
    shares = [sampler.next() for sampler in ranks]
    assert len({(share.global_count, share.epoch, share.ends_epoch) for share in shares}) == 1
    assert sum(len(share.indices) for share in shares) == shares[0].global_count > 0
    assert all(sampler.state_dict() == ranks[0].state_dict() for sampler in ranks)
    return shares


def indices(shares: list[Share]) -> list[int]:
    return [index for share in shares for index in share.indices.tolist()]


@given(samples=st.integers(4, 90), batch=BATCHES, size=SIZES)
def test_each_sample_is_seen_once_in_each_epoch(samples: int, batch: int, size: int) -> None:
    ranks = samplers(samples, batch, size)
    for epoch in range(2):
        seen: list[int] = []
        for number in range(1, ranks[0].steps_per_epoch + 1):
            shares = step(ranks)
            seen += indices(shares)
            assert all(len(share.indices) >= 1 for share in shares)
            assert max(len(share.indices) for share in shares) <= batch + 1
            assert shares[0].epoch == epoch
            assert shares[0].ends_epoch == (number == ranks[0].steps_per_epoch)
        assert sorted(seen) == list(range(samples))


@given(samples=st.integers(4, 60), batch=BATCHES, size=SIZES)
def test_global_order_does_not_depend_on_the_number_of_ranks(samples: int, batch: int, size: int) -> None:
    ranks, alone = samplers(samples, batch, size), Sampler(samples, batch * size, seed=1)
    dealt = [index for _ in range(ranks[0].steps_per_epoch) for index in indices(step(ranks))]
    straight = [index for _ in range(alone.steps_per_epoch) for index in alone.next().indices.tolist()]
    assert dealt == straight


@given(samples=st.integers(4, 60), batch=BATCHES, size=SIZES, before=st.integers(0, 40))
def test_resume_goes_on_where_it_stopped(samples: int, batch: int, size: int, before: int) -> None:
    ranks = samplers(samples, batch, size)
    for _ in range(before):
        step(ranks)
    resumed = samplers(samples, batch, size, seed=999)
    for sampler in resumed:
        sampler.load_state_dict(ranks[0].state_dict())
    assert resumed[0].steps_left == ranks[0].steps_left
    for _ in range(ranks[0].steps_per_epoch + 1):
        assert indices(step(ranks)) == indices(step(resumed))


@given(
    samples=st.integers(4, 60),
    plan=st.lists(st.tuples(BATCHES, SIZES, st.integers(1, 5)), min_size=1, max_size=5),
)
def test_a_change_of_ranks_within_an_epoch_keeps_exactly_once(samples: int, plan: list[tuple[int, int, int]]) -> None:
    state = Sampler(samples, 1, seed=5).state_dict()
    seen: list[int] = []
    ended = False
    for batch, size, steps in itertools.chain(plan, itertools.repeat((3, 4, 1))):
        ranks = samplers(samples, batch, size)
        for sampler in ranks:
            sampler.load_state_dict(state)
        expected = ranks[0].steps_left
        for done in range(1, steps + 1):
            shares = step(ranks)
            seen += indices(shares)
            assert shares[0].epoch == 0
            ended = shares[0].ends_epoch
            assert ended == (done == expected)
            if ended:
                break
        if ended:
            break
        state = ranks[0].state_dict()
    assert sorted(seen) == list(range(samples))


def test_fewer_samples_left_than_ranks_gives_empty_shares() -> None:
    before = Sampler(10, 9, seed=0)
    assert before.next().global_count == 9
    ranks = samplers(10, 2, 4, seed=0)
    for sampler in ranks:
        sampler.load_state_dict(before.state_dict())
    shares = step(ranks)
    assert sorted(len(share.indices) for share in shares) == [0, 0, 0, 1]
    assert all(share.ends_epoch for share in shares)
    assert all(share.indices.dtype == torch.int64 for share in shares)


def test_the_tail_that_cannot_serve_all_ranks_joins_the_last_step() -> None:
    ranks = samplers(18, 4, 4, shuffle=False)
    assert ranks[0].steps_per_epoch == 1
    assert [len(share.indices) for share in step(ranks)] == [4, 5, 4, 5]


def test_epochs_and_seeds_give_different_orders_and_equal_ones_the_same() -> None:
    def epochs(seed: int) -> list[list[int]]:
        sampler = Sampler(100, 100, seed)
        return [sampler.next().indices.tolist() for _ in range(3)]

    first, second, third = epochs(7)
    assert len({tuple(first), tuple(second), tuple(third), tuple(epochs(8)[0])}) == 4
    assert epochs(7) == [first, second, third]


def test_order_is_pinned_so_that_a_checkpoint_means_the_same_everywhere() -> None:
    assert Sampler(10, 10, seed=3).next().indices.tolist() == [8, 5, 2, 1, 9, 7, 6, 4, 0, 3]


def test_every_position_is_equally_likely() -> None:
    # 4,000 orders of 4 samples: each of 16 counts is 1,000 on average, with deviation 27.
    counts = np.zeros((4, 4), int)
    sampler = Sampler(4, 4, seed=0)
    for _ in range(4000):
        counts[np.arange(4), sampler.next().indices.numpy()] += 1
    assert np.abs(counts - 1000).max() < 5 * 27


def test_without_shuffle_the_order_is_that_of_the_data() -> None:
    sampler = Sampler(5, 2, seed=0, shuffle=False)
    assert [sampler.next().indices.tolist() for _ in range(4)] == [[0, 1], [2, 3], [4], [0, 1]]
    assert sampler.epoch == 1


def test_a_share_may_be_changed_without_touching_the_order() -> None:
    sampler = Sampler(4, 4, seed=0, shuffle=False)
    sampler.next().indices.zero_()
    assert sampler.next().indices.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samples": 3, "size": 4}, "3 samples cannot be shared by 4 ranks: use at most 3 ranks or more data"),
        ({"samples": 0}, "0 samples cannot be shared by 1 rank"),
        ({"batch": 0}, "batch 0 is below 1"),
        ({"seed": -1}, "seed -1"),
        ({"seed": 2**64}, "seed 18446744073709551616"),
        ({"rank": 2, "size": 2}, "rank 2 is outside 0 to 1"),
        ({"rank": -1}, "rank -1"),
    ],
)
def test_impossible_arguments_are_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Sampler(**({"samples": 8, "batch": 2, "seed": 0} | arguments))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": 9}, "has samples 9, this run has 8"),
        ({"shuffle": 0}, "has shuffle 0, this run has 1"),
        ({"consumed": 8}, "consumed 8"),
        ({"consumed": -1}, "consumed -1"),
        ({"epoch": -1}, "epoch -1"),
        ({"seed": 2**64}, "seed 18446744073709551616"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(change: dict[str, int], message: str) -> None:
    sampler = Sampler(8, 2, seed=0)
    before = sampler.state_dict()
    with pytest.raises(ConfigError, match=message):
        sampler.load_state_dict(before | change)
    assert sampler.state_dict() == before


def test_an_incomplete_state_is_refused() -> None:
    with pytest.raises(ConfigError, match="lacks consumed, epoch"):
        Sampler(8, 2, seed=0).load_state_dict({"seed": 0, "samples": 8, "shuffle": 1})


def test_the_largest_seed_works() -> None:
    assert sorted(Sampler(8, 8, seed=2**64 - 1).next().indices.tolist()) == list(range(8))


@given(samples=st.integers(0, 50), size=st.integers(1, 6))
def test_shards_for_evaluation_cover_each_sample_once_and_differ_by_one_at_most(samples: int, size: int) -> None:
    shards = [shard_range(samples, rank, size) for rank in range(size)]
    assert [index for shard in shards for index in shard] == list(range(samples))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_a_shard_of_no_rank_is_refused() -> None:
    with pytest.raises(ConfigError, match="rank 3"):
        shard_range(10, 3, 3)
