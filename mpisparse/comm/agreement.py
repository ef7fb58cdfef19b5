"""One decision for all ranks: an error of one becomes the error of all, so that nobody waits for it in vain."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mpisparse import errors
from mpisparse.comm.base import Communicator
from mpisparse.errors import MpiSparseError, RankMismatchError, alike

#: Ranks whose words are quoted when several fail differently.
_QUOTED = 3


@contextmanager
def agreed(comm: Communicator) -> Iterator[None]:
    """Raise on every rank the error that any rank raises inside the block.

    Collective: every rank must come to the block's end, by an `MpiSparseError` or without one. Other exceptions pass
    straight through: they are bugs, and the abort hook ends the job.
    """
    failure: MpiSparseError | None = None
    try:
        yield
    except MpiSparseError as error:
        if error.on_all_ranks:
            raise
        failure = error
    news = b"" if failure is None else json.dumps([type(failure).__name__, str(failure)]).encode()
    if not comm.allgather([len(news)]).any():
        return
    reports = comm.allgather_bytes(news)
    failed = {rank: json.loads(report) for rank, report in enumerate(reports) if report}
    name = next(iter(failed.values()))[0]
    kind: type[MpiSparseError] = getattr(errors, name, MpiSparseError)
    raise alike(kind(summarise({rank: message for rank, (_, message) in failed.items()}, comm.size))) from failure


def summarise(failed: dict[int, str], size: int) -> str:
    """Return one message of what ranks say, of `size`: once where all say the same, with their numbers elsewhere."""
    messages = list(failed.values())
    if len(failed) == size and len(set(messages)) == 1:
        return messages[0]
    quoted = [f"rank {rank} of {size}: {message}" for rank, message in list(failed.items())[:_QUOTED]]
    more = len(failed) - len(quoted)
    return "; ".join(quoted) + (f"; and {more} more ranks" if more else "")


def gather_json(comm: Communicator, value: Any) -> list[Any]:
    """Return what every rank gave, in rank order; anything that JSON can hold. Collective."""
    return [json.loads(text) for text in comm.allgather_bytes(json.dumps(value).encode())]


def from_root(comm: Communicator, action: Callable[[], Any]) -> Any:
    """Return on every rank what `action` returns on rank 0, or raise its error on every rank. Collective.

    Args:
        action: called on rank 0 alone; its result must be something that JSON can hold.
    """
    result = None
    with agreed(comm):
        if comm.rank == 0:
            result = action()
    return json.loads(comm.broadcast_bytes(json.dumps(result).encode() if comm.rank == 0 else None))


def require_same(comm: Communicator, what: str, lines: list[str]) -> None:
    """Raise RankMismatchError on every rank, naming the first difference, unless all ranks give the same lines.

    Collective. `what` says what the lines describe, such as "the models".
    """
    everyone = gather_json(comm, lines)
    for rank, theirs in enumerate(everyone[1:], start=1):
        if theirs == everyone[0]:
            continue
        place = next((i for i, (a, b) in enumerate(zip(everyone[0], theirs, strict=False)) if a != b), None)
        if place is None:
            place = min(len(everyone[0]), len(theirs))
        first, other = (item[place] if place < len(item) else "nothing more" for item in (everyone[0], theirs))
        which = f"number {place} is " if max(len(everyone[0]), len(theirs)) > 1 else ""
        raise alike(
            RankMismatchError(
                f"{what} differ between ranks: {which}{first} on rank 0 but {other} on rank {rank}. "
                "Every rank must bring the same: look for code that depends on the rank or on unseeded random numbers"
            )
        )
