"""status: what has become of each run of a study, from its directory and from Slurm's queue."""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from jobs.prepare import STATE
from jobs.render import SUBMITTED
from mpisparse.errors import ConfigError
from mpisparse.files import open_regular, parse_json, read_text
from mpisparse.runtime.runlog import last_line
from mpisparse.training.sweepfiles import read_failure
from mpisparse.words import counted

STATES = ("finished", "running", "queued", "stopped", "failed", "not begun")


@dataclass(frozen=True, slots=True)
class RunStatus:
    """What has become of one run.

    state: one of `STATES`; "stopped" is one that nobody is going on with. steps, of: as its log says. note: why.
    """

    ranks: int
    directory: str
    state: str
    steps: int
    of: int | None
    note: str = ""


def read_status(directory: Path, queue: Mapping[str, str]) -> list[RunStatus]:
    """Return the runs of a study, by ranks and index.

    Args:
        queue: state of each job that Slurm knows of, by its name; tasks of arrays as "12_3". See `read_queue`.

    Raises:
        ConfigError: this is no directory of a study, or a file in it cannot be read.
    """
    batches = sorted(path.parent for path in directory.glob("ranks-*/runs.csv"))
    if not batches:
        raise ConfigError(f"{directory} is no directory of a study: there is no ranks-*/runs.csv in it")
    submitted = read_submitted(directory)
    found = []
    for batch in batches:
        jobs = [job for name, job in submitted if name == batch.name]
        waiting = any(name.partition("_")[0] in jobs for name in queue)
        try:
            table = io.StringIO(read_text(batch / "runs.csv", 2**26), newline="")
            rows = [(int(row["index"]), row["directory"]) for row in csv.DictReader(table)]
            found += [_status(batch, index, name, queue, waiting) for index, name in rows]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{batch} cannot be read: {error!r}") from error
    return found


def read_submitted(directory: Path) -> list[tuple[str, str]]:
    """Return the jobs that were submitted for a study: the directory of the batch, and the name of the job."""
    try:
        lines = read_text(directory / SUBMITTED).splitlines()
    except FileNotFoundError:
        return []
    return [(fields[0], fields[1]) for fields in (line.split("\t") for line in lines) if len(fields) > 1]


def read_queue(directory: Path) -> dict[str, str]:
    """Return the state of the study's jobs that are in Slurm's queue, by name; none where there is no Slurm.

    Raises:
        ConfigError: the queue does not answer.
    """
    jobs = {job for _, job in read_submitted(directory)}
    squeue = shutil.which("squeue")
    if not jobs or squeue is None:
        return {}
    command = [squeue, "--noheader", "--array", "--me", "--format=%i %T"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        raise ConfigError("squeue did not answer within 60 s: try again later") from None
    if done.returncode:
        raise ConfigError(f"squeue failed, so that nobody knows what runs: {done.stderr.strip()}")
    pairs = (line.split() for line in done.stdout.splitlines() if line.strip())
    return {name: state for name, state in pairs if name.partition("_")[0] in jobs}


def to_table(found: list[RunStatus], title: str) -> Table:
    """Return the runs as a table for people."""
    table = Table("ranks", "run", "state", "steps", "note", title=title, title_justify="left")
    for run in found:
        steps = "" if run.of is None else f"{run.steps}/{run.of}"
        table.add_row(str(run.ranks), run.directory, run.state, steps, run.note)
    counts = ", ".join(f"{n} {state}" for state in STATES if (n := sum(run.state == state for run in found)))
    table.caption = f"{counted(len(found), 'run')}: {counts}"
    return table


def to_data(found: list[RunStatus]) -> list[dict[str, Any]]:
    """Return the runs for programs."""
    return [asdict(run) for run in found]


def _status(batch: Path, index: int, name: str, queue: Mapping[str, str], waiting: bool) -> RunStatus:
    path = batch / name
    steps, of, ended = _progress(path / "metrics.jsonl")
    state, note = _state(batch / STATE / str(index), queue, waiting)
    if (path / "failed.json").exists():
        state, note = "failed", read_failure(read_text(path / "failed.json")).text
    elif ended:
        state, note = "finished", ""
    return RunStatus(int(batch.name.removeprefix("ranks-")), name, state, steps, of, note)


def _state(file: Path, queue: Mapping[str, str], waiting: bool) -> tuple[str, str]:
    """Return the state of a run that has not ended, and why, from what its job noted."""
    try:
        word, _, rest = read_text(file).strip().partition(" ")
    except FileNotFoundError:
        return ("queued", "") if waiting else ("not begun", "")
    if word == "running":
        if rest.startswith("local-"):
            alive = Path("/proc", rest.removeprefix("local-")).exists()
            return ("running", "on this machine") if alive else ("stopped", "its process is gone")
        state = queue.get(rest, "gone")
        if state in ("RUNNING", "COMPLETING"):
            return "running", f"job {rest}"
        return ("stopped", f"job {rest} is gone") if state == "gone" else ("queued", f"job {rest} goes on")
    if rest in ("0", "75"):
        return ("queued", "saved") if waiting else ("stopped", "saved: submit it again")
    return "failed", f"exit code {rest}"


def _progress(log: Path) -> tuple[int, int | None, bool]:
    """Return the steps that a run's log has, those of the whole run, and whether it says that the run ended."""
    last = last_line(log)
    if not last:
        return 0, None, False
    with open_regular(log) as file:
        first = parse_json(file.readline(2**16), constants=True)
    line = parse_json(last, constants=True)
    return int(line["step"]), first.get("steps"), line["kind"] == "end"
