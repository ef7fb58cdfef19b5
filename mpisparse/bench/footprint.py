"""How much memory a piece of work takes at its peak, as the operating system counts it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

_SELF = Path("/proc/self")


def resident(proc: Path = _SELF) -> int | None:
    """Return the bytes of this process that are in memory, or None where the system does not tell (not Linux)."""
    return _field(proc, "VmRSS")


def peak_during(action: Callable[[], object], proc: Path = _SELF) -> int | None:
    """Return the most bytes that were in memory while `action` ran, or None where the system does not tell.

    Linux keeps a high-water mark a process, and sets it back on request: everything counts, numpy's and torch's
    arrays, MPI's buffers and compiled code alike.
    """
    try:
        (proc / "clear_refs").write_text("5")
    except OSError:
        action()
        return None
    action()
    return _field(proc, "VmHWM")


def _field(proc: Path, name: str) -> int | None:
    try:
        lines = (proc / "status").read_text().splitlines()
    except OSError:
        return None
    found = (line.split()[1] for line in lines if line.startswith(f"{name}:"))
    kibibytes = next(found, None)
    return None if kibibytes is None else int(kibibytes) * 1024
