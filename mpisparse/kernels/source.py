"""Source: a vector to select from, which may be a sum that nobody has made yet.

A memory that adds the gradient to what it kept gives a source that does so in the same pass that first looks for large
entries, and clears the gradient in it too: the vectors are read and written once.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np

from mpisparse.kernels import levels, passes
from mpisparse.kernels.coins import toss_coins, toss_equal_coins
from mpisparse.kernels.find import Found, collect, find_at_least
from mpisparse.kernels.grids import draw_levels, norm
from mpisparse.kernels.largest import guess_floor, keep_largest, stride, threshold_of
from mpisparse.kernels.vectors import SMALLEST, Vector, is_finite, largest_magnitude, refuse_bad_entries, take_all
from mpisparse.sparse import Indices, SparseVector


class Source(ABC):
    """What a rule asks of the vector that it selects from. `numel` is the number of entries.

    Surprises first:

    - The first question may be what makes the vector: nobody else may read or write its parts before.
    - What is found is of the source's own kind, and only good for its own methods; a `SparseVector` is on the host.
    - NaN and infinity among what is taken are a `NonFiniteError`. Elsewhere they are not looked for.
    - One that a memory gave ends with `sent`: what was not sent is kept then, and zeros are left in the gradient.
    """

    numel: int

    @abstractmethod
    def find(self, floor: np.float32, room: int) -> Found:
        """Return the entries of magnitude `floor` (above 0) or more; without indices if they are more than `room`."""

    @abstractmethod
    def largest(self, count: int, generator: np.random.Generator | None, among: Found | None = None) -> SparseVector:
        """Return the `count` (at least 1) nonzero entries of largest magnitude, exact; fewer if there are not so many.

        Args:
            generator: the source of the choice where equal entries leave one.
            among: found entries that hold them for certain, when there are any.
        """

    @abstractmethod
    def take(self, found: Found) -> SparseVector:
        """Return all found entries, which must have indices, exact."""

    @abstractmethod
    def everything(self) -> SparseVector:
        """Return every entry, zeros too, exact."""

    @abstractmethod
    def square(self) -> float:
        """Return the sum of the squared entries, in float64."""

    @abstractmethod
    def level(self, *, target: float | None, variance: float | None, iterations: int | None) -> float:
        """Return GSpar's level for a target count or a variance; see `kernels.levels`."""

    @abstractmethod
    def toss(self, level: np.float32, generator: np.random.Generator, expected: float) -> SparseVector:
        """Return entries kept with probability min(|entry| / level, 1), amplified; see `kernels.coins.toss_coins`."""

    @abstractmethod
    def toss_equal(self, probability: float, generator: np.random.Generator) -> SparseVector:
        """Return nonzero entries kept with the same probability, exact."""

    @abstractmethod
    def peak(self) -> np.float32:
        """Return the largest magnitude, 0 without entries."""

    @abstractmethod
    def norm(self) -> float:
        """Return the Euclidean norm."""

    @abstractmethod
    def draw(self, levels: int, bucket: int | None, generator: np.random.Generator) -> SparseVector:
        """Return the entries drawn onto the grid of their norm; see `kernels.grids.draw_levels`."""

    @abstractmethod
    def sent(self, sparse: SparseVector) -> None:
        """Note what was sent, as the receivers will decode it: what rounding took away is kept, too. Call it last."""


class HostSource(Source):
    """A numpy vector as it is, float32 of shape (numel,)."""

    def __init__(self, vector: Vector) -> None:
        self.numel = vector.size
        self._vector = vector

    def vector(self) -> Vector:
        """Return the vector itself, made by now."""
        return self._vector

    def find(self, floor: np.float32, room: int) -> Found:
        """Return the entries that reach `floor`; see `Source.find`."""
        vector = self._vector
        return collect(self.numel, room, lambda start, stop, *out: passes.find(vector[start:stop], start, floor, *out))

    def largest(self, count: int, generator: np.random.Generator | None, among: Found | None = None) -> SparseVector:
        """Return the largest entries; see `Source.largest`."""
        if among is None:
            guess = guess_floor(self._sample(), self.numel, count)
            among = self.find(guess.magnitude, guess.room)
            if among.indices is None or (among.number < count and guess.magnitude > SMALLEST):
                among = self._search(count)
        found = self.take(among)
        return SparseVector(*keep_largest(found.indices, found.values, count, generator), self.numel)

    def _sample(self) -> Vector:
        """Return every `stride`-th magnitude of the vector as it is or will be."""
        return np.abs(self._vector[:: stride(self.numel)])

    def _search(self, count: int) -> Found:
        """Return found entries that hold the `count` largest: the sample misled, so every entry is looked at."""
        refuse_bad_entries(self._vector)
        few = np.count_nonzero(self._vector) <= count
        floor = SMALLEST if few else threshold_of(self._vector, count)
        indices, values = find_at_least(self._vector, floor, count)
        return Found(indices.size, indices, values)

    def take(self, found: Found) -> SparseVector:
        """Return all found entries, exact."""
        assert found.indices is not None
        assert found.values is not None
        if not is_finite(found.values):
            refuse_bad_entries(self.vector())
        return SparseVector(found.indices, found.values, self.numel)

    def everything(self) -> SparseVector:
        """Return every entry, exact."""
        return take_all(self.vector())

    def square(self) -> float:
        """Return the sum of the squared entries, in float64."""
        return float(np.square(self.vector(), dtype=np.float64).sum())

    def level(self, *, target: float | None, variance: float | None, iterations: int | None) -> float:
        """Return GSpar's level; see `kernels.levels`."""
        parts = levels.HostParts(self.vector())
        return levels.find_level(parts, target=target, variance=variance, iterations=iterations)

    def toss(self, level: np.float32, generator: np.random.Generator, expected: float) -> SparseVector:
        """Return entries kept by chance, amplified; see `Source.toss`."""
        return toss_coins(self.vector(), level, generator, expected)

    def toss_equal(self, probability: float, generator: np.random.Generator) -> SparseVector:
        """Return nonzero entries kept with the same probability, exact."""
        vector = self.vector()
        indices = toss_equal_coins(self.numel, probability, generator)
        indices = indices[vector[indices] != 0]
        return self.take(Found(indices.size, indices, passes.gather(vector, indices)))

    def peak(self) -> np.float32:
        """Return the largest magnitude, 0 without entries."""
        return largest_magnitude(self.vector())

    def norm(self) -> float:
        """Return the Euclidean norm."""
        return norm(self.vector())

    def draw(self, levels: int, bucket: int | None, generator: np.random.Generator) -> SparseVector:
        """Return the entries drawn onto the grid of their norm; see `kernels.grids.draw_levels`."""
        return draw_levels(self.vector(), levels, bucket, generator)

    def sent(self, sparse: SparseVector) -> None:
        """Do nothing: a plain vector keeps all that it has."""


class Forgotten(HostSource):
    """The gradient itself; what is not sent is lost."""

    def __init__(self, gradient: Vector) -> None:
        super().__init__(gradient)
        self._cleared = False

    def toss(self, level: np.float32, generator: np.random.Generator, expected: float) -> SparseVector:
        """Return entries kept by chance, amplified, clearing the vector in the same pass; see `Source.toss`."""
        self._cleared = True
        return toss_coins(self._vector, level, generator, expected, clear=True)

    def sent(self, sparse: SparseVector) -> None:
        """Leave zeros in the gradient."""
        if not self._cleared:
            self._vector[:] = 0.0


class _Unmade(HostSource):
    """A vector that the first pass over it makes."""

    def __init__(self, vector: Vector) -> None:
        super().__init__(vector)
        self._made = False

    def vector(self) -> Vector:
        if not self._made:
            self.find(np.float32(math.inf), 0)
        return self._vector

    def find(self, floor: np.float32, room: int) -> Found:
        if self._made:
            return super().find(floor, room)
        self._made = True
        return collect(self.numel, room, lambda start, stop, *out: self._make(slice(start, stop), floor, *out))

    def _make(self, span: slice, floor: np.float32, out: Indices, values: Vector) -> int:
        """Make a span of the vector, and return what `passes.find` does of it."""
        raise NotImplementedError


class Added(_Unmade):
    """The residual once the gradient is added to it; the gradient is zeros then."""

    def __init__(self, residual: Vector, gradient: Vector) -> None:
        super().__init__(residual)
        self._gradient = gradient

    def _make(self, span: slice, floor: np.float32, out: Indices, values: Vector) -> int:
        return int(passes.add_and_find(self._vector[span], self._gradient[span], span.start, floor, out, values))

    def _sample(self) -> Vector:
        step = stride(self.numel)
        return np.abs(self._vector[::step] + (0 if self._made else self._gradient[::step]))

    def sent(self, sparse: SparseVector) -> None:
        """Take what was sent out of the residual."""
        passes.subtract_at(self.vector(), sparse.indices, sparse.values)


class Advanced(_Unmade):
    """The sum of the velocity once both were advanced by the gradient; the gradient is zeros then."""

    def __init__(
        self,
        velocity: Vector,
        accumulated: Vector,
        gradient: Vector,
        *,
        momentum: float,
        nesterov: bool,
        masking: bool,
    ) -> None:
        super().__init__(accumulated)
        self._velocity, self._gradient = velocity, gradient
        self._momentum, self._nesterov, self._masking = np.float32(momentum), nesterov, masking

    def _make(self, span: slice, floor: np.float32, out: Indices, values: Vector) -> int:
        parts = self._velocity[span], self._vector[span], self._gradient[span]
        return int(passes.advance_and_find(*parts, self._momentum, self._nesterov, span.start, floor, out, values))

    def _sample(self) -> Vector:
        step = stride(self.numel)
        if self._made:
            return np.abs(self._vector[::step])
        velocity, gradient = self._velocity[::step], self._gradient[::step]
        if self._nesterov:
            return np.abs(self._vector[::step] + (velocity + gradient) * self._momentum + gradient)
        return np.abs(self._vector[::step] + (velocity * self._momentum + gradient))

    def sent(self, sparse: SparseVector) -> None:
        """Take what was sent out of the sum, and with masking clear the velocity there."""
        passes.subtract_at(self.vector(), sparse.indices, sparse.values)
        if self._masking:
            passes.clear_at(self._velocity, sparse.indices)
