"""The mean of sparse vectors is bit for bit that of the dense ones, added in their order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpisparse.kernels.sums import REACH, mean_into
from mpisparse.kernels.threads import WORTH
from mpisparse.sparse import SparseVector
from tests.unit.hard_vectors import Vector


def dense_mean(sparse: list[SparseVector], numel: int, size: int) -> Vector:
    total = np.zeros(numel, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for one in sparse:
            total += one.to_dense()
        return total / np.float32(size)


def random_sparse(seed: int, numel: int, density: float) -> SparseVector:
    generator = np.random.default_rng(seed)
    indices = np.flatnonzero(generator.random(numel) < density).astype(np.uint32)
    values = (generator.standard_normal(indices.size) * 10.0 ** generator.integers(-44, 30)).astype(np.float32)
    return SparseVector(indices, values, numel)


def check(sparse: list[SparseVector], numel: int, size: int) -> None:
    total = np.zeros(numel, np.float32)
    bad = mean_into(total, sparse, size)
    expected = dense_mean(sparse, numel, size)
    assert np.array_equal(total, expected, equal_nan=True)
    places = np.flatnonzero(~np.isfinite(expected))
    assert bad == (int(places[0]) if places.size else None)


@given(st.integers(0, 2**32), st.integers(1, 7), st.integers(1, 7), st.sampled_from([0.0, 0.01, 0.5, 1.0]))
def test_any_vectors(seed: int, count: int, size: int, density: float) -> None:
    check([random_sparse(seed + i, 200, density) for i in range(count)], 200, size)


@pytest.mark.parametrize("numel", [1, REACH - 1, REACH, REACH + 1, 3 * REACH + 5])
@pytest.mark.parametrize("density", [0.003, 1.0])
def test_lengths_around_the_reach(numel: int, density: float) -> None:
    check([random_sparse(i, numel, density) for i in range(5)], numel, 3)


def test_no_vector_and_empty_vectors() -> None:
    check([], 10, 1)
    check([SparseVector.empty(10), SparseVector.empty(10)], 10, 2)
    check([SparseVector.empty(0)], 0, 1)


def test_the_first_entry_that_overflows_is_named() -> None:
    huge = SparseVector(np.array([3, 5000, 9999], np.uint32), np.full(3, 3e38, np.float32), 10_000)
    some = SparseVector(np.array([5000, 9999], np.uint32), np.full(2, 3e38, np.float32), 10_000)
    check([huge, some], 10_000, 2)
    total = np.zeros(10_000, np.float32)
    assert mean_into(total, [huge, some], 2) == 5000


def test_wide_indices() -> None:
    wide = [random_sparse(i, 10_000, 0.1) for i in range(3)]
    wide[1] = SparseVector(wide[1].indices.astype(np.uint64), wide[1].values, 10_000)
    check(wide, 10_000, 3)


def test_one_thread_and_many_give_the_same_bits() -> None:
    numel, before = 3 * WORTH + 5, torch.get_num_threads()
    sparse = [random_sparse(i, numel, 0.01) for i in range(4)]
    try:
        torch.set_num_threads(3)
        check(sparse, numel, 3)
    finally:
        torch.set_num_threads(before)


def test_vectors_of_other_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="11 entries was to be added to one of 10"):
        mean_into(np.zeros(10, np.float32), [SparseVector.empty(11)], 1)


def test_signs_of_zero_are_those_of_a_sum_that_starts_at_zero() -> None:
    negative = SparseVector(np.array([1], np.uint32), np.array([-0.0], np.float32), 3)
    total = np.zeros(3, np.float32)
    mean_into(total, [negative], 1)
    assert not np.signbit(total).any()
