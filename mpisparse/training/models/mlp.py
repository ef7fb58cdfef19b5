"""The multi-layer perceptron; without hidden layers it is softmax regression."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch import Tensor, nn

from mpisparse.training.models.shapes import positive


class MLP(nn.Module):
    """Fully connected layers with ReLU between them.

    Args:
        input_shape: shape of one sample, flattened to its entries.
        num_classes: number of logits.
        hidden: units of each hidden layer, from the input on; none of them for softmax regression.

    Raises:
        ConfigError: a layer has no units.
    """

    def __init__(self, input_shape: Sequence[int], num_classes: int, *, hidden: Sequence[int] = (256,)) -> None:
        super().__init__()
        widths = [math.prod(input_shape), *hidden, num_classes]
        for units in hidden:
            positive(hidden=units)
        layers: list[nn.Module] = [nn.Flatten()]
        for fan_in, fan_out in itertools.pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits of shape (n, num_classes) for inputs of shape (n, *input_shape)."""
        logits: Tensor = self.layers(inputs)
        return logits
