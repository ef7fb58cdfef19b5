"""Streams can be made again, and no two of them are the same."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mpisparse import random


def test_the_same_integers_give_the_same_stream() -> None:
    first, second = random.generator(7, 3, 100, 2), random.generator(7, 3, 100, 2)
    assert np.array_equal(first.random(1000), second.random(1000))
    assert np.array_equal(first.integers(0, 2**64, 9, dtype=np.uint64), second.integers(0, 2**64, 9, dtype=np.uint64))


def test_streams_of_different_seeds_ranks_steps_and_buckets_differ() -> None:
    keys = list(itertools.product((0, 1, 2**64 - 1), (0, 1, 5), (0, 1, 1000), (0, 1, 9)))
    starts = {random.generator(*key).bytes(16) for key in keys}
    assert len(starts) == len(keys)


def test_a_step_or_bucket_later_is_not_the_same_stream_moved_on() -> None:
    base = random.generator(0, 0, 0, 0).integers(0, 2**64, 4096, dtype=np.uint64)
    for key in ((0, 0, 1, 0), (0, 0, 0, 1), (0, 1, 0, 0), (1, 0, 0, 0)):
        other = random.generator(*key).integers(0, 2**64, 4096, dtype=np.uint64)
        assert np.intersect1d(base, other).size == 0


def test_streams_of_neighbouring_ranks_are_uncorrelated() -> None:
    draws = np.stack([random.generator(0, rank, 0, 0).standard_normal(20_000) for rank in range(4)])
    correlation = np.corrcoef(draws) - np.eye(4)
    assert np.abs(correlation).max() < 5 / np.sqrt(20_000)


def test_the_streams_are_those_of_the_documented_key_and_counter() -> None:
    counter = np.array([0, 0, 5, 9], np.uint64)
    expected = np.random.Philox(key=np.array([3, 4], np.uint64), counter=counter).random_raw(8)
    assert np.array_equal(random.generator(3, 4, 9, 5).bit_generator.random_raw(8), expected)


@pytest.mark.parametrize("key", [(2**64 - 1, 0, 0, 0), (0, 2**31, 2**40, 10**6)])
def test_large_keys_work(key: tuple[int, int, int, int]) -> None:
    assert 0 <= random.generator(*key).random() < 1
