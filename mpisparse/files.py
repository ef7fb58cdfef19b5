"""Small files: read from whatever lies at a path without waiting or filling memory, and written whole or not at all.

A path of a run directory or a checkpoint may be another's doing: a pipe that never ends a read, a device that never
runs dry, a link to a file elsewhere. Every text file of the project is read and written through these functions.
"""

from __future__ import annotations

import errno
import io
import json
import math
import os
import re
import secrets
import stat
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

#: Bytes of a text file at most, where nothing else is said: configurations, descriptions of runs, notes of jobs.
SMALL = 2**22
#: Commas and opening brackets in JSON at most, braces counted three times: about 200 MiB of Python objects.
_VALUES = 2**21
#: Levels of TOML at most.
_DEPTH = 32
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|.)", re.DOTALL)
_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
)


class OddFileError(OSError):
    """What lies at a path is no file that can be used; `strerror` says why."""

    def __init__(self, why: str, path: Path) -> None:
        super().__init__(errno.EINVAL, why, str(path))


def open_regular(path: Path, *, follow: bool = True) -> io.BufferedReader:
    """Return the file at `path`, open for reading.

    Args:
        follow: take the file that a link leads to; else refuse links.

    Raises:
        OSError: it cannot be opened, or is no regular file; opening waits for nobody, as it would for a pipe's writer.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    return os.fdopen(_opened(path, flags), "rb")


def open_log(path: Path) -> int:
    """Return a file, new or old, open for appending; it is no link, so that nothing is written elsewhere.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | os.O_NOFOLLOW
    return _opened(path, flags)


def _opened(path: Path, flags: int) -> int:
    try:
        file = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket, or to be written to a pipe that has no reader
            raise OddFileError("not a regular file", path) from error
        if error.errno == errno.ELOOP and flags & os.O_NOFOLLOW and path.is_symlink():
            raise OddFileError("a link, not a regular file", path) from error
        raise
    mode = os.fstat(file).st_mode
    if not stat.S_ISREG(mode):
        os.close(file)
        kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "something else")
        raise OddFileError(f"{kind}, not a regular file", path)
    return file


def read_bytes(path: Path, limit: int = SMALL) -> bytes:
    """Return what is in a file.

    Raises:
        OSError: it cannot be read, is no regular file, or has more than `limit` bytes.
    """
    with open_regular(path) as file:
        # Asked for first: a file of holes has any length.
        if os.fstat(file.fileno()).st_size <= limit:
            content = file.read(limit + 1)
            if len(content) <= limit:
                return content
    raise OddFileError(f"larger than {limit} bytes", path)


def read_text(path: Path, limit: int = SMALL) -> str:
    """Return the text in a UTF-8 file, line ends as they are read everywhere: one newline each.

    Raises:
        OSError: as `read_bytes`. ValueError: it is not UTF-8, or begins with a byte order mark.
    """
    return _decode(read_bytes(path, limit)).replace("\r\n", "\n")


def read_json(path: Path, limit: int = SMALL) -> Any:
    """Return what a JSON file holds; errors are those of `read_bytes` and `parse_json`."""
    return parse_json(read_bytes(path, limit))


def parse_json(content: bytes | str, *, constants: bool = False) -> Any:
    """Return what JSON text holds, taking nothing that two readers could take for different things.

    Args:
        constants: take NaN, Infinity and -Infinity, which the lines of a run log may hold.

    Raises:
        ValueError: it is not UTF-8 or begins with a byte order mark; it is not JSON; an object has a key twice, a
            number is beyond the largest float or has thousands of digits, a string holds half a surrogate pair; or it
            is nested too deep, or has more values than memory should hold.
    """
    raw = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    _limit_values(raw)
    text = _decode(raw)
    if "\\u" in text:
        _refuse_half_pairs(text)
    try:
        return json.loads(
            text,
            parse_float=_finite,
            parse_int=_short,
            parse_constant=float if constants else _refuse_constant,
            object_pairs_hook=_each_once,
        )
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def count_values(content: bytes) -> int:
    """Return a bound of what the values of JSON text take in memory, in commas and brackets; those in strings count."""
    return content.count(b",") + content.count(b"[") + 3 * content.count(b"{")


def values_flaw(content: bytes) -> str | None:
    """Return why JSON text is refused before it is parsed, or None."""
    if count_values(content) <= _VALUES or count_values(_STRING.sub(b"", content)) <= _VALUES:
        return None
    return f"it has too many values: more than {_VALUES} commas and brackets"


def _limit_values(content: bytes) -> None:
    if flaw := values_flaw(content):
        raise ValueError(flaw)


def _decode(content: bytes) -> str:
    if content.startswith(b"\xef\xbb\xbf"):
        raise ValueError("it begins with a byte order mark: save it as UTF-8 without one")
    return content.decode("utf-8")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"the number {digits:.40} is beyond the largest float")
    return value


def _short(digits: str) -> int:
    if len(digits) > 1000:
        raise ValueError(f"an integer has {len(digits)} digits")
    return int(digits)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"an object has the key {twice!r:.80} twice")
    return found


def _refuse_half_pairs(text: str) -> None:
    """Raise ValueError for an escaped half of a surrogate pair, which no encoding can write again."""
    end, high = -1, False
    for escape in _ESCAPE.finditer(text):
        code = int(escape[1], 16) if escape[1] else 0
        low = 0xDC00 <= code < 0xE000
        if low != (high and escape.start() == end):
            break
        high, end = 0xD800 <= code < 0xDC00, escape.end()
    else:
        low = False
        if not high:
            return
    raise ValueError("a string holds half a surrogate pair")


def parse_toml(text: str) -> dict[str, Any]:
    """Return what TOML text holds.

    Raises:
        ValueError: it is not TOML, an integer is beyond 64 bits, a float beyond the largest, or it is nested too deep.
    """
    if text.startswith("\ufeff"):
        raise ValueError("it begins with a byte order mark: save it as UTF-8 without one")
    try:
        tree = tomllib.loads(text, parse_float=_toml_float)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {_DEPTH} levels") from None
    require_plain(tree)
    return tree


def require_plain(tree: Any) -> None:
    """Raise ValueError unless what was read from TOML is nested no deeper than a configuration, in 64-bit integers."""
    level: list[Any] = [tree]
    for _ in range(_DEPTH):
        for value in level:
            if type(value) is int and not -(2**63) <= value < 2**63:
                raise ValueError(f"an integer of {value.bit_length()} bits is beyond the 64 that TOML has")
        holders = [value for value in level if isinstance(value, dict | list)]
        level = [inner for value in holders for inner in (value.values() if isinstance(value, dict) else value)]
        if not level:
            return
    raise ValueError(f"it is nested deeper than {_DEPTH} levels")


def _toml_float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value) and "inf" not in digits:
        raise ValueError(f"the number {digits:.40} is beyond the largest float")
    return value


# Writing --------------------------------------------------------------------------------------------------------------


@contextmanager
def replacing(path: Path) -> Iterator[io.BufferedWriter]:
    """Lend a new file that takes the place of the one at `path` when the block ends well, durably and at once.

    A link at `path` is replaced itself. The new file is made under a name that nobody can foresee, and never through a
    link, so that no other file is written to.

    Raises:
        OSError: it cannot be written; what was at `path` is there as before.
    """
    temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}.tmp")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    handle = os.open(temporary, flags, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def replace_file(path: Path, write: Callable[[TextIO], object]) -> None:
    """Write a file anew so that a reader, or a crash, finds either the old content or the new, and never a part.

    Raises:
        OSError: it cannot be written; what was there is there as before.
    """
    with replacing(path) as raw:
        text = io.TextIOWrapper(raw, encoding="utf-8", newline="\n")
        write(text)
        text.flush()
        text.detach()


def write_text(path: Path, text: str, *, errors: str = "strict") -> None:
    """Write a text file, as `replace_file` does.

    Args:
        errors: what to do with characters that UTF-8 does not have; "surrogateescape" writes the bytes of a path.
    """
    with replacing(path) as raw:
        raw.write(text.encode("utf-8", errors))


def remove_temporary(directory: Path) -> None:
    """Remove the files that writers in a directory left behind when they were killed. Nobody may be writing there."""
    with suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            if _TEMPORARY.fullmatch(entry.name) and not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)
