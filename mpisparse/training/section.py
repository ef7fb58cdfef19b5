"""Section: one table of a run configuration, which names the nearest valid key when it meets an unknown one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, model_validator


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
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown key {key!r}.{guess} Valid keys: {', '.join(names) or 'none'}"


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
