"""What may travel: checks that values pass before MPI sees them. Each refusal names the value and what takes it."""

from __future__ import annotations

from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mpisparse.errors import CommError, ConfigError

#: What to use instead: the same advice wherever something else than numbers of a fixed type is given.
_INSTEAD = "ms.mean(value) averages a metric over the ranks, ms.broadcast_object(value) sends any other thing to all"


def integers(rank: int, method: str, values: Any) -> NDArray[np.int64]:
    """Return whole numbers as a contiguous vector of int64, exactly, wherever they lie; one number counts as a vector.

    Raises:
        CommError: it is anything else: floats, whole or not, text, numbers beyond int64, an array of two dimensions.
    """
    try:
        found = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        found = np.empty(0, object)
    if isinstance(values, list | tuple) and not len(values):
        return np.empty(0, np.int64)
    whole = found.dtype.kind in "bi" or (found.dtype.kind == "u" and (not found.size or found.max() < 2**63))
    if not whole or found.ndim > 1:
        raise CommError(
            f"rank {rank}: {method} takes a vector of whole numbers that fit int64, and was given {shown(values)}: "
            f"{_INSTEAD}"
        )
    return np.ascontiguousarray(found, np.int64)


def byte_string(rank: int, method: str, payload: object) -> bytes:
    """Return the bytes themselves, or raise CommError where it is anything else than bytes."""
    if not isinstance(payload, bytes | bytearray | memoryview):
        raise CommError(f"rank {rank}: {method} takes bytes, and was given {shown(payload)}: {_INSTEAD}")
    return bytes(payload)


def floats(rank: int, array: object) -> NDArray[np.float32]:
    """Return the array as a vector that shares its memory, or raise CommError where no sum can be put into it."""
    if not _is_array(array) or array.dtype != np.float32 or not array.flags.c_contiguous or not array.flags.writeable:
        raise CommError(
            f"rank {rank}: allreduce replaces a contiguous, writable float32 array of numpy by its sum, and was given "
            f"{shown(array)}: {_INSTEAD}"
        )
    return array.reshape(-1)


def is_rank(root: object, size: int) -> bool:
    """Return True where `root` is the number of one of `size` ranks."""
    return isinstance(root, int | np.integer) and not isinstance(root, bool) and 0 <= int(root) < size


def check_root(rank: int, root: object, size: int) -> int:
    """Return which rank others receive from, or raise ConfigError where there is none of that number."""
    if not is_rank(root, size):
        raise ConfigError(f"rank {rank}: root is {shown(root)}: give the number of a rank, 0 to {size - 1}")
    return int(root)  # type: ignore[call-overload, no-any-return]


def check_counts(rank: int, size: int, counts: object) -> int:
    """Return the sum of bytes by rank, or raise CommError where that is not what `counts` holds."""
    if not _is_array(counts) or counts.dtype != np.int64 or counts.shape != (size,):
        raise CommError(f"rank {rank}: counts are {shown(counts)}: give int64 of shape ({size},)")
    if (counts < 0).any():
        raise CommError(f"rank {rank}: counts {counts.tolist()} hold a negative number")
    return int(counts.sum())


def check_payload(rank: int, payload: object, expected: int) -> None:
    """Raise CommError unless `payload` is a contiguous vector of as many bytes as its count says."""
    if not _is_array(payload) or payload.dtype != np.uint8 or payload.ndim != 1 or not payload.flags.c_contiguous:
        raise CommError(f"rank {rank}: payload is {shown(payload)}: give a contiguous uint8 vector")
    if payload.size != expected:
        raise CommError(f"rank {rank}: payload has {payload.size} bytes, but its count says {expected}")


def check_room(rank: int, out: object, total: int) -> None:
    """Raise CommError unless `out` has room for `total` bytes that are to be received."""
    if (
        not _is_array(out)
        or out.dtype != np.uint8
        or out.ndim != 1
        or not out.flags.c_contiguous
        or not out.flags.writeable
    ):
        raise CommError(
            f"rank {rank}: the receive buffer is {shown(out)}: give a contiguous, writable uint8 vector; {_INSTEAD}"
        )
    if out.size < total:
        raise CommError(f"rank {rank}: the receive buffer has {out.size} bytes, but {total} are to come")


def shown(value: object) -> str:
    """Return a value as a message names it: arrays and tensors by type and shape, others by type and value, cut."""
    if isinstance(value, np.ndarray | Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        where = f" on {value.device}" if isinstance(value, Tensor) else ""
        return f"{kind} of shape {tuple(value.shape)}{where}"
    text = " ".join(repr(value).split())
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def _is_array(value: object) -> TypeGuard[NDArray[Any]]:
    return isinstance(value, np.ndarray)
