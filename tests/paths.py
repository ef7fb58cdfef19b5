"""Where tests find data sets that are too large to ship."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent


def find_data(name: str) -> Path:
    """Return the folder of data set `name`, or skip the test with the reason.

    Looks in $MPISPARSE_DATA, then in `shared/data` beside the checkout and inside it.
    """
    roots = [CHECKOUT.parent / "shared" / "data", CHECKOUT / "shared" / "data"]
    if "MPISPARSE_DATA" in os.environ:
        roots.insert(0, Path(os.environ["MPISPARSE_DATA"]))
    for root in roots:
        if (root / name).is_dir():
            return root / name
    pytest.skip(f"data set {name!r} is not here: set MPISPARSE_DATA to the folder that holds {name}/")
