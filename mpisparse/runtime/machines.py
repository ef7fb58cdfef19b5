"""Machines: what the ranks run on, and how many cores they have there."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from mpisparse.comm import Communicator
from mpisparse.runtime.quota import Quota


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


def machine_of(node: str) -> str:
    """Return a name for the machine below this host, which containers of one machine share; else the host's name."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return node


def find_machines(comm: Communicator, machine: str, quota: Quota | None) -> tuple[Machine, ...]:
    """Return each machine, in the order of its first rank. Collective.

    Args:
        machine: this rank's, see `machine_of`. quota: this rank's own.
    """
    own = {
        "machine": machine,
        "cores": sorted(os.sched_getaffinity(0)),
        "quota": (quota.group, quota.cores) if quota else None,
    }
    told = [json.loads(said) for said in comm.allgather_bytes(json.dumps(own).encode())]
    found = []
    for name in dict.fromkeys(each["machine"] for each in told):
        here = [each for each in told if each["machine"] == name]
        limited = Counter(tuple(each["quota"]) for each in here if each["quota"])
        found.append(
            Machine(
                ranks=len(here),
                cores=len({core for each in here for core in each["cores"]}),
                quotas=tuple(Limited(ranks, cores) for (_, cores), ranks in limited.items()),
            )
        )
    return tuple(found)
