"""Many runs at once: briefs of all runs below some paths, read by as many processes as there are cores."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from analysis.brief import Brief, read_brief
from analysis.find import find

#: Bytes of logs from which on other processes are worth their start.
_WORTH = 2**25


def read_briefs(paths: Iterable[Path]) -> tuple[list[Brief], list[str]]:
    """Return the runs below `paths` in brief, in the order of their names, and what was left out, in words.

    Raises:
        ValueError: a path does not exist, or there is no run that can be read.
    """
    directories = find(paths).runs
    briefs, left_out = [], []
    for directory, outcome in zip(directories, _read_all(directories), strict=True):
        if isinstance(outcome, str):
            left_out.append(f"{directory}: {outcome}")
        else:
            briefs.append(outcome)
    if not briefs:
        reasons = "".join(f"; {line}" for line in left_out[:5])
        raise ValueError(f"no run that a report can be made of below {', '.join(map(str, paths))}{reasons}")
    return briefs, left_out


def _read_all(directories: Sequence[Path]) -> list[Brief | str]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if len(directories) < 2 or cores < 2 or sum(map(_size, directories)) < _WORTH:
        return [_try(directory) for directory in directories]
    # Spawned, not forked: numpy's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    chunk = max(1, min(16, len(directories) // (4 * cores)))
    with ProcessPoolExecutor(min(cores, len(directories)), mp_context=context) as pool:
        return list(pool.map(_try, directories, chunksize=chunk))


def _try(directory: Path) -> Brief | str:
    try:
        return read_brief(directory)
    except ValueError as error:
        return str(error)


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in [directory / "metrics.jsonl", *directory.glob("ranks/*.jsonl")]
               if path.exists())  # fmt: skip
