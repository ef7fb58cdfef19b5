"""Report: how a rank's part of a save went, as a message whose length all ranks know beforehand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpisparse.checkpoint.manifest import STATE, FileEntry, rank_file

#: Words of eight bytes in a digest, and bytes that are left of what a rank has to say.
_DIGEST = 2
_TEXT = 1024
_FILE = np.dtype([("bytes", "<i8"), ("digest", "<i8", _DIGEST)])
_LAYOUT = np.dtype([("seconds", "<f8"), ("failed", "<i8"), ("files", _FILE, 2), ("text", "u1", _TEXT)])


@dataclass(frozen=True, slots=True)
class Report:
    """How a rank's part of a save went.

    files: the entries of the files it wrote, the replicated state first; those of a rank that failed are worth nothing.
    seconds: what writing took.
    failure: why it failed, or None.
    """

    files: tuple[FileEntry, ...]
    seconds: float
    failure: str | None = None

    def to_words(self) -> NDArray[np.int64]:
        """Return the report as int64, as many as every report has; what is too long of its words is cut off."""
        record = np.zeros((), _LAYOUT)
        record["seconds"], record["failed"] = self.seconds, self.failure is not None
        for place, entry in enumerate(self.files):
            record["files"][place]["bytes"] = entry.bytes
            record["files"][place]["digest"] = np.frombuffer(bytes.fromhex(entry.digest), "<i8")
        text = (self.failure or "").encode(errors="backslashreplace")[:_TEXT]
        record["text"][: len(text)] = np.frombuffer(text, np.uint8)
        return np.frombuffer(record.tobytes(), np.int64)

    @staticmethod
    def from_words(words: NDArray[np.int64], rank: int) -> Report:
        """Return the report that rank `rank` wrote as `words`."""
        record = np.frombuffer(words.tobytes(), _LAYOUT)[0]
        text = record["text"].tobytes().rstrip(b"\0").decode(errors="ignore")
        names = [STATE, rank_file(0)] if rank == 0 else [rank_file(rank)]
        files = tuple(_entry(name, record["files"][place]) for place, name in enumerate(names))
        return Report(files, float(record["seconds"]), text if record["failed"] else None)


def _entry(name: str, item: Any) -> FileEntry:
    return FileEntry(name, int(item["bytes"]), item["digest"].tobytes().hex())
