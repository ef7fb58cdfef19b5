"""CIFAR-10 in its three layouts: the same images come out of each, and damaged or hostile files are refused."""

from __future__ import annotations

import fcntl
import io
import lzma
import os
import pickle
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from mpisparse.errors import ConfigError, DataError
from mpisparse.training.data import TensorDataset, cifar10
from mpisparse.training.data.formats import archive, jpeg_hdf5, pickled, records
from tests.paths import find_data

GENERATOR = np.random.default_rng(0)
PIXELS = GENERATOR.integers(0, 256, (11, 3, 32, 32), dtype=np.uint8)
LABELS = (np.arange(11) % 10).astype(np.uint8)


def binary(first: int, last: int) -> bytes:
    return np.concatenate([LABELS[first:last, None], PIXELS[first:last].reshape(-1, 3072)], axis=1).tobytes()


def loaded(path: Path, **limits: int) -> tuple[TensorDataset, TensorDataset]:
    train, test = cifar10.load(path, **limits)
    assert isinstance(train, TensorDataset)
    assert isinstance(test, TensorDataset)
    return train, test


@pytest.fixture
def binary_folder(tmp_path: Path) -> Path:
    (tmp_path / "data_batch_1.bin").write_bytes(binary(0, 4))
    (tmp_path / "data_batch_2.first3.bin.xz").write_bytes(lzma.compress(binary(4, 7)))
    (tmp_path / "test_batch.bin").write_bytes(binary(7, 11))
    return tmp_path


def test_binary_batches(binary_folder: Path) -> None:
    train, test = loaded(binary_folder)
    assert np.array_equal(train.inputs.numpy(), PIXELS[:7])
    assert np.array_equal(test.inputs.numpy(), PIXELS[7:])
    assert test.targets.tolist() == [7, 8, 9, 0]
    assert (train.input_shape, train.num_classes) == ((3, 32, 32), 10)
    train, test = loaded(binary_folder, train_limit=5, test_limit=1)
    assert train.targets.tolist() == [0, 1, 2, 3, 4]
    assert np.array_equal(test.inputs.numpy(), PIXELS[7:8])


def test_ten_batches_are_read_in_order_of_their_numbers(tmp_path: Path) -> None:
    for number in range(1, 11):
        (tmp_path / f"data_batch_{number}.bin").write_bytes(binary(number - 1, number))
    (tmp_path / "test_batch.bin").write_bytes(binary(0, 1))
    assert loaded(tmp_path)[0].targets.tolist() == list(range(10))


def test_the_folder_below_is_found_too(binary_folder: Path) -> None:
    below = binary_folder / "cifar-10-batches-bin"
    below.mkdir()
    for path in binary_folder.glob("*_batch*"):
        path.rename(below / path.name)
    assert len(loaded(binary_folder)[0]) == 7


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("data_batch_1.bin", lambda content: b"", "holds 0 bytes"),
        ("data_batch_1.bin", lambda content: content[:-1], "holds 12291 bytes, not 1 to 50000 records of 3073"),
        ("data_batch_1.bin", lambda content: b"\x0a" + content[1:], "record 0 has label 10, not 0 to 9"),
        ("data_batch_2.first3.bin.xz", lambda content: content[:-9], "is damaged or truncated"),
        ("data_batch_2.first3.bin.xz", lambda content: b"no xz", "is damaged or truncated"),
        ("test_batch.bin", lambda content: content + b"x", "test_batch.bin holds 12293 bytes"),
    ],
)
def test_damaged_binary_batches(binary_folder: Path, name: str, damage: Callable[[bytes], bytes], message: str) -> None:
    path = binary_folder / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=message):
        cifar10.load(binary_folder)


def test_a_batch_that_is_there_twice_or_missing_is_refused(binary_folder: Path) -> None:
    (binary_folder / "data_batch_1.first2.bin").write_bytes(binary(0, 2))
    with pytest.raises(DataError, match="data_batch_1 twice"):
        cifar10.load(binary_folder)
    (binary_folder / "data_batch_1.first2.bin").unlink()
    (binary_folder / "data_batch_1.bin").rename(binary_folder / "data_batch_3.bin")
    with pytest.raises(DataError, match="but not data_batch_1"):
        cifar10.load(binary_folder)
    (binary_folder / "data_batch_3.bin").rename(binary_folder / "data_batch_1.bin")
    (binary_folder / "test_batch.bin").unlink()
    with pytest.raises(DataError, match=r"lacks 1 of test_batch\.bin"):
        cifar10.load(binary_folder)


def test_a_file_of_too_many_records_is_refused_before_it_is_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "_LARGEST", 3)
    (tmp_path / "data_batch_1.bin.xz").write_bytes(lzma.compress(binary(0, 4)))
    with pytest.raises(DataError, match="not 1 to 3 records"):
        records.read(tmp_path / "data_batch_1.bin.xz")


def test_nothing_to_read_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(DataError, match=r"holds no CIFAR-10: give an \.h5 file") as caught:
            cifar10.load(path)
        assert "https://www.cs.toronto.edu/~kriz/cifar.html" in str(caught.value)
        assert f"Looked for {path}" in str(caught.value)
    with pytest.raises(ConfigError, match="test_limit -1"):
        cifar10.load(tmp_path, test_limit=-1)


# Pickled batches.


def batch(first: int, last: int) -> dict[Any, Any]:
    return {
        b"batch_label": b"made",
        b"labels": LABELS[first:last].tolist(),
        b"data": PIXELS[first:last].reshape(-1, 3072),
        b"filenames": [b"a.png"] * (last - first),
    }


def python2_pickle(first: int, last: int) -> bytes:
    """Return a batch as Python 2 and the numpy of 2009 wrote it, byte for byte: protocol 2, text as byte strings."""

    def text(value: str) -> bytes:
        return b"U" + bytes([len(value)]) + value.encode()

    raw = PIXELS[first:last].tobytes()
    shape = b"K" + bytes([last - first]) + b"M" + struct.pack("<H", 3072) + b"\x86"
    dtype = (
        b"cnumpy\ndtype\n" + text("u1") + b"K\0K\x01\x87R(K\x03" + text("|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
    )
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85" + text("b") + b"\x87R"
    state = b"(K\x01" + shape + dtype + b"K\0tb\x89T" + struct.pack("<I", len(raw)) + raw + b"tb"
    labels = b"](" + b"".join(b"K" + bytes([label]) for label in LABELS[first:last]) + b"e"
    items = text("data") + array + state + text("labels") + labels + text("batch_label") + text("made")
    return b"\x80\x02}(" + items + b"u."


@pytest.fixture
def pickled_folder(tmp_path: Path) -> Path:
    for number in range(1, 6):
        (tmp_path / f"data_batch_{number}").write_bytes(pickle.dumps(batch(number, number + 1), protocol=3))
    (tmp_path / "test_batch").write_bytes(pickle.dumps(batch(6, 11), protocol=4))
    return tmp_path


def test_pickled_batches(pickled_folder: Path) -> None:
    train, test = loaded(pickled_folder)
    assert np.array_equal(train.inputs.numpy(), PIXELS[1:6])
    assert np.array_equal(test.inputs.numpy(), PIXELS[6:])
    assert train.targets.tolist() == [1, 2, 3, 4, 5]
    assert len(loaded(pickled_folder, train_limit=2)[0]) == 2


def test_batches_as_python_2_wrote_them(tmp_path: Path) -> None:
    path = tmp_path / "data_batch_1"
    path.write_bytes(python2_pickle(2, 5))
    # The made file is what the ordinary reader takes it for, too.
    plain = pickle.loads(path.read_bytes(), encoding="bytes")
    assert np.array_equal(plain[b"data"], PIXELS[2:5].reshape(-1, 3072))
    images = pickled.read(path)
    assert np.array_equal(images.pixels, PIXELS[2:5])
    assert images.labels.tolist() == [2, 3, 4]


def test_an_array_in_column_order_is_the_same_array(tmp_path: Path) -> None:
    path = tmp_path / "data_batch_1"
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        data = np.asfortranarray(PIXELS[:3].reshape(-1, 3072))
        path.write_bytes(pickle.dumps(batch(0, 3) | {b"data": data}, protocol=protocol))
        assert np.array_equal(pickled.read(path).pixels, PIXELS[:3])


def as_numpy_1(content: bytes) -> bytes:
    """Return a pickle of a text protocol as numpy 1 writes it."""
    return content.replace(b"numpy._core", b"numpy.core")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "labels",
    [
        [4, 5, 6],
        np.array([4, 5, 6]),
        np.array([4, 5, 6], np.uint8),
        np.array([4, 5, 6], ">i4"),
        [np.int64(4), np.uint8(5), np.array([6], ">i2")[0]],
    ],
    ids=["list", "int64", "uint8", "big-endian", "scalars"],
)
@pytest.mark.parametrize("text", [False, True])
def test_batches_that_were_pickled_anew(tmp_path: Path, protocol: int, labels: object, text: bool) -> None:
    made = {"batch_label": "", "labels": labels, "data": PIXELS[4:7].reshape(-1, 3072), "filenames": ["a.png"] * 3}
    path = tmp_path / "data_batch_1"
    content = pickle.dumps(made if text else {key.encode(): value for key, value in made.items()}, protocol=protocol)
    for written in (content, as_numpy_1(content)) if protocol < 4 else (content,):
        path.write_bytes(written)
        images = pickled.read(path)
        assert np.array_equal(images.pixels, PIXELS[4:7])
        assert images.labels.tolist() == [4, 5, 6]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        # What stands for a function is called, and nothing of it can be set.
        (b"\x80\x02c_codecs\nencode\n}(X\x08\0\0\0functionX\x01\0\0\0xub.", "it changes a function"),
        (b"\x80\x02c_codecs\nencode\nN}(X\x08\0\0\0functionX\x01\0\0\0xu\x86b.", "it changes a function"),
        (b"\x80\x02c_codecs\nencode\nX\x01\0\0\0xX\x03\0\0\0rot\x86R.", "it asks for text as 'rot'"),
        (b"\x80\x02c__builtin__\nbytes\nJ\xff\xff\xff\x7f\x85R.", "it makes bytes of something else"),
        (b"\x80\x02cnumpy._core.multiarray\nscalar\nNN\x86R.", "'labels' is not of integers"),
        (pickle.dumps({"data": PIXELS[:2].reshape(2, -1), "labels": np.array([1.0, 2.0])}, protocol=5), "of integers"),
        (pickle.dumps({"data": PIXELS[:2].reshape(2, -1), "labels": np.array([1, 11])}, protocol=5), "whole numbers"),
        (
            pickle.dumps({"data": PIXELS[:2].reshape(2, -1), "labels": np.ones((2, 2), int)}, protocol=5),
            "not a list of",
        ),
        (pickle.dumps({"data": PIXELS[:2].reshape(2, -1).view("i1"), "labels": [1, 2]}, protocol=5), "not of uint8"),
        (pickle.dumps({"data": PIXELS[:2].reshape(2, -1), "fine_labels": [1, 2]}, protocol=5), "has no 'labels'"),
    ],
)
def test_what_is_pickled_anew_and_wrong_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "data_batch_1"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        pickled.read(path)


# Archives, and single batches.


def pack(path: Path, members: dict[str, bytes], mode: Literal["w:gz", "w:xz", "w"] = "w:gz") -> Path:
    with tarfile.open(path, mode) as packed:
        for name, content in members.items():
            about = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            about.size = len(content)
            packed.addfile(about, io.BytesIO(content))
    return path


def members(binary_ones: bool = False) -> dict[str, bytes]:
    """Return six batches and what lies beside them, not in order of numbers, as in the original."""

    def content(first: int, last: int) -> bytes:
        return binary(first, last) if binary_ones else pickle.dumps(batch(first, last), protocol=2)

    ending = ".bin" * binary_ones
    names = {f"data_batch_{number}{ending}": content(number, number + 1) for number in (4, 3, 2, 5, 1)}
    return {"batches.meta": b"?", "readme.html": b"<p>", f"test_batch{ending}": content(6, 11), **names}


@pytest.mark.parametrize("binary_ones", [False, True])
@pytest.mark.parametrize("mode", ["w:gz", "w:xz", "w"])
def test_archives_are_read_as_they_are_fetched(
    tmp_path: Path, binary_ones: bool, mode: Literal["w:gz", "w:xz", "w"]
) -> None:
    path = pack(tmp_path / "any-name", members(binary_ones), mode)
    train, test = loaded(path)
    assert np.array_equal(train.inputs.numpy(), PIXELS[1:6])
    assert np.array_equal(test.inputs.numpy(), PIXELS[6:])
    assert train.targets.tolist() == [1, 2, 3, 4, 5]
    assert [part.targets.tolist() for part in loaded(path, train_limit=2, test_limit=1)] == [[1, 2], [6]]


def test_the_folder_of_an_archive_will_do(tmp_path: Path) -> None:
    pack(tmp_path / "cifar-10-python.tar.gz", members())
    assert loaded(tmp_path)[0].targets.tolist() == [1, 2, 3, 4, 5]
    below = tmp_path / "cifar-10-batches-py"
    below.mkdir()
    for name, content in members().items():
        (below / name).write_bytes(content)
    # What is unpacked beside it is taken first.
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"damaged")
    assert loaded(tmp_path)[0].targets.tolist() == [1, 2, 3, 4, 5]


def test_damaged_archives_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cifar-10-python.tar.gz"
    whole = members()
    content = pack(path, whole).read_bytes()
    for keep in (0, 100, len(content) // 2, len(content) - 9):
        path.write_bytes(content[:keep])
        with pytest.raises(DataError, match="cifar-10-python"):
            cifar10.load(path)
    for place in (len(content) // 2, len(content) - 6):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(DataError, match="cifar-10-python"):
            cifar10.load(path)
    pack(path, {name: content for name, content in whole.items() if name != "data_batch_3"})
    with pytest.raises(DataError, match="lacks data_batch_3 of CIFAR-10's six batches"):
        cifar10.load(path)
    pack(path, {**whole, "again/data_batch_3": whole["data_batch_3"]})
    with pytest.raises(DataError, match="holds data_batch_3 twice"):
        cifar10.load(path)
    pack(path, {**whole, "data_batch_3": b"damage"})
    with pytest.raises(DataError, match="cifar-10-batches-py/data_batch_3 is not a pickled CIFAR-10 batch"):
        cifar10.load(path)
    with tarfile.open(path, "w:gz") as packed:
        link = tarfile.TarInfo("data_batch_1")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        packed.addfile(link)
    with pytest.raises(DataError, match="lacks data_batch_1, data_batch_2"):
        cifar10.load(path)
    pack(path, whole)
    monkeypatch.setattr(archive, "_LARGEST", 10_000)
    with pytest.raises(DataError, match="unpacks to more than 10000 bytes"):
        cifar10.load(path)


def test_a_single_batch_keeps_every_fifth_for_the_test(tmp_path: Path) -> None:
    (tmp_path / "data_batch_2").write_bytes(pickle.dumps(batch(0, 11)))
    (tmp_path / "data_batch_2.bin").write_bytes(binary(0, 11))
    (tmp_path / "data_batch_2.bin.xz").write_bytes(lzma.compress(binary(0, 11)))
    for name in ("data_batch_2", "data_batch_2.bin", "data_batch_2.bin.xz"):
        train, test = loaded(tmp_path / name)
        assert train.targets.tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 0]
        assert test.targets.tolist() == [4, 9]
        assert np.array_equal(test.inputs.numpy(), PIXELS[[4, 9]])
    (tmp_path / "few").write_bytes(pickle.dumps(batch(0, 4)))
    with pytest.raises(DataError, match="few holds 4 images, too few"):
        cifar10.load(tmp_path / "few")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04 and so on", "is a zip archive: unpack it"),
        (pickle.dumps({"label_names": ["cat"]}), "has no 'data'"),
        (b"", "is not a pickled CIFAR-10 batch"),
    ],
)
def test_a_file_of_something_else_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(DataError, match=message):
        cifar10.load(tmp_path / "file")


# Hostile pickles.


class Attack:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def attacks(marker: Path) -> list[object]:
    return [
        Attack(os.mkdir, str(marker)),
        Attack(os.system, f"touch {marker}"),
        Attack(exec, f"open({str(marker)!r}, 'w')"),
        Attack(getattr, os, "system"),
        Attack(np.save, str(marker), 1),
        Attack(np.frombuffer, b"123", "u1"),
        batch(0, 2) | {b"extra": Attack(os.mkdir, str(marker))},
        batch(0, 2) | {b"extra": np.array([Attack(os.mkdir, str(marker))], dtype=object)},
    ]


@pytest.mark.parametrize("number", range(8))
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_hostile_pickle_runs_nothing(tmp_path: Path, number: int, protocol: int) -> None:
    marker = tmp_path / "marker"
    path = tmp_path / "data_batch_1"
    try:
        path.write_bytes(pickle.dumps(attacks(marker)[number], protocol=protocol))
    except TypeError:
        path.write_bytes(b"\x80\x02cos\nsystem\n(S'touch " + str(marker).encode() + b"'\ntR.")
    with pytest.raises(DataError, match="is not a pickled CIFAR-10 batch"):
        pickled.read(path)
    assert not marker.exists()
    assert not marker.with_suffix(".npy").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a pickled"),
        (b"\x89PNG and so on", "not a pickled"),
        (b"\x80\x04.", "not a pickled"),
        (b"cnumpy\ndtype\n)R.", "not a pickled"),
        (b"cnumpy\nndarray\n)R.", "a _Array, not a dict"),
        (b"\x80\x02\x82\x01.", "not a pickled"),
        (b"\x80\x02U\x01aQ.", "not a pickled"),
        (pickle.dumps([1]), "a list, not a dict"),
        (pickle.dumps({}), "has no 'data'"),
        (pickle.dumps(batch(0, 2), protocol=4)[:-40], "not a pickled"),
        (pickle.dumps(batch(0, 2) | {b"data": b"raw"}), "'data' is a bytes, not an array"),
        (pickle.dumps(batch(0, 2) | {b"data": PIXELS[:2]}, protocol=4), "has shape .2, 3, 32, 32., not .images, 3072."),
        (pickle.dumps(batch(0, 2) | {b"data": np.zeros((0, 3072), np.uint8)}, protocol=4), "has shape .0, 3072."),
        (pickle.dumps(batch(0, 2) | {b"data": np.zeros((2, 3072))}, protocol=4), "not of uint8"),
        (pickle.dumps(batch(0, 2) | {b"data": np.zeros((2, 3072), object)}, protocol=4), "not of uint8"),
        (pickle.dumps(batch(0, 2) | {b"labels": [1]}, protocol=4), "not a list of 2 labels"),
        (pickle.dumps(batch(0, 2) | {b"labels": (1, 2)}, protocol=4), "not a list of 2 labels"),
        (pickle.dumps(batch(0, 2) | {b"labels": [1, 10]}, protocol=4), "whole numbers 0 to 9"),
        (pickle.dumps(batch(0, 2) | {b"labels": [1, -1]}, protocol=4), "whole numbers 0 to 9"),
        (pickle.dumps(batch(0, 2) | {b"labels": [1, True]}, protocol=4), "whole numbers 0 to 9"),
        (pickle.dumps(batch(0, 2) | {b"labels": [1, 2.0]}, protocol=4), "whole numbers 0 to 9"),
    ],
)
def test_foreign_and_damaged_pickles(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "data_batch_1"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        pickled.read(path)


def test_a_pickle_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickled, "_LARGEST", 100)
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(batch(0, 1)))
    with pytest.raises(DataError, match="is larger than 100 bytes"):
        pickled.read(tmp_path / "data_batch_1")


def test_a_missing_pickled_batch_is_named(pickled_folder: Path) -> None:
    (pickled_folder / "data_batch_4").unlink()
    with pytest.raises(DataError, match="lacks 1 of data_batch_1, data_batch_2"):
        cifar10.load(pickled_folder)


# JPEG images in HDF5.


def jpeg(index: int, edge: int = 32) -> bytes:
    """Return a flat colour as a JPEG file, which keeps it almost exactly; all of one size share their header."""
    stream = io.BytesIO()
    Image.new("RGB", (edge, edge), (20 * index, 255 - 20 * index, 100)).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def write_hdf5(path: Path, edit: Callable[[h5py.File], None] | None = None, edge: int = 32) -> Path:
    files = [jpeg(index, edge) for index in range(6)]
    # All are of one size and quality, so they part within the scan: what comes before it is the same.
    header = files[0][: files[0].index(b"\xff\xda")]
    assert all(content.startswith(header) for content in files)
    with h5py.File(path, "w") as file:
        file["header"] = np.frombuffer(header, np.uint8)
        for part, first, last in (("train", 0, 4), ("test", 4, 6)):
            scans = [content[len(header) :] for content in files[first:last]]
            file[f"{part}/labels"] = np.arange(first, last, dtype=np.uint8)
            file[f"{part}/offsets"] = np.cumsum([0, *map(len, scans)]).astype(np.uint64)
            file[f"{part}/scans"] = np.frombuffer(b"".join(scans), np.uint8)
        if edit is not None:
            edit(file)
    return path


def test_jpeg_images(tmp_path: Path) -> None:
    path = write_hdf5(tmp_path / "small.h5")
    for given in (path, tmp_path):
        train, test = loaded(given)
        assert (len(train), len(test)) == (4, 2)
        assert train.targets.tolist() == [0, 1, 2, 3]
        expected = torch.tensor([[20 * index, 255 - 20 * index, 100] for index in range(4)])
        found = train.inputs.float().mean((2, 3))
        torch.testing.assert_close(found, expected.float(), atol=3, rtol=0)
    train, test = loaded(path, train_limit=2, test_limit=1)
    assert (train.targets.tolist(), test.targets.tolist()) == ([0, 1], [4])


def replace(name: str, value: object) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        del file[name]
        file[name] = value

    return edit


def external_storage(file: h5py.File) -> None:
    del file["train/labels"]
    file.create_dataset("train/labels", (4,), np.uint8, external=[("/etc/passwd", 0, 4)])


def virtual(file: h5py.File) -> None:
    del file["train/labels"]
    layout = h5py.VirtualLayout((4,), np.uint8)
    layout[:] = h5py.VirtualSource("other.h5", "labels", (4,))
    file.create_virtual_dataset("train/labels", layout)


def unlimited_virtual(file: h5py.File) -> None:
    del file["train/labels"]
    layout = h5py.VirtualLayout((4,), np.uint8, maxshape=(None,))
    source = h5py.VirtualSource("other.h5", "labels", (4,), maxshape=(None,))
    layout[0 : h5py.h5s.UNLIMITED] = source[0 : h5py.h5s.UNLIMITED]
    file.create_virtual_dataset("train/labels", layout)


def unwritten(**options: Any) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        del file["train/scans"]
        file.create_dataset("train/scans", (2**26,), np.uint8, **options)

    return edit


def compressed(file: h5py.File) -> None:
    del file["train/labels"]
    file.create_dataset("train/labels", data=np.arange(4, dtype=np.uint8), scaleoffset=0, chunks=(4,))


def cyclic(file: h5py.File) -> None:
    del file["train/labels"]
    file["train/labels"] = file["train"]


def objects(file: h5py.File) -> None:
    del file["header"]
    file.create_dataset("header", (4,), h5py.string_dtype())


def huge(file: h5py.File) -> None:
    del file["train/scans"]
    file.create_dataset("train/scans", (2**40,), np.uint8, chunks=(2**20,))


def absent(name: str) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        del file[name]

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (absent("header"), "has no header"),
        (absent("test"), "has no test"),
        (absent("train/offsets"), "has no train/offsets"),
        (replace("train/labels", h5py.SoftLink("/test/labels")), "train/labels is a SoftLink, which is not followed"),
        (replace("train/labels", h5py.ExternalLink("other.h5", "/labels")), "train/labels is a ExternalLink"),
        (replace("train", h5py.ExternalLink("other.h5", "/train")), "train is a ExternalLink"),
        (replace("train", np.zeros(3)), "has no train/labels"),
        (replace("header", h5py.Empty("u1")), "header is .* not one row of uint8"),
        (external_storage, "takes its bytes from other files"),
        (virtual, "takes its bytes from other files"),
        (unlimited_virtual, "takes its bytes from other files"),
        (unwritten(), "claims 67108864 entries, and only 0 bytes are stored"),
        (unwritten(chunks=(2**20,)), "and only 0 bytes are stored"),
        (unwritten(chunks=(2**20,), compression="gzip"), "and only 0 bytes are stored"),
        (compressed, "has the filters"),
        (cyclic, "not one row of uint8"),
        (replace("train/labels", np.dtype("u1")), "not one row of uint8"),
        (replace("train/labels", np.array([0, 1, 2, 3], ">u2")), "not one row of uint8"),
        (objects, "not one row of uint8"),
        (huge, "claims 1099511627776 entries"),
        (replace("train/labels", np.zeros(4)), "not one row of uint8"),
        (replace("train/labels", np.zeros((4, 1), np.uint8)), "not one row of uint8"),
        (replace("train/labels", np.zeros(5, np.uint8)), "train has 5 labels and 5 offsets"),
        (replace("train/labels", np.array([1, 2, 3, 10], np.uint8)), "train/labels holds 10"),
        (replace("train/offsets", np.array([0, 9, 3, 5, 8], np.uint64)), "offsets do not rise"),
        (replace("test/offsets", np.array([0, 2**63, 2**64 - 1], np.uint64)), "offsets do not rise"),
        (replace("header", np.zeros(9, np.uint8)), "image 0 of train cannot be decoded"),
        (replace("test/scans", np.zeros(3, np.uint8)), "offsets do not rise from 0 to 3"),
    ],
)
def test_foreign_and_damaged_hdf5(tmp_path: Path, edit: Callable[[h5py.File], None], message: str) -> None:
    with pytest.raises(DataError, match=message):
        cifar10.load(write_hdf5(tmp_path / "bad.h5", edit))


def test_external_files_stay_closed(tmp_path: Path) -> None:
    write_hdf5(tmp_path / "other.h5")
    path = write_hdf5(tmp_path / "linked.h5", replace("train", h5py.ExternalLink("other.h5", "/train")))
    with pytest.raises(DataError, match="ExternalLink"):
        cifar10.load(path)


def test_a_virtual_array_opens_no_other_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shape of one that can grow is found in the files that it names: it is never asked for."""
    path = write_hdf5(tmp_path / "virtual.h5", unlimited_virtual)
    asked: list[str] = []

    def shape(dataset: h5py.Dataset) -> tuple[int, ...]:
        asked.append(dataset.name)
        return (4,)

    monkeypatch.setattr(h5py.Dataset, "shape", property(shape))
    monkeypatch.setattr(h5py.Dataset, "ndim", property(lambda dataset: len(shape(dataset))))
    with pytest.raises(DataError, match="other files"):
        jpeg_hdf5.read(path, None, None)
    assert "/train/labels" not in asked


def test_compressed_arrays_are_read(tmp_path: Path) -> None:
    def edit(file: h5py.File) -> None:
        scans = file["train/scans"][:]
        del file["train/scans"]
        file.create_dataset("train/scans", data=scans, compression="gzip", shuffle=True, fletcher32=True)

    plain, packed = (
        jpeg_hdf5.read(write_hdf5(tmp_path / name, change), None, None)
        for name, change in (("a.h5", None), ("b.h5", edit))
    )
    assert np.array_equal(plain[0].pixels, packed[0].pixels)


def test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="image 0 of train is 16x16 pixels, not 32x32"):
        jpeg_hdf5.read(write_hdf5(tmp_path / "small.h5", edge=16), None, None)


def test_a_truncated_hdf5_or_another_file_is_named(tmp_path: Path) -> None:
    path = write_hdf5(tmp_path / "cut.h5")
    content = path.read_bytes()
    for damaged in (b"", b"no hdf5", content[:100], content[: len(content) // 2], content[:-1]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"cut\.h5 cannot be read as HDF5"):
            cifar10.load(path)


def test_an_image_cut_short_is_named(tmp_path: Path) -> None:
    def shorten(file: h5py.File) -> None:
        offsets = file["train/offsets"][:]
        offsets[1] = 5
        replace("train/offsets", offsets)(file)

    with pytest.raises(DataError, match="image 0 of train cannot be decoded"):
        cifar10.load(write_hdf5(tmp_path / "cut.h5", shorten))


def test_reading_takes_no_lock(tmp_path: Path) -> None:
    path = write_hdf5(tmp_path / "locked.h5")
    with path.open("rb+") as other:
        # A lock of another process would keep HDF5 from opening the file with one of its own.
        fcntl.flock(other, fcntl.LOCK_EX)
        assert len(loaded(path)[0]) == 4


def test_two_hdf5_files_are_ambiguous(tmp_path: Path) -> None:
    write_hdf5(tmp_path / "a.h5")
    write_hdf5(tmp_path / "b.h5")
    with pytest.raises(DataError, match=r"holds 2 \.h5 files"):
        cifar10.load(tmp_path)


# The real set.


def test_the_real_binary_subset() -> None:
    train, test = loaded(find_data("cifar10") / "cifar-10-batches-bin")
    assert (len(train), len(test)) == (4000, 1000)
    assert torch.bincount(train.targets).tolist() == [396, 366, 420, 384, 422, 393, 414, 385, 407, 413]
    assert torch.bincount(test.targets).tolist() == [103, 89, 100, 103, 90, 86, 112, 102, 106, 109]


def test_the_real_jpeg_images_are_close_to_the_original_pixels() -> None:
    folder = find_data("cifar10")
    train, test = loaded(folder, train_limit=500, test_limit=200)
    exact, _ = loaded(folder / "cifar-10-batches-bin", train_limit=500, test_limit=200)
    assert (len(train), len(test)) == (500, 200)
    assert torch.equal(train.targets, exact.targets)
    assert (train.inputs.float() - exact.inputs.float()).abs().mean().item() < 8
