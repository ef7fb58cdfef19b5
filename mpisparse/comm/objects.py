"""Objects as text: what one rank sends to others, without pickle, so that receiving it runs no code.

JSON holds most of it. What JSON has no word for is a list that begins with the name of its type.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpisparse.comm.guard import shown
from mpisparse.errors import ConfigError

_GROUPS: dict[str, Callable[[list[Any]], Any]] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}


def to_text(value: object) -> bytes:
    """Return a value as text, or raise ConfigError, naming the part of it that is of no type that can be sent."""
    try:
        return json.dumps(_encoded(value, "the object")).encode()
    except RecursionError:
        raise ConfigError("the object holds itself, or is nested too deep: broadcast_object sends trees") from None
    except ValueError as error:
        raise ConfigError(f"the object cannot be sent ({error})") from None


def from_text(text: bytes) -> Any:
    """Return the value that `to_text` wrote, of the same types."""
    return _decoded(json.loads(text))


def _encoded(value: Any, name: str) -> Any:
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind.__name__ in _GROUPS and kind.__module__ == "builtins":
        return [kind.__name__, *(_encoded(each, f"an item of {name}") for each in value)]
    if kind is dict:
        keys = (_encoded(key, f"a key of {name}") for key in value)
        parts = (_encoded(each, f"{name}[{key!r}]") for key, each in value.items())
        return ["dict", *map(list, zip(keys, parts, strict=True))]
    if kind is complex:
        return ["complex", value.real, value.imag]
    if kind is bytes:
        return ["bytes", _base64(value)]
    if isinstance(value, Path):
        return ["path", str(value)]
    if isinstance(value, Tensor) and value.layout == torch.strided and value.device.type != "meta":
        host = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
        raw = host.reshape(-1).view(torch.uint8).numpy().tobytes()
        return ["tensor", str(host.dtype).removeprefix("torch."), list(host.shape), _base64(raw)]
    if isinstance(value, np.generic) or kind is np.ndarray:
        array = np.asarray(value)
        if not array.dtype.hasobject and array.dtype.names is None:
            what = "scalar" if isinstance(value, np.generic) else "array"
            return [what, array.dtype.str, list(array.shape), _base64(array.tobytes())]
    raise ConfigError(
        f"{name} is {shown(value)}, which broadcast_object does not send: give numbers, text, bytes, paths, arrays, "
        "tensors, and lists, tuples, sets and dicts of these; of other objects, such as vars(object)"
    )


def _decoded(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    kind, *rest = value
    if kind in _GROUPS:
        return _GROUPS[kind]([_decoded(each) for each in rest])
    if kind == "dict":
        return {_decoded(key): _decoded(each) for key, each in rest}
    if kind == "complex":
        return complex(*rest)
    if kind == "bytes":
        return base64.b64decode(rest[0])
    if kind == "path":
        return Path(rest[0])
    dtype, shape, raw = rest[0], rest[1], bytearray(base64.b64decode(rest[2]))
    if kind == "tensor":
        return torch.from_numpy(np.frombuffer(raw, np.uint8)).view(getattr(torch, dtype)).reshape(shape)
    array = np.frombuffer(raw, np.dtype(dtype)).reshape(shape)
    return array[()] if kind == "scalar" else array


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
