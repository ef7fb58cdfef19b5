"""shard(): every sample once an epoch, on any number of ranks, in batches of the loader's size."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import mpisparse as ms
from mpisparse.comm import run_ranks, solo


def numbers(count: int) -> TensorDataset:
    return TensorDataset(torch.arange(count))


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("samples", [4, 23, 64])
@pytest.mark.parametrize("shuffle", [True, False])
def test_each_sample_once_an_epoch(size: int, samples: int, shuffle: bool) -> None:
    check_shares(size, samples, shuffle=shuffle, workers=0)


def test_worker_processes_change_nothing() -> None:
    check_shares(2, 23, shuffle=True, workers=1)


def check_shares(size: int, samples: int, *, shuffle: bool, workers: int) -> None:
    def one(rank: int) -> list[list[list[int]]]:
        whole = DataLoader(numbers(samples), batch_size=5, shuffle=shuffle, num_workers=workers)
        loader = ms.shard(whole, comm=Ranks(rank, size))  # type: ignore[arg-type]
        epochs = [[batch.tolist() for (batch,) in loader] for _ in range(2)]
        assert all(len(epoch) == len(loader) for epoch in epochs)
        return epochs

    everyone = [one(rank) for rank in range(size)]
    for epoch in range(2):
        seen = Counter(i for rank in everyone for batch in rank[epoch] for i in batch)
        assert seen == Counter(range(samples))
        assert len({len(rank[epoch]) for rank in everyone}) == 1, "all ranks make the same number of steps"
        assert all(1 <= len(batch) <= 6 for rank in everyone for batch in rank[epoch])
    if shuffle and samples > 20:
        assert everyone[0][0] != everyone[0][1], "a new order each epoch"


def test_an_epoch_that_was_left_early_is_not_finished_by_the_next() -> None:
    loader = ms.shard(DataLoader(numbers(23), batch_size=5, shuffle=True), comm=solo())
    next(iter(loader))
    seen = [i for (batch,) in loader for i in batch.tolist()]
    assert sorted(seen) == list(range(23))
    loader.epoch = 1
    assert [i for (batch,) in loader for i in batch.tolist()] == seen


class Ranks:
    """Just enough of a communicator to be shared out by."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


class Stream(IterableDataset[int]):
    def __iter__(self) -> Any:
        return iter(range(3))


@pytest.mark.parametrize(
    ("loader", "words"),
    [
        (DataLoader(Stream()), "no length"),
        (DataLoader(numbers(9), batch_sampler=BatchSampler(SequentialSampler(range(9)), 3, False)), "no batch size"),
        (DataLoader(numbers(9), sampler=WeightedRandomSampler([1.0] * 9, 9)), "WeightedRandomSampler"),
        (DataLoader(numbers(9), sampler=RandomSampler(range(9), replacement=True)), "with replacement"),
        (DataLoader(numbers(9), drop_last=True), "drop_last"),
    ],
)
def test_loaders_that_cannot_be_shared_are_refused(loader: DataLoader[Any], words: str) -> None:
    with pytest.raises(ms.ConfigError, match=words):
        ms.shard(loader, comm=solo())


def test_more_ranks_than_samples_are_refused() -> None:
    with pytest.raises(ms.ConfigError, match="3 samples cannot be shared by 4 ranks"):
        run_ranks(4, lambda comm: ms.shard(DataLoader(numbers(3)), comm=comm))
