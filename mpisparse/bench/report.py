"""Reports: a table for people, JSON for programs, and what was measured on. Rank 0 alone speaks."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from mpisparse.bench.statistics import Summary, summarise
from mpisparse.bench.text import milliseconds
from mpisparse.comm import Communicator, agreed, gather_json
from mpisparse.errors import ConfigError
from mpisparse.runtime import Surroundings
from mpisparse.terminal import STDERR, STDOUT, Screen

#: Version of the JSON document: raised when a key changes its meaning or goes.
SCHEMA = 1

_PACKAGES = ("mpisparse", "torch", "numpy", "numba", "mpi4py")


class Report:
    """Where the results of one benchmark go.

    Args:
        target: a file for the JSON document, "-" for standard output (tables go to standard error then), or None.

    Raises:
        ConfigError: the file cannot be written, said before anything is measured; on all ranks.
    """

    def __init__(self, comm: Communicator, benchmark: str, surroundings: Surroundings, target: str | None) -> None:
        self._speaks = comm.rank == 0
        self._target = target
        with agreed(comm):
            if self._speaks and target not in (None, "-"):
                _check_writable(Path(str(target)))
        self._document: dict[str, Any] = {
            "schema": SCHEMA,
            "benchmark": benchmark,
            "machine": machine_facts(comm, surroundings),
        }
        self._screen = Screen(STDERR if target == "-" else STDOUT)

    def say(self, line: str) -> None:
        """Print one line."""
        if self._speaks:
            self._screen.say(line)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table: the first column is text, the others are numbers."""
        if not self._speaks:
            return
        table = Table(title=title, title_justify="left")
        for number, name in enumerate(columns):
            table.add_column(name, justify="right" if number else "left", no_wrap=number == 0)
        for row in rows:
            table.add_row(*row)
        self._screen.print(table)

    def write(self, **results: Any) -> None:
        """Write the JSON document, if one is wanted: machine facts and `results`."""
        if not self._speaks or self._target is None:
            return
        text = json.dumps({**self._document, **results}, indent=2) + "\n"
        if self._target == "-":
            click.echo(text, nl=False)
        else:
            Path(self._target).write_text(text)


def machine_facts(comm: Communicator, surroundings: Surroundings) -> dict[str, Any]:
    """Return what was measured on, the same on all ranks. Collective."""
    hosts = gather_json(comm, [platform.node(), len(os.sched_getaffinity(0))])
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "hosts": sorted({host for host, _ in hosts}),
        "cores": hosts[0][1],
        "processor": processor(),
        "system": platform.platform(),
        "ranks": surroundings.ranks,
        "nodes": surroundings.nodes,
        "mpi": f"{surroundings.library} ({surroundings.standard})",
        "thread_level": surroundings.thread_level,
        "threads_per_rank": surroundings.threads,
        "python": platform.python_version(),
        "versions": {package: version(package) for package in _PACKAGES},
    }


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's name, or its architecture where the system does not tell."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def seconds_json(summary: Summary) -> dict[str, float]:
    """Return a summary of seconds as the JSON document holds it."""
    return {"median": summary.median, "p10": summary.low, "p90": summary.high}


def time_cells(summary: Summary) -> list[str]:
    """Return the cells of a table that tell a time: the median, and the span of the middle four fifths."""
    return [milliseconds(summary.median), f"{milliseconds(summary.low)} - {milliseconds(summary.high)}"]


def phase_medians(details: Mapping[str, Any], names: Sequence[str]) -> dict[str, float]:
    """Return the median seconds of the phases that took any time."""
    medians = {name: summarise(details[name]).median for name in names if name in details}
    return {name: seconds for name, seconds in medians.items() if seconds > 0}


def _check_writable(path: Path) -> None:
    folder = path.parent
    if path.is_dir() or not folder.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
        raise ConfigError(f"--json {path}: no file can be written there. Give a path in a folder that exists, or -")
