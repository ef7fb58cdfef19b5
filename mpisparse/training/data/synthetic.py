"""The synthetic sets of the GSpar paper (Wangni, Wang, Liu and Zhang, NeurIPS 2018), for its convex experiments.

Magnitudes B in [0, 1]^d are drawn, and those up to C2 are shrunk by C1, so that few coordinates carry most of a
gradient. The paper writes one vector B, which is read here as one magnitude a coordinate, shared by all samples.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from mpisparse.errors import ConfigError
from mpisparse.training.data.base import Split, TensorDataset


class _Stream(IntEnum):
    """Random streams of one seed, so that no draw depends on how many others are made."""

    MAGNITUDES = 1
    WEIGHTS = 2
    TRAIN = 3
    TEST = 4


def load(
    *,
    samples: int = 1024,
    features: int = 2048,
    c1: float = 0.6,
    c2: float = 0.25,
    seed: int = 0,
    label_from: Literal["raw", "scaled"] = "raw",
    test_samples: int = 1024,
) -> Split:
    """Return the set of the logistic-regression experiments: x = xbar * B, label 1 where xbar . wbar > 0, else 0.

    xbar and wbar are standard normal; B is uniform in [0, 1], times c1 where it is at most c2.

    Args:
        samples: N, train samples.
        features: d, entries of a sample.
        c1: factor of the small magnitudes, 0 to 1; a smaller one makes gradients more uneven.
        c2: largest magnitude that is shrunk, 0 to 1; a larger one shrinks more coordinates.
        seed: 0 to 2**64 - 1; the train split depends on nothing but seed, samples, features, c1, c2 and label_from.
        label_from: "raw" takes the label from xbar . wbar, "scaled" from x . wbar. Which of them the paper's figures
            used is not certain: "raw" is its formula.
        test_samples: further samples of the same B and wbar; the paper has none.

    Raises:
        ConfigError: an argument is outside its range.
    """
    if label_from not in ("raw", "scaled"):
        raise ConfigError(f"label_from {label_from!r} is neither 'raw' nor 'scaled'")
    magnitudes = _magnitudes(features, c1, c2, seed)
    weights = _generator(seed, _Stream.WEIGHTS).standard_normal(features)

    def part(name: str, stream: _Stream, count: int) -> TensorDataset:
        raw = _generator(seed, stream).standard_normal((_positive("samples", count), features))
        scaled = raw * magnitudes
        return _dataset(name, scaled, (raw if label_from == "raw" else scaled) @ weights)

    return Split(
        part("synthetic train", _Stream.TRAIN, samples),
        part("synthetic test", _Stream.TEST, test_samples),
    )


def load_svm(
    *,
    samples: int = 51_200,
    features: int = 256,
    c1: float = 0.01,
    c2: float = 0.9,
    seed: int = 0,
    noise: float = 1.0,
    test_samples: int = 1024,
) -> Split:
    """Return the set of the support-vector-machine experiment: label 1 where x . wbar + N(0, noise^2) > 0, else 0.

    x is made as in `load`; wbar is uniform in [-0.5, 0.5].

    Args:
        samples: N, train samples.
        features: d, entries of a sample.
        c1: factor of the small magnitudes, 0 to 1.
        c2: largest magnitude that is shrunk, 0 to 1.
        seed: 0 to 2**64 - 1.
        noise: deviation of the noise before the sign is taken; 0 makes the set separable.
        test_samples: further samples of the same B and wbar; the paper has none.

    Raises:
        ConfigError: an argument is outside its range.
    """
    if not 0 <= noise < np.inf:
        raise ConfigError(f"noise {noise} is not a deviation: give 0 or more, such as 1.0")
    magnitudes = _magnitudes(features, c1, c2, seed)
    weights = _generator(seed, _Stream.WEIGHTS).uniform(-0.5, 0.5, features)

    def part(name: str, stream: _Stream, count: int) -> TensorDataset:
        generator = _generator(seed, stream)
        scaled = generator.standard_normal((_positive("samples", count), features)) * magnitudes
        return _dataset(name, scaled, scaled @ weights + noise * generator.standard_normal(count))

    return Split(
        part("synthetic_svm train", _Stream.TRAIN, samples),
        part("synthetic_svm test", _Stream.TEST, test_samples),
    )


def _magnitudes(features: int, c1: float, c2: float, seed: int) -> NDArray[np.float64]:
    for name, value in (("c1", c1), ("c2", c2)):
        if not 0 <= value <= 1:
            raise ConfigError(f"{name} {value} is outside [0, 1]: give a share, such as 0.6")
    magnitudes = _generator(seed, _Stream.MAGNITUDES).uniform(0.0, 1.0, _positive("features", features))
    return np.where(magnitudes <= c2, c1 * magnitudes, magnitudes)


def _generator(seed: int, stream: _Stream) -> np.random.Generator:
    if not 0 <= seed < 2**64:
        raise ConfigError(f"seed {seed} is outside 0 to 2**64 - 1: give another")
    # The second word of the counter is far from where a sparsifier of the same seed starts.
    counter = np.array([0, 2**63, 0, 0], np.uint64)
    return np.random.Generator(np.random.Philox(key=np.array([seed, stream], np.uint64), counter=counter))


def _positive(name: str, count: int) -> int:
    if count < 1:
        raise ConfigError(f"{name} {count} is below 1: give a count, such as 1024")
    return count


def _dataset(name: str, inputs: NDArray[np.float64], margins: NDArray[np.float64]) -> TensorDataset:
    return TensorDataset(
        name=name,
        num_classes=2,
        inputs=torch.from_numpy(inputs.astype(np.float32)),
        targets=torch.from_numpy((margins > 0).astype(np.int64)),
    )
