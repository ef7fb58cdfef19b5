"""Sources whose vectors are torch tensors on an accelerator: only what is selected crosses to the host.

The same contract as `kernels.source`, in torch operations. Selections by size are bit for bit those of the host. Tosses
come from the device's own generator, seeded from the stream that the host would use: other draws, the same law. Grids
are drawn on the host.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpisparse.errors import NonFiniteError
from mpisparse.kernels.coins import toss_equal_coins
from mpisparse.kernels.find import Found
from mpisparse.kernels.grids import draw_levels
from mpisparse.kernels.largest import choose_among_equals
from mpisparse.kernels.levels import Upper, find_level
from mpisparse.kernels.source import Source
from mpisparse.kernels.vectors import SMALLEST, Vector
from mpisparse.sparse import SparseVector, index_dtype

#: Entries whose random numbers, 8 bytes each, are there at a time.
LENGTH = 1 << 22


class DeviceParts:
    """A tensor as the level needs it; see `levels.Parts`."""

    def __init__(self, vector: Tensor) -> None:
        self._vector = vector
        self.numel = vector.numel()

    def sample(self, step: int) -> Vector:
        """Return the magnitude of every `step`-th entry, on the host."""
        return _host(self._vector[::step].abs())

    def split(self, floor: np.float32, moments: int) -> Upper:
        """Return the magnitudes of at least `floor`, on the host, and sums of the others."""
        magnitudes = self._vector.abs()
        small = magnitudes < float(floor)
        members = _host(magnitudes[~small])
        if not np.isfinite(members).all():
            refuse_bad_entries(self._vector)
        below = torch.where(small, magnitudes, torch.zeros_like(magnitudes))
        total = float(below.sum(dtype=torch.float64)) if moments >= 1 else 0.0
        pieces = torch.split(below, LENGTH) if moments >= 2 else ()
        return Upper(members, total, sum(float(piece.double().square().sum()) for piece in pieces))


class DeviceSource(Source):
    """A tensor as it is, float32 of shape (numel,)."""

    def __init__(self, vector: Tensor) -> None:
        self.numel = vector.numel()
        self._vector = vector

    def vector(self) -> Tensor:
        """Return the tensor itself, made by now."""
        return self._vector

    def find(self, floor: np.float32, room: int) -> Found:
        """Return the entries that reach `floor`, as int64 indices on the device; see `Source.find`."""
        indices = torch.nonzero(~(self.vector().abs() < float(floor))).view(-1)
        # `Found` is written for arrays: on a device it holds tensors, and is only good for this source.
        few: Any = indices if indices.numel() <= room else None
        values: Any = None if few is None else self.vector()[few]
        return Found(indices.numel(), few, values)

    def largest(self, count: int, generator: np.random.Generator | None, among: Found | None = None) -> SparseVector:
        """Return the largest entries; see `Source.largest`."""
        found = self.find(SMALLEST, self.numel) if among is None else among
        indices: Any = found.indices
        magnitudes = self.vector()[indices].abs()
        if not bool(magnitudes.isfinite().all()):
            refuse_bad_entries(self.vector())
        if magnitudes.numel() <= count:
            return self._take(indices)
        threshold = torch.topk(magnitudes, count, sorted=False).values.min()
        reached = magnitudes >= threshold
        surplus = int(reached.sum()) - count
        if surplus:
            tied = torch.nonzero(magnitudes == threshold).view(-1)
            kept = choose_among_equals(tied.numel(), tied.numel() - surplus, generator)
            reached[tied] = False
            reached[tied[torch.from_numpy(kept).to(tied.device)]] = True
        return self._take(indices[reached])

    def take(self, found: Found) -> SparseVector:
        """Return all found entries, exact, on the host."""
        indices: Any = found.indices
        return self._take(indices)

    def _take(self, indices: Tensor) -> SparseVector:
        values = _host(self.vector()[indices])
        if not np.isfinite(values).all():
            refuse_bad_entries(self.vector())
        return SparseVector(_host(indices).astype(index_dtype(self.numel)), values, self.numel)

    def everything(self) -> SparseVector:
        """Return every entry, exact, on the host."""
        indices = np.arange(self.numel, dtype=index_dtype(self.numel))
        return SparseVector(indices, _host(self.vector()).copy(), self.numel)

    def square(self) -> float:
        """Return the sum of the squared entries, in float64."""
        return float(self.vector().double().square().sum())

    def level(self, *, target: float | None, variance: float | None, iterations: int | None) -> float:
        """Return GSpar's level; see `kernels.levels`."""
        return find_level(DeviceParts(self.vector()), target=target, variance=variance, iterations=iterations)

    def toss(self, level: np.float32, generator: np.random.Generator, expected: float) -> SparseVector:
        """Return entries kept by chance, amplified; see `Source.toss`. Draws have 53 bits."""
        vector = self.vector()
        draws = torch.Generator(vector.device).manual_seed(int(generator.integers(0, 2**63)))
        kept = []
        for start in range(0, self.numel, LENGTH):
            chances = vector[start : start + LENGTH].abs().double() / float(level)
            won = torch.rand(chances.numel(), generator=draws, dtype=torch.float64, device=vector.device) < chances
            kept.append(torch.nonzero(won).view(-1) + start)
        sparse = self._take(torch.cat(kept) if kept else torch.empty(0, dtype=torch.int64, device=vector.device))
        sampled = np.abs(sparse.values) < level
        values = np.where(sampled, np.copysign(level, sparse.values), sparse.values).astype(np.float32)
        return SparseVector(sparse.indices, values, self.numel, level if sampled.any() else None)

    def toss_equal(self, probability: float, generator: np.random.Generator) -> SparseVector:
        """Return nonzero entries kept with the same probability, exact; the same as on the host."""
        indices = toss_equal_coins(self.numel, probability, generator).astype(np.int64)
        chosen = torch.from_numpy(indices).to(self.vector().device)
        return self._take(chosen[self.vector()[chosen] != 0])

    def peak(self) -> np.float32:
        """Return the largest magnitude, 0 without entries."""
        if not self.numel:
            return np.float32(0)
        largest = np.float32(self.vector().abs().max().item())
        if not np.isfinite(largest):
            refuse_bad_entries(self.vector())
        return largest

    def norm(self) -> float:
        """Return the Euclidean norm."""
        pieces = torch.split(self.vector(), LENGTH) if self.numel else ()
        return math.sqrt(sum(float(piece.double().square().sum()) for piece in pieces))

    def draw(self, levels: int, bucket: int | None, generator: np.random.Generator) -> SparseVector:
        """Return the entries drawn onto the grid of their norm, the same as on the host: the vector is copied there."""
        return draw_levels(_host(self.vector()), levels, bucket, generator)

    def sent(self, sparse: SparseVector) -> None:
        """Do nothing: a plain tensor keeps all that it has."""


class DeviceForgotten(DeviceSource):
    """The gradient itself; what is not sent is lost."""

    def sent(self, sparse: SparseVector) -> None:
        """Leave zeros in the gradient."""
        self._vector.zero_()


class DeviceAdded(DeviceSource):
    """The residual once the gradient is added to it; the gradient is zeros then."""

    def __init__(self, residual: Tensor, gradient: Tensor) -> None:
        super().__init__(residual.add_(gradient))
        gradient.zero_()

    def sent(self, sparse: SparseVector) -> None:
        """Take what was sent out of the residual."""
        _subtract_at(self._vector, sparse)


class DeviceAdvanced(DeviceSource):
    """The sum of the velocity once both were advanced by the gradient; the gradient is zeros then."""

    def __init__(
        self,
        velocity: Tensor,
        accumulated: Tensor,
        gradient: Tensor,
        *,
        momentum: float,
        nesterov: bool,
        masking: bool,
    ) -> None:
        self._velocity, self._masking = velocity, masking
        if nesterov:
            accumulated.add_(velocity.add_(gradient).mul_(momentum)).add_(gradient)
        else:
            accumulated.add_(velocity.mul_(momentum).add_(gradient))
        gradient.zero_()
        super().__init__(accumulated)

    def sent(self, sparse: SparseVector) -> None:
        """Take what was sent out of the sum, and with masking clear the velocity there."""
        _subtract_at(self._vector, sparse)
        if self._masking:
            self._velocity[_places(sparse, self._velocity)] = 0.0


def mean_into(total: Tensor, sparse: Sequence[SparseVector], size: int) -> int | None:
    """Add the vectors to `total`, which holds zeros, divide, and return the first bad entry; see `sums.mean_into`."""
    places = [_places(one, total) for one in sparse]
    for one, place in zip(sparse, places, strict=True):
        # No entry twice in a vector, so that the order of a device's threads does not matter.
        total[place] += torch.from_numpy(one.values).to(total.device)
    touched = torch.unique(torch.cat(places)) if places else torch.empty(0, dtype=torch.int64, device=total.device)
    total[touched] /= size
    bad = touched[~total[touched].isfinite()]
    return int(bad[0]) if bad.numel() else None


def refuse_bad_entries(vector: Tensor) -> None:
    """Raise NonFiniteError, naming the first bad entry, if one is NaN or infinite."""
    bad = torch.nonzero(~vector.isfinite()).view(-1)
    if bad.numel():
        raise NonFiniteError(
            f"entry {int(bad[0])} of {vector.numel()} is {float(vector[bad[0]])} ({bad.numel()} such entries): only "
            "finite gradients can be sparsified; look for a diverging loss, lower the learning rate, or scale and clip"
        )


def _subtract_at(vector: Tensor, sparse: SparseVector) -> None:
    vector[_places(sparse, vector)] -= torch.from_numpy(sparse.values).to(vector.device)


def _places(sparse: SparseVector, like: Tensor) -> Tensor:
    return torch.from_numpy(sparse.indices.astype(np.int64)).to(like.device)


def _host(tensor: Tensor) -> Any:
    return tensor.cpu().numpy()
