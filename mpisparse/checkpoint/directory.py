"""The directory of a run's checkpoints: names, order, and the steps by which one appears whole or not at all.

step-00001000/            a checkpoint
step-00001000.tmp/        one being written, or being removed
step-00001000.replaced/   an older one of the same step, while a new one takes its place
latest                    the name of the checkpoint written last
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path

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


def begin(directory: Path, step: int) -> Path:
    """Return an empty temporary directory for the checkpoint of `step`, having cleared up after earlier crashes."""
    directory.mkdir(parents=True, exist_ok=True)
    for path in sorted(directory.iterdir()):
        if _LEFTOVER.fullmatch(path.name):
            remove(path)
        elif STEP_NAME.fullmatch(path.name) and path.name.endswith(_REPLACED):
            _recover(path, path.with_name(_original(path.name)))
    temporary = directory / f"{step_name(step)}.tmp"
    temporary.mkdir()
    return temporary


def _recover(replaced: Path, original: Path) -> None:
    """Finish or undo a replacement that was cut short."""
    if original.exists():
        remove(replaced)
    else:
        os.rename(replaced, original)


def publish(temporary: Path) -> Path:
    """Return the final directory, which `temporary`, complete by now, has become."""
    sync_directory(temporary)
    final = temporary.with_suffix("")
    if not final.exists():
        os.rename(temporary, final)
        return final
    # A directory cannot take the place of another at once. In between, `replaced` is the checkpoint.
    replaced = final.with_name(final.name + _REPLACED)
    os.rename(final, replaced)
    try:
        os.rename(temporary, final)
    except OSError:
        os.rename(replaced, final)
        raise
    return final


def settle(final: Path) -> None:
    """Make the name of a new checkpoint durable, then remove what it replaced and point `latest` to it."""
    sync_directory(final.parent)
    remove(final.with_name(final.name + _REPLACED))
    temporary = final.with_name(f"{LATEST}.tmp")
    write_durably(temporary, f"{final.name}\n".encode())
    os.replace(temporary, final.with_name(LATEST))
    sync_directory(final.parent)


def prune(final: Path, keep: int) -> None:
    """Remove all but the `keep` newest of the checkpoints up to `final`, which stays.

    Later ones are left alone: after going back to an earlier step they belong to another course of training, and are
    the user's to remove.
    """
    step = step_of(final)
    earlier = [path for path in list_checkpoints(final.parent) if step_of(path) <= step]
    for path in earlier[:-keep]:
        discard(path)


def discard(path: Path) -> None:
    """Remove a checkpoint. It is renamed first, so that what a crash leaves of it never looks like a damaged one."""
    doomed = path.with_name(f"{step_name(step_of(path))}.tmp")
    os.rename(path, doomed)
    remove(doomed)


def remove(path: Path) -> None:
    """Remove a file or a directory with all in it; nothing happens when it is not there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_durably(path: Path, content: bytes) -> None:
    """Write `content` to the file at `path`, and return when it is on the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Return when the names in directory `path` are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems keep their directories durable by themselves and know no such call.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
