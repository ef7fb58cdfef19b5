"""Sparse samples in LIBSVM text: one a line, `label index:value index:value ...`, indices rising, from 1 or from 0."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpisparse.errors import ConfigError, DataError
from mpisparse.training.data.base import Dataset, Split, every_fifth
from mpisparse.training.data.files import opened, without_mark
from mpisparse.words import counted

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

HOME = "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/"
_LARGEST_INDEX = 2**31 - 1
#: The least number that rounds to infinity in float32.
_OVERFLOW = 2.0**128 - 2.0**103


@dataclass(frozen=True, eq=False, kw_only=True)
class SparseDataset(Dataset):
    """A data set kept as a sparse matrix; batches of it are dense.

    inputs: scipy.sparse.csr_matrix, float32, of shape (samples, features).
    index_base: the index, 0 or 1, that names the first feature in the file.
    """

    inputs: csr_matrix
    index_base: int = 1

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Return (features,)."""
        return (int(self.inputs.shape[1]),)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return the chosen samples, dense float32 of shape (n, features), and their targets."""
        targets = self.targets.index_select(0, indices)
        rows = self.inputs[indices.numpy()]
        return torch.from_numpy(rows.toarray()), targets

    def describe(self) -> str:
        """Return one line for a log, which says so when features are counted from 0."""
        return super().describe() + ("" if self.index_base else ", indices from 0")


def load(
    train: str | Path,
    test: str | Path | None = None,
    *,
    features: int | None = None,
    index_base: Literal["auto", 0, 1] = "auto",
) -> Split:
    """Return sparse train and test samples, shape (features,), classes numbered from 0 in order of their labels.

    Labels -1 and +1 become 0 and 1, and so do 0 and 1; labels 1, 2, 3 become 0, 1, 2. Query numbers, `qid:3` behind a
    label, are left out, as they say nothing of a class.

    Args:
        train: a file, plain or .gz, .bz2 or .xz.
        test: another; without it samples 4, 9, 14, ... of `train` are the test split.
        features: entries of a sample; as many as the largest index of both files needs unless given.
        index_base: the index of the first feature. LIBSVM's own files count from 1, scikit-learn writes from 0 unless
            asked otherwise: "auto" counts from 0 where any of the files holds an index 0, else from 1. Files counted
            from 0 whose first feature is zero in every sample look as if counted from 1: give 0 for those.

    Raises:
        DataError: a file is missing or damaged, a line is malformed, a feature or a label does not fit. The message
            names the file and the line.
        ConfigError: features is below 1, or index_base is something else.
    """
    if features is not None and features < 1:
        raise ConfigError(f"features {features} is below 1: give the number of features, or leave it out")
    if index_base not in ("auto", 0, 1):
        raise ConfigError(f'index_base {index_base!r} is none of "auto", 0 and 1: give the index of the first feature')
    least = 1 if index_base == 1 else 0
    train_path = Path(train)
    train_rows = _read(train_path, least)
    test_path = train_path if test is None else Path(test)
    test_rows = train_rows if test is None else _read(test_path, least)
    # Files of one set are counted alike: an index 0 in either speaks for both.
    base = int(min(train_rows.least, test_rows.least) > 0) if index_base == "auto" else int(index_base)
    width = features or max(train_rows.beyond, test_rows.beyond) - base
    classes = np.unique(train_rows.labels)
    if width <= 0:
        raise DataError(f"{train_path} holds labels but no features: give a file of lines such as '+1 3:0.5 7:1'")
    if len(classes) < 2:
        raise DataError(f"{train_path} holds the one label {classes[0]:g}: two classes or more are needed")
    whole = _dataset("libsvm train", train_path, train_rows, base, width, classes)
    if test is None and len(whole) < 5:
        raise DataError(
            f"{train_path} holds {counted(len(whole), 'sample')}, too few to keep every fifth for a test: give test"
        )
    if test is None:
        return _cut(whole)
    return Split(whole, _dataset("libsvm test", test_path, test_rows, base, width, classes))


class _Rows(NamedTuple):
    """The lines of one file, as the three arrays of a CSR matrix and a label a line.

    columns: indices as the file has them. least, beyond: the smallest index, and one more than the largest.
    """

    labels: NDArray[np.float64]
    starts: NDArray[np.int64]
    columns: NDArray[np.int32]
    values: NDArray[np.float32]
    least: int
    beyond: int


def _read(path: Path, least: int) -> _Rows:
    """Return the lines of a file whose indices are `least` or larger."""
    labels, starts, columns, values = array("d"), array("q", [0]), array("i"), array("f")
    with opened(path) as stream:
        for number, line in enumerate(stream, start=1):
            if number == 1:
                line = without_mark(path, line)
            # What follows a '#' is a comment, by the format's own tools; lines of nothing else hold no sample.
            fields = line.partition(b"#")[0].split()
            if not fields:
                continue
            try:
                labels.append(_label(fields[0]))
                _append_features(_without_query(fields[1:]), least, columns, values)
            except ValueError as error:
                raise DataError(f"{path}, line {number}: {error}: mend the line, or fetch the file again") from error
            starts.append(len(columns))
    if not labels:
        raise DataError(f"{path} holds no samples: give a file of lines such as '+1 3:0.5 7:1'")
    column_array = np.array(columns, np.int32)
    return _Rows(
        np.array(labels),
        np.array(starts, np.int64),
        column_array,
        np.array(values, np.float32),
        int(column_array.min(initial=_LARGEST_INDEX)),
        int(column_array.max(initial=-1)) + 1,
    )


def _label(field: bytes) -> float:
    if b"," in field:
        raise ValueError(f"{field!r} is a list of labels, and sets of several labels a sample are not read")
    if b":" in field:
        raise ValueError(f"the line begins with {field!r}, without a label")
    label = _number(field)
    if not label.is_integer():
        raise ValueError(f"label {field!r} is not a whole number, and only classes are read")
    return label


def _without_query(fields: list[bytes]) -> list[bytes]:
    """Return the fields behind a label without the number of a query, which only rankings need."""
    return fields[1:] if fields and fields[0].startswith(b"qid:") and fields[0][4:].isdigit() else fields


def _append_features(fields: list[bytes], least: int, columns: array[int], values: array[float]) -> None:
    previous = least - 1
    for field in fields:
        name, separator, text = field.partition(b":")
        if not separator or not name.isdigit():
            raise ValueError(f"{field!r} is not index:value")
        index = int(name) if len(name) <= 10 else _LARGEST_INDEX + 1
        if not previous < index <= _LARGEST_INDEX:
            raise ValueError(f"index {name!r} is not between {previous + 1} and {_LARGEST_INDEX}, as indices must rise")
        values.append(_number(text))
        columns.append(index)
        previous = index


def _number(text: bytes) -> float:
    """Return a finite number that fits float32."""
    # Python's own float() also takes 1_000, nan and infinity.
    value = math.nan if b"_" in text else float(text)
    if not abs(value) < _OVERFLOW:
        raise ValueError(f"{text!r} is not a finite float32 number")
    return value


def _dataset(name: str, path: Path, rows: _Rows, base: int, width: int, classes: NDArray[np.float64]) -> SparseDataset:
    if rows.beyond - base > width:
        counted = "" if base else ", counted from 0"
        raise DataError(f"{path} holds feature {rows.beyond - 1}{counted}, above the {width} asked for: raise features")
    # Here, as every start of a run would wait for it.
    from scipy.sparse import csr_matrix

    targets = np.searchsorted(classes, rows.labels)
    # A label beyond the last class is found at len(classes): compare it with the last, from which it differs.
    unknown = classes[np.minimum(targets, len(classes) - 1)] != rows.labels
    if unknown.any():
        sample = int(unknown.argmax())
        known = ", ".join(f"{label:g}" for label in classes)
        raise DataError(f"{path}: sample {sample} has label {rows.labels[sample]:g}, none of the train set's: {known}")
    return SparseDataset(
        name=name,
        num_classes=len(classes),
        inputs=csr_matrix((rows.values, rows.columns - np.int32(base), rows.starts), shape=(len(rows.labels), width)),
        targets=torch.from_numpy(targets.astype(np.int64)),
        index_base=base,
    )


def _cut(whole: SparseDataset) -> Split:
    def part(rows: NDArray[np.int64], kind: str) -> SparseDataset:
        return replace(
            whole, name=f"libsvm {kind}", inputs=whole.inputs[rows], targets=whole.targets[torch.from_numpy(rows)]
        )

    train, test = every_fifth(len(whole))
    return Split(part(train, "train"), part(test, "test"))
