"""Reading and writing run configurations: a TOML file, and what the command line sets over it."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import tomli_w
from pydantic import ValidationError

from mpisparse import files
from mpisparse.errors import ConfigError
from mpisparse.training.config import CHOICES, RunConfig, optimizer_options
from mpisparse.training.explain import explain

#: Bytes of a configuration or study at most, and keys below each other.
_LARGEST = 2**20
KEYS = 10


def read_config(path: Path, settings: Iterable[str] = ()) -> RunConfig:
    """Return the configuration in `path` with `settings` over it.

    Args:
        path: a TOML file.
        settings: "section.key=value", the value written as in TOML; one that is not TOML counts as a string. Where one
            changes a section's name, keys of the file that the new name does not know are left out.

    Raises:
        ConfigError: the file is missing or no TOML, a key is unknown, or a value is wrong; with the place.
    """
    return parse_config(apply_settings(load_toml(path, "a run configuration")[1], settings), str(path))


def load_toml(path: Path, what: str) -> tuple[str, dict[str, Any]]:
    """Return the text of a TOML file, and what it holds.

    Args:
        what: what the file should be, for the message.

    Raises:
        ConfigError: it cannot be read, is larger than a file of this kind, or is no TOML.
    """
    try:
        # Editors on other systems begin text with a byte order mark.
        text = files.read_bytes(path, _LARGEST).decode("utf-8-sig").replace("\r\n", "\n")
        return text, files.parse_toml(text)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}. Give the path of {what}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is no TOML file: {error}") from error


def read_text(text: str, source: str, settings: Iterable[str] = ()) -> RunConfig:
    """Return the configuration that TOML text holds with `settings` over it; see `read_config`."""
    try:
        tree = files.parse_toml(text)
    except ValueError as error:
        raise ConfigError(f"{source} is no TOML file: {error}") from error
    return parse_config(apply_settings(tree, settings), source)


def apply_settings(tree: dict[str, Any], settings: Iterable[str]) -> dict[str, Any]:
    """Return a copy of `tree` with what the command line sets over it; see `read_config`."""
    changed = copy.deepcopy(tree)
    for setting in settings:
        _set(changed, setting)
    _drop_keys_of_other_names(changed, tree)
    return changed


def parse_config(tree: Mapping[str, Any], source: str) -> RunConfig:
    """Return the configuration that `tree` holds; ConfigError says what is wrong where in `source`."""
    if isinstance(tree.get("base"), dict):
        raise ConfigError(f"{source} is a study of many runs: make them by `mpisparse sweep {source}`")
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{source}: {explain(error)}") from None


def to_tree(config: RunConfig) -> dict[str, Any]:
    """Return every key of the configuration with its value, without those that are not set: what TOML can hold."""
    tree: dict[str, Any] = config.model_dump(mode="json", exclude_none=True)
    return tree


def complete(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what an earlier version wrote as `to_tree`, with the defaults of keys that it did not know."""
    try:
        return to_tree(RunConfig.model_validate(tree))
    except ValidationError:
        return tree


def to_toml(config: RunConfig) -> str:
    """Return the configuration as TOML, defaults written out."""
    return tomli_w.dumps(to_tree(config))


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Return the keys, dotted, in which two trees differ, each with both values (None where a key is missing)."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in sorted(ours.keys() | theirs.keys()):
        a, b = ours.get(key), theirs.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found |= differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found[prefix + key] = (a, b)
    return found


def _set(tree: dict[str, Any], setting: str) -> None:
    path, equals, text = setting.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"--set {setting!r}: write section.key=value, such as sparsifier.density=0.001")
    if len(keys) > KEYS:
        raise ConfigError(f"--set {keys[0]:.40}...: {len(keys)} keys below each other, where no section has as many")
    try:
        setting.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"--set {setting!r}: not UTF-8, which is what a configuration is written in") from None
    try:
        found = files.parse_toml(f"value = {text}")
        value = found["value"] if len(found) == 1 else text
    except tomllib.TOMLDecodeError:
        value = text
    except ValueError as error:
        raise ConfigError(f"--set {setting:.80}: {error}") from None
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"--set {setting!r}: {key} is a value, not a section")
    tree[keys[-1]] = value


def _drop_keys_of_other_names(tree: dict[str, Any], before: dict[str, Any]) -> None:
    """Take from sections whose name was set anew what the file said for the old name alone."""
    for section in (*CHOICES, "optimizer"):
        ours, theirs = tree.get(section), before.get(section)
        if not isinstance(ours, dict) or not isinstance(theirs, dict) or ours.get("name") == theirs.get("name"):
            continue
        known = _known(section, ours.get("name"))
        if known is None:
            continue
        old = _known(section, theirs.get("name")) or {}
        for key in [key for key in ours if ours[key] == theirs.get(key)]:
            if key not in known or known[key] != old.get(key):
                del ours[key]


def _known(section: str, name: object) -> dict[str, Any] | None:
    """Return the keys of a section of that name, each with its type; None for a name that does not exist."""
    if section == "optimizer":
        options = optimizer_options().get(str(name))
        return None if options is None else dict.fromkeys({"name", *options})
    kind = CHOICES[section].get(str(name))
    return None if kind is None else {key: _kinds(field.annotation) for key, field in kind.model_fields.items()}


def _kinds(annotation: Any) -> set[str]:
    """Return the types that a key takes, without their limits, and without None for a key that may be left."""
    choices = (
        get_args(annotation) if isinstance(annotation, UnionType) or get_origin(annotation) is Union else [annotation]
    )
    plain = [get_args(choice)[0] if get_origin(choice) is Annotated else choice for choice in choices]
    return {str(kind) for kind in plain if kind is not NoneType}
