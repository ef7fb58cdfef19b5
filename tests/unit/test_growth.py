"""The check for leaks, on series as processes have shown them and on processes that do leak."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest

from tests.growth import growth, heap
from tests.launch import run

BOUND = 2**19
LOOKS = 49
PAGE = 2**21


def steady(total: float) -> list[int]:
    """Return a series that rises by so many bytes in all, at every look."""
    return [round(10**8 + total * look / (LOOKS - 1)) for look in range(LOOKS)]


@pytest.mark.parametrize("place", range(1, LOOKS))
def test_one_page_at_any_moment_is_no_leak(place: int) -> None:
    seen = np.array(steady(0)) + PAGE * (np.arange(LOOKS) >= place)
    assert growth(seen.tolist()) == 0
    # What processes showed: a page at a random moment, and then 8 kB a look.
    assert growth((seen + 8192 * (np.arange(LOOKS) >= place)).tolist()) < BOUND


@pytest.mark.parametrize("place", [1, LOOKS // 2, LOOKS - 1])
@pytest.mark.parametrize("total", [BOUND, 2 * BOUND, 100 * BOUND])
def test_a_leak_of_the_bound_is_seen_with_and_without_a_page(total: int, place: int) -> None:
    seen = np.array(steady(total))
    assert growth(seen.tolist()) >= BOUND - LOOKS
    assert growth((seen + PAGE * (np.arange(LOOKS) >= place)).tolist()) >= BOUND - LOOKS


def test_a_leak_is_seen_in_noise_and_noise_is_none() -> None:
    noise = np.random.default_rng(0).integers(0, 2**17, LOOKS)
    assert abs(growth((np.array(steady(0)) + noise).tolist())) < BOUND
    assert growth((np.array(steady(2 * BOUND)) + noise).tolist()) > BOUND
    spikes = np.array(steady(0)) + PAGE * (np.arange(LOOKS) % 7 == 3)
    assert growth(spikes.tolist()) < BOUND


def test_a_leak_in_bursts_is_seen() -> None:
    seen = np.array(steady(0)) + BOUND // 4 * (np.arange(LOOKS) // 6)
    assert growth(seen.tolist()) > BOUND


#: Keeps so many bytes of each step, beside the work of a step that is freed.
LEAK = """
import sys
import numpy as np
import torch
from tests.growth import growth, heap

kept = []
def take(keep):
    torch.randn(100, 100).square().sum()
    np.zeros(3000)
    if keep:
        kept.append(b"x" * (keep - 33))

def grown(keep):
    looks = []
    for step in range(600):
        take(keep)
        if step % 10 == 9:
            looks.append(heap())
    return growth(looks[12:])

print(grown(0), grown(64))
"""


@pytest.mark.skipif(heap() is None, reason="this C library does not tell what is allocated")
def test_a_process_that_keeps_64_bytes_a_step_is_caught() -> None:
    outcome = run([sys.executable, "-c", LEAK], timeout=120, env={**os.environ, "PYTHONMALLOC": "malloc"}, fresh=True)
    assert outcome.code == 0, outcome.text
    without, planted = map(float, outcome.stdout.split())
    # Over the 470 steps that are looked at: what 2**19 bytes over 8,000 steps come to.
    assert without < 64 * 470 / 4
    assert planted >= 64 * 470
