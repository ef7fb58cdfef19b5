"""CIFAR-10 as JPEG images in one HDF5 file, an eighth of the size of the pixels.

header          uint8 (h,)        the JPEG header that all images share
train/, test/
    labels      uint8 (n,)
    offsets     uint64 (n + 1,)
    scans       uint8 (total,)    image i is the JPEG file  header + scans[offsets[i]:offsets[i + 1]]
"""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from mpisparse.errors import DataError
from mpisparse.training.data.base import Images

#: The most entries that one array of the file may have, so that a damaged file cannot claim all memory.
_LARGEST = 2**28
#: Filters that are part of HDF5; all others are plug-ins.
_FILTERS = frozenset([h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32])
#: The most bytes that one byte of deflate can stand for.
_DEFLATES = 1032


def read(path: Path, train_limit: int | None, test_limit: int | None) -> tuple[Images, Images]:
    """Return the train and the test images, at most as many as the limits, pixels of shape (n, 3, 32, 32).

    Decoding all 60,000 takes about 8 s on one core.

    Raises:
        DataError: the file is missing, damaged, refers to another file, or holds something else than is said above.
    """
    if not path.is_file():
        raise DataError(f"{path.absolute()} does not exist: give the folder or file that holds the data")
    try:
        # Nothing writes to it, so that no lock is needed, which not every file system has.
        with h5py.File(path, "r", locking=False) as file:
            header = _array(path, file, "header", np.uint8).tobytes()
            return (
                _read_split(path, file, "train", header, train_limit),
                _read_split(path, file, "test", header, test_limit),
            )
    except (OSError, RuntimeError, LookupError, TypeError, ValueError) as error:
        raise DataError(f"{path} cannot be read as HDF5 ({error}): it is damaged, fetch it again") from error


def _read_split(path: Path, file: h5py.File, part: str, header: bytes, limit: int | None) -> Images:
    labels = _array(path, file, f"{part}/labels", np.uint8)
    offsets = _array(path, file, f"{part}/offsets", np.uint64)
    scans = _array(path, file, f"{part}/scans", np.uint8)
    if len(labels) == 0 or len(offsets) != len(labels) + 1:
        raise DataError(f"{path}: {part} has {len(labels)} labels and {len(offsets)} offsets, not n and n + 1")
    if labels.max() > 9:
        raise DataError(f"{path}: {part}/labels holds {labels.max()}, outside 0 to 9: fetch the file again")
    if offsets[0] != 0 or offsets[-1] != len(scans) or np.any(offsets[:-1] > offsets[1:]):
        raise DataError(f"{path}: {part}/offsets do not rise from 0 to {len(scans)}, the end of scans: fetch it again")
    labels = labels[:limit]
    pixels = np.empty((len(labels), 3, 32, 32), np.uint8)
    for index, (start, stop) in enumerate(itertools.pairwise(offsets[: len(labels) + 1].tolist())):
        pixels[index] = _decode(header + scans[start:stop].tobytes(), f"{path}: image {index} of {part}")
    return Images(pixels, labels.copy())


def _decode(content: bytes, where: str) -> NDArray[np.uint8]:
    """Return the pixels, (3, 32, 32), of one JPEG file."""
    try:
        with Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
            if image.size != (32, 32):
                raise DataError(f"{where} is {image.width}x{image.height} pixels, not 32x32: this is another data set")
            return np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{where} cannot be decoded ({error}): the file is damaged, fetch it again") from error


def _array(path: Path, file: h5py.File, name: str, dtype: type[np.unsignedinteger[Any]]) -> NDArray[Any]:
    """Return one array of the file, after checking that reading it touches this file alone and fits in memory."""
    _refuse_links(path, file, name)
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise DataError(f"{path}: {name} is {dataset!r}, not one row of {np.dtype(dtype)}: this is another file")
    # Before its shape: that of a virtual dataset is looked up in the files that it names.
    if dataset.is_virtual or dataset.external:
        raise DataError(f"{path}: {name} takes its bytes from other files, which are not followed: copy them into one")
    if dataset.dtype != dtype or dataset.ndim != 1:
        raise DataError(f"{path}: {name} is {dataset!r}, not one row of {np.dtype(dtype)}: this is another file")
    if dataset.size > _LARGEST:
        raise DataError(f"{path}: {name} claims {dataset.size} entries, above {_LARGEST}: the file is damaged")
    _refuse_claims(path, dataset, name)
    content: NDArray[Any] = dataset[:]
    return content


def _refuse_claims(path: Path, dataset: h5py.Dataset, name: str) -> None:
    """Return nothing: refuse filters that may be plug-ins, and more bytes than what is stored can hold."""
    plan = dataset.id.get_create_plist()
    filters = {plan.get_filter(number)[0] for number in range(plan.get_nfilters())}
    if not filters <= _FILTERS:
        raise DataError(f"{path}: {name} has the filters {sorted(filters)}, beyond HDF5's own: write it plain")
    stored = dataset.id.get_storage_size()
    if dataset.size * dataset.dtype.itemsize > stored * (_DEFLATES if h5py.h5z.FILTER_DEFLATE in filters else 1):
        raise DataError(
            f"{path}: {name} claims {dataset.size} entries, and only {stored} bytes are stored: the file is damaged"
        )


def _refuse_links(path: Path, file: h5py.File, name: str) -> None:
    """Return nothing: check every part of `name` before anything of it is opened, as opening follows a link."""
    parts = name.split("/")
    for depth in range(1, len(parts) + 1):
        prefix = "/".join(parts[:depth])
        link = file.get(prefix, getlink=True)
        if link is None:
            raise DataError(f"{path} has no {prefix}: this is not CIFAR-10 as JPEG in HDF5")
        if not isinstance(link, h5py.HardLink):
            raise DataError(
                f"{path}: {prefix} is a {type(link).__name__}, which is not followed: copy it into one file"
            )
