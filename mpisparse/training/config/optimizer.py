"""The sections `optimizer` and `schedule`: the steps that are taken, and their size."""

from __future__ import annotations

import inspect
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field, model_validator

from mpisparse.training.section import DurationField, Section, unknown_key, unknown_name

#: Optimizers of torch that programs can wrap, and why runs by configuration cannot have them.
_IN_PROGRAMS = {
    "LBFGS": "it evaluates the loss several times per step",
    "SparseAdam": "it trains nothing but embeddings",
}


def optimizer_options() -> dict[str, set[str]]:
    """Return the names of the optimizers that runs can have, and the options of each."""
    return {
        name: set(inspect.signature(kind).parameters) - {"params"}
        for name, kind in vars(torch.optim).items()
        if inspect.isclass(kind)
        and issubclass(kind, torch.optim.Optimizer)
        and kind is not torch.optim.Optimizer
        and name not in _IN_PROGRAMS
    }


class Optimizer(Section):
    """Any optimizer of torch.optim by name, with its own options beside `name` and `lr`."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    name: str = "SGD"
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1

    @model_validator(mode="after")
    def _check_options(self) -> Optimizer:
        kinds = optimizer_options()
        if self.name in _IN_PROGRAMS:
            raise ValueError(
                f"no run trains by {self.name}: {_IN_PROGRAMS[self.name]}. Wrap it in a program of your own "
                "(docs/user-guide.md)"
            )
        if self.name not in kinds:
            raise ValueError(unknown_name("optimizer", self.name, kinds))
        for key in self.options:
            if key not in kinds[self.name]:
                raise ValueError(f"{self.name}: {unknown_key(key, kinds[self.name])}")
        return self

    @property
    def options(self) -> dict[str, Any]:
        """Return the options beside name and lr."""
        return dict(self.model_extra or {})


class Schedule(Section):
    """The learning rate: linear warm-up over `warmup` steps, then constant, cosine to `final`, steps, or inverse.

    final: share of the learning rate that cosine ends at.
    period: length of training after which "inverse", 1 / (1 + t / period), has halved it.
    milestones: shares of the run after which "step" multiplies by `factor`.
    """

    name: Literal["constant", "cosine", "step", "inverse"] = "constant"
    warmup: Annotated[int, Field(ge=0)] = 0
    final: Annotated[float, Field(ge=0, le=1)] = 0.0
    milestones: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(strict=False)] = (0.5, 0.75)
    factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    period: DurationField = Field(default="1 epoch")  # type: ignore[assignment]
