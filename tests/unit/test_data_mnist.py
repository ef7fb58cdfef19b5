"""MNIST's idx files: what is written is read, and any damage is named."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mpisparse.errors import ConfigError, DataError
from mpisparse.training.data import TensorDataset, mnist
from tests.paths import find_data

GENERATOR = np.random.default_rng(0)
PIXELS = GENERATOR.integers(0, 256, (12, 5, 4), dtype=np.uint8)
LABELS = np.arange(12, dtype=np.uint8) % 10


def idx(array: NDArray[np.uint8]) -> bytes:
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for part, count in (("train", 12), ("t10k", 3)):
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(idx(PIXELS[:count]))
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(LABELS[:count])))
    return tmp_path


def test_plain_and_compressed_files_are_read(folder: Path) -> None:
    train, test = mnist.load(folder)
    assert isinstance(train, TensorDataset)
    assert (len(train), len(test), train.input_shape, train.num_classes) == (12, 3, (1, 5, 4), 10)
    assert np.array_equal(train.inputs.numpy(), PIXELS[:, None])
    assert test.targets.tolist() == [0, 1, 2]
    assert train.targets.dtype == torch.int64


def test_limits_keep_the_first_samples(folder: Path) -> None:
    train, test = mnist.load(folder, train_limit=5, test_limit=100)
    assert (len(train), len(test)) == (5, 3)
    inputs, targets = train.batch(torch.arange(5))
    assert abs(inputs.mean().item()) < 1e-5
    assert targets.tolist() == LABELS[:5].tolist()
    with pytest.raises(ConfigError, match="train_limit 0"):
        mnist.load(folder, train_limit=0)


def big_label(content: bytes) -> bytes:
    return content[:-1] + b"\x0a"


def no_pixels(_: bytes) -> bytes:
    return struct.pack(">4B3I", 0, 0, 8, 3, 12, 0, 4)


def huge(_: bytes) -> bytes:
    return struct.pack(">4B3I", 0, 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1)


IMAGES, COUNTS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (IMAGES, lambda content: b"", "begins with nothing, not with 00000803"),
        (IMAGES, lambda content: b"PK" + content, "begins with 504b0000, not with 00000803"),
        (IMAGES, lambda content: b"\0\0\x0d" + content[3:], "begins with 00000d03"),
        (IMAGES, lambda content: content[:9], "ends inside its header, after 9 bytes"),
        (IMAGES, lambda content: content[:-1], "should hold 240 bytes of data.* and holds only 239"),
        (IMAGES, lambda content: content + b"x", "should hold 240 bytes of data.* and holds more"),
        (IMAGES, lambda content: idx(PIXELS[:11]), "12 labels and .* 11 images"),
        (IMAGES, no_pixels, "holds no pixels"),
        (IMAGES, huge, "its header is damaged"),
        (IMAGES, lambda content: idx(PIXELS[:, :4]), "train images are .4, 4. and test images .5, 4. pixels"),
        (COUNTS, lambda content: idx(LABELS[:11]), "11 labels and .* 12 images"),
        (COUNTS, big_label, "label 10, outside 0 to 9"),
        (COUNTS, lambda content: idx(PIXELS), "begins with 00000803, not with 00000801"),
    ],
)
def test_damage_is_named(folder: Path, name: str, damage: Callable[[bytes], bytes], message: str) -> None:
    path = folder / name
    if path.exists():
        path.write_bytes(damage(path.read_bytes()))
    else:
        packed = folder / f"{name}.gz"
        packed.write_bytes(gzip.compress(damage(gzip.decompress(packed.read_bytes()))))
    with pytest.raises(DataError, match=message) as caught:
        mnist.load(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("keep", [0, 5, 12, -8, -1])
def test_a_truncated_gz_is_named(folder: Path, keep: int) -> None:
    path = folder / "train-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte\.gz"):
        mnist.load(folder)


def test_a_flipped_bit_in_a_gz_is_named(folder: Path) -> None:
    path = folder / "train-images-idx3-ubyte"
    packed = bytearray(gzip.compress(path.read_bytes(), 0))
    packed[-30] ^= 4
    path.unlink()
    path.with_name(path.name + ".gz").write_bytes(packed)
    with pytest.raises(DataError, match="CRC"):
        mnist.load(folder)


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(DataError, match=r"neither t10k-images-idx3-ubyte nor t10k-images-idx3-ubyte\.gz"):
        mnist.load(folder)
    with pytest.raises(DataError, match="absent holds neither"):
        mnist.load(folder / "absent")


def spread(folder: Path, layout: str, packed: bool) -> None:
    """Write the four files, a `layout` of folders and names; {name} has dashes, {dotted} a dot."""
    for part, count in (("train", 12), ("t10k", 3)):
        for kind, array in (("images-idx3", PIXELS), ("labels-idx1", LABELS)):
            place = layout.format(name=f"{part}-{kind}-ubyte", dotted=f"{part}-{kind.replace('-', '.')}-ubyte")
            path = folder / (place + ".gz" * packed)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(gzip.compress(idx(array[:count])) if packed else idx(array[:count]))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("names", ["{name}", "{dotted}", "{name}/{name}", "{name}/{dotted}", "{dotted}/{dotted}"])
@pytest.mark.parametrize("below", ["", "MNIST/raw/", "raw/", "MNIST/"])
def test_layouts_of_other_tools_are_read(tmp_path: Path, below: str, names: str, packed: bool) -> None:
    spread(tmp_path, below + names, packed)
    train, test = mnist.load(tmp_path)
    assert isinstance(train, TensorDataset)
    assert np.array_equal(train.inputs.numpy(), PIXELS[:, None])
    assert (train.targets.tolist(), len(test)) == (LABELS.tolist(), 3)


def test_another_set_beside_it_is_left_alone(tmp_path: Path) -> None:
    spread(tmp_path, "FashionMNIST/raw/{name}", False)
    with pytest.raises(DataError, match="holds neither"):
        mnist.load(tmp_path)
    assert len(mnist.load(tmp_path / "FashionMNIST").train) == 12


def test_a_packed_file_without_its_ending_is_read(folder: Path) -> None:
    (folder / "t10k-labels-idx1-ubyte.gz").rename(folder / "t10k-labels-idx1-ubyte")
    assert len(mnist.load(folder).test) == 3


def test_missing_files_say_where_they_were_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError) as caught:
        mnist.load("empty")
    for place in ("", "/raw", "/MNIST/raw"):
        assert f"{tmp_path}/empty{place}," in str(caught.value) + ","
    assert "http://yann.lecun.com/exdb/mnist/" in str(caught.value)
    with pytest.raises(DataError, match="is a file: give the folder"):
        mnist.load(folder / "train-images-idx3-ubyte")


def test_the_real_set() -> None:
    train, test = mnist.load(find_data("mnist"))
    assert isinstance(train, TensorDataset)
    assert isinstance(test, TensorDataset)
    assert (train.inputs.shape, test.inputs.shape) == ((60000, 1, 28, 28), (10000, 1, 28, 28))
    assert train.mean is not None
    assert train.deviation is not None
    assert train.mean.item() / 255 == pytest.approx(0.13066, abs=5e-6)
    assert train.deviation.item() / 255 == pytest.approx(0.3081, abs=5e-5)
    assert test.inputs.double().mean().item() / 255 == pytest.approx(0.13252, abs=5e-5)
    assert torch.bincount(train.targets).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert torch.bincount(test.targets).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
