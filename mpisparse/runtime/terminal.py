"""The terminal of the person who started the job, which launchers hide from the ranks behind a pipe."""

from __future__ import annotations

import os
import sys
from pathlib import Path

#: Programs between a rank and the terminal, as the kernel names them (15 characters at most).
_LAUNCHERS = frozenset(
    {"mpirun", "mpiexec", "mpiexec.hydra", "hydra_pmi_proxy", "orterun", "prterun", "prte", "prted", "orted"}
)


def terminal_columns(proc: Path = Path("/proc")) -> int | None:
    """Return how wide the terminal is that this process's standard error ends up on, or None when it is no terminal.

    Launchers give their ranks a pipe, and pass on what comes through it. So, where standard error is no terminal
    itself, that of the launcher on this machine counts. Without /proc or a launcher that is known, the answer is None.
    """
    if sys.stderr.isatty():
        return _columns(sys.stderr.fileno())
    process = os.getppid()
    while process > 1:
        name, parent = _name_and_parent(proc / str(process))
        if name not in _LAUNCHERS:
            return None
        columns = _columns_of(proc / str(process) / "fd" / "2")
        if columns is not None:
            return columns
        process = parent
    return None


def _name_and_parent(process: Path) -> tuple[str, int]:
    """Return a process's name and its parent's number; an empty name when it cannot be read."""
    try:
        fields = (process / "stat").read_text()
    except OSError:
        return "", 0
    name, rest = fields[fields.index("(") + 1 :].rsplit(")", 1)
    return name, int(rest.split()[1])


def _columns_of(stream: Path) -> int | None:
    try:
        handle = os.open(stream, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return _columns(handle) if os.isatty(handle) else None
    finally:
        os.close(handle)


def _columns(handle: int) -> int:
    return os.get_terminal_size(handle).columns or 80
