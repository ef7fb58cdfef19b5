"""From a state tree to its structure and its arrays: exact, and without pickle."""

from __future__ import annotations

import base64
import math
import struct
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from mpisparse.checkpoint.arrays import (
    Array,
    ArrayEntry,
    array_flaw,
    dataset_name,
    flatten_array,
    flatten_tensor,
    tensor_flaw,
)
from mpisparse.checkpoint.tree import DEPTH, Json, Structure, Tree
from mpisparse.errors import CheckpointError

Place = tuple[str | int, ...]


def encode(tree: Tree) -> tuple[Structure, list[Array]]:
    """Return the structure of `tree`, and its arrays flat in their carriers, one an entry.

    Tensors of any device are taken to the host; whether they require a gradient, their strides and shared storage are
    not kept. A tensor that lies dense on the host is not copied.

    Raises:
        CheckpointError: the tree holds something else; the message names the path, such as `optimizer.state.0.foo`.
    """
    encoder = _Encoder()
    node = encoder.encode(tree, ())
    return Structure(node, tuple(encoder.entries)), encoder.arrays


def _label(place: Place) -> str:
    # Python refuses to write out integers of thousands of digits.
    return ".".join(key if isinstance(key, str) else f"{key % 10**18 if abs(key) >= 2**64 else key}" for key in place)


def _refuse(place: Place, what: str) -> CheckpointError:
    name = _label(place)[:200].encode(errors="backslashreplace").decode() or "the state itself"
    return CheckpointError(f"{name} is {what}")


def _refuse_type(place: Place, value: object) -> CheckpointError:
    name = type(value).__name__
    return _refuse(
        place,
        f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}: a checkpoint holds dicts with str or int keys, lists, "
        "tuples, tensors, numpy arrays, int, float, bool, None, str and bytes, and no classes derived from them",
    )


class _Encoder:
    """Walks a tree once, and collects its arrays on the way."""

    def __init__(self) -> None:
        self.entries: list[ArrayEntry] = []
        self.arrays: list[Array] = []

    def encode(self, value: Tree, place: Place) -> Json:
        if len(place) > DEPTH:
            raise _refuse(place, f"nested deeper than {DEPTH} levels: does the state hold itself?")
        if value is None or type(value) is bool:
            return value
        if isinstance(value, np.generic):
            return self._scalar(value, place)
        method = _ENCODERS.get(type(value))
        if method is None:
            raise _refuse_type(place, value)
        return method(self, value, place)

    def _str(self, value: str, place: Place) -> Json:
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise _refuse(place, f"a string with half a surrogate pair, which UTF-8 cannot write: {error}") from error
        return value

    def _int(self, value: int, place: Place) -> Json:
        if -(2**63) <= value < 2**64:
            return value
        try:
            return {"int": str(value)}
        except ValueError as error:
            raise _refuse(place, f"an integer of {value.bit_length()} bits: {error}") from error

    def _float(self, value: float, place: Place) -> Json:
        return value if math.isfinite(value) else {"float": struct.pack(">d", value).hex()}

    def _bytes(self, value: bytes, place: Place) -> Json:
        return {"bytes": base64.b64encode(value).decode()}

    def _scalar(self, value: np.generic, place: Place) -> Json:
        if flaw := array_flaw(value):
            raise _refuse(place, flaw)
        return {"scalar": [value.dtype.name, np.asarray(value, value.dtype.newbyteorder("<")).tobytes().hex()]}

    def _list(self, value: list[Any], place: Place) -> Json:
        return [self.encode(item, (*place, index)) for index, item in enumerate(value)]

    def _tuple(self, value: tuple[Any, ...], place: Place) -> Json:
        return {"tuple": [self.encode(item, (*place, index)) for index, item in enumerate(value)]}

    def _items(self, items: Iterable[tuple[Any, Any]], place: Place) -> Json:
        pairs = []
        for key, value in items:
            if type(key) is not str and type(key) is not int:
                raise _refuse(place, f"a dict with the key {key!r:.80} of type {type(key).__name__}: use str or int")
            inner = (*place, key)
            pairs.append([self.encode(key, inner), self.encode(value, inner)])
        return pairs

    def _dict(self, value: dict[Any, Any], place: Place) -> Json:
        return {"dict": self._items(value.items(), place)}

    def _counter(self, value: Counter[Any], place: Place) -> Json:
        return {"counter": self._items(value.items(), place)}

    def _ordered(self, value: OrderedDict[Any, Any], place: Place) -> Json:
        # A module's state_dict() keeps the versions of its layers in an attribute; without them load_state_dict()
        # would take the state for one of an old version of the layer and convert it.
        attributes = vars(value)
        if extra := set(attributes) - {"_metadata"}:
            raise _refuse(place, f"an OrderedDict with the attribute {min(extra)}, which would be lost: give a dict")
        node = {"items": self._items(value.items(), place)}
        if attributes:
            node["metadata"] = self.encode(attributes["_metadata"], (*place, "_metadata"))
        return {"ordered": node}

    def _tensor(self, value: torch.Tensor, place: Place) -> Json:
        if flaw := tensor_flaw(value):
            raise _refuse(place, flaw)
        dtype = str(value.dtype).removeprefix("torch.")
        return {"tensor": self._add(dtype, tuple(value.shape), flatten_tensor(value), place)}

    def _array(self, value: Array, place: Place) -> Json:
        if flaw := array_flaw(value):
            raise _refuse(place, flaw)
        return {"array": self._add(value.dtype.name, value.shape, flatten_array(value), place)}

    def _add(self, dtype: str, shape: tuple[int, ...], flat: Array, place: Place) -> int:
        index = len(self.entries)
        name = dataset_name(index, _label(place)) if flat.size else None
        self.entries.append(ArrayEntry(name, dtype, shape))
        self.arrays.append(flat)
        return index


_ENCODERS: dict[type, Callable[[_Encoder, Any, Place], Json]] = {
    str: _Encoder._str,
    int: _Encoder._int,
    float: _Encoder._float,
    bytes: _Encoder._bytes,
    list: _Encoder._list,
    tuple: _Encoder._tuple,
    dict: _Encoder._dict,
    Counter: _Encoder._counter,
    OrderedDict: _Encoder._ordered,
    torch.Tensor: _Encoder._tensor,
    np.ndarray: _Encoder._array,
}
