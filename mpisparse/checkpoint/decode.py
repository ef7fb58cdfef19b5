"""From the structure of a state tree and its arrays back to the tree. What a file says is never taken on trust."""

from __future__ import annotations

import base64
import struct
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

from mpisparse.checkpoint.arrays import NUMPY_DTYPES, Array, ArrayEntry, build_array, build_tensor, shown
from mpisparse.checkpoint.tree import DEPTH, Json, Structure, Tree
from mpisparse.errors import CheckpointError

Load = Callable[[ArrayEntry], Array]


def decode(structure: Structure, load: Load) -> Tree:
    """Return the tree that `structure` describes; `load` brings the flat carrier of an entry that has a dataset.

    Raises:
        CheckpointError: the structure is damaged.
    """
    decoder = _Decoder(structure.arrays, load)
    tree = decoder.decode(structure.tree, 0)
    if decoder.unused:
        raise CheckpointError(f"the structure is damaged: array {min(decoder.unused)} has no place in the tree")
    return tree


class _Decoder:
    """Walks the JSON of a tree once, and hands out every array once."""

    def __init__(self, entries: tuple[ArrayEntry, ...], load: Load) -> None:
        self.unused = dict(enumerate(entries))
        self.load = load

    def decode(self, node: Json, depth: int) -> Tree:
        if depth > DEPTH + 1:
            raise CheckpointError(f"the structure is damaged: it is nested deeper than {DEPTH} levels")
        if isinstance(node, list):
            return [self.decode(item, depth + 1) for item in node]
        if not isinstance(node, dict):
            return node
        kind, content = next(iter(node.items())) if len(node) == 1 else (None, None)
        if kind not in _DECODERS:
            raise CheckpointError(f"the structure is damaged: {shown(node)} is of no kind that this format knows")
        try:
            return _DECODERS[kind](self, content, depth)
        except (ValueError, TypeError, KeyError, AttributeError, struct.error) as error:
            raise CheckpointError(f"the structure is damaged: {shown(node)} is no {kind}: {error!r:.200}") from error

    def _int(self, content: Any, depth: int) -> Tree:
        return int(content, 10)

    def _float(self, content: Any, depth: int) -> Tree:
        return struct.unpack(">d", bytes.fromhex(content))[0]

    def _bytes(self, content: Any, depth: int) -> Tree:
        return base64.b64decode(content, validate=True)

    def _scalar(self, content: Any, depth: int) -> Tree:
        name, digits = content
        if name not in NUMPY_DTYPES:
            raise ValueError(f"numpy has no {name}")
        dtype = np.dtype(name).newbyteorder("<")
        (value,) = np.frombuffer(bytes.fromhex(digits), dtype).astype(name)
        return value

    def _tuple(self, content: Any, depth: int) -> Tree:
        return tuple(self.decode(item, depth + 1) for item in self._require_list(content))

    def _dict(self, content: Any, depth: int) -> Tree:
        pairs = [(self._key(key, depth), self.decode(value, depth + 1)) for key, value in self._require_list(content)]
        result = dict(pairs)
        if len(result) != len(pairs):
            raise ValueError("a key comes twice")
        return result

    def _counter(self, content: Any, depth: int) -> Tree:
        return Counter(self._dict(content, depth))

    def _ordered(self, content: Any, depth: int) -> Tree:
        if not {"items"} <= set(content) <= {"items", "metadata"}:
            raise ValueError("it must hold `items`, perhaps `metadata`, and nothing else")
        result: OrderedDict[Any, Any] = OrderedDict(self._dict(content["items"], depth))
        if "metadata" in content:
            vars(result)["_metadata"] = self.decode(content["metadata"], depth + 1)
        return result

    def _key(self, node: Json, depth: int) -> str | int:
        key = self.decode(node, depth + 1)
        if type(key) is not str and type(key) is not int:
            raise ValueError(f"{shown(key)} is no key")
        return key

    def _require_list(self, content: Any) -> list[Any]:
        if not isinstance(content, list):
            raise ValueError("a list was due")
        return content

    def _tensor(self, content: Any, depth: int) -> Tree:
        return build_tensor(*self._take(content))

    def _array(self, content: Any, depth: int) -> Tree:
        return build_array(*self._take(content))

    def _take(self, index: Any) -> tuple[ArrayEntry, Array]:
        # Once only: a small file must not be able to ask for the same large array a million times.
        if type(index) is not int or index not in self.unused:
            raise ValueError(f"array {shown(index)} is missing, or used twice")
        entry = self.unused.pop(index)
        return entry, np.empty(0, entry.carrier.newbyteorder("=")) if entry.dataset is None else self.load(entry)


_DECODERS: dict[str | None, Callable[[_Decoder, Any, int], Tree]] = {
    "int": _Decoder._int,
    "float": _Decoder._float,
    "bytes": _Decoder._bytes,
    "scalar": _Decoder._scalar,
    "tuple": _Decoder._tuple,
    "dict": _Decoder._dict,
    "counter": _Decoder._counter,
    "ordered": _Decoder._ordered,
    "tensor": _Decoder._tensor,
    "array": _Decoder._array,
}
