"""Densities: the share of entries to send, a number or a schedule that gives one for each step."""

from __future__ import annotations

from collections.abc import Callable

from mpisparse.arguments import is_number, short
from mpisparse.errors import ConfigError

#: Gives the density in force at an optimizer step (0 is the first).
Schedule = Callable[[int], float]

#: The share of entries to send, in (0, 1], or a schedule of it.
Density = float | Schedule


def check_density(density: Density, name: str = "density") -> None:
    """Raise ConfigError unless `density` is a number in (0, 1] or a schedule."""
    if isinstance(density, type):
        raise ConfigError(f"{name} is the class {density.__name__} itself: give an instance, {density.__name__}(...)")
    if callable(density):
        return
    if isinstance(density, bool) or not isinstance(density, int | float) or not 0 < density <= 1:
        per_cent = is_number(density) and 1 < density <= 100
        hint = f" ({density!r} per cent are {float(density) / 100:g})" if per_cent else ""
        raise ConfigError(
            f"{name} {short(density)} is outside (0, 1]: give the share of entries to send, such as 0.01{hint}"
        )


def check_steps(steps: int, name: str = "steps") -> None:
    """Raise ConfigError unless `steps` is a whole number, zero or more."""
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise ConfigError(f"{name} {steps!r} is not a whole number of 0 or more: give a count, such as 1000")


def density_at(density: Schedule, step: int) -> float:
    """Return the density that a schedule gives for `step`.

    Raises:
        ConfigError: a schedule gave something that is no density.
    """
    value = density(step)
    if callable(value):
        raise ConfigError(f"schedule {density!r} gave {value!r} at step {step}: it must give a number in (0, 1]")
    check_density(value, f"schedule {density!r} at step {step} gave a density that fails:")
    return value


def fixed_density(density: Density) -> float:
    """Return the density when it is a number.

    Raises:
        ConfigError: it is a schedule, and nobody said which step it is.
    """
    if callable(density):
        raise ConfigError(f"the density follows the schedule {density!r}: call .at(step) first, then select")
    return density
