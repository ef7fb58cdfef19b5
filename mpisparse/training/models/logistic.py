"""Logistic regression with an l2 penalty, the convex problem of the GSpar paper's synchronous experiments."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from mpisparse.training.models.linear import LinearScore
from mpisparse.training.models.losses import MarginLoss, Penalty
from mpisparse.training.models.shapes import two_classes


class LogisticRegression(LinearScore):
    """A linear score of two classes, to be trained with its own `loss`.

    Args:
        input_shape: shape of one sample, flattened to its entries.
        num_classes: must be 2.
        bias: whether there is a bias, which the penalty does not touch.

    Raises:
        ConfigError: there are not two classes.
    """

    def __init__(self, input_shape: Sequence[int], num_classes: int = 2, *, bias: bool = False) -> None:
        two_classes("logistic", num_classes)
        super().__init__(input_shape, bias=bias)

    def loss(self, *, l2: float = 0.0, halved: bool = True, sent: bool = True) -> LogisticLoss:
        """Return the logistic loss with an l2 penalty on this model's weight.

        Args:
            l2: lambda, 0 or more.
            halved: True for lambda / 2 * ||w||^2, False for lambda * ||w||^2.
            sent: False keeps the penalty's gradient out of the loss, to be added after the exchange.

        Raises:
            ConfigError: l2 is negative or not finite.
        """
        return LogisticLoss(Penalty(self.weight, l2, halved, sent))


class LogisticLoss(MarginLoss):
    """log(1 + exp(-y * score)), whose least value over all scores is 0 and whose value at score 0 is log 2."""

    def of_margins(self, margins: Tensor) -> Tensor:
        """Return log(1 + exp(-margin)), without overflow."""
        return functional.softplus(-margins)
