"""Scheduled densities: the right number at each step, and no selection before the step is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpisparse.errors import ConfigError
from mpisparse.sparsifiers import DenseWarmup, Exponential, GSpar, TopK, Uniform
from tests.unit.hard_vectors import draw

KINDS = pytest.mark.parametrize("kind", [GSpar, TopK, Uniform])


def test_a_dense_warmup_ends_after_its_steps() -> None:
    warmup = DenseWarmup(0.01, steps=3)
    assert [warmup(step) for step in range(5)] == [1.0, 1.0, 1.0, 0.01, 0.01]
    assert DenseWarmup(0.01, steps=0)(0) == 0.01


def test_exponential_moves_by_equal_factors() -> None:
    schedule = Exponential(start=0.25, density=0.001, steps=100)
    densities = np.array([schedule(step) for step in range(101)])
    assert densities[0] == 0.25
    assert densities[100] == 0.001
    assert schedule(10**9) == 0.001
    assert np.allclose(densities[1:] / densities[:-1], (0.001 / 0.25) ** 0.01, rtol=1e-12)


def test_the_stages_of_deep_gradient_compression() -> None:
    schedule = Exponential(start=0.25, density=0.001, steps=400, stages=4)
    densities = [schedule(step) for step in range(500)]
    for stage, density in enumerate([0.25, 0.0625, 0.015625, 0.004, 0.001]):
        plateau = densities[100 * stage : 100 * (stage + 1)]
        assert len(set(plateau)) == 1
        assert plateau[0] == pytest.approx(density, rel=0.02)


@given(
    st.floats(1e-6, 1), st.floats(1e-6, 1), st.integers(0, 1000), st.none() | st.integers(1, 10), st.integers(0, 1200)
)
def test_every_step_has_a_density_between_the_ends(
    start: float, density: float, steps: int, stages: int | None, step: int
) -> None:
    if stages is not None and stages > max(steps, 1):
        stages = None
    value = Exponential(start, density, steps, stages)(step)
    assert min(start, density) * (1 - 1e-12) <= value <= max(start, density) * (1 + 1e-12)
    assert value <= 1


@KINDS
def test_at_gives_the_rule_of_the_step(kind: type) -> None:
    rule = kind(density=DenseWarmup(0.1, steps=5))
    assert not rule.sends_everything
    assert rule.at(4) == kind(density=1.0)
    assert rule.at(4).sends_everything
    assert rule.at(5) == kind(density=0.1)
    vector = draw(0, 1000)
    assert np.array_equal(rule.at(5).select(vector).indices, kind(density=0.1).select(vector).indices)


def test_at_keeps_the_other_options() -> None:
    assert GSpar(density=DenseWarmup(0.1, 5), iterations=2).at(7) == GSpar(density=0.1, iterations=2)


@KINDS
def test_selecting_before_the_step_is_known_is_an_error_with_the_way_out(kind: type) -> None:
    with pytest.raises(ConfigError, match=r"follows the schedule DenseWarmup.*call \.at\(step\) first"):
        kind(density=DenseWarmup(0.1, steps=5)).select(draw(0, 10))


@KINDS
def test_any_function_of_the_step_is_a_schedule_and_its_values_are_checked(kind: type) -> None:
    rule = kind(density=lambda step: 0.5 / (1 + step))
    assert rule.at(1) == kind(density=0.25)
    with pytest.raises(ConfigError, match=r"at step 3 .* 1\.5 is outside"):
        kind(density=lambda step: step / 2).at(3)
    with pytest.raises(ConfigError, match="must give a number"):
        kind(density=lambda step: DenseWarmup(0.1, step)).at(3)


def test_schedules_are_frozen_and_comparable() -> None:
    assert TopK(Exponential(0.5, 0.01, 10)) == TopK(Exponential(0.5, 0.01, 10))
    assert repr(TopK(DenseWarmup(0.01, 3))) == "TopK(density=DenseWarmup(density=0.01, steps=3))"
    assert len({DenseWarmup(0.01, 3), DenseWarmup(0.01, 3), DenseWarmup(0.01, 4)}) == 2


@pytest.mark.parametrize("density", [0, 1.5, float("nan"), DenseWarmup(0.1, 1)])
def test_schedules_refuse_wrong_densities(density: float) -> None:
    with pytest.raises(ConfigError):
        DenseWarmup(density, 3)
    with pytest.raises(ConfigError):
        Exponential(density, 0.1, 3)
    with pytest.raises(ConfigError):
        Exponential(0.1, density, 3)


@pytest.mark.parametrize("steps", [-1, 1.5, True, "3"])
def test_schedules_refuse_wrong_steps(steps: int) -> None:
    with pytest.raises(ConfigError, match=r"steps .* is not a whole number"):
        DenseWarmup(0.1, steps)
    with pytest.raises(ConfigError, match=r"steps .* is not a whole number"):
        Exponential(0.1, 0.01, steps)


@pytest.mark.parametrize("stages", [0, -1, 11, 2.5])
def test_schedules_refuse_stages_that_do_not_fit(stages: int) -> None:
    with pytest.raises(ConfigError, match="stages"):
        Exponential(0.1, 0.01, 10, stages)
