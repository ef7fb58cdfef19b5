"""Disk: every change that saving makes to the file system, one method each, so that tests can watch and spoil them."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mpisparse.errors import CheckpointError
from mpisparse.files import OddFileError


class Disk:
    """The file system as the saves of one rank change it. One belongs to one checkpointer.

    Each method is one operation: it happens, or raises OSError and may have happened in part.
    """

    def __init__(self) -> None:
        self._abandoned = False

    def begin(self) -> None:
        """Note that a new save begins."""
        self._abandoned = False

    def abandon(self) -> None:
        """Let every operation fail until the next save begins, so that a thread that writes soon comes to an end."""
        self._abandoned = True

    def _before(self, operation: str, target: Path | int) -> None:
        """Do what is to come before an operation on a path or an open file: raise, if it is not to happen."""
        if self._abandoned:
            raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))

    def mkdir(self, path: Path) -> None:
        """Make a directory."""
        self._before("mkdir", path)
        os.mkdir(path)

    def create(self, path: Path) -> int:
        """Return a new file, open for reading and writing, which the caller closes. FileExistsError if it is there."""
        self._before("create", path)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)

    def open(self, path: Path) -> int:
        """Return a file that is there, open for reading and writing, which the caller closes. It changes nothing."""
        return os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)

    def reserve(self, file: int, length: int) -> None:
        """Have room on the disk for the first `length` bytes of an open file, so that writing them cannot fill it."""
        self._before("reserve", file)
        try:
            os.posix_fallocate(file, 0, length)
        except OSError as error:
            # Not every file system can. Those without it tell of a full disk when it is written.
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
                raise

    def write_together(self, path: Path) -> None:
        """Do what is to come before a write to a file that ranks have opened together, which HDF5 makes itself."""
        self._before("write_together", path)

    def write(self, file: int, content: memoryview, start: int) -> int:
        """Write the beginning of `content` to an open file from byte `start` on, and return how many bytes of it."""
        self._before("write", file)
        return os.pwrite(file, content, start)

    def write_all(self, file: int, content: memoryview, start: int = 0) -> None:
        """Write `content` to an open file from byte `start` on: several writes where one takes only a part."""
        while content:  # One call writes less when the disk fills up, and at most 2 GiB.
            written = self.write(file, content, start)
            content, start = content[written:], start + written

    def truncate(self, file: int, length: int) -> None:
        """Cut or lengthen an open file."""
        self._before("truncate", file)
        os.ftruncate(file, length)

    def sync(self, file: int) -> None:
        """Return when an open file is on the disk."""
        self._before("sync", file)
        os.fsync(file)

    def sync_directory(self, path: Path) -> None:
        """Return when the names in a directory are on the disk."""
        self._before("sync_directory", path)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            # Some network file systems keep their directories durable by themselves and know no such call.
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
        finally:
            os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        """Give a directory another name, that of no other."""
        self._before("rename", source)
        os.rename(source, target)

    def replace(self, source: Path, target: Path) -> None:
        """Give a file another name, in place of the file that had it."""
        self._before("replace", source)
        os.replace(source, target)

    def unlink(self, path: Path) -> None:
        """Remove a file or a link; nothing happens when it is not there."""
        self._before("unlink", path)
        path.unlink(missing_ok=True)

    def rmdir(self, path: Path) -> None:
        """Remove an empty directory."""
        self._before("rmdir", path)
        os.rmdir(path)


def reason(error: Exception) -> str:
    """Return what went wrong, in the system's few words where it has them: HDF5's own go on for lines."""
    if isinstance(error, OddFileError):
        return str(error.strerror)
    number = getattr(error, "errno", None)
    return os.strerror(number) if number else str(error)


@contextmanager
def named(what: str) -> Iterator[None]:
    """Turn an error of the system into a CheckpointError that starts with `what`."""
    try:
        yield
    except OSError as error:
        place = f" ({os.fspath(error.filename)})" if isinstance(error.filename, str) else ""
        raise CheckpointError(f"{what}: {reason(error)}{place}") from error
