"""Reading of plain and compressed files in which every failure is a `DataError` that names the file."""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import stat
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from mpisparse.errors import DataError

#: How compressed files begin, and the endings of their names. The content decides, as tools that unpack or fetch files
#: drop an ending now and then; a name alone that promises compression is taken at its word, to find damage.
_COMPRESSED = {".gz": b"\x1f\x8b", ".bz2": b"BZh", ".xz": b"\xfd7zXZ\x00"}
#: Texts that begin so are of two or four bytes a character.
_WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Return (as a context) the bytes of a file, decompressed when it is a .gz, .bz2 or .xz by content or name.

    Raises:
        DataError: the file is missing, no regular file, unreadable, or damaged; also when that shows only while it is
            read.
    """
    try:
        with _open(path) as stream:
            yield stream
    except FileNotFoundError as error:
        raise DataError(f"{path.absolute()} does not exist: give the folder or file that holds the data") from error
    except IsADirectoryError as error:
        raise DataError(f"{path} is a folder, and a file is needed here: give the path of the file itself") from error
    except PermissionError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): allow reading it, or give another file") from error
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{path} cannot be read ({error}): it is damaged or truncated, fetch it again") from error


def read_at_most(path: Path, count: int) -> bytes:
    """Return the (decompressed) content of a file, cut after `count` bytes.

    The cut bounds the memory that a file can claim, whatever it expands to: ask for one byte more than is legal and
    refuse what comes back longer.
    """
    with opened(path) as stream:
        return stream.read(count)


def without_mark(path: Path, head: bytes) -> bytes:
    """Return the first bytes of a UTF-8 text without a byte order mark, which Windows programs begin a file with.

    Raises:
        DataError: the mark is that of UTF-16 or UTF-32.
    """
    if head.startswith(_WIDE):
        raise DataError(f"{path} is UTF-16 or UTF-32 text, by its first bytes {head[:4].hex()}: convert it to UTF-8")
    return head.removeprefix(codecs.BOM_UTF8)


def missing(message: str, tried: Iterable[Path]) -> DataError:
    """Return the error for data that is not there, which ends in every place, absolute, that was looked at."""
    return DataError(f"{message}. Looked for {', '.join(str(place.absolute()) for place in tried)}")


def _open(path: Path) -> IO[bytes]:
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        # A pipe or a device may never end.
        raise DataError(f"{path} is no regular file: write the data into a file, which every rank can read")
    with open(path, "rb") as plain:
        head = plain.read(6)
    match next((kind for kind, magic in _COMPRESSED.items() if head.startswith(magic)), path.suffix):
        case ".gz":
            return cast(IO[bytes], gzip.open(path, "rb"))
        case ".bz2":
            return bz2.open(path, "rb")
        case ".xz":
            return lzma.open(path, "rb")
    return open(path, "rb")
