"""Divergence: whether the ranks' models still are replicas, bit by bit, and which tensor and rank are not."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from mpisparse.arguments import is_one_of, require_kind, short
from mpisparse.comm import Communicator, require_same
from mpisparse.errors import ConfigError, RankMismatchError, alike
from mpisparse.names import plain_names
from mpisparse.replicas import broadcast_tensor, named_parameters
from mpisparse.tensors import bits_of
from mpisparse.words import counted

#: What to do when a replica differs: end with an error, or give all ranks what most of them hold.
Diverged = Literal["raise", "broadcast"]

#: Tensors, and checksums, that a message tells of.
_TENSORS, _CHECKSUMS = 3, 8


@dataclass(frozen=True, slots=True)
class Divergence:
    """What differed between replicas.

    tensors: names of the tensors, in the model's order. ranks: those that held something else than most.
    """

    tensors: tuple[str, ...]
    ranks: tuple[int, ...]

    def describe(self, size: int) -> str:
        """Return it in words."""
        more = f" and {len(self.tensors) - _TENSORS} more" if len(self.tensors) > _TENSORS else ""
        ranks = f"rank{'s' if len(self.ranks) > 1 else ''} {', '.join(map(str, self.ranks))} of {size}"
        return f"{ranks} held other bits than most in {', '.join(self.tensors[:_TENSORS])}{more}"


class ReplicaCheck:
    """Compares the replicas every so many steps.

    Args:
        every: steps; 0 never does.
        diverged: what to do when they differ.
        say: takes, on rank 0, the line that tells what was mended.

    Raises:
        ConfigError: a number of steps, or a way, that does not exist.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        comm: Communicator,
        *,
        every: int,
        diverged: Diverged,
        say: Callable[[str], None],
    ) -> None:
        if not isinstance(every, int) or isinstance(every, bool) or every < 0:
            raise ConfigError(f"check_replicas {short(every)} is no number of steps: give 100, or 0 to do without")
        _check_way(diverged)
        self.say = say
        #: What was found and mended so far.
        self.mended: list[Divergence] = []
        self._last = self._moves = 0
        self._model, self._optimizer, self._comm, self._every, self._diverged = model, optimizer, comm, every, diverged

    def __repr__(self) -> str:
        return f"check_replicas={self._every}, diverged={self._diverged!r}"

    def step_ended(self, step: int) -> None:
        """Compare the replicas if `step` steps are a multiple of what was asked for. Collective then.

        Raises:
            RankMismatchError: they differ, and that is not to be mended; on all ranks.
        """
        last, self._last = self._last, step
        if self._every and step // self._every != last // self._every:
            self._check(step)

    def moved(self, step: int) -> None:
        """Compare the replicas as a rank changed parameters between two steps. Collective.

        A program may do that after each step, the same on all ranks: then the 1st, 2nd, 4th, 8th... time is looked at.

        Raises:
            RankMismatchError: they differ, and that is not to be repaired; on all ranks.
        """
        self._moves += 1
        if self._every and self._moves & (self._moves - 1) == 0:
            self._check(step)

    def _check(self, step: int) -> None:
        found = check_replicas(self._model, self._comm, optimizer=self._optimizer, diverged=self._diverged)
        if found is None:
            return
        self.mended.append(found)
        if self._comm.rank == 0:
            self.say(f"after {counted(step, 'step')} {found.describe(self._comm.size)}: replaced by what most hold")


def check_replicas(
    model: nn.Module, comm: Communicator, *, optimizer: Optimizer | None = None, diverged: Diverged = "raise"
) -> Divergence | None:
    """Return what differs between the ranks' models, bit by bit, or None. Collective.

    Costs a pass over the tensors, and eight bytes a tensor from each rank. Buffers, such as running statistics, are a
    rank's own and are not looked at.

    Args:
        optimizer: whose state to compare, too.
        diverged: "raise", or "broadcast": give all ranks what most of them hold of each tensor that differs (of as
            many, what the lowest rank holds), and return what that was.

    Raises:
        RankMismatchError: replicas differ and `diverged` is "raise", or they differ in more than values; on all ranks.
    """
    require_kind("model", model, nn.Module, "check_replicas(model, comm)")
    require_kind("comm", comm, Communicator, "what ms.init() or ms.world() returned")
    _check_way(diverged)
    names = plain_names(model)
    named: list[tuple[str, Tensor]] = [(names[name], parameter) for name, parameter in model.named_parameters()]
    if optimizer is not None:
        inside = {id(parameter) for _, parameter in named}
        trained = named_parameters(optimizer, model)
        named += [(name, parameter) for name, parameter in trained if id(parameter) not in inside]
        named += _named_state(optimizer, trained)
    return _compare(comm, named, diverged) if comm.size > 1 else None


def _compare(comm: Communicator, named: Sequence[tuple[str, Tensor]], diverged: Diverged) -> Divergence | None:
    checksums = _gather_checksums(comm, named)
    # For each tensor that differs, the rank that holds what most do.
    sources = {int(place): _majority(checksums[:, place]) for place in np.flatnonzero(np.ptp(checksums, axis=0))}
    if not sources:
        return None
    wrong = [np.flatnonzero(checksums[:, place] != checksums[source, place]) for place, source in sources.items()]
    found = Divergence(tuple(named[place][0] for place in sources), tuple(np.unique(np.concatenate(wrong)).tolist()))
    if diverged == "raise":
        raise alike(RankMismatchError(_message(found, checksums[:, next(iter(sources))])))
    for place, source in sources.items():
        broadcast_tensor(comm, named[place][1], source)
    return found


def _gather_checksums(comm: Communicator, named: Sequence[tuple[str, Tensor]]) -> NDArray[np.uint64]:
    """Return the checksums of all ranks' tensors, uint64 of shape (size, tensors), the tensors being the same."""
    names = [f"{name}: {tuple(tensor.shape)} {tensor.dtype}" for name, tensor in named]
    mine = np.array(
        [zlib.crc32("\n".join(names).encode(errors="surrogatepass")), *(bits_of(tensor) for _, tensor in named)],
        np.uint64,
    )
    reports = comm.allgather_bytes(mine.tobytes())
    if any(report[:8] != reports[0][:8] for report in reports):
        require_same(comm, "the replicas' tensors", names)
    return np.stack([np.frombuffer(report, np.uint64) for report in reports])[:, 1:]


def _majority(checksums: NDArray[np.uint64]) -> int:
    """Return the lowest rank that holds what most hold; of as many, the group of the lowest rank counts."""
    values = checksums.tolist()
    counts = Counter(values)
    return min(range(len(values)), key=lambda rank: (-counts[values[rank]], rank))


def _message(found: Divergence, checksums: NDArray[np.uint64]) -> str:
    shown = ", ".join(f"{value:016x}" for value in checksums[:_CHECKSUMS].tolist())
    return (
        f"replicas differ: {found.describe(checksums.size)} (checksums of {found.tensors[0]} in rank order: {shown}"
        f"{', ...' if checksums.size > _CHECKSUMS else ''}). Every rank must hold the same bits: look for code that "
        "changes parameters on one rank, for faulty memory, or for processors of different kinds, which may round "
        'differently. Go on from a checkpoint, or use diverged="broadcast" to take over what most ranks hold'
    )


def _named_state(optimizer: Optimizer, trained: Sequence[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
    """Return the optimizer's tensors, each with the name of the parameter that it belongs to."""
    return [
        (f"{key} of {name}", value)
        for name, parameter in trained
        for key, value in sorted(optimizer.state.get(parameter, {}).items(), key=lambda item: str(item[0]))
        if isinstance(value, Tensor)
    ]


def _check_way(diverged: object) -> None:
    if not is_one_of(diverged, get_args(Diverged)):
        raise ConfigError(f"diverged {short(diverged)} does not exist: use raise or broadcast")
