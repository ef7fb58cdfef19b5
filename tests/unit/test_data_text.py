"""Text: windows, targets one character later, and a vocabulary that gives the text back."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpisparse.errors import ConfigError, DataError
from mpisparse.training.data import Split, TextDataset, Vocabulary, text
from tests.paths import find_data

ALPHABET = "the quick brown fox jumps over the lazy dog\r\n" * 5


def load(path: Path, **options: int) -> tuple[TextDataset, TextDataset]:
    split: Split = text.load(path, **options)
    assert isinstance(split.train, TextDataset)
    assert isinstance(split.test, TextDataset)
    return split.train, split.test


@pytest.fixture
def path(tmp_path: Path) -> Path:
    # As bytes: line ends must come through as they are.
    (tmp_path / "text").write_bytes(ALPHABET.encode())
    return tmp_path / "text"


@pytest.mark.parametrize("stride", [1, 3, 8, 11])
def test_windows_start_at_multiples_of_the_stride(path: Path, stride: int) -> None:
    train, _ = load(path, length=8, stride=stride)
    body = ALPHABET[: len(ALPHABET) * 9 // 10]
    starts = [start for start in range(0, len(body), stride) if start + 9 <= len(body)]
    assert len(train) == len(starts)
    inputs, targets = train.batch(torch.arange(len(train)))
    assert inputs.dtype == targets.dtype == torch.int64
    for start, window, following in zip(starts, inputs, targets, strict=True):
        assert train.vocabulary.decode(window) == body[start : start + 8]
        assert train.vocabulary.decode(following) == body[start + 1 : start + 9]


def test_the_last_tenth_is_test_and_does_not_overlap(path: Path) -> None:
    train, test = load(path, length=7, stride=2)
    tail = ALPHABET[len(ALPHABET) * 9 // 10 :]
    inputs, _ = test.batch(torch.arange(len(test)))
    assert test.vocabulary.decode(inputs.flatten()) == tail[: 7 * len(test)]
    assert len(test) == (len(tail) - 1) // 7
    assert train.vocabulary == test.vocabulary
    assert train.vocabulary.characters == "".join(sorted(set(ALPHABET)))
    assert (train.input_shape, train.num_classes) == ((7,), len(set(ALPHABET)))


def test_each_character_is_predicted_once_without_a_stride(path: Path) -> None:
    train, _ = load(path, length=4)
    _, targets = train.batch(torch.arange(len(train)))
    assert train.vocabulary.decode(targets.flatten()) == ALPHABET[1 : 1 + targets.numel()]
    assert len(ALPHABET) * 9 // 10 - 1 - targets.numel() < 4


def test_batches_may_be_changed_and_may_be_empty(path: Path) -> None:
    train, _ = load(path, length=4, stride=1)
    before, _ = train.batch(torch.tensor([0, 1]))
    train.batch(torch.tensor([0, 1]))[0].fill_(0)
    after, _ = train.batch(torch.tensor([0, 1]))
    assert torch.equal(before, after)
    inputs, targets = train.batch(torch.empty(0, dtype=torch.int64))
    assert inputs.shape == targets.shape == (0, 4)


def test_overlapping_windows_share_their_memory(path: Path) -> None:
    train, _ = load(path, length=16, stride=1)
    assert train.inputs.untyped_storage().nbytes() < 2 * len(ALPHABET)


@given(content=st.text(min_size=30, max_size=200).filter(lambda value: not {"\0", "\ufeff"} & {*value}))
def test_any_text_comes_back(tmp_path_factory: pytest.TempPathFactory, content: str) -> None:
    path = tmp_path_factory.mktemp("text") / "text.gz"
    path.write_bytes(gzip.compress(content.encode()))
    train, test = load(path, length=1)
    pieces = [part.vocabulary.decode(part.batch(torch.arange(len(part)))[0].flatten()) for part in (train, test)]
    border = len(content) * 9 // 10
    assert pieces == [content[: border - 1], content[border:-1]]


def test_byte_order_marks_are_no_characters(path: Path, tmp_path: Path) -> None:
    half = len(ALPHABET) // 2
    marked = tmp_path / "marked"
    marked.write_bytes(ALPHABET[:half].encode("utf-8-sig") + ALPHABET[half:].encode("utf-8-sig"))
    for plain, part in zip(load(path, length=8), load(marked, length=8), strict=True):
        assert part.vocabulary == plain.vocabulary
        assert torch.equal(part.inputs, plain.inputs)


def test_more_than_256_characters_keep_apart(tmp_path: Path) -> None:
    content = "".join(map(chr, range(300, 900)))
    (tmp_path / "wide").write_text(content, encoding="utf-8")
    train, _ = load(tmp_path / "wide", length=10)
    assert train.num_classes == 600
    assert train.vocabulary.decode(train.batch(torch.tensor([30]))[0][0]) == content[300:310]


def test_a_vocabulary_gives_the_text_back_and_refuses_strangers() -> None:
    vocabulary = Vocabulary("abc")
    assert vocabulary.encode("cab").tolist() == [2, 0, 1]
    assert vocabulary.decode(vocabulary.encode("abba")) == "abba"
    assert vocabulary.encode("").dtype == torch.int64
    with pytest.raises(DataError, match="character 'x' is not among the 3"):
        vocabulary.encode("axe")
    with pytest.raises(IndexError):
        vocabulary.decode(torch.tensor([3]))


def test_damaged_files_and_wrong_options_are_named(path: Path, tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"caf\xe9 " * 100)
    with pytest.raises(DataError, match=r"latin is not UTF-8 text .*position 3"):
        text.load(tmp_path / "latin")
    for coding in ("utf-16", "utf-32"):
        (tmp_path / "wide").write_bytes(ALPHABET.encode(coding))
        with pytest.raises(DataError, match="wide is UTF-16 or UTF-32 text"):
            text.load(tmp_path / "wide")
    (tmp_path / "bare").write_bytes(ALPHABET.encode("utf-16-le"))
    with pytest.raises(DataError, match="bare holds a NUL character at position 1"):
        text.load(tmp_path / "bare")
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(DataError, match="empty holds 0 characters"):
        text.load(tmp_path / "empty")
    with pytest.raises(DataError, match="too short for a window of 64"):
        text.load(path)
    with pytest.raises(DataError, match="does not exist"):
        text.load(tmp_path / "absent")
    with pytest.raises(ConfigError, match="length 0 is below 1"):
        text.load(path, length=0)
    with pytest.raises(ConfigError, match="stride 0 is below 1"):
        text.load(path, length=4, stride=0)


def test_the_shortest_text_has_one_test_window(tmp_path: Path) -> None:
    (tmp_path / "short").write_text("ab" * 25)
    _, test = load(tmp_path / "short", length=4)
    assert len(test) == 1
    with pytest.raises(DataError, match="too short"):
        text.load(tmp_path / "short", length=5)


def test_the_real_text() -> None:
    train, test = load(find_data("tinyshakespeare") / "input.txt", length=64)
    assert train.num_classes == 65
    assert (len(train), len(test)) == ((1_003_854 - 1) // 64, (111_540 - 1) // 64)
    inputs, _ = train.batch(torch.tensor([0]))
    assert train.vocabulary.decode(inputs[0]).startswith("First Citizen:\nBefore we proceed")
