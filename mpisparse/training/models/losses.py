"""What a model is trained on and judged by: losses, their penalties, and sums that ranks can add."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from mpisparse.errors import ConfigError


class Loss(ABC):
    """A loss over a batch of samples.

    Surprises first:

    - Over no samples the loss is 0 with gradients of 0, not the NaN of a mean over nothing, so that a rank with an
      empty share still takes part.
    - The loss is a mean: a rank that holds n of m samples weighs it by n / m before ranks add theirs.
    - `metrics` are sums, so that ranks add theirs and then divide by the count: a mean of means would be wrong when
      ranks hold different numbers of samples.
    """

    @abstractmethod
    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss over the samples, a scalar with a gradient, a penalty included that is not local.

        Args:
            outputs: what the model returns, of shape (n, ...).
            targets: int64, of shape (n,), or (n, length) where each position is predicted.
        """

    @property
    def local_penalty(self) -> Penalty | None:
        """Return the penalty that is no part of the loss when called, and whose gradient is to be added unsent."""
        return None

    @abstractmethod
    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return sums over the samples, without a gradient, taken in float64: "loss", "correct" and "count".

        "loss" includes any penalty once a sample, so that loss / count is the objective. Where each position of a
        sample is predicted, such as characters of a text, positions are summed and counted.
        """


class CrossEntropy(Loss):
    """Cross entropy of logits of shape (n, classes), or (n, length, classes), with targets of the same shape but that.

    Args:
        smoothing: share of each target spread evenly over all classes, 0 to below 1. Metrics never smooth.

    Raises:
        ConfigError: smoothing is outside its range.
    """

    def __init__(self, *, smoothing: float = 0.0) -> None:
        if not 0 <= smoothing < 1:
            raise ConfigError(f"smoothing {smoothing} is outside [0, 1): give a share, such as 0.1, or 0 for none")
        self.smoothing = smoothing

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over all targets."""
        if targets.numel() == 0:
            return outputs.sum() * 0.0
        return functional.cross_entropy(outputs.flatten(0, -2), targets.flatten(), label_smoothing=self.smoothing)

    @torch.no_grad()
    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return the sums over all targets; a target is correct when its class has the largest logit."""
        logits, wanted = outputs.flatten(0, -2).double(), targets.flatten()
        loss = functional.cross_entropy(logits, wanted, reduction="sum")
        return sums(loss, logits.argmax(-1) == wanted)


@dataclass(frozen=True, eq=False)
class Penalty:
    """An l2 penalty on one weight tensor, to be added to a mean loss.

    weight: the parameter itself, not a copy.
    strength: lambda, 0 or more.
    halved: True for lambda / 2 * ||w||^2, whose gradient is lambda * w, as weight decay of that size has;
        False for lambda * ||w||^2, as the GSpar paper writes it.
    sent: True where its gradient travels with that of the loss; False where `add_gradient` adds it after the exchange,
        as the paper does: every rank knows it exactly.

    Raises:
        ConfigError: strength is negative or not finite.
    """

    weight: Tensor
    strength: float = 0.0
    halved: bool = True
    sent: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.strength < float("inf"):
            raise ConfigError(f"l2 {self.strength} is not a strength of a penalty: give 0 or more, such as 1e-4")

    def __call__(self) -> Tensor:
        """Return the penalty, a scalar with a gradient."""
        return self._factor * self.weight.square().sum()

    @torch.no_grad()
    def exact(self) -> Tensor:
        """Return the penalty in float64, without a gradient."""
        return self._factor * self.weight.double().square().sum()

    @torch.no_grad()
    def add_gradient(self) -> None:
        """Add the penalty's gradient to that of the weight."""
        gradient = 2 * self._factor * self.weight
        if self.weight.grad is None:
            self.weight.grad = gradient
        else:
            self.weight.grad += gradient

    @property
    def _factor(self) -> float:
        return self.strength / 2 if self.halved else self.strength


class MarginLoss(Loss):
    """A loss of the margin y * score of two classes, where y is +1 for target 1 and -1 for target 0.

    Scores have shape (n,). Subclasses give the loss of each margin.

    Args:
        penalty: added to the mean; None for none.
    """

    def __init__(self, penalty: Penalty | None = None) -> None:
        self.penalty = penalty

    @property
    def local_penalty(self) -> Penalty | None:
        """Return the penalty where it is not sent."""
        return None if self.penalty is None or self.penalty.sent else self.penalty

    @abstractmethod
    def of_margins(self, margins: Tensor) -> Tensor:
        """Return the loss of each margin, of the shape and dtype of `margins`."""

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over the samples plus a penalty that is sent; without samples 0: none, no say."""
        if targets.numel() == 0:
            return outputs.sum() * 0.0
        loss = self.of_margins(_signs(targets, outputs.dtype) * outputs).mean()
        return loss + self.penalty() if self.penalty is not None and self.penalty.sent else loss

    @torch.no_grad()
    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return the sums over the samples; a score above 0 predicts target 1, any other target 0."""
        loss = self.of_margins(_signs(targets, torch.float64) * outputs.double()).sum()
        if self.penalty is not None:
            loss = loss + targets.numel() * self.penalty.exact()
        return sums(loss, (outputs > 0) == (targets == 1))


def sums(loss: Tensor, correct: Tensor) -> dict[str, float]:
    """Return the metrics of a summed loss and of a bool tensor with one entry a target."""
    return {"loss": loss.item(), "correct": float(correct.sum().item()), "count": float(correct.numel())}


def _signs(targets: Tensor, dtype: torch.dtype) -> Tensor:
    return targets.to(dtype) * 2 - 1
