"""comparable: a text of any value, the same in every process for values that are alike, to compare ranks by."""

from __future__ import annotations

import dataclasses
import functools
import re
import types
from collections.abc import Iterable, Mapping, Set
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpisparse.kernels.checksum import checksum
from mpisparse.tensors import bits_of

#: Entries of a vector that are shown; longer ones are a checksum.
_SHOWN = 8

#: Values inside values that are looked at; whoever is deeper counts by type alone.
_DEPTH = 8

#: Floats up to here count as whole numbers where they are, so that 1 and 1.0 are alike, as they are to Python.
_WHOLE = 2.0**53

#: Types whose own text will do.
_SIMPLE = frozenset({type(None), bool, int, str, bytes})

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def comparable(value: object, depth: int = _DEPTH) -> str:
    """Return a text that tells `value` from others, without what differs between processes.

    - Numbers of any library are alike where they are equal, and so are all NaN.
    - The order of sets and mappings does not count; addresses do not, either.
    - Functions are told apart by their code, their defaults, and the plain values that they use from outside.
    - Objects that define neither a text nor equality are told apart by their type and the plain values in them.
    """
    if type(value) in _SIMPLE:
        return repr(value)
    if isinstance(value, int | float | np.bool_ | np.number):
        return _number(value)
    if depth == 0:
        return f"<{type(value).__qualname__}>"
    if isinstance(value, Tensor):
        return _tensor(value)
    if isinstance(value, np.ndarray):
        return _array(value, depth)
    if isinstance(value, list | tuple):
        inner = _joined(comparable(item, depth - 1) for item in value)
        return f"[{inner}]" if isinstance(value, list) else f"({inner})"
    if isinstance(value, Set):
        return "{" + _joined(sorted(comparable(item, depth - 1) for item in value)) + "}"
    if isinstance(value, Mapping):
        pairs = ((comparable(key, depth - 1), comparable(item, depth - 1)) for key, item in value.items())
        return "{" + _joined(f"{key}: {item}" for key, item in sorted(pairs)) + "}"
    return _function(value, depth) or _object(value, depth)


def _joined(texts: Iterable[str]) -> str:
    return ", ".join(texts)


def _number(value: Any) -> str:
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float):
        return repr(int(value)) if value.is_integer() and abs(value) < _WHOLE else repr(float(value))
    return repr(int(value)) if isinstance(value, int) and not isinstance(value, bool) else repr(value)


def _tensor(tensor: Tensor) -> str:
    if tensor.is_meta or tensor.is_nested:
        return f"tensor of {tensor.dtype} without values here"
    if tensor.layout == torch.strided and not tensor.is_quantized and tensor.numel() == 1:
        return _number(tensor.item())
    short = tensor.layout == torch.strided and not tensor.is_quantized and tensor.numel() <= _SHOWN
    values = str(tensor.tolist()) if short else f"checksum {bits_of(tensor):016x}"
    return f"tensor {tuple(tensor.shape)} {tensor.dtype} {values}"


def _array(array: np.ndarray[Any, Any], depth: int) -> str:
    if array.dtype == object:
        return f"array {array.shape} {comparable(array.reshape(-1).tolist(), depth - 1)}"
    if array.size == 1 and array.dtype.kind in "biuf":
        return _number(array.reshape(-1)[0])
    memory = np.frombuffer(array.tobytes(), np.uint8)
    values = str(array.tolist()) if array.size <= _SHOWN else f"checksum {checksum(memory):016x}"
    return f"array {array.shape} {array.dtype} {values}"


def _function(value: Any, depth: int) -> str:
    """Return the text of something that is a function, or nothing."""
    if isinstance(value, functools.partial):
        inner = (comparable(part, depth - 1) for part in (value.func, value.args, value.keywords))
        return f"partial({_joined(inner)})"
    if isinstance(value, types.MethodType):
        used = _attributes(value.__self__, value.__func__, depth)
        return f"method {comparable(value.__func__, depth - 1)} of {type(value.__self__).__qualname__}({used})"
    if isinstance(value, types.FunctionType):
        outside = [_content(cell) for cell in value.__closure__ or ()] + [value.__defaults__, value.__kwdefaults__]
        found = _joined(_plain(item, depth - 1) for item in outside if item is not None)
        return f"function {value.__module__}.{value.__qualname__} {_code(value.__code__)} ({found})"
    if isinstance(value, types.BuiltinFunctionType | type):
        return f"{value.__module__}.{value.__qualname__}"
    return ""


def _content(cell: types.CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # nothing was put into it so far
        return None


def _code(code: types.CodeType) -> str:
    """Return a checksum of what a function does, wherever its file lies."""
    constants = (_code(c) if isinstance(c, types.CodeType) else comparable(c) for c in code.co_consts)
    text = _joined([code.co_code.hex(), str(code.co_names), str(code.co_varnames), *constants])
    return f"{checksum(np.frombuffer(text.encode(), np.uint8)):016x}"


def _object(value: Any, depth: int) -> str:
    kind = type(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = (
            f"{f.name}={comparable(getattr(value, f.name, None), depth - 1)}"
            for f in dataclasses.fields(value)
            if f.compare
        )
        return f"{kind.__qualname__}({_joined(fields)})"
    text = repr(value)
    if text != object.__repr__(value):
        return _ADDRESS.sub("", text)
    call = next((each.__dict__["__call__"] for each in kind.__mro__ if "__call__" in each.__dict__), None)
    return f"{kind.__qualname__}({_attributes(value, call, depth)})"


def _attributes(value: object, method: object, depth: int) -> str:
    """Return the plain values that an object holds: those that a method names, where it is known."""
    held = getattr(value, "__dict__", {})
    named = method.__code__.co_names if isinstance(method, types.FunctionType) else tuple(held)
    return _joined(f"{name}={_plain(held[name], depth - 1)}" for name in sorted(set(named) & set(held)))


def _plain(value: object, depth: int) -> str:
    """Return the text of a value that a function uses; whatever is no value, such as a communicator, counts by type."""
    simple = value is None or isinstance(
        value, bool | int | float | str | bytes | np.generic | np.ndarray | Tensor | list | tuple | Set | Mapping
    )
    called = isinstance(value, functools.partial | types.MethodType | types.FunctionType)
    if depth > 0 and (simple or called or (dataclasses.is_dataclass(value) and not isinstance(value, type))):
        return comparable(value, depth)
    return f"<{type(value).__qualname__}>"
