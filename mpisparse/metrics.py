"""Metrics over ranks: the mean of a loss, an object that one rank made, who this is. All ranks, unless `comm` says."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mpisparse.comm import Communicator, agreed, place, summarise, world
from mpisparse.comm.guard import check_root, shown
from mpisparse.comm.objects import from_text, to_text
from mpisparse.errors import ConfigError, RankMismatchError, alike

Doubles = NDArray[np.float64]

#: What a metric may be: a number, an array of them, a tensor on any device, or a dict of these.
Metric: TypeAlias = Any

Object = TypeVar("Object")

#: The name of a value that is in no dict.
_ALONE = "the value"


def rank(comm: Communicator | None = None) -> int:
    """Return the number of this rank, from 0. Not collective."""
    return _place()[0] if comm is None else comm.rank


def size(comm: Communicator | None = None) -> int:
    """Return the number of ranks. Not collective."""
    return _place()[1] if comm is None else comm.size


def is_main(comm: Communicator | None = None) -> bool:
    """Return True on rank 0, which speaks and writes for all. Not collective."""
    return rank(comm) == 0


def mean(value: Metric, *, samples: float | None = None, comm: Communicator | None = None) -> Any:
    """Return the mean over the ranks, the same bits on all of them: a float, a float64 array, or a dict of these.

    Collective. Computed in float64, added up in rank order. NaN and infinity of a rank pass through.

    Args:
        value: a number of Python, numpy or torch, an array or a tensor of them (any real type, on any device, also one
            that requires a gradient), or a dict of these with the same keys on all ranks.
        samples: how many samples stand behind this rank's value, on all ranks or on none: the mean is over samples
            then. A rank with 0 of them counts for nothing, whatever its value.
        comm: the ranks.

    Raises:
        ConfigError: a value is no number, `samples` is negative or on some ranks alone, or no rank has a sample.
        RankMismatchError: keys or shapes differ between ranks. All on every rank.
    """
    comm = _everybody() if comm is None else comm
    keys, numbers, report = _report(value, samples)
    found = _mean(comm, report, numbers)
    parts, begin = {}, 0
    for key, shape in keys.items():
        part = found[begin : begin + int(np.prod(shape))].reshape(shape)
        parts[key] = float(part) if shape == () else part
        begin += part.size
    return {key: parts[key] for key in value} if isinstance(value, Mapping) else parts[_ALONE]


def broadcast_object(obj: Object, root: int = 0, *, comm: Communicator | None = None) -> Object:
    """Return on every rank a copy of what rank `root` gave; what the others give is not looked at. Collective.

    Takes None, bool, int, float, complex, str, bytes, paths, numpy scalars and arrays, torch tensors (which arrive on
    the CPU, without gradient), and lists, tuples, sets and dicts of these; each comes back as the type that it was.
    The ranks of a job trust each other, but nothing is pickled all the same: receiving an object runs no code.

    Raises:
        ConfigError: it holds something else, or there is no rank `root`. On all ranks.
    """
    comm = _everybody() if comm is None else comm
    text = b""
    with agreed(comm):
        check_root(comm.rank, root, comm.size)
        if comm.rank == root:
            text = to_text(obj)
    received: Object = from_text(comm.broadcast_bytes(text if comm.rank == root else None, root))
    return received


def gather_doubles(comm: Communicator, values: Doubles) -> Doubles:
    """Return the float64 numbers of all ranks, bit for bit, of shape (size, values.size), as many on each. Collective.

    They travel as the integers of the same bits: MPI need not know what they are.
    """
    everyone: Doubles = comm.allgather(np.ascontiguousarray(values, np.float64).reshape(-1).view(np.int64)).view(
        np.float64
    )
    return everyone


def add_in_order(rows: Doubles) -> Doubles:
    """Return the sum of rows, added one after the other."""
    total: Doubles = rows[0].copy()
    for row in rows[1:]:
        total += row
    return total


@cache
def _everybody() -> Communicator:
    """Return the communicator for calls that name none. Collective when it is called first."""
    _refuse_workers()
    return world()


@cache
def _place() -> tuple[int, int]:
    _refuse_workers()
    return place()


def _refuse_workers() -> None:
    """Raise ConfigError in a process that is no rank: MPI started there would call it rank 0, or another by mistake."""
    if multiprocessing.parent_process() is not None:
        raise ConfigError(
            f"process {multiprocessing.current_process().name} is a worker of a rank and none itself: ask for rank, "
            "size or a mean in the program that started it, and hand it what it needs"
        )


def _report(value: Metric, samples: object) -> tuple[dict[Any, tuple[int, ...]], Doubles, Any]:
    """Return the shapes by key, all numbers in the order of the keys' names, and what the other ranks have to know."""
    try:
        given = value if isinstance(value, Mapping) else {_ALONE: value}
        arrays = {key: _doubles(given[key], _name(key)) for key in sorted(given, key=_name)}
        weight = None if samples is None else _weight(samples)
    except ConfigError as error:
        return {}, np.empty(0), {"error": str(error)}
    flat = np.concatenate([array.reshape(-1) for array in arrays.values()] or [np.empty(0)])
    names = [f"{_name(key)} of shape {array.shape}" for key, array in arrays.items()]
    return {key: array.shape for key, array in arrays.items()}, flat, {"names": names, "weight": weight}


def _mean(comm: Communicator, report: Any, numbers: Doubles) -> Doubles:
    """Return the means, or raise on all ranks what is wrong on any."""
    texts = comm.allgather_bytes(json.dumps(report).encode() + b"\n" + numbers.tobytes())
    parts = [text.partition(b"\n") for text in texts]
    reports = [json.loads(head) for head, _, _ in parts]
    failed = {number: each["error"] for number, each in enumerate(reports) if "error" in each}
    if failed:
        raise alike(ConfigError(summarise(failed, comm.size)))
    for number, each in enumerate(reports):
        _require_same_names(reports[0]["names"], each["names"], number)
    rows = np.stack([np.frombuffer(tail, np.float64) for _, _, tail in parts])
    weights = [each["weight"] for each in reports]
    with np.errstate(invalid="ignore", over="ignore"):
        if all(weight is None for weight in weights):
            return add_in_order(rows) / comm.size
        if None in weights:
            raise alike(ConfigError(f"samples are {weights} in rank order: give them on all ranks, or on none"))
        if not any(weights):
            raise alike(ConfigError("samples are 0 on every rank: there is nothing to take the mean of"))
        counting = [number for number, weight in enumerate(weights) if weight]
        weighed = np.stack([rows[number] * weights[number] for number in counting])
        average: Doubles = add_in_order(weighed) / sum(weights[number] for number in counting)
        return average


def _require_same_names(first: list[str], other: list[str], number: int) -> None:
    if first != other:
        lacks, brings = sorted(set(first) - set(other)), sorted(set(other) - set(first))
        raise alike(
            RankMismatchError(
                f"the values to average differ: rank {number} lacks {', '.join(lacks) or 'nothing'} of rank 0's and "
                f"brings {', '.join(brings) or 'nothing'} beyond them. Give the same keys and shapes on all ranks"
            )
        )


def _name(key: object) -> str:
    return _ALONE if key is _ALONE else repr(key)


def _weight(samples: object) -> float:
    weight = _doubles(samples, "samples")
    if weight.shape != () or not 0 <= float(weight) < float("inf"):
        raise ConfigError(f"samples is {shown(samples)}: give a number that is at least 0")
    return float(weight)


def _doubles(value: object, name: str) -> Doubles:
    """Return a number, an array or a tensor as float64 on the host."""
    found: Any = value
    try:
        if isinstance(value, Tensor):
            found = value.detach().cpu()
            found = (found if value.dtype.is_complex else found.double()).numpy()
        found = np.asarray(found)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        found = np.empty(0, object)
    if found.dtype.kind not in "biuf" or isinstance(value, np.ma.MaskedArray):
        raise ConfigError(
            f"{name} is {shown(value)}: means are of numbers, arrays and tensors of real numbers, and dicts of these"
        )
    return np.asarray(found, np.float64)
