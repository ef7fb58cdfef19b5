"""The kernels for a vector wherever it lies: numpy arrays on the host, torch tensors on a device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from mpisparse.kernels import device, source, sums
from mpisparse.kernels.source import Source
from mpisparse.kernels.vectors import Vector, is_finite
from mpisparse.sparse import SparseVector

#: A float32 vector of one dimension: a numpy array on the host, a torch tensor on a device. Both know `+=` and slices.
Anywhere: TypeAlias = Any


def see(tensor: Tensor) -> Anywhere:
    """Return a tensor as the kernels take it, without a copy: as a numpy array if it is on the host."""
    return tensor.numpy() if tensor.device.type == "cpu" else tensor


def zeros(numel: int, like: Anywhere) -> Anywhere:
    """Return zeros that lie where `like` does."""
    if isinstance(like, Tensor):
        return torch.zeros(numel, dtype=torch.float32, device=like.device)
    return np.zeros(numel, np.float32)


def forgotten(gradient: Anywhere) -> Source:
    """Return the gradient as a source, of which nothing is kept."""
    return device.DeviceForgotten(gradient) if isinstance(gradient, Tensor) else source.Forgotten(gradient)


def added(residual: Anywhere, gradient: Anywhere) -> Source:
    """Return the sum of residual and gradient as a source, made in place of the residual."""
    if isinstance(gradient, Tensor):
        return device.DeviceAdded(residual, gradient)
    return source.Added(residual, gradient)


def advanced(
    velocity: Anywhere, accumulated: Anywhere, gradient: Anywhere, *, momentum: float, nesterov: bool, masking: bool
) -> Source:
    """Return the sum of the velocity as a source, both advanced in place by the gradient."""
    kind: Any = device.DeviceAdvanced if isinstance(gradient, Tensor) else source.Advanced
    made: Source = kind(velocity, accumulated, gradient, momentum=momentum, nesterov=nesterov, masking=masking)
    return made


def mean_into(total: Anywhere, sparse: Sequence[SparseVector], size: int) -> int | None:
    """Add the vectors to zeros, divide, and return the first bad entry; see `sums.mean_into`."""
    if isinstance(total, Tensor):
        return device.mean_into(total, sparse, size)
    return sums.mean_into(total, sparse, size)


def first_bad_entry(vector: Anywhere) -> int | None:
    """Return the place of the first NaN or infinity, or None. One pass."""
    if isinstance(vector, Tensor):
        bad = torch.nonzero(~vector.isfinite()).view(-1)
        return int(bad[0]) if bad.numel() else None
    return None if is_finite(vector) else int(np.flatnonzero(~np.isfinite(vector))[0])


def on_host(vector: Anywhere) -> Vector:
    """Return the vector as a numpy array: itself, or a copy of what lies on a device."""
    host: Vector = vector.cpu().numpy() if isinstance(vector, Tensor) else vector
    return host


def put(vector: Anywhere, values: Vector) -> None:
    """Replace the entries of `vector` by those of an array on the host."""
    if isinstance(vector, Tensor):
        vector.copy_(torch.from_numpy(values))
    elif vector is not values:
        vector[:] = values
