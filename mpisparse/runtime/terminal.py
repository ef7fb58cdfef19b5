"""The terminal of the person who started the job, which launchers hide from the ranks behind a pipe."""

from __future__ import annotations

import os
from pathlib import Path

#: Programs between a rank and the terminal, as the kernel names them (15 characters at most).
_LAUNCHERS = frozenset(
    {"mpirun", "mpiexec", "mpiexec.hydra", "hydra_pmi_proxy", "orterun", "prterun", "prte", "prted", "orted"}
)


STDOUT, STDERR = 1, 2


def terminal_columns(stream: int, proc: Path = Path("/proc")) -> int | None:
    """Return how wide the terminal is that a stream of this process ends up on, or None when it is no terminal.

    Launchers give their ranks a pipe, or a terminal of their own making, and pass on what comes through it. So the
    outermost launcher on this machine counts, and this process's own stream only where there is none.

    Args:
        stream: STDOUT or STDERR.
    """
    outermost, process = None, os.getppid()
    while process > 1:
        name, parent = _name_and_parent(proc / str(process))
        if name not in _LAUNCHERS:
            break
        outermost, process = process, parent
    if outermost is not None:
        return _columns_of(proc / str(outermost) / "fd" / str(stream))
    return _columns(stream) if os.isatty(stream) else None


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
