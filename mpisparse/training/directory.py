"""The run directory: made by rank 0, known to all, and never mixed with another run's."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from platform import node, platform, python_version
from typing import Any

import h5py
import numpy as np
import torch

from mpisparse.comm import Communicator, from_root
from mpisparse.errors import CheckpointError, ConfigError, MpiSparseError
from mpisparse.files import remove_temporary, write_text
from mpisparse.runtime import Surroundings
from mpisparse.runtime.runlog import last_line, writes
from mpisparse.training.config import RunConfig
from mpisparse.training.configfile import complete, differences, to_toml, to_tree
from mpisparse.training.optimum import Optimum

#: How the last start of the run ended, written last; and the version of what it holds.
_END, _END_SCHEMA = "end.json", 1

#: Keys that a resumed run may change without becoming another run.
_MAY_CHANGE = (
    "training.length",
    "training.evaluate",
    "training.log_every",
    "training.watchdog",
    "training.time_limit",
    "training.check_replicas",
    "training.diverged",
    "exchange.overlap",
    "checkpoint.",
)


def open_directory(comm: Communicator, config: RunConfig, wanted: Path | None) -> Path:
    """Return the run directory, the same on all ranks: `wanted`, or a new one under runs/. Collective.

    Raises:
        ConfigError: it cannot be made.
    """

    def make() -> str:
        try:
            return str(_make(config.name, wanted))
        except OSError as error:
            raise ConfigError(f"cannot make the run directory {wanted or 'under runs/'}: {error}") from error

    return Path(from_root(comm, make))


def describe_run(directory: Path, config: RunConfig, surroundings: Surroundings) -> None:
    """Write config.toml and environment.json, and remove the record of an earlier end. For rank 0 alone.

    Raises:
        RunDirectoryError: one of them cannot be written.
    """
    (directory / _END).unlink(missing_ok=True)
    environment = {
        **asdict(surroundings),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "h5py": h5py.__version__,
        "hdf5": h5py.version.hdf5_version,
        "python": python_version(),
        "platform": platform(),
        "host": node(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    remove_temporary(directory)
    _write(directory / "config.toml", to_toml(config))
    _write(directory / "environment.json", json.dumps(environment, indent=2) + "\n")


def describe_optimum(directory: Path, optimum: Optimum) -> None:
    """Write optimum.json. For rank 0 alone."""
    _write(directory / "optimum.json", json.dumps(asdict(optimum), indent=2) + "\n")


def _write(path: Path, text: str) -> None:
    with writes(path):
        write_text(path, text)


def record_end(comm: Communicator, directory: Path, step: int, exit_code: int = 0, stopped: str = "") -> None:
    """Write end.json once all ranks have come here: nothing of the run follows. Collective.

    Args:
        step: optimizer steps done. exit_code: of the command, were this its only run.
        stopped: why the run ended before its time, with its state saved; empty when it finished.

    Raises:
        CheckpointError: it cannot be written.
    """
    comm.barrier()

    def write() -> None:
        try:
            _write_end(comm, directory, "stopped" if stopped else "finished", exit_code, step, stopped)
        except OSError as error:
            raise CheckpointError(
                f"{directory / _END}, the record that the run has ended, cannot be written: {error}. The state is "
                "saved: make room, and start the same command again"
            ) from error

    from_root(comm, write)


@contextmanager
def failure_recorded(comm: Communicator, directory: Path) -> Iterator[None]:
    """Write end.json where the block ends by an error that all ranks raise alike. Not collective."""
    try:
        yield
    except MpiSparseError as error:
        if comm.rank == 0 and error.on_all_ranks:
            # The error is on its way, and says more than a disk that does not take its record.
            with suppress(OSError, ValueError, KeyError, TypeError):
                last = last_line(directory / "metrics.jsonl")
                step = int(json.loads(last)["step"]) if last else 0
                _write_end(comm, directory, "failed", error.exit_code, step, f"{type(error).__name__}: {error}")
        raise


def _write_end(comm: Communicator, directory: Path, status: str, exit_code: int, step: int, reason: str) -> None:
    record = {
        "schema": _END_SCHEMA,
        "status": status,
        "exit_code": exit_code,
        "step": step,
        "reason": reason,
        "ranks": comm.size,
        "job": os.environ.get("SLURM_JOB_ID"),
        "restart": os.environ.get("SLURM_RESTART_COUNT"),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_text(directory / _END, json.dumps(record) + "\n")


def check_same_run(checkpoint: Path, saved: dict[str, Any], config: RunConfig) -> None:
    """Raise ConfigError if a checkpoint was saved under another configuration, naming the keys that differ."""
    changed = differences(complete(saved), to_tree(config))
    changed = {key: pair for key, pair in changed.items() if not key.startswith(_MAY_CHANGE)}
    if changed:
        listed = "; ".join(f"{key} was {before!r}, is {now!r}" for key, (before, now) in changed.items())
        raise ConfigError(
            f"{checkpoint} is of a run of another configuration: {listed}. Resume it with its own, use another "
            "--run-dir, or say --allow-changes to go on all the same"
        )


def _make(name: str, wanted: Path | None) -> Path:
    """Return a directory that exists: `wanted`, old or new, or the next free number under runs/."""
    if wanted is not None:
        wanted.mkdir(parents=True, exist_ok=True)
        return wanted
    number = 1
    while True:
        path = Path("runs") / f"{name}-{number:03d}"
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return path
