"""Sink: the file that HDF5 writes through."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

from mpisparse.checkpoint.disk import Disk


class Sink:
    """A new file that keeps the first error of a write instead of raising it, until `close` or `check` does.

    HDF5 cannot be told that the disk is full: a file whose write failed is never closed, prints a screenful for every
    object in it, and crashes the process at its end (measured with HDF5 2.0 through h5py 3.16). So HDF5 hears that all
    went well, and what it writes after the first error goes nowhere.
    """

    def __init__(self, path: Path, disk: Disk) -> None:
        self._disk = disk
        self._descriptor = disk.create(path)
        self._position = 0
        self._error: OSError | None = None

    def __enter__(self) -> Sink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    def check(self) -> None:
        """Raise the first error of a write, if there was one."""
        if self._error is not None:
            raise self._error

    def sync(self) -> None:
        """Return when the file is on the disk; raise the first error of a write, if there was one."""
        self.check()
        self._disk.sync(self._descriptor)

    def reserve(self, length: int) -> None:
        """Have room on the disk for `length` bytes; raise the first error of a write, if there was one."""
        self.check()
        self._disk.reserve(self._descriptor, length)

    # What h5py calls --------------------------------------------------------------------------------------------------

    def write(self, buffer: bytes | memoryview) -> int:
        """Write all of `buffer` at the position, and return its length, whatever happens."""
        view = memoryview(buffer).cast("B")
        length, start = len(view), self._position
        self._position += length
        try:
            if self._error is None:
                self._disk.write_all(self._descriptor, view, start)
        except OSError as error:
            self._error = error
        return length

    def read(self, length: int) -> bytes:
        """Return `length` bytes from the position, as `readinto` does."""
        buffer = bytearray(length)
        self.readinto(buffer)
        return bytes(buffer)

    def readinto(self, buffer: bytearray | memoryview) -> int:
        """Fill `buffer` from the position; what lies past the end of the file is zero."""
        view = memoryview(buffer).cast("B")
        content = os.pread(self._descriptor, len(view), self._position)
        view[:] = content.ljust(len(view), b"\0")
        self._position += len(view)
        return len(view)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position, and return it."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: os.fstat(self._descriptor).st_size}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def truncate(self, length: int | None = None) -> int:
        """Cut or lengthen the file, and return its new length."""
        length = self._position if length is None else length
        try:
            if self._error is None:
                self._disk.truncate(self._descriptor, length)
        except OSError as error:
            self._error = error
        return length

    def flush(self) -> None:
        """Do nothing: there is no buffer here."""
