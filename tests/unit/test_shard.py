"""shard(): every sample once an epoch, on any number of ranks, with any sampler; places that outlive iterators."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import mpisparse as ms
from mpisparse.comm import Communicator, run_ranks, solo

SIZES = [1, 2, 3, 4]


def numbers(count: int) -> TensorDataset:
    return TensorDataset(torch.arange(count))


def taken(batches: Any) -> list[list[int]]:
    """Return the samples of batches of `numbers`."""
    return [batch.tolist() for (batch,) in batches]


def flat(batches: list[list[int]]) -> list[int]:
    return [sample for batch in batches for sample in batch]


class Shuffled(Sampler[int]):
    """A sampler of a user's own, which draws from any of the generators that such samplers draw from."""

    def __init__(self, count: int, draw: Callable[[int], list[int]]) -> None:
        self.count, self.draw = count, draw

    def __iter__(self) -> Iterator[int]:
        return iter(self.draw(self.count))


class Holding(Sampler[int]):
    """A sampler with a generator of its own, seeded differently on each rank by whoever made it."""

    def __init__(self, count: int) -> None:
        self.count, self.rng = count, np.random.default_rng()

    def __iter__(self) -> Iterator[int]:
        return iter(self.rng.permutation(self.count).tolist())

    def __len__(self) -> int:
        return self.count


class Curriculum(Sampler[int]):
    """A sampler that counts its calls: the epoch begins one sample later each time."""

    def __init__(self, count: int) -> None:
        self.count, self.calls = count, 0

    def __iter__(self) -> Iterator[int]:
        self.calls += 1
        return iter([(i + self.calls) % self.count for i in range(self.count)])


class Told(Sampler[int]):
    """A sampler that is told the epoch."""

    def __init__(self, count: int) -> None:
        self.count, self.epoch = count, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.epoch)
        return iter(torch.randperm(self.count, generator=generator).tolist())


class Buckets(Sampler[list[int]]):
    """A batch sampler that makes batches of similar samples, of different sizes."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[list[int]]:
        cuts = sorted({0, *range(3, self.count, 5), *range(4, self.count, 7), self.count})
        batches = [list(range(a, b)) for a, b in pairwise(cuts)]
        random.shuffle(batches)
        return iter(batches)


SAMPLERS: dict[str, Callable[[int], DataLoader[Any]]] = {
    "shuffle": lambda n: DataLoader(numbers(n), batch_size=4, shuffle=True),
    "in order": lambda n: DataLoader(numbers(n), batch_size=4),
    "subset": lambda n: DataLoader(numbers(n + 9), batch_size=4, sampler=SubsetRandomSampler(range(n))),
    "part": lambda n: DataLoader(numbers(n + 9), batch_size=4, sampler=SequentialSampler(range(n))),
    "random part": lambda n: DataLoader(numbers(n + 9), batch_size=4, sampler=RandomSampler(range(n))),
    "list": lambda n: DataLoader(numbers(n), batch_size=4, sampler=list(range(n))[::-1]),
    "torch": lambda n: DataLoader(numbers(n), 4, sampler=Shuffled(n, lambda k: torch.randperm(k).tolist())),
    "numpy": lambda n: DataLoader(numbers(n), 4, sampler=Shuffled(n, lambda k: np.random.permutation(k).tolist())),  # noqa: NPY002
    "python": lambda n: DataLoader(numbers(n), 4, sampler=Shuffled(n, lambda k: random.sample(range(k), k))),
    "own generator": lambda n: DataLoader(numbers(n), 4, sampler=Holding(n)),
    "own generator of torch": lambda n: DataLoader(
        numbers(n), 4, sampler=SubsetRandomSampler(range(n), torch.Generator().manual_seed(random.getrandbits(9)))
    ),
    "counts": lambda n: DataLoader(numbers(n), 4, sampler=Curriculum(n)),
    "told": lambda n: DataLoader(numbers(n), 4, sampler=Told(n)),
    "batch sampler": lambda n: DataLoader(numbers(n), batch_sampler=BatchSampler(RandomSampler(range(n)), 4, False)),
    "batches of a list": lambda n: DataLoader(numbers(n), batch_sampler=BatchSampler(list(range(n)), 4, False)),
    "buckets": lambda n: DataLoader(numbers(n), batch_sampler=Buckets(n)),
    "batches by the sampler": lambda n: DataLoader(
        numbers(n), batch_size=None, sampler=BatchSampler(RandomSampler(range(n)), 4, False)
    ),
    "buckets by the sampler": lambda n: DataLoader(numbers(n), batch_size=None, sampler=Buckets(n)),
    "concatenated": lambda n: DataLoader(ConcatDataset([numbers(n)]), 4, shuffle=True),
    "subset of data": lambda n: DataLoader(Subset(numbers(n + 9), range(n)), 4, shuffle=True),
    "workers": lambda n: DataLoader(numbers(n), 4, shuffle=True, num_workers=1),
}  # fmt: skip
QUICK = [name for name in SAMPLERS if name != "workers"]
#: Samplers that give the same order in every epoch, as they would with a plain loader.
FIXED = {"in order", "part", "list", "batches of a list"}


def epochs(size: int, make: Callable[[], DataLoader[Any]], count: int = 2) -> list[list[list[list[int]]]]:
    """Return the batches of each rank in each of the first epochs."""

    def one(comm: Communicator) -> list[list[list[int]]]:
        loader = ms.shard(make(), comm=comm)
        seen = [taken(loader) for _ in range(count)]
        if Buckets not in (type(loader.batch_sampler), type(loader.sampler)):  # whose steps depend on the order
            assert {len(epoch) for epoch in seen} == {len(loader)}
        return seen

    return run_ranks(size, one)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("samples", [9, 23])
def test_each_sample_once_an_epoch_whatever_deals_it(size: int, name: str, samples: int) -> None:
    everyone = epochs(size, lambda: SAMPLERS[name](samples))
    for epoch in range(2):
        assert sorted(i for rank in everyone for i in flat(rank[epoch])) == list(range(samples))
        assert len({len(rank[epoch]) for rank in everyone}) == 1, "all ranks make the same number of steps"
        most = 5 if "buckets" in name else 4
        assert all(1 <= len(batch) <= most + 1 for rank in everyone for batch in rank[epoch])
    if name not in FIXED and samples > 20:
        assert everyone[0][0] != everyone[0][1], "a new order each epoch"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("samples", [4, 23, 64])
def test_shuffled_epochs_are_pinned_by_the_sampler_of_training_runs(size: int, samples: int) -> None:
    from mpisparse.sampler import Sampler as Dealt

    everyone = epochs(size, lambda: DataLoader(numbers(samples), batch_size=5, shuffle=True))
    for rank, seen in enumerate(everyone):
        dealt = Dealt(samples, 5, 0, rank, size)
        batches = [batch for epoch in seen for batch in epoch]
        assert batches == [dealt.next().indices.tolist() for _ in range(2 * dealt.steps_per_epoch)]


@pytest.mark.parametrize("size", SIZES)
def test_draws_with_replacement_are_dealt_as_one_rank_would_see_them(size: int) -> None:
    def make() -> DataLoader[Any]:
        return DataLoader(numbers(23), 4, sampler=WeightedRandomSampler([1.0] * 22 + [1000.0], 30))

    everyone, alone = epochs(size, make), epochs(1, make)
    for epoch in range(2):
        together = Counter(i for rank in everyone for i in flat(rank[epoch]))
        assert together == Counter(flat(alone[0][epoch]))
        assert together[22] > 15
    many = epochs(size, lambda: DataLoader(numbers(23), 4, sampler=RandomSampler(range(23), num_samples=50)))
    assert sum(len(flat(rank[0])) for rank in many) == 50


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("batch_sampler", [False, True])
def test_drop_last_gives_full_batches_alone(size: int, batch_sampler: bool) -> None:
    def make() -> DataLoader[Any]:
        if batch_sampler:
            return DataLoader(numbers(23), batch_sampler=BatchSampler(RandomSampler(range(23)), 4, drop_last=True))
        return DataLoader(numbers(23), batch_size=4, shuffle=True, drop_last=True)

    for epoch in range(2):
        everyone = [rank[epoch] for rank in epochs(size, make)]
        assert all([len(batch) for batch in rank] == [4] * (23 // (4 * size)) for rank in everyone)
        assert max(Counter(i for rank in everyone for i in flat(rank)).values()) == 1


def test_drop_last_of_too_few_samples_is_refused_naming_the_way_out() -> None:
    with pytest.raises(ms.ConfigError, match=r"epoch of 7 samples has no full step on 2 ranks of 4 samples each.*drop"):
        epochs(2, lambda: DataLoader(numbers(7), batch_size=4, drop_last=True))


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("batch", [3, 4, 8])
def test_no_rank_of_several_gets_a_single_sample_where_batches_can_be_taken_from(size: int, batch: int) -> None:
    for samples in range(batch * size, 4 * batch * size):
        everyone = epochs(size, lambda n=samples: DataLoader(numbers(n), batch_size=batch), count=1)  # type: ignore[misc]
        assert min(len(part) for rank in everyone for part in rank[0]) >= 2


def test_batch_norm_trains_on_a_last_batch_of_few_samples() -> None:
    def train(comm: Communicator) -> int:
        loader = ms.shard(DataLoader(TensorDataset(torch.randn(10, 5)), batch_size=4), comm=comm)
        model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
        plain = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer = ms.DistributedOptimizer(plain, model, comm=comm, say=lambda text: None)
        for (inputs,) in loader:
            optimizer.zero_grad()
            model(inputs).pow(2).mean().backward()
            optimizer.step(samples=len(inputs))
        return len(loader)

    assert run_ranks(2, train) == [2, 2]


def test_items_without_a_batch_size_are_dealt_one_a_step(capfd: pytest.CaptureFixture[str]) -> None:
    def one(comm: Communicator) -> list[int]:
        return [int(item) for (item,) in ms.shard(DataLoader(numbers(7), batch_size=None), comm=comm)]

    assert run_ranks(2, one) == [[0, 2, 4], [1, 3, 5]]
    assert "1 of an epoch's items are not used on 2 ranks" in capfd.readouterr().err
    batches = [torch.arange(3), torch.arange(4)]
    loader = ms.shard(DataLoader(batches, batch_size=None), comm=solo())  # type: ignore[arg-type]
    assert [batch.tolist() for batch in loader] == [[0, 1, 2], [0, 1, 2, 3]]
    assert capfd.readouterr().err == ""


class Many(Dataset[Any]):
    """Data that are fetched many at a time."""

    def __len__(self) -> int:
        return 9

    def __getitems__(self, keys: list[int]) -> list[Any]:
        assert all(type(key) is int for key in keys)
        return [{"x": torch.tensor(float(key)), "name": f"sample {key}"} for key in keys]


def collate(samples: list[Any]) -> tuple[str, Any]:
    return "mine", torch.utils.data.default_collate(samples)


def test_the_options_of_the_loader_are_kept() -> None:
    class Mine(DataLoader[Any]):
        pass

    given = Mine(
        Many(), batch_size=4, shuffle=True, num_workers=1, collate_fn=collate, prefetch_factor=3, in_order=False,
        persistent_workers=True, multiprocessing_context="fork", timeout=60, generator=torch.Generator(),
    )  # fmt: skip
    loader = ms.shard(given, comm=solo())
    for name in ("dataset", "batch_size", "sampler", "num_workers", "collate_fn", "drop_last", "prefetch_factor"):
        assert getattr(loader, name) is getattr(given, name)
    with pytest.raises(AttributeError, match="no_such"):
        loader.no_such  # noqa: B018
    batches = list(loader)
    assert all(word == "mine" and len(batch["name"]) == len(batch["x"]) for word, batch in batches)
    assert sorted(float(x) for _, batch in batches for x in batch["x"]) == list(range(9))
    inner = loader._pool
    assert type(inner) is Mine
    assert (inner.in_order, inner.prefetch_factor, inner.timeout) == (False, 3, 60)
    assert given.batch_sampler is not inner.batch_sampler
    assert given._iterator is None


def test_drawing_an_order_leaves_the_generators_of_the_program_as_they_were() -> None:
    loader = ms.shard(SAMPLERS["torch"](23), comm=solo())
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index] # noqa: NPY002
    loader.epoch = 3
    len(loader)
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index] # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


# Places of iterators --------------------------------------------------------------------------------------------------


def check_streams(size: int, *streams: list[list[list[int]]]) -> None:
    """Check that the ranks' batches of each epoch hold every sample once."""
    for everyone in streams:
        assert sorted(i for rank in everyone for i in flat(rank)) == list(range(40))
        assert {len(rank) for rank in everyone} == {-(-40 // (4 * size))}


def look(loader: Any, comm: Communicator, who: str, batches: int) -> None:
    if who == "all" or comm.rank == 0:
        for _ in zip(range(batches), loader, strict=False):
            pass


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("who", ["all", "rank 0"])
@pytest.mark.parametrize(("before", "batches"), [(True, 1), (False, 1), (False, 3)])
@pytest.mark.parametrize("workers", [0, pytest.param(1, id="persistent")])
def test_a_look_uses_up_nothing(size: int, who: str, before: bool, batches: int, workers: int) -> None:
    if workers and (size, who) != (2, "rank 0"):
        pytest.skip("one of them is enough with processes")

    def one(comm: Communicator) -> list[list[list[int]]]:
        given = DataLoader(numbers(40), 4, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
        loader = ms.shard(given, comm=comm)
        held = []
        if before:
            look(loader, comm, who, batches)
            if who == "all" or comm.rank == 0:
                held.append(iter(loader))
                next(held[0])  # and is kept, as tutorials do
        seen: list[list[list[int]]] = []
        for epoch in range(3):
            seen.append([])
            for number, (batch,) in enumerate(loader):
                assert loader.epoch == epoch
                seen[-1].append(batch.tolist())
                if number == 1 and not before:
                    look(loader, comm, who, batches)
        return seen

    everyone = run_ranks(size, one)
    undisturbed = epochs(size, lambda: DataLoader(numbers(40), 4, shuffle=True), count=3)
    assert everyone == undisturbed
    check_streams(size, *([rank[epoch] for rank in everyone] for epoch in range(3)))


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("persistent", [False, True])
def test_iterators_side_by_side_have_different_orders(size: int, persistent: bool) -> None:
    if persistent and size != 2:
        pytest.skip("one of them is enough with processes")

    def one(comm: Communicator) -> list[list[list[int]]]:
        workers = int(persistent)
        given = DataLoader(numbers(40), 4, shuffle=True, num_workers=workers, persistent_workers=persistent)
        loader = ms.shard(given, comm=comm)
        streams: list[list[list[int]]] = []
        for _ in range(2):
            pairs = [(a.tolist(), b.tolist()) for (a,), (b,) in zip(loader, loader, strict=False)]
            streams += [list(map(list, side)) for side in zip(*pairs, strict=True)]
        return streams

    everyone = run_ranks(size, one)
    check_streams(size, *([rank[stream] for rank in everyone] for stream in range(4)))
    assert len({str(stream) for stream in everyone[0]}) == 4
    plain = epochs(size, lambda: DataLoader(numbers(40), 4, shuffle=True))
    assert [rank[::2] for rank in everyone] == plain, "the first of them are the epochs of a program with one"


@pytest.mark.parametrize("size", [1, 2])
def test_loops_in_loops_each_see_every_sample(size: int) -> None:
    def one(comm: Communicator) -> tuple[list[list[int]], list[list[list[int]]]]:
        loader = ms.shard(DataLoader(numbers(40), 4, shuffle=True), comm=comm)
        outer, inner = [], []
        for (batch,) in loader:
            outer.append(batch.tolist())
            inner.append(taken(loader))
        return outer, inner

    everyone = run_ranks(size, one)
    check_streams(size, [outer for outer, _ in everyone])
    for number in range(-(-40 // (4 * size))):
        check_streams(size, [inner[number] for _, inner in everyone])


def trained(comm: Communicator) -> Any:
    """Return a DistributedOptimizer of a model of one weight."""
    model = nn.Linear(1, 1)
    plain = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = ms.DistributedOptimizer(plain, model, comm=comm, say=lambda text: None)

    def step(batch: torch.Tensor) -> None:
        optimizer.zero_grad()
        model(batch[:, None].float()).mean().backward()
        optimizer.step()

    return step


@pytest.mark.parametrize("when", ["before", "first batch", "later", "last batch"])
@pytest.mark.parametrize("batches", [1, 2, 99])
def test_looks_of_one_rank_in_a_program_that_trains_change_no_order(when: str, batches: int) -> None:
    def one(comm: Communicator) -> list[list[list[int]]]:
        loader, step = ms.shard(DataLoader(numbers(40), 4, shuffle=True), comm=comm), trained(comm)
        seen: list[list[list[int]]] = []
        for _ in range(3):
            if when == "before":
                look(loader, comm, "rank 0", batches)
            seen.append([])
            for number, (batch,) in enumerate(loader):
                if number == {"first batch": 0, "later": 2, "last batch": 4}.get(when):
                    look(loader, comm, "rank 0", batches)
                seen[-1].append(batch.tolist())
                step(batch)
        return seen

    assert run_ranks(2, one) == epochs(2, lambda: DataLoader(numbers(40), 4, shuffle=True), count=3)


def test_loops_that_are_left_early_go_on_with_new_epochs() -> None:
    def one(comm: Communicator, *, trains: bool, steps: int) -> list[list[list[int]]]:
        loader = ms.shard(DataLoader(numbers(40), 4, shuffle=True), comm=comm)
        step = trained(comm) if trains else None
        seen: list[list[list[int]]] = []
        for _ in range(3):
            seen.append([])
            for (batch,) in loader:
                seen[-1].append(batch.tolist())
                if step is not None:
                    step(batch)
                if len(seen[-1]) == steps:
                    break
        return seen

    whole = epochs(2, lambda: DataLoader(numbers(40), 4, shuffle=True), count=3)
    for trains, steps in [(True, 1), (True, 2), (False, 2)]:
        cut = run_ranks(2, lambda comm, t=trains, n=steps: one(comm, trains=t, steps=n))  # type: ignore[misc]
        assert cut == [[epoch[:steps] for epoch in rank] for rank in whole]


def test_an_epoch_that_was_left_early_is_not_finished_by_the_next() -> None:
    loader = ms.shard(DataLoader(numbers(23), batch_size=5, shuffle=True), comm=solo())
    first = next(iter(loader))[0].tolist()
    seen = flat(taken(loader))
    assert sorted(seen) == list(range(23))
    assert seen[:5] == first
    loader.epoch = 0
    assert flat(taken(loader)) == seen
    loader.set_epoch(1)
    assert flat(taken(loader)) != seen


def test_an_error_of_the_data_is_the_users_and_its_batch_counts_as_taken() -> None:
    class Broken(Dataset[int]):
        def __len__(self) -> int:
            return 12

        def __getitem__(self, key: int) -> int:
            if key == 5:
                raise KeyError(key)
            return key

    loader = ms.shard(DataLoader(Broken(), batch_size=4), comm=solo())
    batches = iter(loader)
    assert next(batches).tolist() == [0, 1, 2, 3]
    with pytest.raises(KeyError):
        next(batches)
    assert next(batches).tolist() == [8, 9, 10, 11]
    assert list(batches) == []


# Going on -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*QUICK, "workers"])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_loader_goes_on_where_it_was_saved(name: str, size: int) -> None:
    def one(comm: Communicator, steps: int) -> tuple[list[list[int]], dict[str, int]]:
        loader = ms.shard(SAMPLERS[name](23), seed=3, comm=comm)
        seen: list[list[int]] = []
        state = loader.state_dict()
        while len(seen) < steps:
            for batch in loader:
                seen += taken([batch])
                state = loader.state_dict()
                if len(seen) == steps:
                    break
        assert loader.state_dict() == state, "also when the loop has been left"
        return seen, state

    def goes_on(comm: Communicator, state: dict[str, int], steps: int) -> list[list[int]]:
        loader = ms.shard(SAMPLERS[name](23), comm=comm)
        loader.load_state_dict(state)
        assert loader.state_dict() == state
        look(loader, comm, "rank 0", 1)
        loader.set_epoch(loader.epoch)
        seen: list[list[int]] = []
        while len(seen) < steps:
            seen += taken(loader)
        return seen[:steps]

    most = 14 if name != "workers" else 3
    whole = [seen for seen, _ in run_ranks(size, lambda comm: one(comm, 2 * most))]
    for steps in range(0, most, 1 if name != "workers" else 2):
        halves = run_ranks(size, lambda comm, n=steps: one(comm, n))  # type: ignore[misc]
        assert all(state == halves[0][1] for _, state in halves), "the place is the same on all ranks"
        rest = run_ranks(size, lambda comm, state=halves[0][1], n=steps: goes_on(comm, state, 2 * most - n))  # type: ignore[misc]
        assert [first + second for (first, _), second in zip(halves, rest, strict=True)] == whole


@pytest.mark.parametrize("name", ["shuffle", "subset", "buckets", "batches by the sampler", "counts"])
def test_another_number_of_ranks_uses_what_is_left_of_the_epoch_once(name: str) -> None:
    def part(comm: Communicator, state: dict[str, int] | None, steps: int) -> tuple[list[list[int]], dict[str, int]]:
        loader = ms.shard(SAMPLERS[name](23), comm=comm)
        if state is not None:
            loader.load_state_dict(state)
        seen: list[list[int]] = []
        for batch in loader:
            seen += taken([batch])
            if len(seen) == steps:
                break
        return seen, loader.state_dict()

    for before in SIZES:
        for after in SIZES:
            for steps in range(1, 7):
                first = run_ranks(before, lambda comm, n=steps: part(comm, None, n))  # type: ignore[misc]
                if first[0][1]["epoch"]:
                    break  # the epoch was at its end
                rest = run_ranks(after, lambda comm, state=first[0][1]: part(comm, state, 99))  # type: ignore[misc]
                seen = [i for seen, _ in [*first, *rest] for i in flat(seen)]
                assert sorted(seen) == list(range(23)), (before, after, steps)
                assert len({len(seen) for seen, _ in rest}) == 1
                assert all(state["epoch"] == 1 for _, state in rest)


def test_ranks_for_which_nothing_is_left_get_a_batch_of_nothing() -> None:
    def one(comm: Communicator) -> Any:
        loader = ms.shard(DataLoader(Many(), batch_size=4, num_workers=0), comm=comm)
        loader.load_state_dict(loader.state_dict() | {"consumed": 8})
        (batch,) = loader
        assert loader.state_dict()["epoch"] == 1
        return {key: len(value) for key, value in batch.items()}

    sizes = run_ranks(3, one)
    assert sizes == [{"x": 0, "name": 0}, {"x": 0, "name": 0}, {"x": 1, "name": 1}]


def test_batches_of_a_kind_that_cannot_be_empty_are_an_error_with_a_way_out() -> None:
    def one(comm: Communicator) -> Any:
        loader = ms.shard(DataLoader(numbers(9), batch_size=4, collate_fn=lambda samples: samples[0][0]), comm=comm)
        loader.load_state_dict(loader.state_dict() | {"consumed": 8})
        return list(loader)

    with pytest.raises(ms.ConfigError, match="go on with fewer ranks"):
        run_ranks(2, one)


def test_workers_that_fetch_in_advance_do_not_move_the_place() -> None:
    loader = ms.shard(DataLoader(numbers(40), 4, shuffle=True, num_workers=1, prefetch_factor=4), comm=solo())
    batches = iter(loader)
    for number in range(1, 4):
        next(batches)
        assert loader.state_dict()["consumed"] == 4 * number
    del batches
    assert loader.state_dict()["consumed"] == 12, "a loop that was left can be saved afterwards"


def test_beginning_within_an_epoch_draws_nothing_from_the_global_generator() -> None:
    """A run that goes on would otherwise draw other masks in its dropout."""
    loader = ms.shard(DataLoader(numbers(40), 4, shuffle=True), comm=solo())
    loader.load_state_dict(loader.state_dict() | {"consumed": 8})
    before = torch.get_rng_state()
    next(iter(loader))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_steps_of_a_whole_epoch_are_the_length() -> None:
    loader = ms.shard(DataLoader(numbers(40), 4, shuffle=True), comm=solo())
    loader.load_state_dict(loader.state_dict() | {"consumed": 8})
    batches: Any = iter(loader)
    assert (len(loader), len(batches)) == (10, 8)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"samples": 41}, "has samples 41, this run has 40"),
        ({"shuffle": 0}, "has shuffle 0"),
        ({"batches": 1}, "has batches 1"),
        ({"consumed": 41}, "consumed 41: epoch 0 has 0 to 40"),
        ({"consumed": -1}, "consumed -1"),
        ({"epoch": -1}, "epoch -1"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_states_that_do_not_fit_are_refused_and_change_nothing(change: dict[str, int], words: str) -> None:
    loader = ms.shard(DataLoader(numbers(40), 4, shuffle=True), comm=solo())
    before = loader.state_dict()
    with pytest.raises(ms.ConfigError, match=words):
        loader.load_state_dict(before | change)
    assert loader.state_dict() == before
    with pytest.raises(ms.ConfigError, match="lacks batches, consumed"):
        loader.load_state_dict({"seed": 0, "epoch": 0, "samples": 40, "shuffle": 1})


def test_batches_in_no_order_have_no_place_within_the_epoch() -> None:
    loader = ms.shard(DataLoader(numbers(40), 4, num_workers=1, in_order=False), comm=solo())
    batches = iter(loader)
    assert loader.state_dict()["consumed"] == 0
    next(batches)
    with pytest.raises(ms.ConfigError, match="leave in_order out, or save between epochs"):
        loader.state_dict()
    list(batches)
    assert loader.state_dict()["epoch"] == 1


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: [1, 2, 3], r"takes a torch.utils.data.DataLoader, not a list.*DataLoader\(batches, batch_size=None"),
        (lambda: (x for x in range(3)), "DataLoader, not a generator"),
        (lambda: DataLoader, "not a DataLoader class"),
        (lambda: numbers(9), r"not a data set \(TensorDataset\): give shard\(DataLoader\(dataset, batch_size"),
        (solo, "a communicator for a loader: call shard\\(loader, comm=comm\\)"),
        (lambda: ms.shard(DataLoader(numbers(9)), comm=solo()), "shared by shard\\(\\) already"),
        (lambda: DataLoader(numbers(9), sampler=DistributedSampler(numbers(9), 2, 0)), "DistributedSampler deals"),
        (lambda: DataLoader(numbers(9), sampler=iter(range(9))), "gives its order once only"),
        (lambda: DataLoader(numbers(9), sampler=(i for i in range(9))), "cannot be copied"),
        (lambda: DataLoader(numbers(9), 4, sampler=Endless()), "did not end"),
        (lambda: DataLoader(numbers(9), 4, sampler=Shuffled(9, secretly)), "gives another order each time"),
    ],
)  # fmt: skip
def test_what_cannot_be_shared_is_refused_in_a_line(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ms.ConfigError, match=words) as caught:
        ms.shard(make(), comm=solo())
    assert "\n" not in str(caught.value)


class Endless(Sampler[int]):
    def __iter__(self) -> Iterator[int]:
        while True:
            yield 0


def secretly(count: int) -> list[int]:
    return random.SystemRandom().sample(range(count), count)


def test_arguments_of_the_wrong_kind_are_refused() -> None:
    loader = DataLoader(numbers(9))
    with pytest.raises(ms.ConfigError, match="comm is a str"):
        ms.shard(loader, comm="world")  # type: ignore[arg-type]
    with pytest.raises(ms.ConfigError, match="is for an IterableDataset, and TensorDataset is none"):
        ms.shard(loader, comm=solo(), stream="own")
    with pytest.raises(ms.ConfigError, match="is not an integer"):
        ms.shard(loader, comm=solo(), seed=1.5)  # type: ignore[arg-type]


def test_more_ranks_than_samples_are_refused() -> None:
    with pytest.raises(ms.ConfigError, match="3 samples cannot be shared by 4 ranks"):
        run_ranks(4, lambda comm: ms.shard(DataLoader(numbers(3)), comm=comm))
    with pytest.raises(ms.ConfigError, match="3 samples cannot be shared by 4 ranks"):
        run_ranks(4, lambda comm: ms.shard(DataLoader(numbers(9), batch_sampler=[[0, 1], [2]]), comm=comm))


@pytest.mark.parametrize(
    "make",
    [
        lambda rank: (DataLoader(numbers(9 + rank)), 0),
        lambda rank: (DataLoader(numbers(9), batch_size=1 + rank), 0),
        lambda rank: (DataLoader(numbers(9)), rank),
        lambda rank: (DataLoader(numbers(9), sampler=list(range(rank, 9))), 0),
        lambda rank: (DataLoader(numbers(9), sampler=Shuffled(9, lambda n: list(range(n))[:: 1 - 2 * rank])), 0),
    ],
)  # fmt: skip
def test_loaders_that_differ_between_ranks_are_refused(make: Callable[[int], tuple[DataLoader[Any], int]]) -> None:
    def one(comm: Communicator) -> None:
        loader, seed = make(comm.rank)
        ms.shard(loader, seed=seed, comm=comm)

    with pytest.raises(ms.RankMismatchError, match="the loaders given to shard"):
        run_ranks(2, one)
