"""Every law on ranks that are threads."""

from __future__ import annotations

import pytest

from mpisparse.comm import run_ranks
from tests.laws_all import LAWS


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("law", LAWS)
def test_law_holds(law: str, size: int) -> None:
    assert run_ranks(size, LAWS[law]) == [None] * size
