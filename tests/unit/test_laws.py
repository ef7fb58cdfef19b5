"""Every law on ranks that are threads."""

from __future__ import annotations

import pytest

from mpisparse.comm import run_ranks
from tests import laws, laws_convex, laws_lifetime, laws_overlap, laws_program, laws_rows, laws_window

LAWS = {
    **laws.LAWS, **laws_overlap.LAWS, **laws_program.LAWS, **laws_convex.LAWS, **laws_window.LAWS,
    **laws_lifetime.LAWS, **laws_rows.LAWS,
}  # fmt: skip


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("law", LAWS)
def test_law_holds(law: str, size: int) -> None:
    assert run_ranks(size, LAWS[law]) == [None] * size
