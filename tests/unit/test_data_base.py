"""The contract of a data set, on tensors, on the digits that travel with the package, and on the table of loaders."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import mpisparse.training.data.digits as digits_module
from mpisparse.errors import ConfigError, DataError
from mpisparse.training.data import LOADERS, TensorDataset
from mpisparse.training.data.base import (
    Images,
    channel_statistics,
    check_limits,
    every_fifth,
    first_images,
    image_split,
)
from mpisparse.training.data.files import opened


def images(count: int, seed: int = 0, channels: int = 2) -> Images:
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (count, channels, 3, 4), dtype=np.uint8)
    return Images(pixels, generator.integers(0, 10, count, dtype=np.uint8))


def test_batches_are_float32_scaled_by_the_train_split_and_free_to_be_changed() -> None:
    train, test = image_split("made", images(3000), images(7, seed=1), num_classes=10)
    everything, _ = train.batch(torch.arange(3000))
    assert everything.dtype == torch.float32
    torch.testing.assert_close(everything.mean((0, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(everything.std((0, 2, 3), correction=0), torch.ones(2), atol=1e-5, rtol=0)
    assert isinstance(train, TensorDataset)
    assert isinstance(test, TensorDataset)
    assert test.mean is not None
    assert train.mean is not None
    assert torch.equal(test.mean, train.mean)
    inputs, targets = train.batch(torch.tensor([5, 5]))
    inputs.zero_()
    targets.fill_(-1)
    again, labels = train.batch(torch.tensor([5, 5]))
    assert torch.equal(again[0], everything[5])
    assert torch.equal(again[0], again[1])
    assert (labels >= 0).all()


def test_an_empty_batch_has_the_shape_of_any_other() -> None:
    train, _ = image_split("made", images(4), images(4), num_classes=10)
    inputs, targets = train.batch(torch.empty(0, dtype=torch.int64))
    assert inputs.shape == (0, 2, 3, 4)
    assert targets.shape == (0,)


@pytest.mark.parametrize("index", [4, -1])
def test_an_index_outside_the_set_is_refused(index: int) -> None:
    train, _ = image_split("made", images(4), images(4), num_classes=10)
    with pytest.raises(IndexError):
        train.batch(torch.tensor([index]))


def test_description_is_one_line() -> None:
    train, _ = image_split("made", images(4), images(4), num_classes=10)
    assert train.describe() == "made train: 4 samples of 2x3x4, 10 classes"
    assert len(train) == 4


def test_statistics_are_those_of_all_pixels_of_a_channel() -> None:
    pixels = images(2500, seed=3).pixels
    means, deviations = channel_statistics(pixels)
    np.testing.assert_allclose(means, pixels.mean((0, 2, 3), dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(deviations, pixels.std((0, 2, 3), dtype=np.float64), rtol=1e-12)


def test_a_channel_of_one_level_stays_finite() -> None:
    flat: NDArray[np.uint8] = np.full((3, 1, 2, 2), 7, np.uint8)
    train, _ = image_split("flat", Images(flat, np.zeros(3, np.uint8)), Images(flat, np.zeros(3, np.uint8)), 10)
    assert torch.equal(train.batch(torch.arange(3))[0], torch.zeros(3, 1, 2, 2))


def test_every_fifth_sample_is_test_and_none_is_both() -> None:
    train, test = every_fifth(12)
    assert test.tolist() == [4, 9]
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(12))


def test_first_images_asks_for_no_more_parts_than_needed() -> None:
    asked: list[int] = []

    def part(seed: int) -> Images:
        asked.append(seed)
        return images(4, seed)

    taken = first_images(map(part, range(5)), limit=6)
    assert asked == [0, 1]
    assert np.array_equal(taken.pixels, np.concatenate([images(4, 0).pixels, images(4, 1).pixels[:2]]))
    assert len(taken.labels) == 6
    assert len(first_images(map(part, range(3)), limit=None).labels) == 12


def test_limits_below_one_are_refused() -> None:
    check_limits(train_limit=None, test_limit=1)
    with pytest.raises(ConfigError, match="test_limit 0 is below 1"):
        check_limits(train_limit=5, test_limit=0)


def test_files_that_are_missing_folders_or_damaged_are_named(tmp_path: Path) -> None:
    for name, content in (("a.gz", b"no gzip"), ("b.bz2", b"no bzip2"), ("c.xz", b"no xz")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name} cannot be read"), opened(tmp_path / name) as stream:
            stream.read()
    with pytest.raises(DataError, match="absent does not exist"), opened(tmp_path / "absent"):
        pass
    with pytest.raises(DataError, match="is a folder"), opened(tmp_path):
        pass


def test_the_digits_are_those_of_the_repository_they_come_from() -> None:
    train, test = LOADERS["digits"]()
    assert (len(train), len(test)) == (1438, 359)
    assert train.input_shape == test.input_shape == (1, 8, 8)
    counts = torch.bincount(torch.cat([train.targets, test.targets])).tolist()
    assert counts == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    raw = digits_module._read()
    digest = hashlib.sha256(raw.pixels.tobytes() + raw.labels.tobytes()).hexdigest()
    assert digest == "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"
    assert torch.equal(test.targets, torch.from_numpy(raw.labels[4::5].astype(np.int64)))


def test_the_file_of_the_digits_is_small_and_holds_no_objects() -> None:
    path = Path(digits_module.__file__).with_name("digits.npz")
    assert path.stat().st_size < 200_000
    with np.load(path, allow_pickle=False) as archive:
        assert {name: archive[name].dtype for name in archive.files} == {"images": np.uint8, "labels": np.uint8}


def test_a_damaged_installation_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits_module, "files", lambda _: tmp_path)
    with pytest.raises(DataError, match="install mpisparse again"):
        digits_module.load()
    content = Path(digits_module.__file__).with_name("digits.npz").read_bytes()
    for damaged in (b"", b"no archive", content[:-500], content[:20000] + b"x" * 50 + content[20050:]):
        (tmp_path / "digits.npz").write_bytes(damaged)
        with pytest.raises(DataError, match="install mpisparse again"):
            digits_module.load()


def test_the_table_of_loaders_cannot_be_changed() -> None:
    assert sorted(LOADERS) == ["cifar10", "digits", "libsvm", "mnist", "synthetic", "synthetic_svm", "text"]
    with pytest.raises(TypeError):
        LOADERS["mine"] = LOADERS["digits"]  # type: ignore[index]
