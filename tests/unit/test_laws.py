"""Every law on ranks that are threads; on real ones they are in tests/mpi."""

from __future__ import annotations

import pytest

from mpisparse.comm import run_ranks
from tests.laws_all import LAWS


@pytest.mark.parametrize(
    "size", [1, pytest.param(2, marks=pytest.mark.long), 3, pytest.param(4, marks=pytest.mark.long)]
)
@pytest.mark.parametrize("law", LAWS)
def test_law_holds(law: str, size: int) -> None:
    assert run_ranks(size, LAWS[law]) == [None] * size
