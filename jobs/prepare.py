"""prepare: the directory of a study, ready for its jobs; and what is left to do in it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from jobs.plan import Batch
from jobs.render import SUBMIT
from mpisparse.errors import ConfigError
from mpisparse.files import write_text
from mpisparse.training.study import Study
from mpisparse.training.sweepfiles import claim, look_up

#: Where jobs note what becomes of each run of a batch: a file a run, by its index.
STATE = "state"


def look_around(study: Study, directory: Path, ranks: Iterable[int], *, retry: bool) -> dict[int, set[int]]:
    """Return the indices of the runs that are to be made, by number of ranks.

    Args:
        retry: count those that failed among them.

    Raises:
        ConfigError: a run's directory cannot be read.
    """
    due: dict[int, set[int]] = {}
    for number in ranks:
        states = {
            run.index: look_up(directory / f"ranks-{number:03d}" / run.directory, run.config) for run in study.runs
        }
        due[number] = {index for index, state in states.items() if state is None or (state and retry)}
    return due


def prepare(study: Study, directory: Path, batches: Iterable[Batch], files: dict[str, str]) -> None:
    """Write the files of a study, and have each batch's directory be one that `mpisparse sweep` takes.

    Raises:
        ConfigError: the directory belongs to another study, or cannot be written to.
    """
    for batch in batches:
        claim(directory / batch.directory, study)
    try:
        for batch in batches:
            state = directory / batch.directory / STATE
            state.mkdir(exist_ok=True)
            for run in batch.runs:
                (state / str(run.index)).unlink(missing_ok=True)
        for name, text in files.items():
            # Paths in the script are those of the disk, also where they are no UTF-8.
            write_text(directory / name, text, errors="surrogateescape")
        if SUBMIT in files:
            (directory / SUBMIT).chmod(0o755)
    except OSError as error:
        raise ConfigError(f"cannot write to the study's directory {directory}: {error}") from error


def find_command(name: str) -> str:
    """Return the path of a command of Slurm.

    Raises:
        ConfigError: it is not here.
    """
    found = shutil.which(name)
    if found is None:
        raise ConfigError(
            f"there is no {name} here, so this is no login node of a Slurm cluster: --local makes the runs on this "
            "machine, --render DIR writes what would be submitted"
        )
    return found
