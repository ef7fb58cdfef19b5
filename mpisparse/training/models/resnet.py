"""The residual networks for CIFAR-10 (He, Zhang, Ren and Sun, CVPR 2016, section 4.2), ResNet-20 by default."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from mpisparse.errors import ConfigError
from mpisparse.training.models.shapes import image_shape, positive


class ResNet(nn.Module):
    """A residual network of 6n + 2 layers in three stages; the shortcuts have no parameters (option A of the paper).

    Depth 20 and width 16 make 0.27 million parameters (269,722 for CIFAR-10).

    Args:
        input_shape: (channels, height, width) of a sample, 4x4 pixels or more.
        num_classes: number of logits.
        depth: layers, 6n + 2: 20, 32, 44, 56 or 110 in the paper.
        width: channels of the first stage; the second has twice and the third four times as many.

    Raises:
        ConfigError: samples are no images or too small, depth is not 6n + 2, or width is below 1.
    """

    def __init__(self, input_shape: Sequence[int], num_classes: int, *, depth: int = 20, width: int = 16) -> None:
        super().__init__()
        colours, _, _ = image_shape("resnet", input_shape, smallest=4)
        positive(width=width)
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ConfigError(f"depth {depth} is not 6n + 2 with n of 1 or more: give 8, 14, 20, 32, 44, 56 or 110")
        self.stem = nn.Sequential(_convolution(colours, width, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.stages = nn.Sequential(
            _stage(width, width, 1, blocks),
            _stage(width, 2 * width, 2, blocks),
            _stage(2 * width, 4 * width, 2, blocks),
        )
        self.classifier = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits of shape (n, num_classes) for images of shape (n, channels, height, width)."""
        features: Tensor = self.stages(self.stem(inputs))
        logits: Tensor = self.classifier(features.mean((2, 3)))
        return logits


class _Block(nn.Module):
    """Two convolutions, added to a shortcut that skips pixels and pads channels with zeros where shapes change."""

    def __init__(self, fan_in: int, fan_out: int, stride: int) -> None:
        super().__init__()
        self.stride, self.padding = stride, fan_out - fan_in
        self.body = nn.Sequential(
            _convolution(fan_in, fan_out, stride),
            nn.BatchNorm2d(fan_out),
            nn.ReLU(),
            _convolution(fan_out, fan_out, 1),
            nn.BatchNorm2d(fan_out),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        shortcut = inputs[:, :, :: self.stride, :: self.stride]
        if self.padding:
            before = self.padding // 2
            shortcut = functional.pad(shortcut, (0, 0, 0, 0, before, self.padding - before))
        return torch.relu(self.body(inputs) + shortcut)


def _stage(fan_in: int, fan_out: int, stride: int, blocks: int) -> nn.Sequential:
    rest = [_Block(fan_out, fan_out, 1) for _ in range(blocks - 1)]
    return nn.Sequential(_Block(fan_in, fan_out, stride), *rest)


def _convolution(fan_in: int, fan_out: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(fan_in, fan_out, 3, stride, padding=1, bias=False)
