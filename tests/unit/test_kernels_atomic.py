"""Additions to shared memory: none is lost while others add, and nothing outside the memory is touched."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numba import njit
from numpy.typing import NDArray

from mpisparse.kernels.atomic import add_all, add_at, count_up, nanoseconds

THREADS = 4


def together(action: Callable[[int], int]) -> list[int]:
    """Return what `action(i)` returns for each of the threads, which run side by side."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(action, range(THREADS)))


def test_no_addition_is_lost_between_threads() -> None:
    vector, rounds = np.zeros(64, np.float32), 4_000
    add_at(vector, np.arange(0), np.ones(0, np.float32))
    add_all(vector, np.zeros(64, np.float32))

    def add(i: int) -> int:
        # Overlapping: thread i adds at every (i + 1)-th entry, and to all.
        indices = np.arange(0, 64, i + 1)
        ones, all_ones = np.ones(indices.size, np.float32), np.ones(64, np.float32)
        return sum(add_at(vector, indices, ones) + add_all(vector, all_ones) for _ in range(rounds))

    assert min(together(add)) >= 0
    expected = sum(rounds * (np.arange(64) % (i + 1) == 0) + rounds for i in range(THREADS))
    np.testing.assert_array_equal(vector, expected)


def test_every_number_is_given_out_once() -> None:
    counters, rounds = np.zeros(3, np.int64), 5_000
    count_up(counters, 0, 1)
    taken = [np.zeros(rounds, np.int64) for _ in range(THREADS)]

    def take(i: int) -> int:
        for k in range(rounds):
            taken[i][k] = count_up(counters, 1, 1)
        return 0

    together(take)
    np.testing.assert_array_equal(np.sort(np.concatenate(taken)), np.arange(THREADS * rounds))
    assert counters.tolist() == [1, THREADS * rounds, 0]


@pytest.mark.parametrize("dtype", [np.uint32, np.int32, np.int64, np.uint64])
def test_repeated_and_unordered_indices_add_up(dtype: type[Any]) -> None:
    vector = np.arange(5, dtype=np.float32)
    assert add_at(vector, np.array([3, 0, 3, 3], dtype), np.array([1, 0.5, -2, 4], np.float32)) == 0
    assert vector.tolist() == [0.5, 1, 2, 6, 4]


@pytest.mark.parametrize(
    "indices",
    [np.array([0, 5]), np.array([0, -1]), np.array([0, 2**63], np.uint64), np.array([0]), np.array([0, 1, 2])],
)
def test_bad_indices_add_nothing_anywhere(indices: NDArray[Any]) -> None:
    memory = np.zeros(15, np.float32)
    assert add_at(memory[5:10], indices, np.ones(2, np.float32)) == -1
    assert add_all(memory[5:10], np.ones(6, np.float32)) == -1
    assert not memory.any()
    counters = np.zeros(3, np.int64)
    assert [count_up(counters[1:2], place, 1) for place in (-1, 1)] == [-1, -1]
    assert not counters.any()


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="another processor has other instructions")
def test_the_processor_compares_and_swaps_with_the_bus_locked() -> None:
    # Compiled anew: what comes from the cache on the disk cannot be looked at.
    fresh = njit(add_at.py_func)
    fresh(np.zeros(1, np.float32), np.zeros(1, np.int64), np.ones(1, np.float32))
    assembly = "\n".join(fresh.inspect_asm().values()).replace("\t", " ")
    swaps = [line.split() for line in assembly.splitlines() if "cmpxchg" in line]
    assert swaps
    assert all(words[0] == "lock" for words in swaps)


def test_the_clock_is_that_of_python() -> None:
    clock: Any = nanoseconds
    read: Any = njit(lambda: clock())
    read()
    before, between, after = time.monotonic_ns(), read(), time.monotonic_ns()
    assert before <= between <= after
