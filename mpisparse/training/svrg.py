"""SVRG: gradients whose variance falls towards the optimum (Johnson and Zhang 2013; the GSpar paper's section 5.1)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mpisparse.collectives import DenseMean
from mpisparse.comm import Communicator
from mpisparse.errors import CheckpointError, ConfigError
from mpisparse.phases import Phases
from mpisparse.sampler import shard_range
from mpisparse.training.data import Dataset
from mpisparse.training.models import Loss

#: Samples at a time of which the full gradient is taken.
_BATCH = 500

Form = Literal["whole", "difference"]


@dataclass(frozen=True, slots=True)
class Refreshed:
    """What a new reference cost this rank: bytes of its own gradient, bytes that came in, and those of a ring."""

    payload: int
    received: int
    dense: int


class SVRG:
    """Replaces a batch's gradient g(w) by g(w) - g(r) + G(r), with a reference r and the full gradient G there.

    - form "whole" gives all of it to the exchange; "difference" gives g(w) - g(r), and `add_full` adds G afterwards,
      on all ranks alike. In both the mean stays the full gradient at w. With a penalty that is sent, both vectors
      vanish at the optimum; with a local one only the difference does.
    - A step costs two gradients a sample, and a new reference one gradient of every sample and one dense exchange.
    - The two gradients of a sample must be of the same function: models with running statistics or dropout are refused.

    Args:
        mean: averages the full gradient over the ranks.
        every: steps after which the reference is taken anew, 1 or more.

    Raises:
        ConfigError: the model has running statistics or dropout, or every is 0.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        data: Dataset,
        *,
        mean: DenseMean,
        comm: Communicator,
        form: Form,
        every: int,
        phases: Phases,
    ) -> None:
        if every < 1:
            raise ConfigError("svrg.every is 0: give how long a reference is kept, such as 2 epochs")
        _refuse_noise(model)
        self.form = form
        self._model, self._loss, self._data = model, loss, data
        self._mean, self._comm, self._every, self._phases = mean, comm, every, phases
        self._names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._reference: list[Tensor] = []
        self._full: list[Tensor] = []

    def due(self, position: int) -> bool:
        """Return True when the next step needs a new reference, `position` steps from the start of the data."""
        return position % self._every == 0

    def refresh(self) -> Refreshed:
        """Take the model as the reference, find the full gradient there, and return what that moved. Collective."""
        with self._phases("compute"):
            self._reference = [parameter.detach().clone() for parameter in self._parameters]
            mine = torch.cat([part.reshape(-1) for part in self._sum_of_gradients()])
            size = self._comm.size
            vector = (mine * (size / len(self._data))).float()
        incoming = 0
        if size > 1:
            with self._phases("exchange"):
                incoming = self._mean.average(vector.numpy())
        pieces = torch.split(vector, [parameter.numel() for parameter in self._parameters])
        self._full = [piece.view(p.shape).clone() for piece, p in zip(pieces, self._parameters, strict=True)]
        return Refreshed(self._mean.width * vector.numel(), incoming, 2 * (size - 1) * 4 * vector.numel() // size)

    def correction(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return what to add to the loss of a batch: its gradient is that of the form, without the batch's own."""
        with self._at_reference():
            there = torch.autograd.grad(self._loss(self._model(inputs), targets), self._parameters)
        constants = list(there)
        total = self._parameters[0].new_zeros(())
        for number, parameter in enumerate(self._parameters):
            constant = self._full[number] - constants[number] if self.form == "whole" else -constants[number]
            total = total + (constant * parameter).sum()
        return total

    @torch.no_grad()
    def add_full(self) -> None:
        """Add the full gradient to the averaged difference, where it was not part of what was averaged."""
        if self.form == "whole":
            return
        for parameter, full in zip(self._parameters, self._full, strict=True):
            if parameter.grad is None:
                parameter.grad = full.clone()
            else:
                parameter.grad += full

    def state_dict(self) -> dict[str, Any]:
        """Return the reference and the full gradient there, by parameter name; both are the same on all ranks."""
        return {
            "reference": dict(zip(self._names, self._reference, strict=False)),
            "full": dict(zip(self._names, self._full, strict=False)),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` returned.

        Raises:
            CheckpointError: it belongs to another model.
        """
        for kind in ("reference", "full"):
            if state[kind] and sorted(state[kind]) != sorted(self._names):
                raise CheckpointError(f"the saved {kind} of svrg is of other parameters: resume with the same model")
        self._reference = [state["reference"][name].clone() for name in self._names if state["reference"]]
        self._full = [state["full"][name].clone() for name in self._names if state["full"]]

    def _sum_of_gradients(self) -> list[Tensor]:
        """Return the sum, in float64, of the gradients of the samples that fall to this rank."""
        sums = [torch.zeros_like(parameter, dtype=torch.float64) for parameter in self._parameters]
        mine = shard_range(len(self._data), self._comm.rank, self._comm.size)
        for start in range(mine.start, mine.stop, _BATCH):
            indices = torch.arange(start, min(start + _BATCH, mine.stop), device="cpu")
            inputs, targets = self._data.batch(indices)
            gradients = torch.autograd.grad(self._loss(self._model(inputs), targets), self._parameters)
            for total, gradient in zip(sums, gradients, strict=True):
                total += gradient.double() * indices.numel()
        return sums

    @contextmanager
    def _at_reference(self) -> Iterator[None]:
        """Have the model's parameters, inside the block, the values of the reference."""
        here = [parameter.data for parameter in self._parameters]
        for parameter, value in zip(self._parameters, self._reference, strict=True):
            parameter.data = value
        try:
            yield
        finally:
            for parameter, value in zip(self._parameters, here, strict=True):
                parameter.data = value


def _refuse_noise(model: nn.Module) -> None:
    statistics = [name for name, _ in model.named_buffers()]
    noisy = [name for name, part in model.named_modules() if isinstance(part, nn.Dropout) and part.p > 0]
    if statistics or noisy:
        raise ConfigError(
            f"svrg needs the same function at both points, and the model has {(statistics + noisy)[0]}: "
            "use a model without running statistics and dropout, or leave svrg out"
        )
