"""Stamp: which save a file belongs to, so that files of two saves are never taken for one checkpoint."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import Any

from mpisparse.errors import CheckpointError

_SAVE = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a file says of the save that wrote it.

    save: its random number, in hexadecimal, the same in all files and the manifest of a checkpoint.
    step: optimizer steps done. ranks: how many saved. rank: whose file it is; None for the replicated state.
    """

    save: str
    step: int
    ranks: int
    rank: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the stamp as the structure writes it."""
        return {"save": self.save, "step": self.step, "ranks": self.ranks, "rank": self.rank}

    @staticmethod
    def from_json(item: Any) -> Stamp:
        """Return the stamp that `item` writes, or raise CheckpointError when it cannot be one."""
        if not isinstance(item, dict) or set(item) != {"save", "step", "ranks", "rank"} or not is_save(item["save"]):
            raise CheckpointError("the structure is damaged: it does not say which save it belongs to")
        step, ranks, rank = item["step"], item["ranks"], item["rank"]
        if not all(type(number) is int for number in (step, ranks, 0 if rank is None else rank)):
            raise CheckpointError("the structure is damaged: it does not say which save it belongs to")
        return Stamp(item["save"], step, ranks, rank)


def new_save() -> str:
    """Return the number of a new save: 128 random bits, in hexadecimal."""
    return secrets.token_hex(16)


def is_save(text: object) -> bool:
    """Return True for what `new_save` could give."""
    return isinstance(text, str) and _SAVE.fullmatch(text) is not None


def require_stamp(found: Stamp | None, due: Stamp | None) -> None:
    """Raise CheckpointError, naming the first difference, unless a file is of the save that it is taken for."""
    if found == due:
        return
    if found is None or due is None:
        words = "none, and the manifest does" if found is None else "one, and the manifest, of an older format, none"
        raise CheckpointError(f"it is of another save than the manifest: it names {words}")
    fields = (
        ("step", found.step, due.step),
        ("number of ranks", found.ranks, due.ranks),
        ("rank", "none" if found.rank is None else found.rank, "none" if due.rank is None else due.rank),
        ("save", f"{found.save[:16]}...", f"{due.save[:16]}..."),
    )
    what, theirs, ours = next(field for field in fields if field[1] != field[2])
    raise CheckpointError(
        f"it is of another save than the manifest: its {what} is {theirs}, not {ours}. "
        "Bring back the file that was saved with the others"
    )
