"""Digests: what tells damage in a file, one kind for each version of the format."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import Any

import xxhash

from mpisparse.files import open_regular

#: Bytes that are read at a time.
_PIECE = 2**24


@dataclass(frozen=True, slots=True)
class Digest:
    """A kind of digest.

    name: of the member of a manifest that holds it. digits: how many, in hexadecimal.
    new: what makes an empty one, as hashlib does.
    """

    name: str
    digits: int
    new: Callable[[], Any]

    def of_bytes(self, content: bytes | memoryview) -> str:
        """Return the digest of `content`, in hexadecimal."""
        empty = self.new()
        empty.update(content)
        return str(empty.hexdigest())

    def of_file(self, path: Path) -> tuple[int, str]:
        """Return the length and the digest, in hexadecimal, of the file at `path`, which is read whole."""
        with open_regular(path) as file:
            digest = file_digest(file, self.new)
            return file.tell(), str(digest.hexdigest())

    def of_spans(self, path: Path, spans: Iterable[tuple[int, int]]) -> tuple[int, str]:
        """Return what `of_file` does, of parts of a file one after another: of each its first byte and the one past."""
        digest, length = self.new(), 0
        with open_regular(path) as file:
            for start, stop in spans:
                file.seek(start)
                while start < stop and (piece := file.read(min(_PIECE, stop - start))):
                    digest.update(piece)
                    start, length = start + len(piece), length + len(piece)
        return length, str(digest.hexdigest())


#: By version of the format. BLAKE2b took as long as all else of a save; XXH3 takes a twentieth of that. Neither tells
#: malice: whoever can write a checkpoint can write a manifest for it.
DIGESTS = {1: Digest("blake2b", 64, lambda: blake2b(digest_size=32)), 2: Digest("xxh3_128", 32, xxhash.xxh3_128)}
DIGESTS[3] = DIGESTS[4] = DIGESTS[2]
