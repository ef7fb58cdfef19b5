"""The checkpoints of a run, and what is wrong with them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mpisparse.checkpoint import find_checkpoints, find_flaws, read_manifest, step_of
from mpisparse.checkpoint.directory import LATEST
from mpisparse.errors import CheckpointError
from mpisparse.files import read_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One checkpoint of a list.

    ranks: how many saved it; None where the manifest does not tell.
    bytes: of all its files together.
    written: when it was finished, UTC, ISO 8601; a copy may have another time.
    latest: True for the one that the file `latest` names.
    verified: True when all digests were checked, and everything was read.
    flaws: what is wrong, one line each; none for a whole one.
    """

    name: str
    path: str
    step: int | None
    ranks: int | None
    bytes: int
    written: str
    latest: bool
    verified: bool
    flaws: list[str]


def list_run(which: Path, *, verify: bool = False) -> list[Listed]:
    """Return the checkpoints that `which`, a run's directory or one of checkpoints, holds, steps rising.

    Args:
        verify: read every file; else only manifests, names and lengths are looked at.

    Raises:
        CheckpointError: there are none.
    """
    found = find_checkpoints(which)
    return [_look(path, latest_of(path.parent), verify) for path in found]


def latest_of(directory: Path) -> str | None:
    """Return the name in the file `latest` of a directory of checkpoints, or None when it has none."""
    try:
        return read_text(directory / LATEST).strip()
    except (OSError, ValueError):
        return None


def _look(path: Path, latest: str | None, verify: bool) -> Listed:
    step = ranks = None
    try:
        manifest = read_manifest(path)
        step, ranks = manifest.step, manifest.ranks
    except CheckpointError:
        if path.name.startswith("step-"):
            step = step_of(path)
    return Listed(
        name=path.name,
        path=str(path),
        step=step,
        ranks=ranks,
        bytes=sum(file.lstat().st_size for file in path.iterdir()),
        written=datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds"),
        latest=path.name == latest,
        verified=verify,
        flaws=find_flaws(path, contents=verify),
    )
