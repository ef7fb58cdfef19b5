"""Coin tosses have their probabilities, and are independent."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mpisparse.kernels.coins import toss_coins, toss_equal_coins
from mpisparse.sparse import Indices
from tests.unit.hard_vectors import HARD, Vector, draw

NUMEL = 200_000


def stream(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def toss(vector: Vector, level: np.float32, generator: np.random.Generator) -> Indices:
    """Return which entries are kept, after a guess of how many that is far too low."""
    return toss_coins(vector, level, generator, 0.0).indices


def check_count(count: int, numel: int, probability: float) -> None:
    spread = math.sqrt(numel * probability * (1 - probability))
    assert abs(count - numel * probability) <= 5 * spread + 1e-9


@pytest.mark.parametrize(
    "probability", [1e-4, 1 / 512, 1 / 300, 1 / 256, 0.3, 128 / 256, 0.5 + 1e-3, 255 / 256, 0.9999]
)
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e33])
def test_equal_entries_are_kept_with_their_probability(probability: float, scale: float) -> None:
    level = np.float32(scale)
    vector = np.full(NUMEL, np.float32(probability) * level)
    kept = toss(vector, level, stream(1))
    check_count(kept.size, NUMEL, float(vector[0]) / float(level))


def test_every_entry_has_its_own_probability() -> None:
    probabilities = np.array([0, 1e-3, 0.1, 0.25, 0.5, 0.75, 0.999, 1.0, 2.0], np.float32)
    vector = np.tile(probabilities, 20_000)
    kept = np.bincount(toss(vector, np.float32(1), stream(2)) % probabilities.size, minlength=probabilities.size)
    for count, probability in zip(kept, probabilities.tolist(), strict=True):
        check_count(int(count), 20_000, min(probability, 1.0))


def test_denormal_levels_lose_nothing() -> None:
    # Multiples of the smallest float32: 256 / level is beyond float32.
    unit = 2.0**-149
    vector = np.full(NUMEL, 3 * unit, np.float32)
    kept = toss(vector, np.float32(8 * unit), stream(3))
    check_count(kept.size, NUMEL, 3 / 8)
    assert toss(vector, np.float32(unit), stream(3)).size == NUMEL


@pytest.mark.parametrize("name", HARD)
def test_zeros_are_never_kept_and_entries_at_the_level_always(name: str) -> None:
    vector = HARD[name]
    for level in (1e-45, 1e-40, 0.1, 1.0, 1e20, 3e38):
        kept = toss(vector, np.float32(level), stream(4))
        assert np.all(vector[kept] != 0)
        certain = np.flatnonzero(np.abs(vector) >= np.float32(level))
        assert np.isin(certain, kept).all()


def test_neighbours_are_independent() -> None:
    kept = np.zeros(NUMEL, bool)
    kept[toss(np.full(NUMEL, 0.3, np.float32), np.float32(1), stream(5))] = True
    for lag in (1, 2, 7, 8, 64):
        check_count(int((kept[lag:] & kept[:-lag]).sum()), NUMEL - lag, 0.09)


def test_indices_rise_and_are_narrow() -> None:
    kept = toss(draw(0, NUMEL), np.float32(1), stream(6))
    assert kept.dtype == np.uint32
    assert np.all(np.diff(kept.astype(np.int64)) > 0)
    assert kept[-1] >= NUMEL - 1000


def plain_toss(vector: Vector, level: np.float32, key: list[int]) -> tuple[list[int], Vector]:
    """Return what the kernel must keep, by numpy's own Philox and one entry after the other."""

    def draw_words(counter: int, stream: int) -> list[int]:
        # numpy's counter is one ahead of the words that it gives.
        before = (counter - 1) % 2**64
        start = np.array([before, stream if counter else (stream - 1) % 2**64, 0, 0], np.uint64)
        if counter == 0 and stream == 0:
            start = np.full(4, 2**64 - 1, np.uint64)
        bits = np.random.Philox(key=np.array(key, np.uint64), counter=start)
        return [int(word) for word in bits.random_raw(4)]

    kept, values = [], []
    for index, entry in enumerate(vector.tolist()):
        word = draw_words(index // 32, 0)[index % 32 // 8]
        first_bits = word >> 8 * (index % 8) & 255
        chance = abs(entry) * 256.0 / float(level) - first_bits
        if (draw_words(index, 1)[0] >> 11) * 2.0**-53 < chance:
            kept.append(index)
            values.append(entry if abs(entry) >= level else math.copysign(level, entry))
    return kept, np.array(values, np.float32)


@pytest.mark.parametrize("name", HARD)
def test_the_kernel_keeps_bit_for_bit_what_a_plain_loop_keeps(name: str) -> None:
    vector = HARD[name]
    for level in (1e-40, 0.7, 30.0, 3e38):
        key = [int(word) for word in stream(9).integers(0, 2**64, 2, dtype=np.uint64)]
        kept = toss_coins(vector, np.float32(level), stream(9), 10.0)
        expected, amplified = plain_toss(vector, np.float32(level), key)
        assert kept.indices.tolist() == expected
        assert kept.values.view(np.uint32).tolist() == amplified.view(np.uint32).tolist()


def test_clearing_leaves_zeros_and_keeps_the_same() -> None:
    vector = draw(1, NUMEL)
    first = toss_coins(vector, np.float32(2), stream(10), NUMEL / 2)
    assert vector.any()
    # With hardly any room it stops and goes on, without tossing or clearing anything twice.
    second = toss_coins(vector, np.float32(2), stream(10), 0.0, clear=True)
    assert not vector.any()
    assert first.indices.tobytes() == second.indices.tobytes()
    assert first.values.tobytes() == second.values.tobytes()


@pytest.mark.parametrize("probability", [1e-4, 0.01, 0.3, 0.34, 0.9, 0.9999])
def test_equal_coins_are_kept_with_their_probability(probability: float) -> None:
    kept = toss_equal_coins(NUMEL, probability, stream(7))
    check_count(kept.size, NUMEL, probability)
    assert np.all(np.diff(kept.astype(np.int64)) > 0)
    assert kept.dtype == np.uint32
    assert kept.size == 0 or kept[-1] < NUMEL


def test_equal_coins_treat_every_index_alike_and_independently() -> None:
    tosses, numel, probability = 4000, 40, 0.2
    kept = np.zeros((tosses, numel), bool)
    for toss in range(tosses):
        kept[toss, toss_equal_coins(numel, probability, stream(toss))] = True
    for index in range(numel):
        check_count(int(kept[:, index].sum()), tosses, probability)
    for lag in (1, 2, 39):
        check_count(int((kept[:, lag:] & kept[:, :-lag]).sum()), tosses * (numel - lag), probability**2)
    # The number kept is binomial, so its variance is known too.
    spread = numel * probability * (1 - probability)
    assert kept.sum(axis=1).var() == pytest.approx(spread, rel=5 * math.sqrt(2 / tosses))


@pytest.mark.parametrize("numel", [0, 1, 2])
def test_short_vectors_toss_equal_coins(numel: int) -> None:
    counts = [toss_equal_coins(numel, 0.5, stream(seed)).size for seed in range(2000)]
    check_count(sum(counts), 2000 * numel, 0.5)


def test_a_tiny_probability_neither_overflows_nor_loops() -> None:
    assert toss_equal_coins(2**40, 1e-300, stream(8)).size == 0
    assert toss_equal_coins(2**40, 1e-12, stream(8)).dtype == np.uint64
