"""The checksum by which replicas are compared: it sees every change of one word, and does not depend on threads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpisparse.kernels.checksum import checksum
from mpisparse.kernels.threads import WORTH


@given(st.binary(max_size=100), st.data())
def test_every_flipped_bit_shows(memory: bytes, data: st.DataObject) -> None:
    before = np.frombuffer(memory, np.uint8)
    assert 0 <= checksum(before) < 2**64
    if not memory:
        return
    bit = data.draw(st.integers(0, 8 * len(memory) - 1))
    after = before.copy()
    after[bit // 8] ^= 1 << bit % 8
    assert checksum(after) != checksum(before)


def test_zeros_more_or_less_show() -> None:
    found = {checksum(np.zeros(numel, np.uint8)) for numel in range(50)}
    assert len(found) == 50


def test_signs_that_change_together_and_entries_that_change_places_show() -> None:
    vector = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    base = checksum(vector.view(np.uint8))
    for a, b in [(1, 3), (0, 2), (0, 1), (5, 999)]:
        signs, places = vector.copy(), vector.copy()
        signs[[a, b]] *= -1
        places[[a, b]] = places[[b, a]]
        assert checksum(signs.view(np.uint8)) != base
        assert checksum(places.view(np.uint8)) != base


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_do_not_show(threads: int) -> None:
    memory = np.random.default_rng(1).integers(0, 256, 8 * WORTH * 3 + 5).astype(np.uint8)
    one = checksum(memory)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert checksum(memory) == one
    finally:
        torch.set_num_threads(before)
