"""CIFAR-10 in any of the layouts it is passed around in (A. Krizhevsky, V. Nair and G. Hinton, 2009)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mpisparse.errors import DataError
from mpisparse.training.data.base import Images, Split, check_limits, every_fifth, first_images, image_split
from mpisparse.training.data.files import missing, read_at_most
from mpisparse.training.data.formats import archive, jpeg_hdf5, pickled, records

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
HOME = "https://www.cs.toronto.edu/~kriz/cifar.html"
#: Folders that the original archives unpack to, some tools below a folder named as the archive. They are looked into
#: when the folder itself holds no data.
_FOLDERS = (
    "cifar-10-batches-bin",
    "cifar-10-batches-py",
    "cifar-10-binary/cifar-10-batches-bin",
    "cifar-10-python/cifar-10-batches-py",
)
_HDF5 = b"\x89HDF\r\n\x1a\n"
_ZIP = b"PK\x03\x04"


def load(path: str | Path, *, train_limit: int | None = None, test_limit: int | None = None) -> Split:
    """Return the train and the test images, shape (3, 32, 32), 10 classes.

    Args:
        path: a folder or a file. In a folder these are looked for, and the first found is taken:
            binary batches data_batch_*.bin with test_batch*.bin, plain or .xz, whole or the first records only;
            pickled batches data_batch_1 to data_batch_5 with test_batch, which are read without running them;
            one .h5 file; then the same in cifar-10-batches-bin and cifar-10-batches-py below it; then the archives
            cifar-10-binary.tar.gz and cifar-10-python.tar.gz as they are fetched.
            A file is such an archive, an .h5 file of JPEG images, or a single batch, binary or pickled, of which
            samples 4, 9, 14, ... are the test split.
        train_limit: at most so many train samples, the first ones, which also give the constants of normalisation.
        test_limit: at most so many test samples, the first ones.

    Raises:
        DataError: nothing of this is there, or a file is damaged or does not fit.
        ConfigError: a limit is below 1.
    """
    check_limits(train_limit=train_limit, test_limit=test_limit)
    path = Path(path)
    if path.exists() and not path.is_dir():
        return _split(_read_file(path, train_limit, test_limit))
    folders = [path, *(path / name for name in _FOLDERS)]
    for folder in folders:
        if folder.is_dir() and (images := _read_folder(folder, train_limit, test_limit)):
            return _split(images)
    archives = [path / name for name in archive.NAMES]
    for place in archives:
        if place.is_file():
            return _split(archive.read(place, train_limit, test_limit))
    raise missing(
        f"{path.absolute()} holds no CIFAR-10: give an .h5 file of JPEG images, a folder with data_batch_1.bin "
        f"(binary), data_batch_1 (pickled) or one .h5 file, or cifar-10-python.tar.gz, as it is fetched from {HOME}",
        [*folders, *archives] if path.is_dir() else [path],
    )


def _read_file(path: Path, train_limit: int | None, test_limit: int | None) -> tuple[Images, Images]:
    """Return the images of a file that holds all of them, or one batch."""
    head = read_at_most(path, len(_HDF5))
    if head == _HDF5 or path.suffix in (".h5", ".hdf5"):
        return jpeg_hdf5.read(path, train_limit, test_limit)
    if head.startswith(_ZIP):
        raise DataError(f"{path} is a zip archive: unpack it, and give the folder")
    if archive.is_archive(path):
        return archive.read(path, train_limit, test_limit)
    batch = records.read(path) if path.name.endswith((".bin", ".bin.xz", ".bin.gz")) else pickled.read(path)
    if len(batch.labels) < 5:
        raise DataError(f"{path} holds {len(batch.labels)} images, too few to keep every fifth for a test: give more")
    train, test = (Images(batch.pixels[part], batch.labels[part]) for part in every_fifth(len(batch.labels)))
    return first_images([train], train_limit), first_images([test], test_limit)


def _read_folder(folder: Path, train_limit: int | None, test_limit: int | None) -> tuple[Images, Images] | None:
    train, test = records.find(folder)
    if train:
        _require(folder, test, ["test_batch.bin"])
        return (
            first_images(map(records.read, train), train_limit),
            first_images(map(records.read, test), test_limit),
        )
    if (folder / pickled.TRAIN_FILES[0]).is_file():
        train = [folder / name for name in pickled.TRAIN_FILES]
        test = [folder / name for name in pickled.TEST_FILES]
        _require(folder, filter(Path.is_file, [*train, *test]), [*pickled.TRAIN_FILES, *pickled.TEST_FILES])
        return (
            first_images(map(pickled.read, train), train_limit),
            first_images(map(pickled.read, test), test_limit),
        )
    return _read_hdf5(sorted([*folder.glob("*.h5"), *folder.glob("*.hdf5")]), train_limit, test_limit)


def _read_hdf5(paths: list[Path], train_limit: int | None, test_limit: int | None) -> tuple[Images, Images] | None:
    if len(paths) > 1:
        raise DataError(f"{paths[0].parent} holds {len(paths)} .h5 files: give the path of the one that is meant")
    return jpeg_hdf5.read(paths[0], train_limit, test_limit) if paths else None


def _require(folder: Path, found: Iterable[Path], names: list[str]) -> None:
    if missing := len(names) - len(list(found)):
        raise DataError(f"{folder} lacks {missing} of {', '.join(names)}: fetch the whole set")


def _split(images: tuple[Images, Images]) -> Split:
    return image_split("cifar10", *images, num_classes=len(CLASSES))
