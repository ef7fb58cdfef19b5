"""The section `sparsifier`: which entries are sent."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from mpisparse.training.config.types import Density
from mpisparse.training.section import Section


class DenseWarmupSchedule(Section):
    """Everything is sent for `steps` steps, the target density afterwards."""

    name: Literal["dense_warmup"]
    steps: PositiveInt


class ExponentialSchedule(Section):
    """Density falls geometrically from `start` to the target within `steps` steps, in `stages` plateaus if given."""

    name: Literal["exponential"]
    steps: PositiveInt
    start: Density = 0.25
    stages: PositiveInt | None = None


DensitySchedule = Annotated[DenseWarmupSchedule | ExponentialSchedule, Field(discriminator="name")]


class DenseSparsifier(Section):
    """Send everything."""

    name: Literal["dense"]


class TopkSparsifier(Section):
    """Send the share `density` of entries that are largest."""

    name: Literal["topk"]
    density: Density = 0.01
    schedule: DensitySchedule | None = None


class TrackedTopkSparsifier(TopkSparsifier):
    """Send about the share `density` of entries that are largest, by a threshold that follows them.

    band: largest deviation of the count; every: steps after which the threshold is taken anew, 0 for never.
    """

    name: Literal["tracked_topk"]  # type: ignore[assignment]
    band: Annotated[float, Field(gt=0, lt=1)] = 0.2
    every: Annotated[int, Field(ge=0)] = 100


class UniformSparsifier(TopkSparsifier):
    """Send each entry with probability `density`, scaled up."""

    name: Literal["uniform"]  # type: ignore[assignment]


class ThresholdSparsifier(Section):
    """Send the entries of absolute value `threshold` and more."""

    name: Literal["threshold"]
    threshold: Annotated[float, Field(gt=0)]


class GsparSparsifier(Section):
    """GSpar: send entries with probability in proportion to their size, scaled up.

    density: expected share of entries, or
    variance: how much the second moment may grow, the paper's epsilon; one of the two.
    iterations: rescalings of the greedy form (the paper uses 2); exact when left out.
    """

    name: Literal["gspar"]
    density: Density | None = None
    variance: Annotated[float, Field(ge=0)] | None = None
    iterations: Annotated[int, Field(ge=0)] | None = None
    schedule: DensitySchedule | None = None

    @model_validator(mode="after")
    def _one_target(self) -> GsparSparsifier:
        if (self.density is None) == (self.variance is None):
            raise ValueError("give density or variance, one of the two")
        return self


class QsgdSparsifier(Section):
    """QSGD: send each entry as one of the two nearest levels, by chance.

    bits: of sign and level; bucket: entries that share a norm, 0 for one norm of all.
    """

    name: Literal["qsgd"]
    bits: Annotated[int, Field(ge=2, le=16)] = 4
    bucket: Annotated[int, Field(ge=0)] = 512


class TerngradSparsifier(Section):
    """TernGrad: send minus, nothing or plus the largest magnitude, by chance.

    clip: cut entries down to so many standard deviations first, the paper's 2.5; biased, and left out unbiased.
    """

    name: Literal["terngrad"]
    clip: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None


Sparsifier = Annotated[
    DenseSparsifier
    | TopkSparsifier
    | TrackedTopkSparsifier
    | UniformSparsifier
    | ThresholdSparsifier
    | GsparSparsifier
    | QsgdSparsifier
    | TerngradSparsifier,
    Field(discriminator="name"),
]
