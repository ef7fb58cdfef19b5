"""LIBSVM text: what is written is read, labels are numbered, and a malformed line is named with its number."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpisparse.errors import ConfigError, DataError
from mpisparse.training.data import SparseDataset, libsvm
from tests.paths import find_data

TEXT = "+1 1:0.5 4:-2\n-1 2:1e-3  \n\n+1\n-1 1:1 2:2 3:3 # a comment 9:9\n+1 4:7\n-1 3:+.5\n"
DENSE = [[0.5, 0, 0, -2], [0, 1e-3, 0, 0], [0, 0, 0, 0], [1, 2, 3, 0], [0, 0, 0, 7], [0, 0, 0.5, 0]]


def write(folder: Path, text: str, name: str = "train") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_samples_labels_and_the_fifth_kept_for_the_test(tmp_path: Path) -> None:
    train, test = libsvm.load(write(tmp_path, TEXT))
    assert (len(train), len(test), train.input_shape, train.num_classes) == (5, 1, (4,), 2)
    inputs, targets = train.batch(torch.arange(5))
    assert inputs.dtype == torch.float32
    assert targets.tolist() == [1, 0, 1, 0, 0]
    torch.testing.assert_close(inputs, torch.tensor([*DENSE[:4], DENSE[5]]))
    torch.testing.assert_close(test.batch(torch.tensor([0]))[0], torch.tensor([DENSE[4]], dtype=torch.float32))
    inputs, targets = train.batch(torch.empty(0, dtype=torch.int64))
    assert (inputs.shape, targets.shape) == ((0, 4), (0,))


@pytest.mark.parametrize("index", [5, -1])
def test_an_index_outside_the_set_is_refused(tmp_path: Path, index: int) -> None:
    train, _ = libsvm.load(write(tmp_path, TEXT))
    with pytest.raises(IndexError):
        train.batch(torch.tensor([index]))


def test_compressed_files_are_the_same_files(tmp_path: Path) -> None:
    (tmp_path / "a.bz2").write_bytes(bz2.compress(TEXT.encode()))
    (tmp_path / "a.gz").write_bytes(gzip.compress(TEXT.encode()))
    first, second = libsvm.load(tmp_path / "a.bz2", tmp_path / "a.gz")
    assert torch.equal(first.batch(torch.arange(6))[0], second.batch(torch.arange(6))[0])
    for name in ("a.bz2", "a.gz"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-4])
        with pytest.raises(DataError, match=f"{name} cannot be read"):
            libsvm.load(tmp_path / name)


def test_width_is_the_larger_of_both_files_or_as_given(tmp_path: Path) -> None:
    train, test = write(tmp_path, TEXT), write(tmp_path, "-1 7:1\n", "test")
    assert [part.input_shape for part in libsvm.load(train, test)] == [(7,), (7,)]
    assert [part.input_shape for part in libsvm.load(train, test, features=9)] == [(9,), (9,)]
    with pytest.raises(DataError, match="test holds feature 7, above the 4 asked for"):
        libsvm.load(train, test, features=4)
    with pytest.raises(ConfigError, match="features 0 is below 1"):
        libsvm.load(train, features=0)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("+1 -1 1 -1", [1, 0, 1, 0]),
        ("0 1 1 0", [0, 1, 1, 0]),
        ("1 2 2 1", [0, 1, 1, 0]),
        ("3 1 2 1.0", [2, 0, 1, 0]),
    ],
)
def test_labels_are_numbered_from_0_in_their_order(tmp_path: Path, labels: str, expected: list[int]) -> None:
    path = write(tmp_path, "".join(f"{label} 1:1\n" for label in labels.split()))
    train, _ = libsvm.load(path, path)
    assert train.targets.tolist() == expected
    assert train.num_classes == len(set(expected))


@pytest.mark.parametrize("label", ["2", "0", "-3"])
def test_a_label_that_training_never_sees_is_refused(tmp_path: Path, label: str) -> None:
    test = write(tmp_path, f"-1 1:1\n{label} 1:1\n", "test")
    with pytest.raises(DataError, match=f"test: sample 1 has label {label}, none of the train set's: -1, 1"):
        libsvm.load(write(tmp_path, TEXT), test)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("+1 1", "b'1' is not index:value"),
        ("+1 a:1", "b'a:1' is not index:value"),
        ("+1 1:1 qid:3", "b'qid:3' is not index:value"),
        ("+1 qid:x 1:1", "b'qid:x' is not index:value"),
        ("+1 qid: 1:1", "b'qid:' is not index:value"),
        ("+1 -1:1", "is not index:value"),
        ("+1 1_0:1", "is not index:value"),
        ("+1 0:1 0:1", "index b'0' is not between 1 and"),
        ("1,3 4:0.5", "b'1,3' is a list of labels, and sets of several labels a sample are not read"),
        (",", "b',' is a list of labels"),
        (" 4:0.5", "the line begins with b'4:0.5', without a label"),
        ("+1 2:1 2:1", "index b'2' is not between 3 and"),
        ("+1 2:1 1:1", "index b'1' is not between 3 and"),
        ("+1 2147483648:1", "index b'2147483648' is not between"),
        ("+1 99999999999999999999999:1", "is not between"),
        ("+1 1:", "could not convert"),
        ("+1 1:x", "could not convert"),
        ("+1 1:2:3", "could not convert"),
        ("+1 1:nan", "is not a finite float32 number"),
        ("+1 1:inf", "is not a finite float32 number"),
        ("+1 1:3.4028236e38", "is not a finite float32 number"),
        ("+1 1:1e39", "is not a finite float32 number"),
        ("+1 1:1_0", "is not a finite float32 number"),
        ("x 1:1", "could not convert"),
        ("nan 1:1", "is not a finite float32 number"),
        ("0.5 1:1", "label b'0.5' is not a whole number"),
        ("\x00\x01", "could not convert"),
        ("1:2 2:3", "the line begins with b'1:2', without a label"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path, f"+1 1:1\n\n{line}\n-1 1:1\n")
    with pytest.raises(DataError, match=message) as caught:
        libsvm.load(path)
    assert f"{path}, line 3: " in str(caught.value)


@pytest.mark.parametrize(
    ("name", "train", "test"),
    [
        ("both", "+1 0:1 2:3\n-1 1:2\n", "-1 0:4\n"),
        ("train alone", "+1 0:1 2:3\n-1 1:2\n", "-1 1:2\n"),
        ("test alone", "+1 2:3\n-1 1:2\n", "-1 0:4\n"),
    ],
)
def test_an_index_0_in_either_file_speaks_for_both(tmp_path: Path, name: str, train: str, test: str) -> None:
    parts = libsvm.load(write(tmp_path, train), write(tmp_path, test, "test"))
    written = {"+1 0:1 2:3": [1, 0, 3], "+1 2:3": [0, 0, 3], "-1 1:2": [0, 2, 0], "-1 0:4": [4, 0, 0]}
    for part, text in zip(parts, (train, test), strict=True):
        assert part.batch(torch.arange(len(part)))[0].tolist() == [written[line] for line in text.splitlines()]
        assert part.describe().endswith("2 classes, indices from 0")


def test_the_index_of_the_first_feature_may_be_given(tmp_path: Path) -> None:
    path = write(tmp_path, "+1 1:1 2:3\n-1 2:2\n")
    for base, expected in (("auto", [[1, 3], [0, 2]]), (1, [[1, 3], [0, 2]]), (0, [[0, 1, 3], [0, 0, 2]])):
        train, _ = libsvm.load(path, path, index_base=base)  # type: ignore[arg-type]
        assert train.batch(torch.arange(2))[0].tolist() == expected
    with pytest.raises(DataError, match="train holds feature 2, counted from 0, above the 2 asked for"):
        libsvm.load(path, path, features=2, index_base=0)
    with pytest.raises(ConfigError, match=r"index_base 2 is none of \"auto\", 0 and 1"):
        libsvm.load(path, path, index_base=2)  # type: ignore[arg-type]
    write(tmp_path, "+1 1:1\n-1 0:2\n")
    with pytest.raises(DataError, match="line 2: index b'0' is not between 1 and"):
        libsvm.load(path, path, index_base=1)
    write(tmp_path, "+1\n-1\n")
    for base in ("auto", 0, 1):
        with pytest.raises(DataError, match="no features"):
            libsvm.load(path, path, index_base=base)  # type: ignore[arg-type]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("head", [b"", b"# a comment, 1:2\n\n"])
def test_marks_line_ends_comments_and_queries_change_nothing(
    tmp_path: Path, mark: bytes, end: bytes, head: bytes
) -> None:
    path = tmp_path / "train"
    lines = [b"-1 qid:1 1:2 3:4", b"", b"+1 qid:2 2:5 # 9:9", b"   ", b"1.0", b"-1.0e0 3:1"]
    path.write_bytes(mark + head + end.join(lines) + end)
    train, _ = libsvm.load(path, path)
    assert train.batch(torch.arange(4))[0].tolist() == [[2, 0, 4], [0, 5, 0], [0, 0, 0], [0, 0, 1]]
    assert train.targets.tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize("coding", ["utf-16", "utf-16-be", "utf-32"])
def test_wide_text_is_named(tmp_path: Path, coding: str) -> None:
    path = tmp_path / "train"
    path.write_bytes(("\ufeff" * (coding == "utf-16-be") + "+1 1:1\n-1 2:1\n").encode(coding))
    with pytest.raises(DataError, match=r"train is UTF-16 or UTF-32 text.*convert it to UTF-8"):
        libsvm.load(path)


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, message in (
        (tmp_path / "pipe", "pipe is no regular file"),
        (Path("/dev/zero"), "no regular file"),
        (tmp_path, "is a folder"),
        (Path("absent"), f"{Path('absent').absolute()} does not exist"),
    ):
        with pytest.raises(DataError, match=message):
            libsvm.load(path)


def test_a_compressed_file_without_its_ending_is_read(tmp_path: Path) -> None:
    for name, pack in (("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)):
        (tmp_path / name).write_bytes(pack(TEXT.encode()))
        assert len(libsvm.load(tmp_path / name).train) == 5


def test_the_largest_float32_is_read_as_it_is_printed(tmp_path: Path) -> None:
    path = write(tmp_path, "+1 1:3.4028235e+38\n-1 1:-3.4028235e+38\n")
    train, _ = libsvm.load(path, path)
    largest = torch.finfo(torch.float32).max
    assert train.batch(torch.arange(2))[0].flatten().tolist() == [largest, -largest]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no samples"),
        ("\n# nothing\n", "holds no samples"),
        ("+1 1:1\n+1 2:1\n", "holds the one label 1"),
        ("+1\n-1\n", "no features"),
        ("+1 1:1\n-1 2:1\n", "holds 2 samples, too few"),
    ],
)
def test_a_file_that_cannot_be_trained_on_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        libsvm.load(write(tmp_path, text))


ROWS = st.lists(
    st.tuples(
        st.sampled_from([-1, 1]),
        st.dictionaries(st.integers(1, 30), st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=8),
    ),
    min_size=1,
    max_size=12,
)


@given(rows=ROWS)
def test_any_matrix_comes_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, dict[int, float]]]
) -> None:
    rows = [*rows, (1, {30: 1.0}), (-1, {1: 1.0})]
    dense = np.zeros((len(rows), 30), np.float32)
    lines = []
    for number, (label, row) in enumerate(rows):
        for index, value in row.items():
            dense[number, index - 1] = value
        lines.append(" ".join([str(label), *(f"{index}:{row[index]!r}" for index in sorted(row))]))
    path = tmp_path_factory.mktemp("rows") / "rows"
    path.write_text("\n".join(lines))
    train, _ = libsvm.load(path, path)
    inputs, targets = train.batch(torch.arange(len(rows)))
    assert np.array_equal(inputs.numpy(), dense)
    assert targets.tolist() == [int(label == 1) for label, _ in rows]


@pytest.mark.parametrize(
    ("train_name", "test_name", "samples", "nonzeros", "features", "positive"),
    [
        ("a9a.bz2", "a9a.t.bz2", (32561, 16281), (451592, 225731), 123, (7841, 3846)),
        ("agaricus.train.bz2", "agaricus.test.bz2", (6513, 1611), (143286, 35442), 126, (3140, 776)),
        ("heart_scale", None, (216, 54), (3378,), 13, (120,)),
    ],
)
def test_the_real_sets(
    train_name: str,
    test_name: str | None,
    samples: tuple[int, ...],
    nonzeros: tuple[int, ...],
    features: int,
    positive: tuple[int, ...],
) -> None:
    folder = find_data("libsvm")
    parts = libsvm.load(folder / train_name, None if test_name is None else folder / test_name)
    assert tuple(len(part) for part in parts) == samples
    assert parts.train.input_shape == parts.test.input_shape == (features,)
    assert all(isinstance(part, SparseDataset) for part in parts)
    found = [part.inputs.nnz for part in parts if isinstance(part, SparseDataset)]
    ones = [int(part.targets.sum()) for part in parts]
    assert found == list(nonzeros) or sum(found) == sum(nonzeros)
    assert ones == list(positive) or sum(ones) == sum(positive)
