"""The contract of a data set, and the sets that are held as one tensor."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpisparse.errors import ConfigError
from mpisparse.words import counted

#: Images at a time of which a histogram is taken, so that the temporary copy stays below 30 MB for CIFAR-10.
_HISTOGRAM_IMAGES = 1024


@dataclass(frozen=True, eq=False, kw_only=True)
class Dataset(ABC):
    """Samples held whole in the memory of every rank. Frozen: nothing changes it once it is loaded.

    Surprises first:

    - What is stored need not be what a model sees (images stay uint8): read samples with `batch` only.
    - Every rank loads everything; which samples a rank uses is the sampler's and `shard_range`'s business.
    - Constants of normalisation are those of the train split, for the test split too.

    name: what is loaded and which split of it, such as "mnist train".
    num_classes: targets lie in 0 .. num_classes - 1; for text, the number of different characters.
    targets: int64 of shape (samples,), or (samples, length) for text.
    """

    name: str
    num_classes: int
    targets: Tensor

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, ...]:
        """Return the shape of one sample as a model sees it: (channels, height, width), (features,) or (length,)."""

    @abstractmethod
    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return the inputs and the targets of some samples, on the host, both free to be changed.

        Args:
            indices: int64 of shape (n,), each in 0 .. samples - 1; n may be zero.

        Returns:
            inputs: float32 (int64 for text) of shape (n, *input_shape).
            targets: int64 of shape (n,), or (n, length) for text.

        Raises:
            IndexError: an index is outside the set.
        """

    def __len__(self) -> int:
        return int(self.targets.shape[0])

    def describe(self) -> str:
        """Return one line for a log: name, samples, shape of one sample, classes."""
        shape = "x".join(str(extent) for extent in self.input_shape)
        return (
            f"{self.name}: {counted(len(self), 'sample')} of {shape}, {counted(self.num_classes, 'class', 'classes')}"
        )


class Split(NamedTuple):
    """The two parts of a data set, which share classes and the shape of a sample."""

    train: Dataset
    test: Dataset


@dataclass(frozen=True, eq=False, kw_only=True)
class TensorDataset(Dataset):
    """A data set whose inputs are one tensor of any dtype; a batch of it is float32, scaled to (x - mean) / deviation.

    inputs: shape (samples, *input_shape).
    mean, deviation: float32, of a shape that broadcasts against one sample; None where nothing is scaled.
    """

    inputs: Tensor
    mean: Tensor | None = None
    deviation: Tensor | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Return the shape of one sample."""
        return tuple(self.inputs.shape[1:])

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return the chosen samples, float32 and normalised, and their targets."""
        inputs = self.inputs.index_select(0, indices).to(torch.float32)
        if self.mean is not None:
            inputs = inputs.sub_(self.mean)
        if self.deviation is not None:
            inputs = inputs.div_(self.deviation)
        return inputs, self.targets.index_select(0, indices)


class Images(NamedTuple):
    """The raw images of one split: pixels uint8 of shape (n, channels, height, width), labels uint8 of shape (n,)."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.uint8]


def image_split(name: str, train: Images, test: Images, num_classes: int) -> Split:
    """Return data sets of uint8 images, scaled per channel to mean 0 and deviation 1 over the pixels of `train`.

    The images are kept as uint8, which takes a quarter of the memory of float32, and scaled a batch at a time.
    """
    mean, deviation = channel_statistics(train.pixels)

    def part(images: Images, kind: str) -> TensorDataset:
        return TensorDataset(
            name=f"{name} {kind}",
            num_classes=num_classes,
            inputs=torch.from_numpy(images.pixels),
            targets=torch.from_numpy(images.labels.astype(np.int64)),
            mean=torch.tensor(mean, dtype=torch.float32, device="cpu").reshape(-1, 1, 1),
            deviation=torch.tensor(deviation, dtype=torch.float32, device="cpu").reshape(-1, 1, 1),
        )

    return Split(part(train, "train"), part(test, "test"))


def channel_statistics(pixels: NDArray[np.uint8]) -> tuple[list[float], list[float]]:
    """Return the mean and the deviation of each channel, in grey levels 0 to 255.

    They are taken from exact counts of the 256 levels, so every rank and every machine finds the same bits. A channel
    of one level has deviation 1, so that scaling by it is harmless.
    """
    means, deviations = [], []
    levels = np.arange(256, dtype=np.float64)
    for channel in range(pixels.shape[1]):
        counts = np.zeros(256, np.int64)
        for start in range(0, pixels.shape[0], _HISTOGRAM_IMAGES):
            counts += np.bincount(pixels[start : start + _HISTOGRAM_IMAGES, channel].ravel(), minlength=256)
        mean = float(counts @ levels) / int(counts.sum())
        variance = float(counts @ np.square(levels - mean)) / int(counts.sum())
        means.append(mean)
        deviations.append(math.sqrt(variance) or 1.0)
    return means, deviations


def check_limits(**limits: int | None) -> None:
    """Return nothing: refuse a limit on a number of samples that is given and below 1.

    Raises:
        ConfigError: a limit is not positive.
    """
    for name, limit in limits.items():
        if limit is not None and limit < 1:
            raise ConfigError(f"{name} {limit} is below 1: give the most samples to use, or leave it out for all")


def every_fifth(samples: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the train and the test indices of a set without a split of its own: samples 4, 9, 14, ... are test."""
    indices = np.arange(samples, dtype=np.int64)
    is_test = indices % 5 == 4
    return indices[~is_test], indices[is_test]


def first_images(parts: Iterable[Images], limit: int | None) -> Images:
    """Return the first `limit` images (all, if None) of several files, which are asked for only as far as needed."""
    taken: list[Images] = []
    count = 0
    for part in parts:
        taken.append(part)
        count += len(part.labels)
        if limit is not None and count >= limit:
            break
    pixels = np.concatenate([part.pixels for part in taken])
    labels = np.concatenate([part.labels for part in taken])
    # Copies, so that images beyond the limit do not stay in memory behind a view.
    return Images(pixels[:limit].copy(), labels[:limit].copy())
