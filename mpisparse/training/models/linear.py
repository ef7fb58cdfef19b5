"""The linear model of two classes, which logistic regression and the support vector machine train differently."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class LinearScore(nn.Module):
    """Scores of shape (n,): x . w, plus a bias where asked for. All parameters start at 0, as convex problems allow.

    The weight has shape (1, entries): a matrix, so that layouts which send vectors whole sparsify it.

    Args:
        input_shape: shape of one sample, flattened to its entries.
        bias: whether there is a bias, which no penalty touches.
    """

    def __init__(self, input_shape: Sequence[int], *, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, math.prod(input_shape)))
        self.bias = nn.Parameter(torch.zeros(1)) if bias else None

    def forward(self, inputs: Tensor) -> Tensor:
        """Return scores of shape (n,) for inputs of shape (n, *input_shape)."""
        scores = functional.linear(inputs.flatten(1), self.weight)[:, 0]
        return scores if self.bias is None else scores + self.bias
