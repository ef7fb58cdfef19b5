"""The section `model`: what is trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from mpisparse.training.section import Section


class LogisticModel(Section):
    """l2-regularised logistic regression.

    halved: write the penalty as l2 / 2 * ||w||^2, else as l2 * ||w||^2.
    penalty: "sent" has its gradient sparsified with the rest; "local" adds it after the exchange, exact and unsent.
    """

    name: Literal["logistic"]
    l2: Annotated[float, Field(ge=0)] = 0.0
    halved: bool = True
    penalty: Literal["sent", "local"] = "sent"
    bias: bool = False


class SvmModel(LogisticModel):
    """A linear support vector machine with hinge loss."""

    name: Literal["svm"]  # type: ignore[assignment]


class MlpModel(Section):
    """A multilayer perceptron with ReLU."""

    name: Literal["mlp"]
    hidden: Annotated[tuple[PositiveInt, ...], Field(strict=False)] = (256,)


class SmallCnnModel(Section):
    """Two convolutions and a hidden layer, for small grey images."""

    name: Literal["small_cnn"]
    channels: PositiveInt = 16
    hidden: PositiveInt = 64


class CnnModel(Section):
    """The GSpar paper's CIFAR network: three convolutions of `channels` each, batch norm, one hidden layer."""

    name: Literal["cnn"]
    channels: PositiveInt = 32
    hidden: PositiveInt = 256


class ResnetModel(Section):
    """A residual network for CIFAR; `depth` is 6 n + 2."""

    name: Literal["resnet"]
    depth: PositiveInt = 20
    width: PositiveInt = 16


class TransformerModel(Section):
    """A decoder-only transformer over characters."""

    name: Literal["transformer"]
    layers: PositiveInt = 4
    width: PositiveInt = 128
    heads: PositiveInt = 4
    tied: bool = True


Model = Annotated[
    LogisticModel | SvmModel | MlpModel | SmallCnnModel | CnnModel | ResnetModel | TransformerModel,
    Field(discriminator="name"),
]
