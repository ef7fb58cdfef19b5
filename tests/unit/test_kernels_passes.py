"""Every pass gives bit for bit what plain numpy gives, on any length, any values and any number of threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpisparse.kernels import passes
from mpisparse.kernels.find import find_at_least
from mpisparse.kernels.passes import BLOCK
from mpisparse.kernels.source import Added, Advanced, Forgotten, HostSource
from mpisparse.kernels.threads import PIECE, WORTH, spans
from mpisparse.kernels.vectors import LARGEST, SMALLEST
from mpisparse.sparse import SparseVector
from tests.unit.hard_vectors import HARD, Vector, draw, vectors

LENGTHS = [0, 1, 7, 8, 31, 32, 33, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5, PIECE, PIECE + 1]


def bits(vector: Vector) -> list[int]:
    words: list[int] = vector.view(np.uint32).tolist()
    return words


def reached(vector: Vector, floor: float) -> list[int]:
    """Return the indices of the entries that reach `floor` or are NaN."""
    return [i for i, value in enumerate(vector.tolist()) if not abs(value) < floor]


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def special(numel: int) -> Vector:
    """Return entries among which are zeros, denormals, the largest float, infinities and NaN."""
    values = np.array([0.0, -0.0, 1e-45, -1e-40, 3.4e38, -1.0, 1.0, np.inf, -np.inf, np.nan, 0.5, -0.5], np.float32)
    return np.random.default_rng(numel).choice(values, numel)


@given(vectors(), st.floats(float(SMALLEST), float(LARGEST), width=32))
def test_find_at_least_names_exactly_the_entries_that_reach_the_floor(vector: Vector, floor: float) -> None:
    indices, values = find_at_least(vector, np.float32(floor))
    assert indices.dtype == np.uint32
    assert indices.tolist() == reached(vector, floor)
    assert bits(values) == bits(vector[indices])


@pytest.mark.parametrize("numel", LENGTHS)
@pytest.mark.parametrize("floor", [1e-45, 0.5, 1.0, 3.4e38, np.inf])
def test_find_at_least_on_every_length_with_infinity_and_nan(numel: int, floor: float) -> None:
    vector = special(numel)
    assert find_at_least(vector, np.float32(floor))[0].tolist() == reached(vector, float(np.float32(floor)))


@pytest.mark.parametrize("room", [0, 1, 5, 6, 100])
def test_what_has_no_room_is_counted_and_not_written(room: int) -> None:
    vector = np.zeros(3 * BLOCK, np.float32)
    places = [3, BLOCK - 1, BLOCK, 2 * BLOCK + 9, 2 * BLOCK + 10, 3 * BLOCK - 1]
    vector[places] = -1
    guarded, values = np.full(room + 10, 77, np.uint32), np.full(room + 10, 77, np.float32)
    assert passes.find(vector, 0, np.float32(1), guarded[:room], values[:room]) == len(places)
    assert values[room:].tolist() == [77] * 10
    assert guarded[:room].tolist() == (places + [77] * room)[:room]
    assert guarded[room:].tolist() == [77] * 10


def test_indices_of_long_vectors_need_64_bits() -> None:
    out = np.zeros(2, np.uint64)
    assert passes.find(np.ones(2, np.float32), 2**33, np.float32(1), out, np.empty(2, np.float32)) == 2
    assert out.tolist() == [2**33, 2**33 + 1]


@pytest.mark.parametrize("numel", LENGTHS)
def test_adding_finding_and_clearing_in_one_pass(numel: int) -> None:
    residual, gradient = special(numel), special(numel + 1)[1:].copy()
    with np.errstate(invalid="ignore", over="ignore"):
        expected = residual + gradient
    out, values = np.empty(numel, np.uint32), np.empty(numel, np.float32)
    count = passes.add_and_find(residual, gradient, 0, np.float32(0.5), out, values)
    assert bits(residual) == bits(expected) or np.array_equal(residual, expected, equal_nan=True)
    assert out[:count].tolist() == reached(expected, 0.5)
    assert bits(gradient) == [0] * numel


@pytest.mark.parametrize("numel", LENGTHS)
@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_in_one_pass(numel: int, nesterov: bool) -> None:
    velocity, accumulated, gradient = draw(0, numel), draw(1, numel) ** 5, draw(2, numel)
    momentum = np.float32(0.9)
    speed = (velocity + gradient) * momentum if nesterov else velocity * momentum + gradient
    sums = accumulated + speed
    sums = sums + gradient if nesterov else sums
    out, values = np.empty(numel, np.uint32), np.empty(numel, np.float32)
    count = passes.advance_and_find(velocity, accumulated, gradient, momentum, nesterov, 0, np.float32(1), out, values)
    assert bits(velocity) == bits(speed)
    assert bits(accumulated) == bits(sums)
    assert out[:count].tolist() == reached(sums, 1.0)
    assert bits(gradient) == [0] * numel


@pytest.mark.parametrize("name", HARD)
def test_the_largest_bits_are_those_of_the_largest_magnitude(name: str) -> None:
    expected = np.abs(HARD[name]).max(initial=0.0).view(np.int32)
    assert passes.largest_bits(HARD[name]) == expected


def test_entries_are_gathered_subtracted_and_cleared_where_they_are() -> None:
    vector = draw(3, 5000)
    indices = np.sort(np.random.default_rng(0).choice(5000, 300, replace=False)).astype(np.uint32)
    values = draw(4, 300)
    assert bits(passes.gather(vector, indices)) == bits(vector[indices])
    expected = vector.copy()
    expected[indices] -= values
    passes.subtract_at(vector, indices, values)
    assert bits(vector) == bits(expected)
    expected[indices] = 0
    passes.clear_at(vector, indices)
    assert bits(vector) == bits(expected)


def test_spans_cover_the_vector_and_start_at_pieces(threads: int) -> None:
    for numel in (0, 1, WORTH, 2 * WORTH, 5 * WORTH + 3):
        parts = spans(numel)
        assert len(parts) == max(1, min(threads, numel // WORTH))
        assert parts[0][0] == 0
        assert parts[-1][1] == numel
        assert all(a[1] == b[0] for a, b in pairwise(parts))
        assert all(start % PIECE == 0 for start, _ in parts)


#: Makes a source of two vectors, a residual and a gradient.
SOURCES: dict[str, Callable[[Vector, Vector], HostSource]] = {
    "added": lambda residual, gradient: Added(residual, gradient),
    "advanced": lambda residual, gradient: Advanced(
        residual.copy(), residual, gradient, momentum=0.5, nesterov=False, masking=True
    ),
    "nesterov": lambda residual, gradient: Advanced(
        residual.copy(), residual, gradient, momentum=0.5, nesterov=True, masking=False
    ),
    "forgotten": lambda residual, gradient: Forgotten(gradient),
    "plain": lambda residual, gradient: HostSource(gradient.copy()),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_sources_answer_alike_whether_the_sum_is_made_before_or_by_the_question(kind: str) -> None:
    numel = 3 * WORTH + 17
    residual, gradient = draw(5, numel), draw(6, numel)
    by_question = SOURCES[kind](residual.copy(), gradient.copy())
    before = SOURCES[kind](residual.copy(), gradient.copy())
    made = before.vector().copy()
    first, second = by_question.largest(5000, None), before.largest(5000, None)
    assert np.array_equal(first.indices, second.indices)
    assert bits(first.values) == bits(second.values) == bits(made[first.indices])
    assert np.array_equal(by_question.vector(), made)


def answers(kind: str) -> list[bytes]:
    """Return the bytes of everything that a source answers, and of what it leaves behind."""
    numel = 3 * WORTH + 17
    residual, gradient = draw(7, numel), draw(8, numel) ** 3
    generator = np.random.Generator(np.random.Philox(3))
    source = SOURCES[kind](residual, gradient)
    taken = source.largest(numel // 100, generator)
    level = source.level(target=numel / 50, variance=None, iterations=None)
    found = source.find(np.float32(2), numel)
    assert found.indices is not None
    tossed = source.toss(np.float32(level), generator, numel / 50)
    source.sent(taken)
    arrays = [taken.indices, taken.values, found.indices, tossed.indices, tossed.values, residual, gradient]
    return [np.float64(level).tobytes(), *(array.tobytes() for array in arrays)]


@pytest.mark.parametrize("kind", SOURCES)
def test_one_thread_and_many_give_the_same_bits(kind: str) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = answers(kind)
        torch.set_num_threads(3)
        assert answers(kind) == alone
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kind", ["added", "advanced", "nesterov", "forgotten"])
def test_the_gradient_is_zeros_once_something_was_sent(kind: str) -> None:
    residual, gradient = draw(9, 5000), draw(10, 5000)
    source = SOURCES[kind](residual, gradient)
    source.sent(SparseVector.empty(5000))
    assert not gradient.any()


def test_masking_clears_the_velocity_where_something_was_sent() -> None:
    velocity, accumulated, gradient = draw(11, 3000), draw(12, 3000), draw(13, 3000)
    source = Advanced(velocity, accumulated, gradient, momentum=0.9, nesterov=False, masking=True)
    sparse = source.largest(30, None)
    source.sent(sparse)
    assert not velocity[sparse.indices].any()
    assert not accumulated[sparse.indices].any()
    assert np.count_nonzero(velocity) == 2970
