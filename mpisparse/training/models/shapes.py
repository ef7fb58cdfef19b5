"""Checks of what a model is built for, shared by all models."""

from __future__ import annotations

from collections.abc import Sequence

from mpisparse.errors import ConfigError


def image_shape(model: str, shape: Sequence[int], smallest: int) -> tuple[int, int, int]:
    """Return (channels, height, width) of a sample.

    Raises:
        ConfigError: a sample is no image, or smaller than `smallest` pixels in height or width.
    """
    if len(shape) != 3 or min(shape[1:]) < smallest:
        raise ConfigError(
            f"{model} needs images of shape (channels, height, width) of {smallest}x{smallest} pixels or more, "
            f"not samples of shape {tuple(shape)}: choose another model or data set"
        )
    channels, height, width = shape
    return channels, height, width


def positive(**counts: int) -> None:
    """Return nothing: refuse a count that is below 1.

    Raises:
        ConfigError: a count is not positive.
    """
    for name, count in counts.items():
        if count < 1:
            raise ConfigError(f"{name} {count} is below 1: give a count of 1 or more")


def two_classes(model: str, num_classes: int) -> None:
    """Return nothing: refuse a model of two classes for data of another number.

    Raises:
        ConfigError: there are not two classes.
    """
    if num_classes != 2:
        raise ConfigError(f"{model} tells 2 classes apart, and the data has {num_classes}: use mlp without hidden")
