"""shard() of an IterableDataset: ranks end together, and each uses what is its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

import mpisparse as ms
from mpisparse.comm import Communicator, run_ranks


class Stream(IterableDataset[Any]):
    """Numbers from `begin` on, shared among worker processes, in another place each epoch."""

    def __init__(self, begin: int, count: int) -> None:
        self.begin, self.count, self.epoch = begin, count, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        return iter([self.begin + 1000 * self.epoch + i for i in range(first, self.count, step)])


def read(comm: Communicator, data: Stream, epochs: int = 1, **options: Any) -> list[list[list[int]]]:
    workers = options.pop("num_workers", 0)
    loader = ms.shard(DataLoader(data, batch_size=4, num_workers=workers), comm=comm, **options)
    return [[batch.tolist() for batch in loader] for _ in range(epochs)]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_ranks_with_more_batches_end_with_the_others(size: int, capfd: pytest.CaptureFixture[str]) -> None:
    everyone = run_ranks(size, lambda comm: read(comm, Stream(100 * comm.rank, 40 + 4 * comm.rank), epochs=2))
    for rank, epochs in enumerate(everyone):
        for number, epoch in enumerate(epochs):
            assert [i for batch in epoch for i in batch] == [100 * rank + 1000 * number + i for i in range(40)]
    said = capfd.readouterr().err
    assert said.count("the epoch ended after 10 batches on each rank: rank 0 had no more") == (size > 1)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_stream_is_shared_sample_by_sample(size: int, workers: int) -> None:
    if workers and size != 2:
        pytest.skip("one of them is enough with processes")
    count = 8 * size
    everyone = run_ranks(size, lambda comm: read(comm, Stream(0, count), stream="same", num_workers=workers))
    assert sorted(i for (epoch,) in everyone for batch in epoch for i in batch) == list(range(count))


def test_the_same_stream_on_all_ranks_is_refused_unless_it_is_meant() -> None:
    with pytest.raises(
        ms.ConfigError, match=r"all 2 ranks begin with the same batch: give shard\(loader, stream=.same"
    ):
        run_ranks(2, lambda comm: read(comm, Stream(0, 8)))
    assert run_ranks(2, lambda comm: read(comm, Stream(0, 8), stream="own"))[1] == [[[0, 1, 2, 3], [4, 5, 6, 7]]]


@pytest.mark.parametrize("steps", [0, 1, 3, 5, 7])
def test_a_stream_goes_on_where_it_was_saved(steps: int) -> None:
    def one(comm: Communicator, state: dict[str, int] | None, steps: int) -> tuple[list[list[int]], dict[str, int]]:
        loader = ms.shard(DataLoader(Stream(100 * comm.rank, 20), batch_size=4), comm=comm)
        if state is not None:
            loader.load_state_dict(state)
        seen: list[list[int]] = []
        state = loader.state_dict()
        while len(seen) < steps:
            for batch in loader:
                seen.append(batch.tolist())
                state = loader.state_dict()
                if len(seen) == steps:
                    break
        return seen, state

    whole = run_ranks(2, lambda comm: one(comm, None, 10))
    first = run_ranks(2, lambda comm: one(comm, None, steps))
    rest = run_ranks(2, lambda comm: one(comm, first[0][1], 10 - steps))
    assert first[0][1] == first[1][1]
    assert [a + b for (a, _), (b, _) in zip(first, rest, strict=True)] == [seen for seen, _ in whole]
    with pytest.raises(ms.ConfigError, match="was saved by 2 ranks, here are 3"):
        run_ranks(3, lambda comm: one(comm, first[0][1], 1))


def test_what_cannot_be_compared_is_taken_as_each_ranks_own() -> None:
    class Objects(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return iter([object(), torch.zeros(2).to_sparse()])

    def one(comm: Communicator) -> int:
        return len(list(ms.shard(DataLoader(Objects(), batch_size=None), comm=comm)))

    assert run_ranks(2, one) == [2, 2]
