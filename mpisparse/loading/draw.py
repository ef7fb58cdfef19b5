"""Draws: the order of each epoch that a sampler of the user's own gives, the same on all ranks and after a resume."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mpisparse.errors import ConfigError

#: Keys that a sampler may give for each sample of the data set, and at least how many in all, before it is endless.
_REPEATS, _FEWEST = 100, 1_000_000

#: How deep samplers lie in each other, and of how many members of a list each is looked at.
_DEPTH, _WIDTH = 6, 64

#: Held while the process's generators are set, and while loaders draw from them: ranks may be threads of one process.
SETTING = Lock()

_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)


class Draws:
    """Calls a sampler under random numbers that follow from seed and epoch alone.

    While the sampler draws, torch's global generator, numpy's and Python's are set from (seed, epoch), and so is each
    generator that the sampler, or a sampler inside it, holds in an attribute. They are put back afterwards. So each
    rank draws the same without speaking to the others, and a resumed run draws what the first one drew.

    A sampler that changes with each call, such as one that counts its epochs, is copied, and called for all epochs from
    0 on: its call number n then gives epoch n - 1.

    Args:
        sampler: any iterable of keys of a data set, or of lists of them.
        dataset: is not copied with the sampler.

    Raises:
        ConfigError: the sampler draws from a generator that cannot be reached, so that it gives another order each
            time, or gives one only once, or does not end.
    """

    def __init__(self, sampler: Iterable[Any], dataset: object) -> None:
        self._sampler, self._dataset = sampler, dataset
        self._walking: Iterable[Any] | None = None
        self._next = 0
        self._changes = False
        first = self._draw(self._copy(), 0, 0, 0)
        again = self._copy()
        if self._draw(again, 0, 0, 0) != first:
            raise ConfigError(
                f"{type(sampler).__name__} gives another order each time, though torch's, numpy's and Python's "
                "generators, and those in its attributes, are the same: shard() could not repeat it on every rank. Let "
                "it draw from one of these"
            )
        second = self._draw(again, 0, 0, 0)
        if first and not second:
            raise ConfigError(
                f"{type(sampler).__name__} gives its order once only, and every epoch needs one: give a sampler whose "
                "__iter__ begins anew, such as a list"
            )
        self._changes = second != first

    def order(self, seed: int, epoch: int, stream: int = 0) -> list[Any]:
        """Return what the sampler gives for an epoch.

        Args:
            stream: gives another order of the same epoch, where several are used side by side.
        """
        if not self._changes:
            return self._draw(self._sampler, seed, epoch, stream)
        if self._walking is None or epoch < self._next:
            self._walking, self._next = self._copy(), 0
        keys: list[Any] = []
        while self._next <= epoch:
            keys = self._draw(self._walking, seed, self._next, stream)
            self._next += 1
        return keys

    def _draw(self, sampler: Iterable[Any], seed: int, epoch: int, stream: int) -> list[Any]:
        try:
            most = _REPEATS * len(self._dataset)  # type: ignore[arg-type]
        except TypeError:
            most = 0
        most = max(most, _FEWEST)
        with SETTING, _seeded(sampler, [seed, epoch, stream]):
            for part in parts_of(sampler):
                if callable(set_epoch := getattr(part, "set_epoch", None)):
                    set_epoch(epoch)
            keys = list(islice(iter(sampler), most + 1))
        if len(keys) > most:
            raise ConfigError(
                f"{type(sampler).__name__} gave more than {most} keys and did not end: shard() deals epochs, so give a "
                "sampler that ends"
            )
        return keys

    def _copy(self) -> Iterable[Any]:
        memo = {id(thing): thing for thing in (self._dataset, *_kept(self._sampler))}
        try:
            return copy.deepcopy(self._sampler, memo)
        except (TypeError, ValueError, NotImplementedError) as error:
            raise ConfigError(
                f"{type(self._sampler).__name__} cannot be copied ({error}), so shard() cannot find out whether it "
                "gives the same order twice: let it hold nothing like an open file or an iterator"
            ) from error


def parts_of(sampler: object) -> Iterator[Any]:
    """Return the sampler and all samplers and generators inside it, each once: what its attributes reach."""
    seen: set[int] = set()
    stack = [(sampler, _DEPTH)]
    while stack:
        thing, depth = stack.pop()
        if id(thing) in seen or isinstance(thing, Dataset | Tensor | np.ndarray | str | bytes | range):
            continue
        seen.add(id(thing))
        if isinstance(thing, Mapping | list | tuple):
            members = list(islice(thing.values() if isinstance(thing, Mapping) else thing, _WIDTH))
        elif isinstance(thing, _GENERATORS):
            members = []
            yield thing
        elif hasattr(thing, "__iter__") and hasattr(thing, "__dict__"):
            members = list(vars(thing).values())
            yield thing
        else:
            continue
        if depth:
            stack += [(member, depth - 1) for member in reversed(members)]


def _kept(sampler: object) -> Iterator[object]:
    """Return what is not to be copied with a sampler: data sets and tensors, which may be large."""
    for part in parts_of(sampler):
        if hasattr(part, "__dict__"):
            yield from (value for value in vars(part).values() if isinstance(value, Dataset | Tensor | np.ndarray))


@contextmanager
def _seeded(sampler: object, words: list[int]) -> Iterator[None]:
    """Set all generators that a sampler may draw from, and put them back afterwards."""
    found = [part for part in parts_of(sampler) if isinstance(part, _GENERATORS)]
    # The global ones of Python and numpy are objects behind the functions of their modules.
    shared = [torch.default_generator, random.random.__self__, np.random.rand.__self__]  # type: ignore[attr-defined]
    generators = [*shared, *(part for part in found if not any(part is one for one in shared))]
    states = [_state(generator) for generator in generators]
    try:
        for number, generator in enumerate(generators):
            _seed(generator, [*words, number])
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            _restore(generator, state)


def _seed(generator: Any, words: list[int]) -> None:
    sequence = np.random.SeedSequence(words)
    seed = int(sequence.generate_state(1, np.uint64)[0]) >> 1
    if isinstance(generator, torch.Generator):
        generator.manual_seed(seed)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = type(generator.bit_generator)(sequence).state
    else:
        generator.seed(seed % 2**32)


def _state(generator: Any) -> Any:
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.getstate() if isinstance(generator, random.Random) else generator.get_state()


def _restore(generator: Any, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.set_state(state)
