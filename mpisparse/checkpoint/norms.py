"""How large memories are: the norm of what they will apply together, and that of a rank's own."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mpisparse.comm import Communicator
from mpisparse.metrics import gather_doubles

#: What an exchange's state holds under "memory": by vector, then by parameter.
Memory = dict[str, dict[str, Tensor]]


@dataclass(frozen=True, slots=True)
class Norms:
    """Euclidean norms of one vector of the memories of all ranks.

    pending: of its mean over ranks, which is what will be applied.
    rank: the root of the mean square over ranks of each one's own.
    """

    pending: float
    rank: float


@dataclass(slots=True)
class Tally:
    """Adds up the memories of ranks, one after another, in float64: twice the memory of one."""

    count: int = 0
    squares: dict[str, float] = field(default_factory=dict)
    sums: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def add(self, memory: Memory, *, counts: bool = True) -> None:
        """Add a rank's memory. Where another process counts it, only its form is taken up."""
        self.count += counts
        for name, vectors in memory.items():
            sums = self.sums.setdefault(name, {})
            for parameter, vector in vectors.items():
                wide = vector.double().reshape(-1)
                total = sums.setdefault(parameter, torch.zeros_like(wide))
                self.squares.setdefault(name, 0.0)
                if counts:
                    total += wide
                    self.squares[name] += float(wide @ wide)

    def norms(self, comm: Communicator | None = None) -> dict[str, Norms]:
        """Return the norms of each vector, over all that was added, and on all ranks together where there are several.

        Collective with `comm`: sums travel in float32, as gradients do, which leaves the norms six digits.
        """
        names = sorted(self.sums)
        numbers = [float(self.count), *(self.squares[name] for name in names)]
        if comm is not None and comm.size > 1:
            everyone = gather_doubles(comm, np.array(numbers))
            numbers = everyone.sum(axis=0).tolist()
        count, *squares = numbers
        found = {}
        for name, square in zip(names, squares, strict=True):
            pending = sum(_square(total / count, comm) for _, total in sorted(self.sums[name].items()))
            found[name] = Norms(math.sqrt(pending), math.sqrt(square / count))
        return found


def _square(mine: Tensor, comm: Communicator | None) -> float:
    """Return the squared norm of the sum over ranks of each one's part."""
    if comm is not None and comm.size > 1:
        travelling = mine.float().cpu().numpy()
        comm.allreduce(travelling)
        mine = torch.from_numpy(travelling).double()
    return float(mine @ mine)
