"""What every rule promises."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from typing import Any

import numpy as np
import pytest
import torch

from mpisparse import random, sparsifiers
from mpisparse.errors import ConfigError, NonFiniteError
from mpisparse.sparsifiers import QSGD, Dense, GSpar, Sparsifier, TernGrad, Threshold, TopK, Uniform
from tests.unit.hard_vectors import HARD, draw

RULES: list[Sparsifier] = [
    Dense(),
    GSpar(density=0.2),
    GSpar(density=0.2, iterations=2),
    GSpar(variance=0.7),
    QSGD(),
    QSGD(bits=8, bucket=100),
    QSGD(bits=2, bucket=None),
    TernGrad(),
    TernGrad(clip=2.5),
    Threshold(0.5),
    TopK(0.2),
    Uniform(0.9),
]
EXACT = [rule for rule in RULES if not rule.amplifies]
WHOLE: list[Sparsifier] = [Dense(), GSpar(density=1.0), GSpar(variance=0.0), TopK(1.0), TopK(1), Uniform(1.0)]
RANDOM: list[Sparsifier] = [GSpar(density=0.2), GSpar(variance=0.7), QSGD(), TernGrad(), Uniform(0.5)]

each_rule = pytest.mark.parametrize("rule", RULES, ids=repr)


@each_rule
@pytest.mark.parametrize("name", HARD)
def test_results_are_well_formed_and_the_vector_is_left_alone(rule: Sparsifier, name: str) -> None:
    vector = HARD[name].copy()
    sparse = rule.select(vector, random.generator(1, 0, 0, 0))
    assert np.array_equal(vector.view(np.uint32), HARD[name].view(np.uint32))
    assert sparse.numel == vector.size
    assert sparse.indices.dtype == np.uint32
    assert sparse.values.dtype == np.float32
    assert sparse.indices.shape == sparse.values.shape == (sparse.count,)
    assert np.all(np.diff(sparse.indices.astype(np.int64)) > 0)
    assert np.all(sparse.indices < vector.size)
    assert np.array_equal(np.signbit(sparse.values), np.signbit(vector[sparse.indices]))
    assert not np.shares_memory(sparse.values, vector)


@each_rule
@pytest.mark.parametrize("name", HARD)
def test_only_dense_rules_send_zeros(rule: Sparsifier, name: str) -> None:
    sparse = rule.select(HARD[name], random.generator(1, 0, 0, 0))
    if rule.sends_everything:
        assert sparse.count == sparse.numel
    else:
        assert np.all(sparse.values != 0)


@pytest.mark.parametrize("rule", EXACT, ids=repr)
@pytest.mark.parametrize("name", HARD)
def test_biased_rules_send_exact_values(rule: Sparsifier, name: str) -> None:
    sparse = rule.select(HARD[name])
    assert np.array_equal(sparse.values.view(np.uint32), HARD[name][sparse.indices].view(np.uint32))
    assert sparse.magnitude is None


@pytest.mark.parametrize("rule", WHOLE, ids=repr)
@pytest.mark.parametrize("name", HARD)
def test_rules_that_send_everything_are_the_identity_bit_for_bit(rule: Sparsifier, name: str) -> None:
    assert rule.sends_everything
    sparse = rule.select(HARD[name])
    assert np.array_equal(sparse.indices, np.arange(HARD[name].size))
    assert np.array_equal(sparse.to_dense().view(np.uint32), HARD[name].view(np.uint32))


def test_other_rules_do_not_claim_to_send_everything() -> None:
    assert [rule for rule in RULES if rule.sends_everything] == [Dense()]


@each_rule
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused(rule: Sparsifier, value: float) -> None:
    vector = draw(0, 100)
    vector[63] = value
    with pytest.raises(NonFiniteError, match="entry 63 of 100"):
        rule.select(vector)


@each_rule
def test_torch_tensors_and_other_real_types_are_accepted(rule: Sparsifier) -> None:
    vector = (np.round(draw(0, 64) * 8) / 8).astype(np.float32)  # Exact in float16.
    expected = rule.select(vector, random.generator(0, 0, 0, 1))
    others: list[Any] = [torch.from_numpy(vector), torch.from_numpy(vector).half(), vector.astype(np.float64)]
    others.append(vector[::-1][::-1])
    for other in others:
        sparse = rule.select(other, random.generator(0, 0, 0, 1))
        assert np.array_equal(sparse.indices, expected.indices)
        assert np.array_equal(sparse.values, expected.values)


@each_rule
def test_matrices_are_refused(rule: Sparsifier) -> None:
    with pytest.raises(ConfigError, match="one dimension"):
        rule.select(np.zeros((2, 2), np.float32))


@each_rule
def test_equal_streams_give_equal_choices(rule: Sparsifier) -> None:
    vector = draw(0, 3000)
    first = rule.select(vector, random.generator(5, 1, 10, 2))
    second = rule.select(vector, random.generator(5, 1, 10, 2))
    assert np.array_equal(first.indices, second.indices)
    assert np.array_equal(first.values, second.values)
    without = [rule.select(vector) for _ in range(2)]
    assert np.array_equal(without[0].indices, without[1].indices)


@pytest.mark.parametrize("rule", RANDOM, ids=repr)
def test_other_ranks_steps_buckets_and_seeds_choose_differently(rule: Sparsifier) -> None:
    vector = draw(0, 3000)
    keys = [(5, 1, 10, 2), (6, 1, 10, 2), (5, 2, 10, 2), (5, 1, 11, 2), (5, 1, 10, 3)]
    choices = {rule.select(vector, random.generator(*key)).indices.tobytes() for key in keys}
    assert len(choices) == len(keys)


@pytest.mark.parametrize("rule", RANDOM, ids=repr)
def test_the_mean_over_ranks_has_the_variance_of_one_divided_by_their_number(rule: Sparsifier) -> None:
    vector, ranks = draw(0, 20_000), 16
    errors = [rule.select(vector, random.generator(0, rank, 0, 0)).to_dense() - vector for rank in range(ranks)]
    alone = np.mean([np.square(error).sum() for error in errors])
    together = np.square(np.mean(errors, axis=0)).sum()
    assert together == pytest.approx(alone / ranks, rel=0.05)


@each_rule
def test_rules_are_frozen_comparable_and_readable(rule: Sparsifier) -> None:
    for field in fields(rule):  # type: ignore[arg-type]
        with pytest.raises(FrozenInstanceError):
            setattr(rule, field.name, 0.3)
    again = eval(repr(rule), vars(sparsifiers))
    assert again == rule
    assert hash(again) == hash(rule)
    assert rule.at(1000) is rule


def test_reprs_name_what_was_given() -> None:
    reprs = [repr(rule) for rule in RULES]
    assert reprs == [
        "Dense()",
        "GSpar(density=0.2)",
        "GSpar(density=0.2, iterations=2)",
        "GSpar(variance=0.7)",
        "QSGD(bits=4, bucket=512)",
        "QSGD(bits=8, bucket=100)",
        "QSGD(bits=2, bucket=None)",
        "TernGrad(clip=None)",
        "TernGrad(clip=2.5)",
        "Threshold(threshold=0.5)",
        "TopK(density=0.2)",
        "Uniform(density=0.9)",
    ]


def test_unbiased_rules_say_that_they_amplify() -> None:
    assert {type(rule) for rule in RULES if rule.amplifies} == {GSpar, QSGD, TernGrad, Uniform}


@pytest.mark.parametrize("kind", [TopK, Uniform, GSpar])
@pytest.mark.parametrize("density", [0, 0.0, -0.1, 1.0001, 2, float("nan"), float("inf"), "0.1", True])
def test_densities_outside_the_range_are_refused(kind: type, density: object) -> None:
    with pytest.raises(ConfigError, match=r"outside \(0, 1\]: give the share of entries"):
        kind(density=density)


def test_the_package_exports_what_it_names() -> None:
    assert len(set(sparsifiers.__all__)) == len(sparsifiers.__all__)
    assert all(hasattr(sparsifiers, name) for name in sparsifiers.__all__)
