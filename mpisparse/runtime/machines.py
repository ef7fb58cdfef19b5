"""Machines: what the ranks run on, and how many cores they have there."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mpisparse.comm import Communicator
from mpisparse.runtime.quota import Quota, read_quota


@dataclass(frozen=True, slots=True)
class Place:
    """Where a rank runs: the machine below its host, the cores that it may run on, and its quota."""

    machine: str
    cores: tuple[int, ...]
    quota: Quota | None = None


@dataclass(frozen=True, slots=True)
class Limited:
    """Ranks that share a quota, and the cores it gives them; may be a fraction."""

    ranks: int
    cores: float


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine: how many ranks it has, the cores that they may run on, and those of them that have a quota."""

    ranks: int
    cores: int
    quotas: tuple[Limited, ...] = ()


def gather_places(comm: Communicator, node: str) -> list[Place]:
    """Return where each rank runs, by rank. Collective.

    Args:
        node: this rank's host.
    """
    quota = read_quota()
    own = [machine_of(node), sorted(os.sched_getaffinity(0)), [quota.cores, quota.group] if quota else None]
    told = [json.loads(said) for said in comm.allgather_bytes(json.dumps(own).encode())]
    return [Place(machine, tuple(cores), Quota(*limit) if limit else None) for machine, cores, limit in told]


def machine_of(node: str) -> str:
    """Return a name for the machine below this host, which containers of one machine share; else the host's name."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return node


def machines_among(places: Sequence[Place]) -> tuple[Machine, ...]:
    """Return each machine, in the order of its first rank."""
    found = []
    for name in dict.fromkeys(place.machine for place in places):
        here = [place for place in places if place.machine == name]
        limited = Counter(place.quota for place in here if place.quota)
        found.append(
            Machine(
                ranks=len(here),
                cores=len({core for place in here for core in place.cores}),
                quotas=tuple(Limited(ranks, quota.cores) for quota, ranks in limited.items()),
            )
        )
    return tuple(found)
