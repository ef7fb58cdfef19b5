"""Reading of plain and compressed files in which every failure is a `DataError` that names the file."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from mpisparse.errors import DataError


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Return (as a context) the bytes of a file, decompressed when its name ends in .gz, .bz2 or .xz.

    Raises:
        DataError: the file is missing, unreadable, or damaged; also when that shows only while it is read.
    """
    try:
        with _open(path) as stream:
            yield stream
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist: give the folder or file that holds the data") from error
    except IsADirectoryError as error:
        raise DataError(f"{path} is a folder, and a file is needed here: give the path of the file itself") from error
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{path} cannot be read ({error}): it is damaged or truncated, fetch it again") from error


def read_at_most(path: Path, count: int) -> bytes:
    """Return the (decompressed) content of a file, cut after `count` bytes.

    The cut bounds the memory that a file can claim, whatever it expands to: ask for one byte more than is legal and
    refuse what comes back longer.
    """
    with opened(path) as stream:
        return stream.read(count)


def _open(path: Path) -> IO[bytes]:
    match path.suffix:
        case ".gz":
            return cast(IO[bytes], gzip.open(path, "rb"))
        case ".bz2":
            return bz2.open(path, "rb")
        case ".xz":
            return lzma.open(path, "rb")
    return open(path, "rb")
