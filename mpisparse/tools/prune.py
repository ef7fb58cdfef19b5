"""Which checkpoints of a run go when few are to stay: never the newest that is sure to be whole."""

from __future__ import annotations

from pathlib import Path

from mpisparse.checkpoint import Claim, find_checkpoints, find_flaws
from mpisparse.checkpoint.directory import discard
from mpisparse.checkpoint.disk import Disk, reason
from mpisparse.errors import CheckpointError
from mpisparse.tools.listing import latest_of


def doomed(which: Path, keep: int) -> list[Path]:
    """Return what to remove so that the `keep` newest checkpoints stay, steps rising.

    The newest whose digests hold stays as well, be it older than those, and so does the one that `latest` names.

    Raises:
        CheckpointError: there are none, or none of them is whole, so that it is not the time to remove any.
    """
    found = find_checkpoints(which)
    whole = next((path for path in reversed(found) if not find_flaws(path)), None)
    if whole is None:
        raise CheckpointError(f"no checkpoint in {found[0].parent} is whole: nothing is removed")
    latest = latest_of(found[0].parent)
    return [path for path in found[:-keep] if path != whole and path.name != latest]


def remove_all(paths: list[Path]) -> None:
    """Remove checkpoints of one directory. A crash leaves whole ones and what no reader takes for one.

    Raises:
        CheckpointError: one could not be removed; those before it are.
        ConfigError: a job is saving there.
    """
    disk = Disk()
    for path in paths:
        claim = Claim(path.parent)
        try:
            claim.take()
            discard(path, disk)
        except OSError as error:
            raise CheckpointError(f"{path} could not be removed: {reason(error)}") from error
        finally:
            claim.release()
