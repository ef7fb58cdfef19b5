"""The contenders of `mpisparse bench exchange`: ways from each rank's gradient to the mean over all ranks."""

from __future__ import annotations

import gc
import inspect
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mpisparse import random
from mpisparse.bench.footprint import peak_during, resident
from mpisparse.bench.timing import Contender
from mpisparse.collectives import DenseMean
from mpisparse.comm import Communicator
from mpisparse.flat import Layout
from mpisparse.optim import DistributedOptimizer
from mpisparse.phases import Phases
from mpisparse.sparsifiers import Sparsifier
from mpisparse.wire import ValueCoding, Wire

Vector = NDArray[np.float32]

#: Entries of the exchange that is made before memory is measured, so that kernels are compiled.
_SMALL = 4096

#: Bytes of a gradient from which on memory is measured. The C library hands freed blocks up to this size to the next
#: one who asks, so that a smaller exchange may take memory that was counted before.
_MEASURABLE = 2**25
_UNKNOWN = -1


class Gradients:
    """A rank's gradients, one a call: a part that all ranks share, and as much noise that is new each time."""

    def __init__(self, numel: int, rank: int) -> None:
        shared, own = random.generator(0, 0, 0, 0), random.generator(1, rank, 0, 0)
        self._shared = shared.standard_normal(numel, dtype=np.float32)
        self._noise = own.standard_normal(numel, dtype=np.float32)
        self._shift = 0

    def write(self, out: Vector) -> None:
        """Replace `out`, of all entries, by the next gradient. Costs about as much as a copy."""
        numel, shift = self._noise.size, self._shift
        np.add(self._shared[: numel - shift], self._noise[shift:], out=out[: numel - shift])
        np.add(self._shared[numel - shift :], self._noise[:shift], out=out[numel - shift :])
        # A step that shares no factor with most lengths: the same noise meets the same entry late.
        self._shift = (shift + 611_953) % numel


def dense(name: str, mean: DenseMean, vector: Vector, gradients: Gradients) -> Contender:
    """Return a contender that averages the whole vector by `mean`."""

    def inspect_bytes(received: int) -> dict[str, float]:
        return {"sent": float(mean.width * vector.size), "received": float(received)}

    return Contender(
        name=name,
        prepare=lambda: gradients.write(vector),
        run=lambda: mean.average(vector),
        inspect=inspect_bytes,
    )


def gloo(comm: Communicator, vector: Vector, gradients: Gradients) -> Contender:
    """Return a contender that averages the whole vector by torch.distributed's default group."""
    tensor = torch.from_numpy(vector)

    def run() -> None:
        torch.distributed.all_reduce(tensor)
        tensor.div_(comm.size)

    def inspect_bytes(_: None) -> dict[str, float]:
        # Gloo tells none: those of a ring, as for MPI's Allreduce.
        received = 2 * (comm.size - 1) * vector.nbytes // comm.size
        return {"sent": float(vector.nbytes), "received": float(received)}

    return Contender(name="gloo float32", prepare=lambda: gradients.write(vector), run=run, inspect=inspect_bytes)


def sparse_with_memory(
    comm: Communicator, name: str, rule: Sparsifier, values: ValueCoding, gradients: Gradients, numel: int
) -> tuple[Contender, int | None]:
    """Return the contender that exchanges by a sparse rule, and its peak memory beyond the gradient. Collective.

    The memory is in bytes, of the rank that takes most; None where the system does not tell, or for small gradients.
    """
    small = min(numel, _SMALL)
    _take_turn(sparse(comm, name, rule, values, Gradients(small, comm.rank), small))
    gc.collect()
    before = resident()
    contender = sparse(comm, name, rule, values, gradients, numel)
    _take_turn(contender)
    # What making it took is not what a step takes: the mark is set back between the two.
    peak = peak_during(lambda: _take_turn(contender))
    # The parameter and its gradient are there in any training.
    beyond = None if before is None or peak is None else max(0, peak - before - 2 * 4 * numel)
    worst = int(comm.allgather([_UNKNOWN if beyond is None or 4 * numel < _MEASURABLE else beyond]).max())
    return contender, worst if worst != _UNKNOWN else None


def _take_turn(contender: Contender) -> None:
    contender.prepare()
    contender.inspect(contender.run())


def sparse(
    comm: Communicator, name: str, rule: Sparsifier, values: ValueCoding, gradients: Gradients, numel: int
) -> Contender:
    """Return a contender that does what a training step does between `backward` and the optimizer's own step."""
    model = nn.Module()
    parameter = nn.Parameter(torch.ones(numel, dtype=torch.float32, device="cpu"))
    model.register_parameter("entries", parameter)
    phases = Phases()
    optimizer = DistributedOptimizer(
        torch.optim.SGD([parameter], lr=1.0),
        model,
        sparsifier=rule,
        wire=Wire(values),
        layout=Layout(dense_vectors=False),
        comm=comm,
        phases=phases,
        **without_overlap(),
    )

    def prepare() -> None:
        optimizer.zero_grad(set_to_none=False)
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.write(parameter.grad.numpy())
        phases.take()

    def inspect_traffic(_: None) -> dict[str, float]:
        traffic = optimizer.traffic
        moved = {"sent": float(traffic.payload), "received": float(traffic.received)}
        return {**phases.take(), **moved, "density": traffic.count / traffic.numel}

    return Contender(name=name, prepare=prepare, run=optimizer.synchronize, inspect=inspect_traffic)


def without_overlap() -> dict[str, Any]:
    """Return the option that keeps the exchange out of `backward`, where DistributedOptimizer has one.

    There is no backward pass here: the whole exchange is to lie between the two readings of the clock.
    """
    return {"overlap": "off"} if "overlap" in inspect.signature(DistributedOptimizer.__init__).parameters else {}
