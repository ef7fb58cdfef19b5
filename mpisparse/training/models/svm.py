"""The linear support vector machine with an l2 penalty, as in the GSpar paper's asynchronous experiment."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mpisparse.training.models.linear import LinearScore
from mpisparse.training.models.losses import MarginLoss, Penalty
from mpisparse.training.models.shapes import two_classes


class LinearSVM(LinearScore):
    """A linear score of two classes, to be trained with its own `loss`.

    Args:
        input_shape: shape of one sample, flattened to its entries.
        num_classes: must be 2.
        bias: whether there is a bias, which the penalty does not touch.

    Raises:
        ConfigError: there are not two classes.
    """

    def __init__(self, input_shape: Sequence[int], num_classes: int = 2, *, bias: bool = False) -> None:
        two_classes("svm", num_classes)
        super().__init__(input_shape, bias=bias)

    def loss(self, *, l2: float = 0.0, halved: bool = True, sent: bool = True) -> HingeLoss:
        """Return the hinge loss with an l2 penalty on this model's weight.

        Args:
            l2: lambda, 0 or more.
            halved: True for lambda / 2 * ||w||^2, False for lambda * ||w||^2.
            sent: False keeps the penalty's gradient out of the loss, to be added after the exchange.

        Raises:
            ConfigError: l2 is negative or not finite.
        """
        return HingeLoss(Penalty(self.weight, l2, halved, sent))


class HingeLoss(MarginLoss):
    """max(0, 1 - y * score). At a margin of exactly 1 the gradient is taken as 0."""

    def of_margins(self, margins: Tensor) -> Tensor:
        """Return max(0, 1 - margin)."""
        return (1 - margins).relu()
