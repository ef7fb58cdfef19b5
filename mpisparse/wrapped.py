"""Wrapped: the optimizer inside. What cannot be wrapped, steps that evaluate closures, methods that step, clipping."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mpisparse.comm import Communicator
from mpisparse.errors import ConfigError, MpiSparseError, NonFiniteError, alike
from mpisparse.memory import Memory, MomentumCorrection
from mpisparse.replicas import bits_of
from mpisparse.sparsifiers import Sparsifier
from mpisparse.versions import Versions

#: Where wrappers keep the optimizer that they step.
_INNER = ("optimizer", "_optimizer", "optim")


def refuse_wrappers(optimizer: object) -> None:
    """Raise ConfigError, with the way out, for what steps another optimizer, or is no optimizer."""
    kind = type(optimizer).__name__
    if isinstance(optimizer, type):
        name = optimizer.__name__
        raise ConfigError(f"the optimizer is the class {name}: make one, such as {name}(model.parameters(), lr=0.1)")
    if isinstance(optimizer, LRScheduler):
        raise ConfigError(
            f"the optimizer is a {kind}, which is a scheduler: wrap its optimizer, and make the scheduler of the "
            "DistributedOptimizer"
        )
    inner = next((held for held in map(_held_by(optimizer), _INNER) if held is not None), None)
    if inner is not None:
        name, home = type(inner).__name__, type(optimizer).__module__.partition(".")[0]
        raise ConfigError(
            f"the optimizer is a {kind} of {home} around {name}, and decides itself when {name} steps and on what, so "
            f"that exchanges would not match steps: wrap the {name} in DistributedOptimizer first, and {home} around it"
        )
    if callable(getattr(optimizer, "synchronize", None)) and callable(getattr(optimizer, "skip_synchronize", None)):
        raise ConfigError(
            f"the optimizer is a {kind} that averages gradients itself, as Horovod's do: wrap the plain one"
        )
    if not isinstance(optimizer, Optimizer):
        raise ConfigError(f"the optimizer is a {kind}: give a torch.optim.Optimizer, such as SGD")


def _held_by(optimizer: object) -> Callable[[str], Optimizer | None]:
    def held(name: str) -> Optimizer | None:
        found = getattr(optimizer, name, None)
        return found if isinstance(found, Optimizer) and found is not optimizer else None

    return held


def evaluates_closures(optimizer: Optimizer) -> bool:
    """Return True when `step` decides when to evaluate a closure: LBFGS's, and any that is not torch's own."""
    if isinstance(optimizer, torch.optim.LBFGS):
        return True
    if str(getattr(optimizer.step, "__module__", "")).partition(".")[0] == "torch":
        return False
    try:
        inspect.signature(optimizer.step).bind(None)
    except (TypeError, ValueError):
        return False
    return True


def check_lbfgs(optimizer: Optimizer, sparsifier: Sparsifier, memory: Memory) -> None:
    """Raise ConfigError for LBFGS on anything but the mean gradient as it is."""
    if isinstance(optimizer, torch.optim.LBFGS) and (
        not sparsifier.sends_everything or isinstance(memory, MomentumCorrection)
    ):
        raise ConfigError(
            f"LBFGS compares gradients of different points, and {sparsifier!r} with {memory!r} would give it others "
            "than the mean gradient: use Dense() and NoMemory() with it, or SGD or Adam"
        )


def mean_loss(comm: Communicator, loss: Any, share: float) -> Any:
    """Return the mean over ranks of what closures returned, for an optimizer that decides by it. Collective.

    Args:
        loss: a number, a tensor of one entry, or anything else, which is returned as it is.
        share: this rank's weight, 1 on average.
    """
    if comm.size == 1:
        return loss
    loss = loss.detach() if isinstance(loss, Tensor) else loss
    number = isinstance(loss, int | float) or (isinstance(loss, Tensor) and loss.numel() == 1)
    # A rank without samples may have no loss to speak of.
    value = share * float(loss) if number and share else 0.0
    reports = comm.allgather([int(number), int(np.float64(value).view(np.int64))])
    if not reports[:, 0].all():
        return loss
    mean = float(reports[:, 1].copy().view(np.float64).sum()) / comm.size
    return torch.full_like(loss, mean) if isinstance(loss, Tensor) else mean


def check_clip_norm(clip_norm: float | None) -> None:
    """Raise ConfigError unless `clip_norm` is None or a finite number above 0."""
    number = isinstance(clip_norm, int | float) and not isinstance(clip_norm, bool)
    if clip_norm is not None and not (number and 0 < clip_norm < math.inf):
        raise ConfigError(
            f"clip_norm {clip_norm!r} is no finite number above 0: give the largest norm of the mean gradient, such as "
            "1.0, or None to leave it alone"
        )


@torch.no_grad()
def clip_mean(comm: Communicator, parameters: Sequence[Tensor], largest: float) -> float:
    """Scale the mean gradient down to a norm of `largest` at most, and return what its norm was. Collective.

    The values are those of torch.nn.utils.clip_grad_norm_. All ranks take rank 0's norm, as sums made by other numbers
    of threads differ in the last bit.

    Raises:
        NonFiniteError: the norm is NaN or infinity; on all ranks.
    """
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not grads:
        return 0.0
    norms = [torch.linalg.vector_norm(grad) for grad in grads]
    norm = torch.linalg.vector_norm(torch.stack([each.to(norms[0].device) for each in norms]))
    agreed = np.array([float(norm)])
    if comm.size > 1:
        comm.broadcast(agreed.view(np.uint8))
    if not math.isfinite(agreed[0]):
        raise alike(
            NonFiniteError(
                f"the norm of the mean gradient is {agreed[0]}, and cannot be clipped to {largest}: look at what "
                "changed the mean, or scale the loss down"
            )
        )
    norm.fill_(float(agreed[0]))
    factor = torch.clamp(largest / (norm + 1e-6), max=1.0)
    for grad in grads:
        grad.mul_(factor.to(grad.device))
    return float(agreed[0])


class OwnMethods:
    """Looks at methods of the wrapped optimizer's own, which may step: on local gradients replicas would part.

    Args:
        parameters: what is trained.
        unaveraged: whether there are gradients that no exchange averaged.
        averaged: whether there is a mean that no step has used.
        stepped: called when a method has changed parameters, by such a mean if there is one.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        parameters: Sequence[Tensor],
        unaveraged: Callable[[], bool],
        averaged: Callable[[], bool],
        stepped: Callable[[], None],
    ) -> None:
        self._optimizer, self._parameters = optimizer, parameters
        self._unaveraged, self._averaged, self._stepped = unaveraged, averaged, stepped

    def call(self, name: str, *args: Any, **options: Any) -> Any:
        """Call a method, and return what it returns.

        Raises:
            MpiSparseError: it changed parameters while gradients were this rank's own. The change is not undone.
        """
        unaveraged, versions = self._unaveraged(), Versions(self._parameters)
        # What is changed through `.data`, or by a fused kernel, counts no version.
        looks = unaveraged or self._averaged()
        before = self._bits() if looks else []
        result = getattr(self._optimizer, name)(*args, **options)
        if not versions.changed() and (not looks or self._bits() == before):
            return result
        if unaveraged:
            raise MpiSparseError(
                f"{type(self._optimizer).__name__}.{name}() changed parameters by gradients that no exchange averaged, "
                f"so that each rank trains on its own: call synchronize() before each {name}(), or step(closure) if "
                "the optimizer takes one"
            )
        self._stepped()
        return result

    def _bits(self) -> list[int]:
        return [bits_of(parameter) for parameter in self._parameters]
