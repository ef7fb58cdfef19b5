"""Cost: what a step takes on any number of ranks, by latency, bandwidth, and local work an entry.

What the exchange does (docs/architecture.md): an Allgather of lengths; one Allgatherv, from which a rank receives the
messages of all others, (P - 1) b of b bytes each; whole tensors by an Alltoallv and an Allgatherv of their pieces,
2 (P - 1) / P of the vector, as a ring moves them, and a local sum. MPI libraries take ceil(log2 P) rounds for short
gathers (Bruck's algorithm or recursive doubling) and P - 1 for long ones (a ring), from about 512 KiB in all
(R. Thakur, R. Rabenseifner and W. Gropp, IJHPCA 19, 2005). An Alltoallv sends all its pieces at once, so that ranks
wait once for each batch of 32 (MPICH's "scattered"). A round of long messages takes a time of its own: these ask for
room first (rendezvous), and each step of a ring waits for the slowest rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analysis.model.fit import fit

Array = NDArray[np.float64]

#: Bytes gathered in all from which on MPI libraries take a ring, entries that a whole vector is cut into, and pieces
#: that an Alltoallv sends at once.
_LONG, _SEGMENT, _BATCH = 2**19, 2**22, 32
_FLOAT32 = 4


@dataclass(frozen=True, kw_only=True)
class Point:
    """A step, as far as its time depends on it. Of one rank, but for `ranks`.

    numel: entries of the gradient. samples: of this rank. count: entries that it sends in messages.
    message: bytes of its messages. whole: bytes of tensors that it sends whole, `width` an entry.
    sparse: whether there are messages. method: whose step it is.
    sharing: threads of ranks for a core of their machine, 1 where each has a core of its own.
    """

    ranks: int
    numel: float
    samples: float
    count: float
    message: float
    whole: float
    width: float
    sparse: bool
    method: str = ""
    sharing: float = 1.0

    @property
    def received(self) -> float:
        """Return the bytes that come into the rank."""
        return (self.ranks - 1) * self.message + 2 * (self.ranks - 1) / self.ranks * self.whole

    @property
    def rounds(self) -> tuple[float, float]:
        """Return how often ranks wait for a message of another: in short collectives, and in rings of long messages."""
        tree, ring = _log(self.ranks), float(self.ranks - 1)
        short = long = 0.0
        if self.sparse:
            is_short = self.ranks * self.message <= _LONG
            short, long = (2 * tree, 0.0) if is_short else (tree, ring)
        if self.whole:
            segments = math.ceil(self.whole / self.width / _SEGMENT)
            short += segments * math.ceil((self.ranks - 1) / _BATCH)
            if self.whole <= _LONG:
                short += segments * tree
            else:
                long += segments * ring
        return short, long


class Coefficients(NamedTuple):
    """Seconds.

    alpha: a round of a short collective. ring: a round of a long one.
    beta: a byte. crowd: a byte, for each thread more that shares the core which copies it.
    turn: an exchange, for each thread more that shares a core, until a rank has its turn on it.
    add: an entry of a whole vector that is summed. convert: one to and from fewer bits. check: one that is looked over.
    encode, message: an entry sent; a message. decode, open: an entry received; a message.
    step, sample: computing, once a step and for each sample.
    agree: a round of the small Allgather. idle: waiting, a second computed.
    """

    alpha: float
    ring: float
    beta: float
    crowd: float
    turn: float
    add: float
    convert: float
    message: float
    encode: float
    open: float
    decode: float
    check: float
    step: float
    sample: float
    agree: float
    idle: float


#: Phases with what they depend on; "compute" stands for "data", "compute" and "apply" together. "select" is of `Cost`.
TERMS: dict[str, tuple[str, ...]] = {
    "compute": ("step", "sample"),
    "agree": ("agree", "idle"),
    "sparsify": ("select",),
    "encode": ("message", "encode"),
    "exchange": ("alpha", "ring", "beta", "crowd", "turn", "add", "convert"),
    "decode": ("open", "decode", "check"),
}


@dataclass(frozen=True)
class Cost:
    """The fitted model. select: seconds that a method's rule takes for an entry of the gradient that it looks at, as
    some look several times; 0 for methods that are not in it."""

    coefficients: Coefficients
    select: dict[str, float] = field(default_factory=dict)

    def of(self, name: str, method: str = "") -> float:
        """Return the coefficient of a term of TERMS for a method."""
        return self.select.get(method, 0.0) if name == "select" else float(getattr(self.coefficients, name))

    def phases(self, point: Point) -> dict[str, float]:
        """Return the seconds of a step by the phases of TERMS."""
        compute = self._sum("compute", point, 0.0)
        return {phase: self._sum(phase, point, compute) for phase in TERMS}

    def seconds(self, point: Point) -> float:
        """Return the seconds of a step."""
        return sum(self.phases(point).values())

    def but(self, select: float = 1.0, **changes: float) -> Cost:
        """Return the model with some coefficients multiplied."""
        changed = {name: getattr(self.coefficients, name) * factor for name, factor in changes.items()}
        selects = {method: select * seconds for method, seconds in self.select.items()}
        return Cost(self.coefficients._replace(**changed), selects)

    def _sum(self, phase: str, point: Point, compute: float) -> float:
        features = _features(phase, point, compute)
        return sum(self.of(name, point.method) * x for name, x in zip(TERMS[phase], features, strict=True))


def fit_cost(points: Sequence[Point], phases: Sequence[dict[str, float]]) -> Cost:
    """Return the model of measured steps: their points, and their seconds by the phases of TERMS.

    Each phase is fitted alone, on the steps in which it does something; the rules of methods each alone, too.
    """
    found: dict[str, float] = {}
    for phase, names in TERMS.items():
        if phase != "sparsify":
            here = [i for i, point in enumerate(points) if _takes_part(phase, point)]
            found.update(zip(names, _fit_phase(phase, points, phases, here), strict=True))
    select = {}
    for method in dict.fromkeys(point.method for point in points if point.sparse):
        own = [i for i, point in enumerate(points) if point.method == method and point.sparse]
        (select[method],) = _fit_phase("sparsify", points, phases, own)
    return Cost(Coefficients(**found), select)


def _fit_phase(
    phase: str, points: Sequence[Point], phases: Sequence[dict[str, float]], chosen: Sequence[int]
) -> list[float]:
    """Return the coefficients of a phase on chosen steps."""
    features = [_features(phase, points[i], phases[i]["compute"]) for i in chosen]
    seconds = np.array([phases[i][phase] for i in chosen])
    steps = np.array([sum(phases[i].values()) for i in chosen])
    return [float(found) for found in fit(np.array(features).reshape(-1, len(TERMS[phase])), seconds, steps)]


def at(point: Point, ranks: int, *, strong: bool) -> Point:
    """Return the step of `point` on another number of ranks, each with cores of its own.

    Args:
        strong: with the same samples in all, or else with the same on each rank.
    """
    samples = point.samples * point.ranks / ranks if strong else point.samples
    return replace(point, ranks=ranks, samples=samples, sharing=1.0)


def _takes_part(phase: str, point: Point) -> bool:
    if phase == "encode":
        return point.sparse
    return phase not in ("agree", "exchange") or point.ranks > 1


def _features(phase: str, point: Point, compute: float) -> tuple[float, ...]:
    """Return what the terms of a phase are multiplied with. Plain numbers: arrays of three take ten times as long."""
    ranks, sparse, own = point.ranks, float(point.sparse), point.sharing
    # What ranks compute takes so much longer where they share cores. Bytes on the link do not, but those that a
    # processor copies from and to it do. Ranks wait for their turn on a core once an exchange and not once a round:
    # while one waits, the messages of others travel.
    if phase == "compute":
        return own, point.samples * own
    if phase == "agree":
        return _log(ranks) * own, compute if ranks > 1 else 0.0
    if phase == "sparsify":
        return (point.numel * sparse * own,)
    if phase == "encode":
        return sparse * own, point.count * sparse * own
    if phase == "exchange":
        summed = point.numel * own if ranks > 1 and not point.sparse else 0.0
        converted = summed if point.width < _FLOAT32 else 0.0
        return *point.rounds, point.received, point.received * (own - 1), own - 1, summed, converted
    return ranks * sparse * own, ranks * point.count * sparse * own, point.numel * (1 - sparse) * own


def _log(ranks: int) -> float:
    return float((ranks - 1).bit_length())
