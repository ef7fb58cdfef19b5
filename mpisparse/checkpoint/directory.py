"""The directory of a run's checkpoints: names, order, and the steps by which one appears whole or not at all.

step-00001000/            a checkpoint
step-00001000.tmp/        one being written, or being removed
step-00001000.replaced/   an older one of the same step, while a new one takes its place
latest                    the name of the checkpoint written last
owner.json                which process writes there, where that is no run's; see claim.py
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from mpisparse.checkpoint.claim import Claim
from mpisparse.checkpoint.disk import Disk
from mpisparse.checkpoint.manifest import STEP_NAME

LATEST = "latest"
_REPLACED = ".replaced"
_LEFTOVER = re.compile(r"step-[0-9]{8,}\.tmp|latest\.tmp")


def step_name(step: int) -> str:
    """Return the name of the directory of a checkpoint."""
    return f"step-{step:08d}"


def step_of(path: Path) -> int:
    """Return the step that the name of a checkpoint's directory says."""
    named = STEP_NAME.fullmatch(path.name)
    if named is None:
        raise ValueError(f"{path.name} is not the name of a checkpoint")
    return int(named[1])


def list_checkpoints(directory: Path | str) -> list[Path]:
    """Return the checkpoints in `directory`, steps rising, damaged ones among them; none where there is no directory.

    One whose replacement was cut short is still there, under its name for the meantime.
    """
    directory = Path(directory)
    if not directory.is_dir():
        return []
    found = {path.name: path for path in directory.iterdir() if STEP_NAME.fullmatch(path.name) and path.is_dir()}
    for name in [name for name in found if name != _original(name) and _original(name) in found]:
        del found[name]
    return sorted(found.values(), key=step_of)


def _original(name: str) -> str:
    return name.removesuffix(_REPLACED)


def begin(directory: Path, step: int, disk: Disk, claim: Claim) -> Path:
    """Return an empty temporary directory for the checkpoint of `step`, having cleared up after earlier crashes.

    Raises:
        ConfigError: another process owns the directory: what lies there is no leftover of a crash, but its own.
    """
    _make(directory, disk)
    claim.take()
    for path in sorted(directory.iterdir()):
        if _LEFTOVER.fullmatch(path.name):
            remove(path, disk)
        elif STEP_NAME.fullmatch(path.name) and path.name.endswith(_REPLACED):
            _recover(path, path.with_name(_original(path.name)), disk)
    temporary = directory / f"{step_name(step)}.tmp"
    disk.mkdir(temporary)
    return temporary


def _make(directory: Path, disk: Disk) -> None:
    """Make a directory and those above it, unless they are there, and make their names durable."""
    if not directory.is_dir():
        _make(directory.parent, disk)
        disk.mkdir(directory)
        disk.sync_directory(directory.parent)


def _recover(replaced: Path, original: Path, disk: Disk) -> None:
    """Finish or undo a replacement that was cut short."""
    if original.exists():
        remove(replaced, disk)
    else:
        disk.rename(replaced, original)


def publish(temporary: Path, disk: Disk) -> Path:
    """Return the final directory, which `temporary`, complete by now, has become."""
    disk.sync_directory(temporary)
    final = temporary.with_suffix("")
    if not final.exists():
        disk.rename(temporary, final)
        return final
    # A directory cannot take the place of another at once. In between, `replaced` is the checkpoint.
    replaced = final.with_name(final.name + _REPLACED)
    disk.rename(final, replaced)
    try:
        disk.rename(temporary, final)
    except OSError:
        disk.rename(replaced, final)
        raise
    return final


def settle(final: Path, disk: Disk) -> None:
    """Make the name of a new checkpoint durable, then remove what it replaced and point `latest` to it."""
    disk.sync_directory(final.parent)
    remove(final.with_name(final.name + _REPLACED), disk)
    temporary = final.with_name(f"{LATEST}.tmp")
    write_durably(temporary, f"{final.name}\n".encode(), disk)
    disk.replace(temporary, final.with_name(LATEST))
    disk.sync_directory(final.parent)


def prune(final: Path, keep: int, disk: Disk) -> None:
    """Remove all but the `keep` newest of the checkpoints up to `final`, which stays.

    Later ones are left alone: after going back to an earlier step they belong to another course of training, and are
    the user's to remove.
    """
    step = step_of(final)
    earlier = [path for path in list_checkpoints(final.parent) if step_of(path) <= step]
    for path in earlier[:-keep]:
        discard(path, disk)


def discard(path: Path, disk: Disk) -> None:
    """Remove a checkpoint. It is renamed first, so that what a crash leaves of it never looks like a damaged one."""
    doomed = path.with_name(f"{step_name(step_of(path))}.tmp")
    disk.rename(path, doomed)
    remove(doomed, disk)


def remove(path: Path, disk: Disk) -> None:
    """Remove a file or a directory with all in it; nothing happens when it is not there."""
    if path.is_dir() and not path.is_symlink():
        for inner in sorted(path.iterdir()):
            remove(inner, disk)
        disk.rmdir(path)
    elif path.is_symlink() or path.exists():
        disk.unlink(path)


def write_durably(path: Path, content: bytes, disk: Disk) -> None:
    """Write `content` to a new file at `path`, and return when it is on the disk."""
    file = disk.create(path)
    try:
        disk.write_all(file, memoryview(content))
        disk.sync(file)
    finally:
        os.close(file)
