"""Characters of a plain text file, for language models that predict the next one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mpisparse.errors import ConfigError, DataError
from mpisparse.training.data.base import Dataset, Split
from mpisparse.training.data.files import opened, without_mark

#: Of Tiny Shakespeare, data/tinyshakespeare/input.txt; any other text does as well.
HOME = "https://github.com/karpathy/char-rnn"


@dataclass(frozen=True)
class Vocabulary:
    """The different characters of a text, in order of their code points; a token is a position in `characters`."""

    characters: str

    def encode(self, text: str) -> Tensor:
        """Return the tokens of a text, int64 of shape (characters,).

        Raises:
            DataError: a character is not in the vocabulary.
        """
        positions = {character: position for position, character in enumerate(self.characters)}
        try:
            return torch.tensor([positions[character] for character in text], dtype=torch.int64, device="cpu")
        except KeyError as error:
            raise DataError(f"character {error} is not among the {len(self.characters)} of the vocabulary") from error

    def decode(self, tokens: Tensor) -> str:
        """Return the text of some tokens, of any integer type, shape (characters,).

        Raises:
            IndexError: a token is outside the vocabulary.
        """
        return "".join(self.characters[token] for token in tokens.tolist())


@dataclass(frozen=True, eq=False, kw_only=True)
class TextDataset(Dataset):
    """Windows of a text: sample i is `length` characters from i * stride on, its targets the characters one later.

    inputs: tokens of shape (samples, length), a view, so overlapping windows take no memory of their own.
    targets: a view of the same kind. Both of an integer type as narrow as the vocabulary allows; batches are int64.
    """

    inputs: Tensor
    vocabulary: Vocabulary

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Return (length,)."""
        return tuple(self.inputs.shape[1:])

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return the chosen windows and the windows one character later, both int64 of shape (n, length)."""
        inputs, targets = self.inputs.index_select(0, indices), self.targets.index_select(0, indices)
        return inputs.to(torch.int64), targets.to(torch.int64)


def load(path: str | Path, *, length: int = 64, stride: int | None = None) -> Split:
    """Return windows of the first 90 % of a text as train split, and of the rest as test split.

    Test windows never overlap, whatever the stride: each character of the test split is predicted once, except the
    first and those of an end shorter than a window.

    Args:
        path: a UTF-8 file, plain or .gz, .bz2 or .xz. Its vocabulary is every character of the whole file, line ends
            as they are; byte order marks are none.
        length: characters of a window, which is also the context of a model.
        stride: characters from one train window to the next; `length` (no overlap, each character predicted once an
            epoch) unless given.

    Raises:
        DataError: the file is missing, damaged, not UTF-8, or too short for one window in each part.
        ConfigError: length or stride is below 1.
    """
    stride = length if stride is None else stride
    for name, value in (("length", length), ("stride", stride)):
        if value < 1:
            raise ConfigError(f"{name} {value} is below 1: give a number of characters, such as 64")
    tokens, vocabulary = _tokenize(_read(Path(path)))
    border = len(tokens) * 9 // 10
    if min(border, len(tokens) - border) <= length:
        raise DataError(
            f"{path} holds {len(tokens)} characters, whose last tenth is too short for a window of {length} and one "
            "more: take a longer text or a shorter length"
        )
    return Split(
        _windows("text train", tokens[:border], vocabulary, length, stride),
        _windows("text test", tokens[border:], vocabulary, length, length),
    )


def _read(path: Path) -> str:
    with opened(path) as stream:
        content = without_mark(path, stream.read())
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}): convert it, or give another file") from error
    if "\0" in text:
        raise DataError(
            f"{path} holds a NUL character at position {text.index(chr(0))}, as UTF-16 and binary files do: convert it "
            "to UTF-8 text, or give another file"
        )
    # A byte order mark between others is left from files that were joined.
    return text.replace("\ufeff", "")


def _tokenize(text: str) -> tuple[Tensor, Vocabulary]:
    points, tokens = np.unique(np.frombuffer(text.encode("utf-32-le"), np.uint32), return_inverse=True)
    dtype = np.uint8 if len(points) <= 256 else np.int32
    return torch.from_numpy(tokens.astype(dtype)), Vocabulary("".join(map(chr, points.tolist())))


def _windows(name: str, tokens: Tensor, vocabulary: Vocabulary, length: int, stride: int) -> TextDataset:
    return TextDataset(
        name=name,
        num_classes=len(vocabulary.characters),
        inputs=tokens[:-1].unfold(0, length, stride),
        targets=tokens[1:].unfold(0, length, stride),
        vocabulary=vocabulary,
    )
