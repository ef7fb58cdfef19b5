"""Arrays as a file holds them: every dtype travels in a carrier of the same bits that all HDF5 readers know."""

from __future__ import annotations

import math
import re
import reprlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mpisparse.errors import CheckpointError

Array = NDArray[Any]

_PLAIN = ["float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
_FLOAT8 = ["float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"]
#: The dtype that carries the bits of each dtype. A complex number travels as its real and imaginary part.
CARRIERS = {
    **{name: name for name in _PLAIN},
    **dict.fromkeys(_FLOAT8, "uint8"),
    "bfloat16": "uint16",
    "bool": "uint8",
    "complex32": "float16",
    "complex64": "float32",
    "complex128": "float64",
}
#: The dtypes that a numpy array may have; a tensor may have all those of CARRIERS that this torch knows.
NUMPY_DTYPES = frozenset([*_PLAIN, "bool", "complex64", "complex128"])

#: HDF5 takes no more dimensions; arrays of more lie flat in the file.
HDF5_DIMENSIONS = 32
#: Dimensions of an array at most; torch and numpy compute with no more than 64.
DIMENSIONS = 1000
_DATASET = re.compile(r"[0-9]{6,}\.[A-Za-z0-9._-]{0,100}")


@dataclass(frozen=True, slots=True)
class ArrayEntry:
    """What the structure says about one array.

    dataset: its name in the group `arrays`; None for an array without entries, which has no dataset.
    dtype: one of CARRIERS, as torch or numpy call it.
    shape: its own shape, which the stored one differs from for complex, 0-d and very many-dimensional arrays.
    """

    dataset: str | None
    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Return the number of entries."""
        return math.prod(self.shape)

    @property
    def carrier(self) -> np.dtype[Any]:
        """Return the dtype in the file, always little-endian."""
        return np.dtype(CARRIERS[self.dtype]).newbyteorder("<")

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Return the shape in the file: at least one dimension, at most what HDF5 takes."""
        shape = (*self.shape, 2) if self.dtype.startswith("complex") else self.shape
        return shape if 1 <= len(shape) <= HDF5_DIMENSIONS else (math.prod(shape),)

    def to_json(self) -> dict[str, Any]:
        """Return the entry as the structure writes it."""
        return {"dataset": self.dataset, "dtype": self.dtype, "shape": list(self.shape)}

    @staticmethod
    def from_json(item: Any) -> ArrayEntry:
        """Return the entry that `item` writes, or raise CheckpointError when it cannot be one."""
        if not isinstance(item, dict) or set(item) != {"dataset", "dtype", "shape"}:
            raise CheckpointError(f"the structure is damaged: {shown(item)} does not describe an array")
        dataset, dtype, shape = item["dataset"], item["dtype"], item["shape"]
        if not isinstance(dtype, str) or dtype not in CARRIERS:
            raise CheckpointError(f"the structure is damaged: {shown(dtype)} is no dtype of this format")
        # Few enough that multiplying them takes no time.
        if not isinstance(shape, list) or len(shape) > DIMENSIONS:
            raise CheckpointError(f"the structure is damaged: {shown(shape)} is no shape")
        if not all(type(length) is int and 0 <= length < 2**63 for length in shape):
            raise CheckpointError(f"the structure is damaged: {shown(shape)} is no shape")
        entry = ArrayEntry(dataset, dtype, tuple(shape))
        named = isinstance(dataset, str) and is_dataset_name(dataset)
        if not named and (dataset is not None or entry.numel > 0):
            raise CheckpointError(f"the structure is damaged: {shown(dataset)} is no name of a dataset")
        if named and entry.numel == 0:
            raise CheckpointError(f"the structure is damaged: {dataset} has no entries, yet names a dataset")
        return entry


def shown(value: object) -> str:
    """Return a value of a damaged file for a message: at most 80 characters, and no more work than they take."""
    return f"{reprlib.repr(value):.80}"


def dataset_name(index: int, path: str) -> str:
    """Return the name of dataset `index`: its number, which makes it unique, then a readable label."""
    return f"{index:06d}.{re.sub(r'[^A-Za-z0-9._-]', '_', path)[:100]}"


def is_dataset_name(name: str) -> bool:
    """Return True for a name that `dataset_name` could give."""
    return _DATASET.fullmatch(name) is not None


def tensor_flaw(tensor: torch.Tensor) -> str | None:
    """Return why a file cannot hold `tensor`, or None when it can."""
    if tensor.layout is not torch.strided or tensor.is_nested:
        return f"a tensor of layout {tensor.layout}: give a dense one"
    if tensor.device.type == "meta":
        return "a tensor on the meta device, which has no values"
    if str(tensor.dtype).removeprefix("torch.") not in CARRIERS:
        return f"a tensor of {tensor.dtype}, which this format does not know"
    if tensor.dim() > DIMENSIONS:
        return f"a tensor of {tensor.dim()} dimensions: at most {DIMENSIONS} can be saved"
    return None


def array_flaw(array: Array | np.generic) -> str | None:
    """Return why a file cannot hold a numpy array or scalar, or None when it can."""
    if array.dtype.name not in NUMPY_DTYPES or array.dtype.metadata is not None:
        return f"a numpy {array.dtype}, which this format does not know: give numbers or booleans"
    if not array.dtype.isnative:
        return f"a numpy {array.dtype.str}, not in this machine's byte order: give array.astype({array.dtype.name!r})"
    return None


def flatten_tensor(tensor: torch.Tensor) -> Array:
    """Return the bits of `tensor`, as its carrier of one dimension: a view where it lies dense on the host."""
    flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    carrier = CARRIERS[str(tensor.dtype).removeprefix("torch.")]
    return flat.view(getattr(torch, carrier)).numpy()


def flatten_array(array: Array) -> Array:
    """Return the bits of `array`, as its carrier of one dimension: a view where it lies dense in C order."""
    return np.ascontiguousarray(array).reshape(-1).view(CARRIERS[array.dtype.name])


def build_tensor(entry: ArrayEntry, flat: Array) -> torch.Tensor:
    """Return the tensor whose bits `flat` carries, on the host, sharing its memory."""
    dtype = getattr(torch, entry.dtype, None)
    if dtype is None:
        raise CheckpointError(f"torch {torch.__version__} has no {entry.dtype}: use one as new as the one that saved")
    _check_booleans(entry, flat)
    try:
        # torch refuses to view nothing as complex numbers, so that an empty tensor is cut off a longer one.
        values = torch.from_numpy(flat if flat.size else np.zeros(2, flat.dtype)).view(dtype)
        return values[: entry.numel].reshape(entry.shape)
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"the structure is damaged: no tensor has the shape {shown(entry.shape)}: {error}"
        ) from error


def build_array(entry: ArrayEntry, flat: Array) -> Array:
    """Return the numpy array whose bits `flat` carries, sharing its memory."""
    if entry.dtype not in NUMPY_DTYPES:
        raise CheckpointError(f"the structure is damaged: numpy has no {entry.dtype}")
    _check_booleans(entry, flat)
    try:
        return flat.view(entry.dtype).reshape(entry.shape)
    except ValueError as error:
        raise CheckpointError(
            f"the structure is damaged: no array has the shape {shown(entry.shape)}: {error}"
        ) from error


def _check_booleans(entry: ArrayEntry, flat: Array) -> None:
    if entry.dtype == "bool" and flat.size and int(flat.max()) > 1:
        raise CheckpointError(f"{entry.dataset} holds booleans, but one of them is {flat.max()}")
