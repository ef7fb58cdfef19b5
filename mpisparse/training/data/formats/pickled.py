"""CIFAR-10 in the original pickled batches, read without running anything that a pickle may ask for.

A pickle is a program that may call anything. The original files call three names, numpy's array, its type and the
function that makes an array again. Here these stand for plain records of what was asked for, every other name is
refused, and no part of numpy sees the file's content before it has been checked.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpisparse.errors import DataError
from mpisparse.training.data.base import Images
from mpisparse.training.data.files import read_at_most

TRAIN_FILES = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST_FILES = ("test_batch",)
_IMAGE = 3 * 32 * 32
#: The original files are 31 MB.
_LARGEST = 64 * 2**20
#: What unpickling a damaged or hostile file raises, by the documentation of `pickle` and by trial.
_DAMAGE = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)


def read(path: Path) -> Images:
    """Return all images of one batch, pixels of shape (n, 3, 32, 32).

    Raises:
        DataError: the file is missing, damaged, or asks for anything but a dict of lists, bytes and uint8 arrays.
    """
    content = read_at_most(path, _LARGEST + 1)
    if len(content) > _LARGEST:
        raise DataError(f"{path} is larger than {_LARGEST} bytes, and a CIFAR-10 batch is 31 MB: this is another file")
    try:
        return _images(_Unpickler(io.BytesIO(content), encoding="bytes").load())
    except _DAMAGE as error:
        raise DataError(f"{path} is not a pickled CIFAR-10 batch ({error}): fetch it again") from error


def _images(batch: object) -> Images:
    if not isinstance(batch, dict):
        raise ValueError(f"it holds a {type(batch).__name__}, not a dict")
    data, labels = _entry(batch, "data"), _entry(batch, "labels")
    if not isinstance(data, _Array):
        raise ValueError(f"'data' is a {type(data).__name__}, not an array")
    pixels = data.content()
    if pixels.ndim != 2 or pixels.shape[1] != _IMAGE or len(pixels) == 0:
        raise ValueError(f"'data' has shape {pixels.shape}, not (images, {_IMAGE})")
    if not isinstance(labels, list) or len(labels) != len(pixels):
        raise ValueError(f"'labels' is not a list of {len(pixels)} labels, one for each image")
    if not all(type(label) is int and 0 <= label <= 9 for label in labels):
        raise ValueError("'labels' holds something else than whole numbers 0 to 9")
    return Images(pixels.reshape(-1, 3, 32, 32), np.array(labels, np.uint8))


def _entry(batch: dict[object, object], key: str) -> object:
    """Return the entry under a key that Python 2 wrote as bytes, or Python 3 as text."""
    for name in (key.encode(), key):
        if name in batch:
            return batch[name]
    raise ValueError(f"it has no {key!r}")


class _Array:
    """Stands for `numpy.ndarray`: remembers what the pickle said of the array, and checks it when it is asked for."""

    def __init__(self) -> None:
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def content(self) -> NDArray[np.uint8]:
        match self.state:
            case (int(), tuple(shape), _Type(code="u1"), order, bytes(content)):
                if not all(type(extent) is int and extent >= 0 for extent in shape):
                    raise ValueError(f"an array has the shape {shape!r}")
                return np.frombuffer(content, np.uint8).reshape(shape, order="F" if order else "C")
        raise ValueError("an array is not of uint8, or its description is incomplete")


class _Type:
    """Stands for `numpy.dtype`: remembers the code of the type; byte order and alignment mean nothing to bytes."""

    def __init__(self, code: object, *_: object) -> None:
        self.code = code.decode("ascii", "replace") if isinstance(code, bytes) else code

    def __setstate__(self, state: object) -> None:
        """Nothing of the state is needed."""


def _reconstruct(*_: object) -> _Array:
    return _Array()


_ALLOWED: dict[tuple[str, str], object] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which image data never needs")
        return _ALLOWED[module, name]
