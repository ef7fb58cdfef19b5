"""One decision for all ranks: an error of one becomes the error of all, so that nobody waits for it in vain."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from mpisparse import errors
from mpisparse.comm.base import Communicator
from mpisparse.errors import MpiSparseError, RankMismatchError


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
    share_failure(comm, failure)


def share_failure(comm: Communicator, failure: MpiSparseError | None) -> None:
    """Raise on every rank the error of the lowest rank that has one; return when none has. Collective."""
    news = b"" if failure is None else json.dumps([type(failure).__name__, str(failure)]).encode()
    if not comm.allgather([len(news)]).any():
        return
    reports = comm.allgather_bytes(news)
    failed = [rank for rank, report in enumerate(reports) if report]
    name, message = json.loads(reports[failed[0]])
    if len(failed) < comm.size:
        who = f"rank {failed[0]}" if len(failed) == 1 else f"ranks {', '.join(map(str, failed))}"
        message = f"{who} of {comm.size}: {message}"
    error: MpiSparseError = getattr(errors, name, MpiSparseError)(message)
    error.on_all_ranks = True
    raise error from failure


def require_same(comm: Communicator, what: str, lines: list[str]) -> None:
    """Raise RankMismatchError on every rank, naming the first difference, unless all ranks give the same lines.

    Collective. `what` says what the lines describe, such as "the model's parameters".
    """
    everyone = [json.loads(text) for text in comm.allgather_bytes(json.dumps(lines).encode())]
    for rank, theirs in enumerate(everyone[1:], start=1):
        if theirs == everyone[0]:
            continue
        place = next((i for i, (a, b) in enumerate(zip(everyone[0], theirs, strict=False)) if a != b), None)
        if place is None:
            place = min(len(everyone[0]), len(theirs))
        first, other = (item[place] if place < len(item) else "nothing more" for item in (everyone[0], theirs))
        error = RankMismatchError(
            f"{what} differ between ranks: number {place} is {first} on rank 0 but {other} on rank {rank}. "
            "Every rank must build the same: look for code that depends on the rank or on unseeded random numbers"
        )
        error.on_all_ranks = True
        raise error
