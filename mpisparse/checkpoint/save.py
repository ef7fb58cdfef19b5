"""Save: a checkpoint on its way to the disk, which no rank waits for unless it wants to."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpisparse.checkpoint.directory import prune, publish, remove, settle, write_durably
from mpisparse.checkpoint.disk import Disk, named, reason
from mpisparse.checkpoint.hdf5 import Encoded, image_of, write_encoded
from mpisparse.checkpoint.manifest import (
    MANIFEST,
    SHARED,
    VERSION,
    FileEntry,
    Frame,
    Manifest,
    rank_file,
    verify_listing,
)
from mpisparse.checkpoint.report import Report
from mpisparse.checkpoint.shared import write_shared
from mpisparse.comm import Communicator, Pending, agreed, summarise
from mpisparse.errors import CheckpointError, alike

#: Seconds between looks for what other ranks tell, when there is nothing else to do.
_PAUSE = 100e-6


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a save.

    step: the optimizer steps done when it was started.
    path: the checkpoint, which is whole and safe; None when there is none.
    failure: what went wrong, on which rank; with a path, tidying up after it did. None when all went well.
    bytes: of its files. pause: seconds for which training stood still when it was started.
    writing: seconds that the slowest rank took to write its files. waited: seconds of waiting for it in the end.
    """

    step: int
    path: Path | None
    failure: str | None = None
    bytes: int = 0
    pause: float = 0.0
    writing: float = 0.0
    waited: float = 0.0

    def expect(self) -> Path:
        """Return the checkpoint's directory, or raise on every rank the CheckpointError that says what went wrong."""
        if self.failure is not None or self.path is None:
            raise alike(CheckpointError(self.failure))
        return self.path


class Save:
    """One save, as one rank sees it: its files, then what all ranks tell each other, then the checkpoint's name.

    The thread that has the save is the only one to speak to other ranks. Files are written by a thread of its own, or,
    where training is to wait, at once.
    """

    def __init__(
        self,
        comm: Communicator,
        aside: Communicator,
        disk: Disk,
        *,
        step: int,
        number: str,
        temporary: Path,
        files: Mapping[str, Encoded],
        keep: int,
        behind: bool,
        shared: bool,
    ) -> None:
        """Begin to write this rank's files.

        Args:
            aside: where reports travel, which nothing else does meanwhile on any rank; a duplicate of `comm`, or, where
                training is to wait, `comm`.
            number: of the save, random, which the files carry.
            temporary: the directory that rank 0 made for them.
            files: what they are to hold, by name; it must not change until the end.
            keep: how many of the newest checkpoints stay.
            behind: write in a thread.
            shared: write the files of all ranks into one, for which ranks have to come together: not `behind`.
        """
        self._comm, self._aside, self._disk = comm, aside, disk
        self._temporary, self._keep, self._shared = temporary, keep, shared
        self._frame: Frame | None = None
        self._number = number
        self.step = step
        #: Seconds for which training stood still when it was started; whoever started it knows.
        self.pause = 0.0
        self._threads: Executor = ThreadPoolExecutor(1, "checkpoint") if behind else _AtOnce()
        self._gathering: Pending[NDArray[np.int64]] | None = None
        self._concluding: Future[tuple[str | None, str | None]] | None = None
        self._outcome: Outcome | None = None
        self._writing = self._threads.submit(self._write, dict(files))

    def poll(self) -> Outcome | None:
        """Move on what can be moved, without waiting for anything. Not collective; costs a few microseconds.

        Returns what came of the save, on rank 0 once that is known there; elsewhere nothing, ever.
        """
        if not self._writing.done():
            return None
        reports = self._reports()
        if reports is None or self._comm.rank != 0:
            return None
        if self._concluding is None:
            self._concluding = self._threads.submit(self._conclude, reports)
        if self._outcome is None and self._concluding.done():
            self._outcome = self._tell(reports, *self._concluding.result())
        return self._outcome

    def finish(self) -> Outcome:
        """Wait for the end, and return what came of the save. Collective."""
        begin = perf_counter()
        try:
            self._writing.result()
            self._reports()
            # Here ranks wait for the slowest disk, and a watchdog sees it.
            self._comm.allgather([self.step])
            while (reports := self._reports()) is None:
                sleep(_PAUSE)
            news = None
            if self._comm.rank == 0:
                self._concluding = self._concluding or self._threads.submit(self._conclude, reports)
                news = json.dumps(self._concluding.result()).encode()
            path, failure = json.loads(self._comm.broadcast_bytes(news))
        except BaseException:
            self.abandon()
            raise
        self._threads.shutdown()
        return self._outcome or replace(self._tell(reports, path, failure), waited=perf_counter() - begin)

    def abandon(self) -> None:
        """End the thread soon, and leave what there is of the checkpoint to the next save. Not collective."""
        self._disk.abandon()
        self._threads.shutdown()

    # What the thread does ---------------------------------------------------------------------------------------------

    def _write(self, files: dict[str, Encoded]) -> Report:
        """Write this rank's files, and return how it went."""
        begin = perf_counter()
        try:
            entries = self._write_together(files) if self._shared else self._write_files(files)
        except CheckpointError as error:
            return Report((), perf_counter() - begin, str(error))
        return Report(tuple(entries), perf_counter() - begin)

    def _write_files(self, files: dict[str, Encoded]) -> list[FileEntry]:
        return [self._write_file(self._temporary / name, files.pop(name)) for name in list(files)]

    def _write_together(self, files: dict[str, Encoded]) -> list[FileEntry]:
        """Write the replicated state, then with all ranks the file of all of them. Collective."""
        name = rank_file(self._comm.rank)
        entries: list[FileEntry] = []
        with agreed(self._comm):
            image = image_of(files.pop(name))
            entries += self._write_files(files)
        entry, self._frame = write_shared(self._comm, self._temporary / SHARED, name, image, self._disk)
        return [*entries, entry]

    def _write_file(self, path: Path, encoded: Encoded) -> FileEntry:
        with named(f"{path.name} cannot be written to {path.parent}"):
            if not path.parent.is_dir():
                raise CheckpointError(
                    f"{path.parent}, which rank 0 made, is not there: all ranks need to see the same directory"
                )
        write_encoded(path, encoded, self._disk)
        with named(f"{path.name} cannot be read back"):
            return FileEntry.of(path)

    def _conclude(self, reports: list[Report]) -> tuple[str | None, str | None]:
        """Return the path of the checkpoint, if there is one now, and what went wrong, if anything did. On rank 0."""
        size = len(reports)
        failed = {rank: report.failure for rank, report in enumerate(reports) if report.failure is not None}
        try:
            if failed:
                raise CheckpointError(summarise(failed, size))
            with _of_rank_0(size):
                files = tuple(entry for report in reports for entry in report.files)
                final = self._publish(Manifest(self.step, size, files, VERSION, self._frame, self._number))
        except CheckpointError as error:
            return None, f"{error}{attempt_removal(self._temporary, self._disk)}"
        try:
            with _of_rank_0(size), named(f"{final.name} is complete and safe, but tidying up after it failed"):
                settle(final, self._disk)
                prune(final, self._keep, self._disk)
        except CheckpointError as error:
            return str(final), str(error)
        return str(final), None

    def _publish(self, manifest: Manifest) -> Path:
        with named(f"{self._temporary} cannot be made a checkpoint"):
            write_durably(self._temporary / MANIFEST, manifest.to_bytes(), self._disk)
            verify_listing(self._temporary, manifest)
            return publish(self._temporary, self._disk)

    # What ranks tell each other ---------------------------------------------------------------------------------------

    def _reports(self) -> list[Report] | None:
        """Return how it went on all ranks, in their order, or None while somebody has not said so."""
        if self._gathering is None:
            self._gathering = self._aside.start_allgather(self._writing.result().to_words())
        if not self._gathering.test():
            return None
        return [Report.from_words(words, rank) for rank, words in enumerate(self._gathering.result)]

    def _tell(self, reports: list[Report], path: str | None, failure: str | None) -> Outcome:
        return Outcome(
            self.step,
            None if path is None else Path(path),
            failure,
            bytes=0 if path is None else sum(entry.bytes for report in reports for entry in report.files),
            pause=self.pause,
            writing=max(report.seconds for report in reports),
        )


class _AtOnce(Executor):
    """Does what is submitted before it returns, in the calling thread."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def attempt_removal(path: Path, disk: Disk) -> str:
    """Remove what there is of a checkpoint that failed, and return what to say of it: nothing, if that went well."""
    try:
        remove(path, disk)
    except OSError as error:
        return f". What was written could not be removed: remove {path} ({reason(error)})"
    return ""


@contextmanager
def _of_rank_0(size: int) -> Iterator[None]:
    """Say in an error that rank 0 had it."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(summarise({0: str(error)}, size)) from error
