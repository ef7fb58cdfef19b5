"""CIFAR-10 in the original binary layout: records of one label byte, then 1024 red, 1024 green and 1024 blue bytes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from mpisparse.errors import DataError
from mpisparse.training.data.base import Images
from mpisparse.training.data.files import read_at_most

RECORD = 1 + 3 * 32 * 32
#: The most records one file may hold: the whole train split.
_LARGEST = 50_000
NAME = re.compile(r"(data_batch_\d+|test_batch)\b[^/]*\.bin(\.xz)?")


def find(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the train files and the test files of a folder, in order of their numbers; both empty if there are none.

    Plain and .xz files count, and so do files of the first records only, such as data_batch_1.first4000.bin.xz.

    Raises:
        DataError: a batch is there twice, so that its samples would be used twice, or one between others is missing.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if not (match := NAME.fullmatch(path.name)):
            continue
        if (batch := match[1]) in found:
            raise DataError(f"{folder} holds {batch} twice, as {found[batch].name} and {path.name}: move one away")
        found[batch] = path
    test = [found.pop("test_batch")] if "test_batch" in found else []
    names = [f"data_batch_{number}" for number in range(1, len(found) + 1)]
    if missing := [name for name in names if name not in found]:
        raise DataError(f"{folder} holds {', '.join(sorted(found))} but not {missing[0]}: fetch the whole set")
    return [found[name] for name in names], test


def read(path: Path) -> Images:
    """Return all images of one file, pixels of shape (n, 3, 32, 32).

    Raises:
        DataError: the file is missing, damaged, not whole records, or holds a label above 9.
    """
    return parse(read_at_most(path, RECORD * _LARGEST + 1), str(path))


def parse(content: bytes, where: str) -> Images:
    """Return the images that the content of a file holds; `where` names it in errors."""
    count, rest = divmod(len(content), RECORD)
    if rest or count == 0 or count > _LARGEST:
        raise DataError(f"{where} holds {len(content)} bytes, not 1 to {_LARGEST} records of {RECORD}: fetch it again")
    records = np.frombuffer(content, np.uint8).reshape(count, RECORD)
    labels = records[:, 0]
    if labels.max() > 9:
        raise DataError(f"{where}: record {int(labels.argmax())} has label {labels.max()}, not 0 to 9: fetch it again")
    return Images(records[:, 1:].reshape(count, 3, 32, 32), labels)
