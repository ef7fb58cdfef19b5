"""The section `data`: what is trained on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from mpisparse.training.config.types import Seed
from mpisparse.training.section import Section


class DigitsData(Section):
    """The UCI handwritten digits, 8x8, that come with the package."""

    name: Literal["digits"]


class MnistData(Section):
    """MNIST idx files in the folder `path` or below it, plain or .gz."""

    name: Literal["mnist"]
    path: str
    train_limit: PositiveInt | None = None
    test_limit: PositiveInt | None = None


class Cifar10Data(Section):
    """CIFAR-10: a folder of original batches, their archive, or a file of JPEG images in HDF5."""

    name: Literal["cifar10"]
    path: str
    train_limit: PositiveInt | None = None
    test_limit: PositiveInt | None = None


class LibsvmData(Section):
    """LIBSVM text files, plain or compressed; without `test` a fifth of `train` is held out.

    index_base: the index of the first feature; "auto" is 0 where the files hold an index 0, else 1.
    """

    name: Literal["libsvm"]
    train: str
    test: str | None = None
    features: PositiveInt | None = None
    index_base: Literal["auto", 0, 1] = "auto"


class TextData(Section):
    """A text file by characters, in windows of `length`; the last tenth is held out."""

    name: Literal["text"]
    path: str
    length: PositiveInt = 64
    stride: PositiveInt | None = None


class SyntheticData(Section):
    """The GSpar paper's generator: Gaussian samples whose coordinates differ in size, the more the smaller c1 is."""

    name: Literal["synthetic"]
    samples: PositiveInt = 1024
    features: PositiveInt = 2048
    c1: float = 0.6
    c2: float = 0.25
    seed: Seed = 0
    label_from: Literal["raw", "scaled"] = "raw"
    test_samples: PositiveInt = 1024


class SyntheticSvmData(Section):
    """The generator of the paper's asynchronous experiment."""

    name: Literal["synthetic_svm"]
    samples: PositiveInt = 51_200
    features: PositiveInt = 256
    c1: float = 0.01
    c2: float = 0.9
    seed: Seed = 0
    noise: float = 1.0
    test_samples: PositiveInt = 1024


Data = Annotated[
    DigitsData | MnistData | Cifar10Data | LibsvmData | TextData | SyntheticData | SyntheticSvmData,
    Field(discriminator="name"),
]
