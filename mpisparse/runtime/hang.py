"""What hung: from the dumps of the ranks to which of them were behind, and where."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mpisparse.comm.recorder import ENDED
from mpisparse.runtime.dump import Dump
from mpisparse.words import counted

#: In the names of files that are no part of anybody's program.
_LIBRARIES = ("/site-packages/", "/lib/python", "<frozen ", str(Path(__file__).resolve().parent.parent))

#: Frames of a stack that are shown.
_SHOWN = 5

#: Ranks that are told of one by one.
_LISTED = 8


@dataclass(frozen=True, slots=True)
class Hang:
    """Who waited for whom.

    call: the call of the rank that waited longest, as its dump has it; None when no dump tells of a wait.
    waiting: ranks in that call. elsewhere: ranks in the same call by number that make another one of it.
    behind: ranks that had not come to it.
    """

    size: int
    call: Dump | None
    waiting: tuple[int, ...]
    elsewhere: tuple[int, ...]
    behind: tuple[int, ...]


def find_hang(dumps: dict[int, Dump]) -> Hang:
    """Return who waited for whom, from the dumps of one job by rank."""
    size = int(next(iter(dumps.values()))["size"])
    waits = [dump["waiting"] for dump in dumps.values() if dump["waiting"] is not None]
    if not waits:
        return Hang(size, None, (), (), tuple(rank for rank in range(size) if rank not in dumps))
    call = max(waits, key=lambda wait: float(wait["begun_seconds_ago"]))
    waiting, elsewhere, behind = [], [], []
    for rank in range(size):
        if rank not in dumps or _calls(dumps[rank], call["lane"]) < call["sequence"]:
            behind.append(rank)
        elif _operation(dumps[rank], call) == call["operation"]:
            waiting.append(rank)
        else:
            elsewhere.append(rank)
    return Hang(size, call, tuple(waiting), tuple(elsewhere), tuple(behind))


def summary(dumps: dict[int, Dump], directory: str) -> str:
    """Return in one line who was missing, where the others waited for it, and the way out."""
    hang = find_hang(dumps)
    limit = max(float(dump["limit"]) for dump in dumps.values())
    return (
        f"{'; '.join(_findings(hang, dumps))}. The limit for a wait is {limit:g} s (watchdog=; 0 is off). "
        f"To read more: mpisparse explain-hang {directory}"
    )


def explain(dumps: dict[int, Dump]) -> list[str]:
    """Return lines for people: who was behind, in which step and call, since when, and on top of which stack."""
    hang = find_hang(dumps)
    last = max(str(dump["written"]) for dump in dumps.values())
    lines = [f"{counted(hang.size, 'rank')}, of which {len(dumps)} told where they were, at {last}"]
    lines += [f"- {finding}" for finding in _findings(hang, dumps)]
    told_first = [*hang.behind, *hang.elsewhere, *hang.waiting]
    for rank in [*told_first, *(rank for rank in sorted(dumps) if rank not in told_first)]:
        if rank in dumps:
            lines += ["", *_about(rank, dumps[rank])]
    return lines


def _findings(hang: Hang, dumps: dict[int, Dump]) -> Iterator[str]:
    if hang.call is None:
        yield "no rank was waiting for another"
        return
    call = hang.call
    where = f"{_name(call)}, after {counted(call['step'], 'step')}"
    since = f"for {float(call['begun_seconds_ago']):.1f} s"
    if not hang.behind and not hang.elsewhere:
        yield (
            f"all {hang.size} ranks came to {where}, and it did not end {since}: "
            "the network or the MPI library does not move it"
        )
        return
    yield f"{_ranks(hang.waiting)} of {hang.size} waited {since} in {where}"
    for rank in hang.elsewhere[:_LISTED]:
        made = _operation(dumps[rank], call) or "another call"
        yield f"rank {rank} made {made} of it: every rank must make the same calls in the same order"
    for rank in hang.behind[:_LISTED]:
        yield f"rank {rank} did not come: {_whereabouts(rank, dumps)}"
    if len(hang.behind) > _LISTED:
        yield f"nor did {_ranks(hang.behind[_LISTED:])}"
    if any(rank in dumps and _waits_elsewhere(dumps[rank], call) for rank in hang.behind):
        yield (
            "ranks waited for each other on different communicators: every rank must make the same calls in the same "
            "order, so look for optimizers, evaluations or saves whose order depends on the rank"
        )


def _waits_elsewhere(dump: Dump, call: Dump) -> bool:
    """Return True for a rank that waits on another communicator than `call` is on, be it for its program's end."""
    waiting = dump["waiting"]
    return waiting is not None and waiting["lane"] != call["lane"]


def _whereabouts(rank: int, dumps: dict[int, Dump]) -> str:
    if rank not in dumps:
        seen = [dump["silent"][str(rank)] for dump in dumps.values() if str(rank) in dump.get("silent", {})]
        return ", ".join(["it told nothing", *seen[:1]])
    dump = dumps[rank]
    after = f"after {counted(dump['steps'], 'step')}"
    waiting = dump["waiting"]
    if waiting is not None:
        return f"it waited in {_name(waiting)}, {after}, for {float(waiting['begun_seconds_ago']):.1f} s"
    since = f"{float(dump['seconds_since_last_call']):.1f} s"
    if has_ended(dump):
        return f"its program had ended, {after}"
    last = [call for call in dump["calls"] if call["ended_seconds_ago"] is not None]
    came_from = f", since {_name(last[-1])}" if last else ""
    return f"it was in its own code for {since}{came_from}, {after}: {_place(dump)}"


def has_ended(dump: Dump) -> bool:
    """Return True when the rank's program had come to its end."""
    return any(call["name"] == ENDED and call["ended_seconds_ago"] is None for call in dump["calls"])


def _about(rank: int, dump: Dump) -> Iterator[str]:
    doing = "waits" if dump["waiting"] is not None else "had ended" if has_ended(dump) else "was in its own code"
    yield f"rank {rank} (process {dump['process']} on {dump['host']}) {doing}, after {counted(dump['steps'], 'step')}"
    for call in dump["calls"][-3:]:
        ended = call["ended_seconds_ago"]
        end = "not ended" if ended is None else f"ended {float(ended):.1f} s ago"
        yield f"  {_name(call)}, begun {float(call['begun_seconds_ago']):.1f} s ago, {end}"
    for file, line, function in _main_stack(dump)[:_SHOWN]:
        yield f"    {file}:{line} in {function}"


def _calls(dump: Dump, lane: int) -> int:
    """Return how many calls a rank has begun on a communicator."""
    # Dumps of earlier versions have no numbers, and leave no lane out.
    lanes = {known.get("number", place): int(known["calls"]) for place, known in enumerate(dump["lanes"])}
    return lanes.get(lane, 0)


def _operation(dump: Dump, call: Dump) -> str | None:
    """Return what operation a rank made of a call; None where that is not known."""
    same = (c for c in dump["calls"] if (c["lane"], c["sequence"]) == (call["lane"], call["sequence"]))
    return next((str(c["operation"]) for c in same), None)


def _name(call: Dump) -> str:
    group = "" if call["group"] is None else f" for group {call['group']}"
    return f'{call["operation"]} {call["sequence"]} of communicator "{call["name"]}"{group}'


def _place(dump: Dump) -> str:
    """Return the innermost frame and, where that is another one, the innermost of the program itself."""
    stack = _main_stack(dump)
    if not stack:
        return "its main thread had ended"
    program = [frame for frame in stack if not any(part in frame[0] for part in _LIBRARIES)]
    frames = [stack[0], *(program[:1] if program[:1] != stack[:1] else [])]
    return ", called from ".join(f"{file}:{line} in {function}" for file, line, function in frames)


def _main_stack(dump: Dump) -> list[tuple[str, int, str]]:
    return [(file, line, function) for file, line, function in dump["stacks"].get("MainThread", [])]


def _ranks(ranks: Iterable[int]) -> str:
    """Return "rank 3", or "ranks 0-2, 5"."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and runs[-1][-1] == rank - 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    text = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return f"rank{'s' if sum(map(len, runs)) > 1 else ''} {text}"
