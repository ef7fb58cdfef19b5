"""QSGD is unbiased on its grid, keeps its bound on the variance, and draws the same on any number of threads."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpisparse import random
from mpisparse.errors import ConfigError
from mpisparse.kernels.grids import draw_span
from mpisparse.kernels.vectors import LARGEST
from mpisparse.sparse import Grid
from mpisparse.sparsifiers import QSGD
from tests.unit.hard_vectors import HARD, Vector, draw, vectors

RULES = [QSGD(2, None), QSGD(3, 7), QSGD(4), QSGD(8, 100), QSGD(16, None)]

each_rule = pytest.mark.parametrize("rule", RULES, ids=repr)


def grid_of(rule: QSGD, vector: Vector) -> Grid:
    grid = rule.select(vector).grid
    assert grid is not None
    return grid


def unit_of_each(grid: Grid, numel: int) -> Vector:
    return np.repeat(grid.units, grid.bucket)[:numel]


@each_rule
@pytest.mark.parametrize("name", HARD)
def test_values_are_levels_times_units_without_rounding(rule: QSGD, name: str) -> None:
    vector = HARD[name]
    sparse = rule.select(vector, random.generator(1, 0, 0, 0))
    grid = sparse.grid
    assert grid is not None
    assert grid.bucket == max(1, min(rule.bucket or vector.size, vector.size))
    assert grid.units.size == -(-vector.size // grid.bucket)
    assert grid.levels.size == sparse.count
    assert np.all(grid.levels >= 1)
    assert np.all(grid.levels <= rule.levels)
    exact = grid.levels.astype(np.float64) * unit_of_each(grid, vector.size)[sparse.indices]
    assert np.array_equal(np.abs(sparse.values).astype(np.float64), exact)


@given(vectors(), st.integers(2, 16), st.sampled_from([None, 1, 3, 50]))
def test_every_entry_becomes_one_of_the_two_levels_next_to_it(vector: Vector, bits: int, bucket: int | None) -> None:
    rule = QSGD(bits, bucket)
    sparse = rule.select(vector)
    assert sparse.grid is not None
    found = sparse.to_dense().astype(np.float64)
    assert np.all(np.abs(found - vector) < unit_of_each(sparse.grid, vector.size) + (vector == 0))
    assert np.all(sparse.grid.levels <= rule.levels)


@pytest.mark.parametrize("rule", [*RULES, QSGD(4, 1)], ids=repr)
def test_units_are_norms_over_levels_rounded_up(rule: QSGD) -> None:
    for vector in (draw(0, 1000), draw(1, 700) ** 9, HARD["mostly zero"]):
        grid = grid_of(rule, vector)
        exact = [float(np.linalg.norm(part.astype(np.float64))) / rule.levels for part in cut(vector, grid.bucket)]
        assert np.all(grid.units >= np.array(exact) * (1 - 1e-12))
        kept = 24 - rule.levels.bit_length()
        assert np.all(grid.units <= np.array(exact) * (1 + 2.0 ** (1 - kept) + 1e-12))


def cut(vector: Vector, bucket: int) -> list[Vector]:
    return [vector[start : start + bucket] for start in range(0, vector.size, bucket)]


@each_rule
@pytest.mark.parametrize("scale", [1.0, 1e-42, 1e35])
def test_the_mean_of_many_draws_is_the_vector(rule: QSGD, scale: float) -> None:
    vector, draws = (draw(0, 60) * scale).astype(np.float32), 2000
    total = np.zeros(60)
    for step in range(draws):
        total += rule.select(vector, random.generator(0, 0, step, 0)).to_dense()
    unit = unit_of_each(grid_of(rule, vector), 60).astype(np.float64)
    part = np.abs(vector) / unit % 1
    sigma = unit * np.sqrt(part * (1 - part) / draws)
    # An entry so near a level that it left it in none of the draws, or in a few, is not Gaussian.
    assert np.all(np.abs(total / draws - vector) <= 5 * sigma + 10 * unit / draws * (part * (1 - part) * draws < 20))


@pytest.mark.parametrize("below", [0, 1, 100])
@pytest.mark.parametrize("chance", [0, 1e-3, 0.25, 0.5, 1 - 2.0**-16, 2.0**-16, 1.5 * 2.0**-16, 0.25 * 2.0**-16])
def test_chances_are_finer_than_the_first_bits(below: int, chance: float) -> None:
    numel, unit = 2_000_000, np.ones(1, np.float32)
    vector = np.full(numel, below + chance, np.float32)
    keys = random.generator(2, 0, below, 0).integers(0, 2**64, 2, dtype=np.uint64)
    out = np.empty(numel, np.uint32), np.empty(numel, np.float32), np.empty(numel, np.uint16)
    kept = draw_span(vector, 0, numel, unit, numel, keys[0], keys[1], *out)
    assert set(np.unique(out[2][:kept])) <= {below, below + 1} - {0}
    real = float(vector[0]) - below
    above = int(np.count_nonzero(out[2][:kept] == below + 1))
    assert kept == (numel if below else above)
    assert abs(above - numel * real) <= 5 * math.sqrt(numel * real * (1 - real))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("bucket", [None, 64, 512])
@pytest.mark.parametrize("kind", ["gaussian", "equal", "uneven"])
def test_the_squared_norm_keeps_the_bound(bits: int, bucket: int | None, kind: str) -> None:
    """E ||Q(g)||^2 <= (1 + min(n / s^2, sqrt(n) / s)) ||g||^2, and it is what the draws' probabilities say."""
    vector = {"gaussian": draw(0, 2048), "equal": np.full(2048, 0.1, np.float32), "uneven": draw(1, 2048) ** 5}[kind]
    rule, draws = QSGD(bits, bucket), 200
    square = float(np.square(vector.astype(np.float64)).sum())
    ratios = [
        float(np.square(rule.select(vector, random.generator(0, 0, step, 0)).values.astype(np.float64)).sum()) / square
        for step in range(draws)
    ]
    unit = unit_of_each(grid_of(rule, vector), 2048).astype(np.float64)
    part = np.abs(vector) / unit % 1
    exact = 1 + float((unit**2 * part * (1 - part)).sum()) / square
    n, s = bucket or 2048, rule.levels
    # The units are rounded up by 2**-16 at most here.
    assert exact <= 1 + (1 + 2.0**-15) * min(n / s**2, math.sqrt(n) / s)
    assert abs(np.mean(ratios) - exact) <= 5 * np.std(ratios) / math.sqrt(draws) + 1e-9


def test_a_zero_vector_and_a_single_entry() -> None:
    for rule in RULES:
        empty = rule.select(np.zeros(1000, np.float32))
        assert empty.count == 0
        assert not grid_of(rule, np.zeros(1000, np.float32)).units.any()
        lonely = np.zeros(1000, np.float32)
        lonely[321] = -3.1
        found = rule.select(lonely)
        assert found.indices.tolist() == [321]
        assert found.values[0] == pytest.approx(-3.1, rel=1 / rule.levels if rule.levels > 1 else 1e-9)
    assert QSGD(2).select(lonely).values.tolist() == lonely[lonely != 0].tolist()


def test_huge_entries_are_never_drawn_out_of_float32() -> None:
    huge = np.full(64, 3e38, np.float32)
    sparse = QSGD(4, None).select(huge)
    assert grid_of(QSGD(4, None), huge).units[0] == LARGEST
    assert np.all(np.abs(sparse.values) == LARGEST)
    assert abs(sparse.count - 64 * 3e38 / float(LARGEST)) < 5 * math.sqrt(64 * 0.88 * 0.12)
    for rule in (*RULES, QSGD(8, 1), QSGD(3, 7)):
        for step in range(20):
            noise = (draw(step, 40) * 1e38).astype(np.float32)
            noise[3:30] = LARGEST
            assert np.isfinite(rule.select(noise, random.generator(0, 0, step, 0)).values).all()


def test_draws_do_not_depend_on_the_number_of_threads() -> None:
    vector = draw(5, 1_700_000)
    before = torch.get_num_threads()
    try:
        for rule in (QSGD(4, 1000), QSGD(8, None), QSGD(2, 700_000)):
            found = []
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                sparse = rule.select(vector, random.generator(1, 2, 3, 4))
                assert sparse.grid is not None
                arrays = (sparse.indices, sparse.values, sparse.grid.levels, sparse.grid.units)
                found.append([array.tobytes() for array in arrays])
            for other in found[1:]:
                assert found[0] == other
    finally:
        torch.set_num_threads(before)


def test_neighbours_are_independent() -> None:
    vector = np.full(200_000, 1.0, np.float32)
    up = np.zeros(vector.size, bool)
    sparse = QSGD(2, 11).select(vector, random.generator(9, 0, 0, 0))
    up[sparse.indices] = True
    chance = 1 / math.sqrt(11)
    for lag in (1, 3, 4, 15, 16, 64):
        both = int((up[lag:] & up[:-lag]).sum())
        expected = (vector.size - lag) * chance**2
        assert abs(both - expected) <= 5 * math.sqrt(expected)


@pytest.mark.parametrize("bits", [1, 17, 4.0, True, "4", None])
def test_bits_outside_the_range_are_refused(bits: object) -> None:
    with pytest.raises(ConfigError, match="outside 2 to 16"):
        QSGD(bits=bits)  # type: ignore[arg-type]


@pytest.mark.parametrize("bucket", [0, -1, 1.5, True, "512"])
def test_buckets_that_are_no_counts_are_refused(bucket: object) -> None:
    with pytest.raises(ConfigError, match="give how many entries share a norm"):
        QSGD(bucket=bucket)  # type: ignore[arg-type]
