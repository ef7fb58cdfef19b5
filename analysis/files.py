"""Small files, read and written as mpisparse does: by its file of functions alone, which needs nothing but Python.

The package around it would bring torch, which no analysis needs.
"""

from __future__ import annotations

import importlib.util
from io import BufferedReader
from pathlib import Path
from types import ModuleType
from typing import Any


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("_files", Path(__file__).parents[1] / "mpisparse" / "files.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_FILES = _load()

#: Bytes of a text file at most, where nothing else is said.
SMALL: int = _FILES.SMALL


def open_regular(path: Path) -> BufferedReader:
    """Return a file open for reading; OSError if it is no regular one."""
    file: BufferedReader = _FILES.open_regular(path)
    return file


def read_text(path: Path, limit: int = SMALL) -> str:
    """Return the text in a UTF-8 file; OSError or ValueError if it is none, or has more than `limit` bytes."""
    text: str = _FILES.read_text(path, limit)
    return text


def read_json(path: Path, limit: int = SMALL) -> Any:
    """Return what a JSON file holds; errors are those of `read_text` and `parse_json`."""
    return _FILES.read_json(path, limit)


def parse_json(content: bytes | str, *, constants: bool = False) -> Any:
    """Return what JSON text holds, or raise ValueError; with `constants`, NaN and infinities are taken."""
    return _FILES.parse_json(content, constants=constants)


def parse_toml(text: str) -> dict[str, Any]:
    """Return what TOML text holds, or raise ValueError."""
    tree: dict[str, Any] = _FILES.parse_toml(text)
    return tree


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all, through no link; OSError if it cannot be written."""
    _FILES.write_text(path, text)
