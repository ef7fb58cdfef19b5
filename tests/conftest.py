"""Settings that every test shares."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings

# Every rank of a test under MPI must draw the same examples, and a failure must come back when it is run again.
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=60, database=None)
settings.load_profile("repeatable")

# Ranks that are threads, and jobs beside this process, share the cores.
torch.set_num_threads(1)


@pytest.fixture
def one_save(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all saves have the same number, so that what they write can be compared byte by byte."""
    for module in ("checkpointer", "writer"):
        monkeypatch.setattr(f"mpisparse.checkpoint.{module}.new_save", lambda: "0123456789abcdef" * 2)
