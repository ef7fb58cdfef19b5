"""The convolutional network of the GSpar paper's CIFAR-10 experiments."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from mpisparse.training.models.shapes import image_shape, positive


class CNN(nn.Module):
    """Three 3x3 convolutions of equal width, each with batch norm and ReLU, two poolings, two fully connected layers.

    The paper gives widths of 24, 32, 48 and 64, two 2x2 poolings and one hidden layer of 256 units. It does not say
    where the poolings are: here, after the first and the second convolution.

    Args:
        input_shape: (channels, height, width) of a sample, 4x4 pixels or more.
        num_classes: number of logits.
        channels: width of all three convolutions.
        hidden: units of the hidden layer.

    Raises:
        ConfigError: samples are no images or too small, or a layer has no units.
    """

    def __init__(self, input_shape: Sequence[int], num_classes: int, *, channels: int = 32, hidden: int = 256) -> None:
        super().__init__()
        colours, height, width = image_shape("cnn", input_shape, smallest=4)
        positive(channels=channels, hidden=hidden)
        self.features = nn.Sequential(
            *_convolution(colours, channels),
            nn.MaxPool2d(2),
            *_convolution(channels, channels),
            nn.MaxPool2d(2),
            *_convolution(channels, channels),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * (height // 4) * (width // 4), hidden),
            nn.ReLU(),
            nn.Linear(hidden, num_classes),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits of shape (n, num_classes) for images of shape (n, channels, height, width)."""
        logits: Tensor = self.classifier(self.features(inputs))
        return logits


def _convolution(fan_in: int, fan_out: int) -> list[nn.Module]:
    # Batch norm takes any bias away again, so there is none.
    return [nn.Conv2d(fan_in, fan_out, 3, padding=1, bias=False), nn.BatchNorm2d(fan_out), nn.ReLU()]
