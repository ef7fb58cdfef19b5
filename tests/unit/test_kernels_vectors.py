"""Vectors are taken as they are when they can be, converted when they must be, or refused with the reason."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpisparse.errors import ConfigError, NonFiniteError
from mpisparse.kernels.vectors import CHUNK, as_vector, chunks, round_up, take_all
from tests.unit.hard_vectors import draw


def test_a_float32_vector_is_not_copied() -> None:
    vector = draw(0, 10)
    assert np.shares_memory(as_vector(vector), vector)
    tensor = torch.arange(5, dtype=torch.float32)
    assert np.shares_memory(as_vector(tensor), tensor.numpy())


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int32])
def test_other_real_types_become_float32(dtype: type) -> None:
    converted = as_vector(np.array([1, -2, 3], dtype))
    assert converted.dtype == np.float32
    assert converted.tolist() == [1, -2, 3]


def test_a_strided_view_is_made_contiguous() -> None:
    converted = as_vector(draw(0, 20)[::2])
    assert converted.flags.c_contiguous
    assert np.array_equal(converted, draw(0, 20)[::2])


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 99_999, CHUNK])
def test_nan_and_infinity_are_refused_wherever_they_are(value: float, place: int) -> None:
    vector = draw(0, 100_000)
    vector[place] = value
    with pytest.raises(NonFiniteError, match=f"entry {place} of 100000 is"):
        as_vector(vector)


def test_a_float64_entry_too_large_for_float32_is_refused() -> None:
    with pytest.raises(NonFiniteError, match="entry 1 of 2 is inf"):
        as_vector(np.array([1.0, 1e39]))


@pytest.mark.parametrize("shape", [(), (2, 3), (1, 1)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="one dimension"):
        as_vector(np.zeros(shape, np.float32))


def test_complex_numbers_are_refused_not_cut() -> None:
    with pytest.raises(ConfigError, match="complex64"):
        as_vector(np.zeros(3, np.complex64))


def test_chunks_cover_the_vector_in_order() -> None:
    vector = draw(1, 2 * CHUNK + 3)
    pieces = list(chunks(vector))
    assert [start for start, _ in pieces] == [0, CHUNK, 2 * CHUNK]
    assert np.array_equal(np.concatenate([piece for _, piece in pieces]), vector)


@given(st.floats(0, allow_infinity=False))
def test_round_up_gives_the_smallest_float32_that_is_not_below(magnitude: float) -> None:
    rounded = round_up(magnitude)
    assert rounded.dtype == np.float32
    assert float(rounded) >= magnitude
    with np.errstate(over="ignore"):
        below = np.nextafter(rounded, np.float32(-np.inf))
    assert float(below) < magnitude


def test_taking_everything_copies() -> None:
    vector = draw(2, 6)
    original = vector.copy()
    everything = take_all(vector)
    vector[:] = 0
    assert everything.values.tolist() == original.tolist()
    assert everything.indices.tolist() == list(range(6))
