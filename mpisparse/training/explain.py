"""What is said of a value that a run configuration or a study cannot have: one sentence, in words of TOML."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from mpisparse.training.section import did_you_mean, unknown_name

#: Characters of a value that are shown.
_SHOWN = 80
#: What pydantic calls types that TOML has other words for.
_TYPES = {
    "bool_type": "Input should be true or false",
    "string_type": "Input should be text in quotes",
    "string_pattern_mismatch": "Input should be letters, digits, '.', '_' and '-', a letter or digit first",
}
_TABLES = ("dict_type", "model_type", "model_attributes_type")
_LISTS = ("list_type", "tuple_type")
#: Sections with choices: the validation puts the name of what was chosen behind each of them.
_CHOICES = ("data", "model", "sparsifier", "resparsify")


def explain(error: ValidationError) -> str:
    """Return every problem of a validation as "section.key: what is wrong, not value", joined by semicolons."""
    return "; ".join(_sentence(problem) for problem in error.errors())


def _sentence(problem: Mapping[str, Any]) -> str:
    kind, value, context, place = problem["type"], problem["input"], problem.get("ctx", {}), _place(problem["loc"])
    if kind == "union_tag_invalid":
        names = [name.strip("' ") for name in context["expected_tags"].split(",")]
        return f"{place}.name: {unknown_name('such name', str(context['tag']), names)}"
    if kind == "union_tag_not_found":
        return f"{place}: the key 'name' is missing"
    if kind == "missing":
        return f"{place}: this key is missing"
    if kind == "value_error":
        return f"{place}: {problem['msg'].removeprefix('Value error, ')}"
    if kind == "literal_error":
        names = re.findall(r"'([^']*)'", context["expected"])
        return f"{place}: {problem['msg']}, not {shown(value)}.{did_you_mean(str(value), names)}".removesuffix(".")
    return f"{place}: {_rule(kind, value, problem['msg'])}, not {shown(value)}"


def _rule(kind: str, value: object, message: str) -> str:
    """Return what a value should be."""
    if kind in _LISTS:
        one = isinstance(value, int | float | str) and not isinstance(value, bool)
        return "Input should be a list" + (f", such as [{shown(value)}]" if one else " in brackets")
    if kind in _TABLES:
        named = f', such as {{ name = "{value}" }}' if isinstance(value, str) and value.isidentifier() else " of keys"
        return f"Input should be a table{named}"
    return _TYPES.get(kind, message)


def shown(value: object) -> str:
    """Return a value as TOML writes it, cut where it is long."""
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _place(location: Sequence[int | str]) -> str:
    """Return the dotted key, without the names of choices that the validation puts into it."""
    parts = [str(part) for part in location]
    if len(parts) > 1 and parts[0] in _CHOICES:
        del parts[1]
        if len(parts) > 2 and parts[1] == "schedule":
            del parts[2]
    return ".".join(parts) or "top level"
