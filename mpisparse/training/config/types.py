"""Numbers with limits that several sections take."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

Density = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
