"""FaultyDisk: a disk on which what the environment asks for goes wrong."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from mpisparse.checkpoint.disk import Disk
from mpisparse.faults import DiskFault, disk_faults_of


class FaultyDisk(Disk):
    """A disk that counts its operations in each save, from 1, and fails at those that faults name.

    A write that fails, or in which the process is killed, has written half of its bytes.
    """

    def __init__(self, faults: Sequence[DiskFault] = ()) -> None:
        super().__init__()
        self.faults = faults
        #: Saves begun so far, and operations of the last of them.
        self.saves = self.operations = 0

    def begin(self) -> None:
        """Note that a new save begins."""
        super().begin()
        self.saves += 1
        self.operations = 0

    def write(self, file: int, content: memoryview, start: int) -> int:
        """Write the beginning of `content`, as `Disk.write` does, or half of it and fail."""
        fault = self._due(self.operations + 1)
        if fault is not None:
            half = os.pwrite(file, content[: max(1, len(content) // 2)], start)
            if fault.error == "short":
                self.operations += 1
                return half
        return super().write(file, content, start)

    def _before(self, operation: str, target: Path | int) -> None:
        super()._before(operation, target)
        self.operations += 1
        fault = self._due(self.operations)
        if fault is None or fault.error == "short":
            return
        if fault.error == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        number: int = getattr(errno, fault.error)
        raise OSError(number, os.strerror(number))

    def _due(self, operation: int) -> DiskFault | None:
        return next((fault for fault in self.faults if fault.is_due(self.saves, operation)), None)


def disk_of(rank: int) -> Disk:
    """Return the disk of a rank: one on which things go wrong if the environment asks for it.

    Raises:
        ConfigError: the environment's wish cannot be read.
    """
    faults = disk_faults_of(rank)
    return FaultyDisk(faults) if faults else Disk()
