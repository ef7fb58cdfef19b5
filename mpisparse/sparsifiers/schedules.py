"""Densities that change with the step, given where a density is: `TopK(density=DenseWarmup(0.001, steps=500))`."""

from __future__ import annotations

from dataclasses import dataclass

from mpisparse.errors import ConfigError
from mpisparse.sparsifiers.density import check_density, check_steps
from mpisparse.words import counted


@dataclass(frozen=True)
class DenseWarmup:
    """Everything for a number of steps, then a fixed density.

    The steps just after initialisation change the weights most. A warm-up at a *high* density costs more than a dense
    one wherever density times ranks exceeds 1, so going dense is the cheap choice.
    """

    density: float
    """In force after the warm-up, in (0, 1]; lower sends less."""
    steps: int
    """Length of the warm-up in optimizer steps; 0 for none."""

    def __post_init__(self) -> None:
        _check_number(self.density, "density")
        check_steps(self.steps)

    def __call__(self, step: int) -> float:
        """Return the density at `step`."""
        return 1.0 if step < self.steps else self.density


@dataclass(frozen=True)
class Exponential:
    """A density that moves from one value to another by equal factors, as in Deep Gradient Compression (ICLR 2018).

    `Exponential(start=0.25, density=0.001, steps=400, stages=4)` gives 25 %, 6.3 %, 1.6 % and 0.4 % for 100 steps each,
    and 0.1 % from then on.
    """

    start: float
    """At step 0, in (0, 1]; higher loses less at the beginning."""
    density: float
    """From step `steps` on, in (0, 1]; lower sends less."""
    steps: int
    """Optimizer steps in between."""
    stages: int | None = None
    """Number of plateaus in those steps; None lets the density move at every step."""

    def __post_init__(self) -> None:
        _check_number(self.start, "start")
        _check_number(self.density, "density")
        check_steps(self.steps)
        if self.stages is not None:
            check_steps(self.stages, "stages")
            if not 1 <= self.stages <= max(self.steps, 1):
                raise ConfigError(
                    f"{self.stages} stages do not fit {counted(self.steps, 'step')}: give 1 to {self.steps}, or None"
                )

    def __call__(self, step: int) -> float:
        """Return the density at `step`."""
        if step >= self.steps:
            return self.density
        done = step / self.steps if self.stages is None else step * self.stages // self.steps / self.stages
        # Rounding must not carry it above 1.
        return float(min(self.start * (self.density / self.start) ** done, 1.0))


def _check_number(density: float, name: str) -> None:
    if callable(density):
        raise ConfigError(f"{name} {density!r} is a schedule: a schedule is made of numbers in (0, 1]")
    check_density(density, name)
