"""CIFAR-10 in any of the layouts it is passed around in (A. Krizhevsky, V. Nair and G. Hinton, 2009)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mpisparse.errors import DataError
from mpisparse.training.data.base import Images, Split, check_limits, first_images, image_split
from mpisparse.training.data.formats import jpeg_hdf5, pickled, records

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
#: Folders that the original archives unpack to, looked into when the folder itself holds no data.
_FOLDERS = ("cifar-10-batches-bin", "cifar-10-batches-py")


def load(path: str | Path, *, train_limit: int | None = None, test_limit: int | None = None) -> Split:
    """Return the train and the test images, shape (3, 32, 32), 10 classes.

    Args:
        path: an .h5 file of JPEG images, or a folder. In a folder these are looked for, and the first found is taken:
            binary batches data_batch_*.bin with test_batch*.bin, plain or .xz, whole or the first records only;
            pickled batches data_batch_1 to data_batch_5 with test_batch, which are read without running them;
            one .h5 file; then the same in cifar-10-batches-bin and cifar-10-batches-py below it.
        train_limit: at most so many train samples, the first ones, which also give the constants of normalisation.
        test_limit: at most so many test samples, the first ones.

    Raises:
        DataError: nothing of this is there, or a file is damaged or does not fit.
        ConfigError: a limit is below 1.
    """
    check_limits(train_limit=train_limit, test_limit=test_limit)
    path = Path(path)
    if path.is_file():
        return _split(jpeg_hdf5.read(path, train_limit, test_limit))
    for folder in (path, *(path / name for name in _FOLDERS)):
        if folder.is_dir() and (images := _read_folder(folder, train_limit, test_limit)):
            return _split(images)
    raise DataError(
        f"{path} holds no CIFAR-10: give an .h5 file of JPEG images, or a folder with data_batch_1.bin (binary), "
        "data_batch_1 (pickled) or one .h5 file"
    )


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
    return _read_hdf5(sorted(folder.glob("*.h5")), train_limit, test_limit)


def _read_hdf5(paths: list[Path], train_limit: int | None, test_limit: int | None) -> tuple[Images, Images] | None:
    if len(paths) > 1:
        raise DataError(f"{paths[0].parent} holds {len(paths)} .h5 files: give the path of the one that is meant")
    return jpeg_hdf5.read(paths[0], train_limit, test_limit) if paths else None


def _require(folder: Path, found: Iterable[Path], names: list[str]) -> None:
    if missing := len(names) - len(list(found)):
        raise DataError(f"{folder} lacks {missing} of {', '.join(names)}: fetch the whole set")


def _split(images: tuple[Images, Images]) -> Split:
    return image_split("cifar10", *images, num_classes=len(CLASSES))
