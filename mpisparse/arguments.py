"""Arguments that are of another kind than they have to be: one line that says what came, and what to give."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterable
from numbers import Real

from mpisparse.errors import ConfigError

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60


def short(value: object) -> str:
    """Return a text of a value that fits into one line, of type alone where it is long."""
    text = " ".join(_SHORT.repr(value).split())
    return text if len(text) <= 80 else f"a {type(value).__name__}"


def require_kind(name: str, value: object, kind: type | tuple[type, ...], give: str) -> None:
    """Raise ConfigError unless `value` is of a kind.

    Args:
        name: of the argument.
        give: what would be right, such as "a rule such as TopK(0.01)".
    """
    if isinstance(value, kind):
        return
    if isinstance(value, type) and issubclass(value, kind):
        raise ConfigError(f"{name} is the class {value.__name__} itself: give an instance, {give}")
    raise ConfigError(f"{name} is {short(value)}, a {type(value).__name__}: give {give}")


def require_callable(name: str, value: object, give: str) -> None:
    """Raise ConfigError unless `value` is None or can be called."""
    if value is not None and not callable(value):
        raise ConfigError(f"{name} is {short(value)}, a {type(value).__name__}: give {give}, or leave it out")


def require_path(name: str, value: object, give: str) -> None:
    """Raise ConfigError unless `value` is a path."""
    require_kind(name, value, (str, os.PathLike), give)


def require_flag(name: str, value: object) -> None:
    """Raise ConfigError unless `value` is True or False: any text would count as True."""
    require_kind(name, value, bool, "True or False")


def is_one_of(value: object, names: Iterable[str]) -> bool:
    """Return True for one of these texts, and for nothing else, however it compares."""
    return isinstance(value, str) and value in set(names)


def is_number(value: object) -> bool:
    """Return True for a real number of any library, and not for True and False."""
    return isinstance(value, Real) and not isinstance(value, bool)
