"""Quota: the cores that the control groups of this process let it use, as containers and batch systems limit them.

Affinity does not tell: a container of two cores on a machine of 64 may run on any of them, two at a time. cgroups(7)
has the files that are read here, of both versions of control groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Quota:
    """The strictest limit on a process.

    cores: processor time over time; may be a fraction. group: the same for all processes of a machine that share it.
    """

    cores: float
    group: str


def read_quota(root: Path = Path("/")) -> Quota | None:
    """Return the quota of this process, None where there is none, or none that can be read.

    Args:
        root: where the file system begins.
    """
    try:
        limits = [limit for directory in _directories(root) if (limit := _limit(directory)) is not None]
    except (OSError, ValueError, IndexError):
        return None
    return min(limits, key=lambda limit: limit.cores, default=None)


def _directories(root: Path) -> Iterator[Path]:
    """Yield the directories of the groups that this process is in and that limit processors, inner ones first."""
    groups = [line.split(":", 2) for line in _lines(root / "proc/self/cgroup")]
    for _, controllers, path in groups:
        if controllers and "cpu" not in controllers.split(","):
            continue
        for kind, options, inside, mounted in _mounts(root):
            if kind != ("cgroup" if controllers else "cgroup2") or (controllers and "cpu" not in options):
                continue
            # A container may see its own group as the top of a mount.
            below = path if inside == "/" else path.removeprefix(inside) if _within(path, inside) else None
            if below is None:
                continue
            top = root / mounted.lstrip("/")
            here = top / below.lstrip("/")
            if here.is_dir():
                yield from (here, *(parent for parent in here.parents if parent.is_relative_to(top)))
                break


def _mounts(root: Path) -> Iterator[tuple[str, list[str], str, str]]:
    """Yield of each mount its kind, its options, which part of its file system it shows, and where."""
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        yield kind, options.split(","), before.split(" ")[3], before.split(" ")[4]


def _limit(directory: Path) -> Quota | None:
    """Return the quota of one group, None if it has none."""
    if (directory / "cpu.max").is_file():
        quota, period = _lines(directory / "cpu.max")[0].split()
    elif (directory / "cpu.cfs_quota_us").is_file():
        quota, period = (_lines(directory / f"cpu.cfs_{name}_us")[0] for name in ("quota", "period"))
    else:
        return None
    if quota in ("max", "-1"):
        return None
    status = directory.stat()
    return Quota(int(quota) / int(period), f"{status.st_dev}:{status.st_ino}")


def _within(path: str, top: str) -> bool:
    return path == top or path.startswith(f"{top}/")


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()
