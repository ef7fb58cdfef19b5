"""Section: one table of a run configuration, which names the nearest valid key when it meets an unknown one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, model_validator

#: Characters of a wrong word that are looked at and shown.
_LONGEST = 80


class Section(BaseModel):
    """A frozen table whose keys are all known; wrong types are errors, an int where a float is due is none."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _name_unknown_keys(cls, data: Any) -> Any:
        if isinstance(data, dict) and cls.model_config.get("extra") == "forbid":
            unknown = [key for key in data if key not in cls.model_fields]
            if unknown:
                raise ValueError(unknown_key(unknown[0], cls.model_fields))
        return data


def unknown_key(key: str, valid: Iterable[str]) -> str:
    """Return what to say of a key that does not exist: the nearest one that does, and all of them."""
    names = sorted(valid)
    return f"unknown key {_short(key)}.{did_you_mean(key, names)} Valid keys: {', '.join(names) or 'none'}"


def unknown_name(noun: str, name: str, valid: Iterable[str]) -> str:
    """Return what to say of a name that does not exist: the nearest one that does, and all of them."""
    names = sorted(valid)
    return f"no {noun} {_short(name)}.{did_you_mean(name, names)} Valid names: {', '.join(names)}"


def did_you_mean(word: str, valid: Iterable[str]) -> str:
    """Return " Did you mean X?", X the nearest of some words, capitals and hyphens aside; nothing if none is."""
    plain: dict[str, str] = {}
    for name in valid:
        plain.setdefault(_plain(name), name)
    near = difflib.get_close_matches(_plain(word)[:_LONGEST], plain, n=1, cutoff=0.5)
    return f" Did you mean {plain[near[0]]!r}?" if near else ""


def _plain(word: str) -> str:
    return re.sub(r"[-_ .]", "", word).lower()


def _short(word: str) -> str:
    return repr(word if len(word) <= _LONGEST else f"{word[:_LONGEST]}...")


@dataclass(frozen=True, slots=True)
class Duration:
    """A length of training: so many epochs, or so many optimizer steps."""

    count: int
    unit: str

    def steps(self, steps_per_epoch: int) -> int:
        """Return it in optimizer steps."""
        return self.count * (steps_per_epoch if self.unit == "epochs" else 1)

    def __str__(self) -> str:
        return f"{self.count} {self.unit if self.count != 1 else self.unit[:-1]}"


def _parse_duration(value: Any) -> Any:
    match = re.fullmatch(r"\s*(\d+)\s*(epoch|step)s?\s*", value) if isinstance(value, str) else None
    if match is None:
        if isinstance(value, Duration):
            return value
        raise ValueError(f'{value!r} is not a length of training: write "20 epochs" or "1000 steps"')
    return Duration(int(match[1]), match[2] + "s")


#: A field that reads "20 epochs" or "1000 steps".
DurationField = Annotated[Duration, BeforeValidator(_parse_duration), PlainSerializer(str)]
