"""A small convolutional network for the 8x8 and 28x28 digits, which trains in seconds on one core."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from mpisparse.training.models.shapes import image_shape, positive

#: Images of this height and width or more are pooled twice, smaller ones once.
_POOLED_TWICE = 16


class SmallCNN(nn.Module):
    """Two 3x3 convolutions with ReLU, one or two 2x2 poolings, one hidden layer; no batch norm, so no buffers.

    Has 38 thousand parameters for 8x8 images and 106 thousand for 28x28.

    Args:
        input_shape: (channels, height, width) of a sample, 2x2 pixels or more; from 16x16 on it is pooled twice.
        num_classes: number of logits.
        channels: width of the first convolution, half that of the second.
        hidden: units of the hidden layer.

    Raises:
        ConfigError: samples are no images or too small, or a layer has no units.
    """

    def __init__(self, input_shape: Sequence[int], num_classes: int, *, channels: int = 16, hidden: int = 64) -> None:
        super().__init__()
        colours, height, width = image_shape("small_cnn", input_shape, smallest=2)
        positive(channels=channels, hidden=hidden)
        pool_again = min(height, width) >= _POOLED_TWICE
        shrink = 4 if pool_again else 2
        self.features = nn.Sequential(
            nn.Conv2d(colours, channels, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(channels, 2 * channels, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2) if pool_again else nn.Identity(),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(2 * channels * (height // shrink) * (width // shrink), hidden),
            nn.ReLU(),
            nn.Linear(hidden, num_classes),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits of shape (n, num_classes) for images of shape (n, channels, height, width)."""
        logits: Tensor = self.classifier(self.features(inputs))
        return logits
