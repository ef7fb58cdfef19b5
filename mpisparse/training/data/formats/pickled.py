"""CIFAR-10 in the original pickled batches, read without running anything that a pickle may ask for.

A pickle is a program that may call anything. The original files call three names, numpy's array, its type and the
function that makes an array again; files that were written anew, by any protocol and by numpy 1 or 2, a few more. Here
these stand for plain records of what was asked for, every other name is refused, and no part of numpy sees the file's
content before it has been checked.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
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
#: Types that arrays may have: pixels are bytes, labels and other numbers any integers.
_BYTE = frozenset(["u1"])
_INTEGERS = frozenset([f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)])
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
        DataError: the file is missing, damaged, or asks for anything but a dict of lists, bytes and arrays of integers.
    """
    return parse(read_at_most(path, _LARGEST + 1), str(path))


def parse(content: bytes, where: str) -> Images:
    """Return the images that the content of a file holds; `where` names it in errors."""
    if len(content) > _LARGEST:
        raise DataError(f"{where} is larger than {_LARGEST} bytes, and a CIFAR-10 batch is 31 MB: this is another file")
    try:
        return _images(_Unpickler(io.BytesIO(content), encoding="bytes").load())
    except _DAMAGE as error:
        raise DataError(f"{where} is not a pickled CIFAR-10 batch ({error}): fetch it again") from error


def _images(batch: object) -> Images:
    if not isinstance(batch, dict):
        raise ValueError(f"it holds a {type(batch).__name__}, not a dict")
    data, labels = _entry(batch, "data"), _entry(batch, "labels")
    if not isinstance(data, _Array):
        raise ValueError(f"'data' is a {type(data).__name__}, not an array")
    pixels = data.content("data", _BYTE)
    if pixels.ndim != 2 or pixels.shape[1] != _IMAGE or len(pixels) == 0:
        raise ValueError(f"'data' has shape {pixels.shape}, not (images, {_IMAGE})")
    if isinstance(labels, _Array):
        whole = labels.content("labels", _INTEGERS)
        labels = whole.tolist() if whole.ndim == 1 else whole
    if not isinstance(labels, list) or len(labels) != len(pixels):
        raise ValueError(f"'labels' is not a list of {len(pixels)} labels, one for each image")
    if not all(type(label) is int and 0 <= label <= 9 for label in labels):
        raise ValueError("'labels' holds something else than whole numbers 0 to 9")
    return Images(pixels.astype(np.uint8, copy=False).reshape(-1, 3, 32, 32), np.array(labels, np.uint8))


def _entry(batch: dict[object, object], key: str) -> object:
    """Return the entry under a key that Python 2 wrote as bytes, or Python 3 as text."""
    for name in (key.encode(), key):
        if name in batch:
            return batch[name]
    raise ValueError(f"it has no {key!r}")


class _Array:
    """Stands for `numpy.ndarray`: remembers what the pickle said of the array, and checks it when it is asked for."""

    __slots__ = ("state",)

    def __init__(self) -> None:
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def content(self, name: str, codes: frozenset[str]) -> NDArray[np.integer[Any]]:
        match self.state:
            case (int(), tuple(shape), _Type() as kind, order, bytes() | bytearray() as content) if kind.code in codes:
                if not all(type(extent) is int and extent >= 0 for extent in shape):
                    raise ValueError(f"{name!r} has the shape {shape!r}")
                return np.frombuffer(bytes(content), kind.numpy()).reshape(shape, order="F" if order else "C")
        raise ValueError(f"the array {name!r} is not of {_NAMES[codes]}, or its description is incomplete")


class _Type:
    """Stands for `numpy.dtype`: remembers the code of the type and its byte order."""

    __slots__ = ("code", "order")

    def __init__(self, code: object, *_: object) -> None:
        self.code = _text(code)
        self.order = "="

    def __setstate__(self, state: object) -> None:
        """Take the byte order, the second entry; alignment, the rest, means nothing to integers."""
        if isinstance(state, tuple) and len(state) > 1 and _text(state[1]) in ("<", ">", "=", "|"):
            self.order = str(_text(state[1]))

    def numpy(self) -> np.dtype[np.integer[Any]]:
        """Return numpy's type, after `code` was found among those that are allowed."""
        return np.dtype(f"{self.order}{self.code}")


class _Call:
    """Stands for a function; the pickle may call it, and change nothing of it."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., object]) -> None:
        self.function = function

    def __call__(self, *arguments: object) -> object:
        return self.function(*arguments)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("it changes a function, which image data never needs")


def _text(value: object) -> object:
    return value.decode("ascii", "replace") if isinstance(value, bytes) else value


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _frombuffer(content: object, kind: object, shape: object, order: object) -> _Array:
    """Return the array that numpy writes by protocol 5."""
    array = _Array()
    array.state = (1, shape, kind, order == "F", content)
    return array


def _scalar(kind: object, content: object) -> int:
    """Return a single number of numpy."""
    array = _Array()
    array.state = (1, (1,), kind, False, content)
    return int(array.content("labels", _INTEGERS)[0])


def _encode(text: object, encoding: object) -> bytes:
    """Return bytes that Python 3 wrote by a protocol before 3, which knows text alone."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for text as {encoding!r}")
    return text.encode("latin1")


def _bytes(*arguments: object) -> bytes:
    """Return no bytes, which protocols before 3 call a function for."""
    if arguments:
        raise pickle.UnpicklingError("it makes bytes of something else")
    return b""


_NAMES = {_BYTE: "uint8", _INTEGERS: "integers"}
#: Modules of numpy 1 and 2.
_CORES = ("numpy.core", "numpy._core")
_ALLOWED: dict[tuple[str, str], object] = {
    **{(f"{core}.multiarray", "_reconstruct"): _Call(_reconstruct) for core in _CORES},
    **{(f"{core}.multiarray", "scalar"): _Call(_scalar) for core in _CORES},
    **{(f"{core}.numeric", "_frombuffer"): _Call(_frombuffer) for core in _CORES},
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _Call(_encode),
    ("__builtin__", "bytes"): _Call(_bytes),
    ("builtins", "bytes"): _Call(_bytes),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which image data never needs")
        return _ALLOWED[module, name]
