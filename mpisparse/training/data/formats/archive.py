"""CIFAR-10 in the tar archives it is fetched as, read without unpacking them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import IO

from mpisparse.errors import DataError
from mpisparse.training.data.base import Images, first_images
from mpisparse.training.data.files import opened
from mpisparse.training.data.formats import pickled, records

#: Names of the original archives, and of what is left when a tool takes the compression off.
NAMES = tuple(f"cifar-10-{kind}.{ending}" for kind in ("binary", "python") for ending in ("tar.gz", "tgz", "tar"))
#: The most bytes that an archive may unpack to; the original ones hold 186 MB.
_LARGEST = 256 * 2**20


def is_archive(path: Path) -> bool:
    """Return True if a file, plain or compressed, is a tar archive."""
    with opened(path) as stream:
        head = stream.read(262)
    return head[257:262] == b"ustar"


def read(path: Path, train_limit: int | None, test_limit: int | None) -> tuple[Images, Images]:
    """Return the train and the test images, at most as many as the limits, pixels of shape (n, 3, 32, 32).

    Raises:
        DataError: the file is missing or damaged, lacks a batch or has one twice, or unpacks to more than CIFAR-10.
    """
    batches: dict[str, Images] = {}
    try:
        with opened(path) as stream:
            bounded = _Bounded(stream, path)
            with tarfile.open(fileobj=bounded, mode="r|") as archive:
                _take(archive, path, batches)
            # To the end, where the checksum of what was compressed stands.
            while bounded.read(2**20):
                pass
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise DataError(f"{path} is not a tar archive that can be read ({error}): fetch it again") from error
    return _parts(path, batches, train_limit, test_limit)


def _take(archive: tarfile.TarFile, path: Path, batches: dict[str, Images]) -> None:
    """Put the batches of an archive into `batches`, by name."""
    for member in archive:
        batch = PurePosixPath(member.name).name
        parse = _reader(batch)
        if parse is None or not member.isreg() or member.issparse():
            continue
        name = batch.removesuffix(".bin")
        if name in batches:
            raise DataError(f"{path} holds {name} twice: fetch it again")
        content = archive.extractfile(member)
        assert content is not None  # a regular member
        batches[name] = parse(content.read(), f"{path}: {member.name}")


def _reader(name: str) -> Callable[[bytes, str], Images] | None:
    """Return what reads a member of that name, None for one that holds no images."""
    if name in (*pickled.TRAIN_FILES, *pickled.TEST_FILES):
        return pickled.parse
    return records.parse if records.NAME.fullmatch(name) and name.endswith(".bin") else None


def _parts(
    path: Path, batches: Mapping[str, Images], train_limit: int | None, test_limit: int | None
) -> tuple[Images, Images]:
    names = (*pickled.TRAIN_FILES, *pickled.TEST_FILES)
    if absent := [name for name in names if name not in batches]:
        raise DataError(f"{path} lacks {', '.join(absent)} of CIFAR-10's six batches: fetch the whole set")
    return (
        first_images((batches[name] for name in pickled.TRAIN_FILES), train_limit),
        first_images((batches[name] for name in pickled.TEST_FILES), test_limit),
    )


class _Bounded(io.RawIOBase):
    """A stream that ends in an error where it holds more than CIFAR-10 does, as small archives can unpack to much."""

    def __init__(self, stream: IO[bytes], path: Path) -> None:
        self._stream, self._path, self._left = stream, path, _LARGEST

    def read(self, size: int = -1) -> bytes:
        content = self._stream.read(self._left + 1 if size < 0 else min(size, self._left + 1))
        self._left -= len(content)
        if self._left < 0:
            raise DataError(f"{self._path} unpacks to more than {_LARGEST} bytes: this is not CIFAR-10")
        return content
