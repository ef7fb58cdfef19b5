"""MNIST, and sets in its format such as Fashion-MNIST: four idx files, plain or .gz (Y. LeCun and C. Cortes, 1998)."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mpisparse.errors import DataError
from mpisparse.training.data.base import Images, Split, check_limits, first_images, image_split
from mpisparse.training.data.files import missing, opened

NUM_CLASSES = 10
HOME = "http://yann.lecun.com/exdb/mnist/"
#: Where torchvision and others put the files, below the folder that they are given.
_FOLDERS = ("", "raw", "MNIST/raw", "MNIST", "mnist")
_KINDS = ("images-idx3", "labels-idx1")
_UNSIGNED_BYTE = 0x08
#: The most bytes that one idx file may hold, so that a damaged header cannot claim all memory.
_LARGEST = 2**31


def load(path: str | Path, *, train_limit: int | None = None, test_limit: int | None = None) -> Split:
    """Return the train and the test images, shape (1, 28, 28), 10 classes.

    Args:
        path: the folder that holds {train,t10k}-{images-idx3,labels-idx1}-ubyte, or one that holds MNIST/raw, as
            torchvision's root does. Each file is plain or .gz, may be named with a dot (train-images.idx3-ubyte), and
            may lie in a folder of its own name, as some tools unpack it.
        train_limit: at most so many train samples, the first ones, which also give the constants of normalisation.
        test_limit: at most so many test samples, the first ones.

    Raises:
        DataError: a file is missing, damaged, or does not fit the others.
        ConfigError: a limit is below 1.
    """
    check_limits(train_limit=train_limit, test_limit=test_limit)
    folder = _find_folder(Path(path))
    train = _read_split(folder, "train", train_limit)
    test = _read_split(folder, "t10k", test_limit)
    if train.pixels.shape[1:] != test.pixels.shape[1:]:
        raise DataError(
            f"{path}: train images are {train.pixels.shape[2:]} and test images {test.pixels.shape[2:]} pixels: "
            "put files of one data set in the folder"
        )
    return image_split("mnist", train, test, NUM_CLASSES)


def _read_split(folder: Path, part: str, limit: int | None) -> Images:
    image_path, label_path = (_require(folder, f"{part}-{kind}-ubyte") for kind in _KINDS)
    pixels, labels = read_idx(image_path, dimensions=3), read_idx(label_path, dimensions=1)
    if len(pixels) != len(labels):
        raise DataError(
            f"{label_path} holds {len(labels)} labels and {image_path} {len(pixels)} images: each image needs one label"
        )
    if pixels.size == 0:
        raise DataError(f"{image_path} holds no pixels (shape {pixels.shape}): fetch it again")
    if labels.max() >= NUM_CLASSES:
        raise DataError(f"{label_path} holds label {labels.max()}, outside 0 to {NUM_CLASSES - 1}: fetch it again")
    return first_images([Images(pixels[:, None], labels)], limit)


def _find_folder(path: Path) -> Path:
    """Return the folder, `path` or one below it, that holds any of the four files."""
    if path.is_file():
        raise DataError(f"{path} is a file: give the folder of the four idx files as they are, or unpacked")
    folders = [path / name for name in _FOLDERS]
    names = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in _KINDS]
    for folder in folders:
        if any(_find(folder, name) for name in names):
            return folder
    raise missing(
        f"{path.absolute()} holds neither {names[0]} nor {names[0]}.gz: give the folder of the four idx files, which "
        f"come from {HOME}",
        folders if path.is_dir() else [path],
    )


def _find(folder: Path, name: str) -> Path | None:
    """Return the file in `folder` that `name` stands for."""
    spellings = (name, name.replace("-idx", ".idx"))
    files = [f"{spelling}{ending}" for spelling in spellings for ending in ("", ".gz")]
    inside = [f"{outer}/{file}" for outer in files for file in files]
    return next((folder / place for place in (*files, *inside) if (folder / place).is_file()), None)


def _require(folder: Path, name: str) -> Path:
    found = _find(folder, name)
    if found is None:
        raise DataError(
            f"{folder.absolute()} holds neither {name} nor {name}.gz, but others of the four idx files: put them "
            f"together in one folder; they come from {HOME}"
        )
    return found


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Return the array, read-only, of an idx file: bytes 0, 0, 8, dimensions; sizes as big-endian uint32; data.

    Raises:
        DataError: the header is another one, or the data is shorter or longer than the header says.
    """
    with opened(path) as stream:
        header = stream.read(4 + 4 * dimensions)
        shape = _shape(path, header, dimensions)
        expected = int(np.prod(shape, dtype=object))
        if expected > _LARGEST:
            raise DataError(f"{path} claims {shape}, {expected} bytes, above {_LARGEST}: its header is damaged")
        data = stream.read(expected + 1)
    if len(data) != expected:
        found = f"only {len(data)}" if len(data) < expected else "more"
        raise DataError(f"{path} should hold {expected} bytes of data, as its header {shape} says, and holds {found}")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _shape(path: Path, header: bytes, dimensions: int) -> tuple[int, ...]:
    magic = bytes([0, 0, _UNSIGNED_BYTE, dimensions])
    if header[:4] != magic:
        raise DataError(
            f"{path} begins with {header[:4].hex() or 'nothing'}, not with {magic.hex()}: not this idx file"
        )
    if len(header) != 4 + 4 * dimensions:
        raise DataError(f"{path} ends inside its header, after {len(header)} bytes: it is truncated, fetch it again")
    return struct.unpack(f">{dimensions}I", header[4:])
