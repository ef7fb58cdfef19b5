"""Slots: where each parameter lies in the flat buffer, and in which order."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mpisparse.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Slot:
    """Where one parameter lies in the buffer, and in which order.

    strides: those of the parameter where they are dense and do not overlap, so that entries lie as in the parameter's
        own memory: fused optimizers walk both as such. Row after row for other parameters.
    """

    name: str
    parameter: Tensor
    start: int
    stop: int
    shape: torch.Size
    strides: tuple[int, ...]

    def view(self, vector: Tensor) -> Tensor:
        """Return this parameter's part of `vector`, laid out like the buffer, in the parameter's shape; not a copy."""
        return vector[self.start : self.stop].as_strided(self.shape, self.strides)


def dense_strides(parameter: Tensor) -> tuple[int, ...]:
    """Return the parameter's strides where its entries fill memory without gaps and overlaps, else those of rows."""
    expected, filled = 1, True
    for size, stride in sorted(zip(parameter.shape, parameter.stride(), strict=True), key=lambda pair: pair[1]):
        if size != 1:
            filled, expected = filled and stride == expected, expected * size
    return parameter.stride() if filled else rows_of(parameter.shape)


def rows_of(shape: torch.Size) -> tuple[int, ...]:
    """Return the strides of a contiguous tensor."""
    return torch.empty(shape, device="meta").stride()


def same_order(shape: torch.Size, ours: tuple[int, ...], theirs: tuple[int, ...]) -> bool:
    """Return True when tensors of a shape have their entries in the same places, whatever strides of size 1 say."""
    return ours == theirs or (
        len(shape) == len(ours) == len(theirs)
        and all(size == 1 or a == b for size, a, b in zip(shape, ours, theirs, strict=True))
    )


def new_gradient(parameter: Tensor) -> Tensor:
    """Return an empty tensor such as autograd would make for the gradient of a parameter."""
    strides = dense_strides(parameter)
    return torch.empty_strided(parameter.shape, strides, dtype=parameter.dtype, device=parameter.device)


def has_layout_of(grad: Tensor | None, parameter: Tensor) -> bool:
    """Return True when `grad` is as autograd would make the gradient of a parameter."""
    return (
        grad is not None
        and not grad.is_sparse
        and (grad.dtype, grad.device, grad.shape) == (parameter.dtype, parameter.device, parameter.shape)
        and same_order(parameter.shape, grad.stride(), dense_strides(parameter))
    )


def require_shape(slot: Slot, tensor: Tensor) -> None:
    """Raise ConfigError for a parameter, or a gradient, of another shape than the parameter had, or without values."""
    what = f"parameter {slot.name}" if tensor is slot.parameter else f"the gradient of {slot.name}"
    if tensor.shape != slot.shape:
        raise ConfigError(
            f"{what} has shape {tuple(tensor.shape)}, and the parameter had {tuple(slot.shape)} when the optimizer was "
            "wrapped: wrap it again after changing a parameter's shape"
        )
    if tensor.is_meta:
        raise ConfigError(f"{what} was moved to the meta device and has no values: train on a device that holds them")
