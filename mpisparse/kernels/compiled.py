"""compiled: how kernels are declared, and where the machine code that they become is kept from one process to the next.

numba keeps it beside the package, else below the user's home. Where neither can be written, as in containers and on
many compute nodes, it goes into a directory of the user's own below the system's temporary one. Where that cannot be
either, every process compiles for itself.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba import config as settings
from numba import njit

#: numba's settings, whose names mypy does not know.
_NUMBA: Any = settings

#: Where a directory is made when neither package nor home can be written, after what TMPDIR says.
_TEMPORARY = ("/tmp", "/var/tmp")  # the directory in it is looked at before it is trusted

#: Bits that let others than the owner in.
_OTHERS = 0o077


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that makes a function a kernel, which releases the interpreter's lock.

    Args:
        options: of `numba.njit`.
    """

    def declare(function: Callable[..., Any]) -> Any:
        kernel = _cached(function, options)
        # What is kept saves time and no more: where it cannot be written or read, the kernel is compiled.
        kernel._cache = _Kept(kernel._cache)
        return kernel

    return declare


def _cached(function: Callable[..., Any], options: dict[str, Any]) -> Any:
    with suppress(RuntimeError):  # numba: no directory for it can be written
        return njit(nogil=True, cache=True, **options)(function)
    directory = _own_directory()
    if directory is not None:
        before = _NUMBA.CACHE_DIR
        _NUMBA.CACHE_DIR = str(directory)
        try:
            with suppress(RuntimeError):
                return njit(nogil=True, cache=True, **options)(function)
        finally:
            _NUMBA.CACHE_DIR = before
    return njit(nogil=True, **options)(function)


class _Kept:
    """numba's store of one kernel's machine code, which fails nobody: a full disk, a damaged or foreign file."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def load_overload(self, *key: Any) -> Any:
        # Whatever a damaged file makes numba raise.
        with suppress(Exception):
            return self._store.load_overload(*key)

    def save_overload(self, *key: Any) -> None:
        with suppress(Exception):
            self._store.save_overload(*key)
            return
        with suppress(OSError):
            # A damaged index is read before it is written again.
            self._store.flush()
            self._store.save_overload(*key)


@cache
def _own_directory() -> Path | None:
    return private_directory([Path(os.environ.get("TMPDIR", "")), *map(Path, _TEMPORARY)])


def private_directory(parents: Iterable[Path]) -> Path | None:
    """Return a directory in the first of `parents` that can be written, in which nobody else can have put a file.

    It is of this user and this version of numba. What numba finds there it runs: so one that belongs to somebody else,
    that others may write to, that is a link, or that others could exchange for theirs is passed over.
    """
    for parent in parents:
        with suppress(OSError):
            if not parent.is_absolute() or not _only_owner_renames(parent.resolve(strict=True)):
                continue
            directory = parent.resolve() / f"mpisparse-{os.geteuid()}-numba-{numba.__version__}"
            directory.mkdir(mode=0o700, exist_ok=True)
            found = directory.lstat()
            if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & _OTHERS:
                tempfile.TemporaryFile(dir=directory).close()
                return directory
    return None


def _only_owner_renames(directory: Path) -> bool:
    """Return True when only this user, and root, can replace what this user has in it, on all of its path."""
    for each in (directory, *directory.parents):
        found = each.stat()
        shared = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not found.st_mode & stat.S_ISVTX
        if shared or found.st_uid not in (0, os.geteuid()):
            return False
    return True
