"""The synthetic sets follow the distributions they state, and depend on their seed alone."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from mpisparse.errors import ConfigError
from mpisparse.training.data import Split, synthetic


def inputs_of(split: Split, part: int = 0) -> Tensor:
    return split[part].batch(torch.arange(len(split[part])))[0]


def test_shapes_and_types() -> None:
    split = synthetic.load(samples=20, features=30, test_samples=5)
    assert [len(part) for part in split] == [20, 5]
    assert split.train.input_shape == (30,)
    assert inputs_of(split).dtype == torch.float32
    assert set(split.train.targets.tolist()) <= {0, 1}
    assert split.train.num_classes == 2


def test_magnitudes_are_one_a_coordinate_shrunk_where_small() -> None:
    split = synthetic.load(samples=4000, features=600, c1=0.1, c2=0.5, test_samples=1)
    deviations = inputs_of(split).double().std(0).numpy()
    # B is uniform, so half of it is above c2 = 0.5 and the rest is below c1 * c2 = 0.05. 5 sigma of a count is 61.
    small = deviations < 0.06
    assert abs(small.sum() - 300) < 5 * math.sqrt(600 / 4)
    large = deviations[~small]
    assert large.min() > 0.45
    assert large.max() < 1.06
    assert large.mean() == pytest.approx(0.75, abs=5 * math.sqrt(1 / 48 / len(large)))
    assert deviations[small].mean() == pytest.approx(0.025, abs=0.004)


def test_without_shrinking_the_magnitudes_are_uniform_and_entries_are_normal() -> None:
    inputs = inputs_of(synthetic.load(samples=3000, features=400, c1=1.0, test_samples=1)).double().numpy()
    deviations = inputs.std(0)
    assert deviations.mean() == pytest.approx(0.5, abs=5 * math.sqrt(1 / 12 / 400))
    scaled = inputs / deviations
    assert np.abs(scaled.mean(0)).max() < 6 / math.sqrt(3000)
    assert (scaled**4).mean() == pytest.approx(3.0, abs=0.05)


def accuracy(split: Split, weights: Tensor) -> float:
    return ((inputs_of(split).double() @ weights > 0) == (split.train.targets == 1)).double().mean().item()


def test_labels_are_the_sign_of_a_linear_score_of_what_is_asked_for() -> None:
    raw = synthetic.load(samples=2000, features=20, seed=3, test_samples=1)
    scaled = synthetic.load(samples=2000, features=20, seed=3, test_samples=1, label_from="scaled")
    assert torch.equal(inputs_of(raw), inputs_of(scaled))
    weights = torch.from_numpy(synthetic._generator(3, synthetic._Stream.WEIGHTS).standard_normal(20))
    magnitudes = torch.from_numpy(synthetic._magnitudes(20, 0.6, 0.25, 3))
    assert accuracy(scaled, weights) == 1.0
    assert accuracy(raw, weights / magnitudes) == 1.0
    assert accuracy(raw, weights) < 1.0


def test_the_test_split_is_of_the_same_problem_but_of_other_samples() -> None:
    split = synthetic.load(samples=2000, features=20, seed=3, label_from="scaled", test_samples=500)
    weights = torch.from_numpy(synthetic._generator(3, synthetic._Stream.WEIGHTS).standard_normal(20))
    inputs, targets = split.test.batch(torch.arange(500))
    assert torch.equal((inputs.double() @ weights > 0).long(), targets)
    assert not torch.equal(inputs, inputs_of(split)[:500])


@pytest.mark.parametrize("loader", [synthetic.load, synthetic.load_svm])
def test_seed_alone_decides(loader: Callable[..., Split]) -> None:
    first, again = loader(samples=50, features=9, seed=5), loader(samples=50, features=9, seed=5, test_samples=3)
    other = loader(samples=50, features=9, seed=6)
    assert torch.equal(inputs_of(first), inputs_of(again))
    assert torch.equal(first.train.targets, again.train.targets)
    assert not torch.equal(inputs_of(first), inputs_of(other))


def test_the_svm_set_has_labels_with_noise() -> None:
    weights = torch.from_numpy(synthetic._generator(1, synthetic._Stream.WEIGHTS).uniform(-0.5, 0.5, 64))
    assert weights.abs().max() <= 0.5
    clean = synthetic.load_svm(samples=20_000, features=64, seed=1, noise=0.0, test_samples=1)
    assert accuracy(clean, weights) == 1.0
    noisy = synthetic.load_svm(samples=20_000, features=64, seed=1, test_samples=1)
    # A margin m keeps its sign under N(0, 1) noise with probability Phi(|m|).
    margins = inputs_of(noisy).double() @ weights
    expected = torch.special.ndtr(margins.abs()).mean().item()
    assert accuracy(noisy, weights) == pytest.approx(expected, abs=5 * 0.5 / math.sqrt(20_000))


def test_the_svm_set_is_by_default_as_the_paper_states_it() -> None:
    magnitudes = synthetic._magnitudes(256, 0.01, 0.9, 0)
    assert ((magnitudes <= 0.009) | (magnitudes > 0.9)).all()
    assert 200 < (magnitudes <= 0.009).sum() < 250
    assert [len(part) for part in synthetic.load_svm(samples=8)] == [8, 1024]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples 0 is below 1"),
        ({"features": 0}, "features 0 is below 1"),
        ({"test_samples": 0}, "samples 0 is below 1"),
        ({"c1": 1.5}, r"c1 1.5 is outside \[0, 1\]"),
        ({"c2": float("nan")}, "c2 nan is outside"),
        ({"seed": -1}, "seed -1 is outside"),
        ({"seed": 2**64}, "seed 18446744073709551616 is outside"),
        ({"label_from": "both"}, "label_from 'both' is neither"),
    ],
)
def test_arguments_outside_their_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        synthetic.load(**({"samples": 4, "features": 4} | options))  # type: ignore[arg-type]


@pytest.mark.parametrize("noise", [-1.0, float("nan"), float("inf")])
def test_a_noise_that_is_no_deviation_is_refused(noise: float) -> None:
    with pytest.raises(ConfigError, match=r"noise .* is not a deviation"):
        synthetic.load_svm(samples=4, features=4, noise=noise)
