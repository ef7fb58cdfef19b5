"""Run directories made up for reports: steps whose times follow a known law, with known noise."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from analysis.many import read_briefs
from analysis.report.build import sections_of
from analysis.report.page import to_markdown
from analysis.study import studies_of

PHASES = ("data", "compute", "agree", "sparsify", "encode", "exchange", "decode", "apply")

NUMEL, BATCH = 1_000_000, 64

#: Seconds: a round, one of a ring, a byte; an entry summed, looked at, added; a message read, a sample.
ALPHA, RING, BETA, ADD, SELECT, DECODE, OPEN, SAMPLE = 40e-6, 90e-6, 2e-9, 0.7e-9, 1.5e-9, 4e-9, 30e-6, 150e-6


def config(name: str = "try", *, density: float | None = None, half: bool = False, **changes: Any) -> dict[str, Any]:
    """Return a configuration; `changes` have __ for the dot of a key."""
    found: dict[str, Any] = {
        "name": name,
        "seed": 0,
        "data": {"name": "digits"},
        "model": {"name": "mlp"},
        "training": {"length": "60 steps", "global_batch": BATCH},
        "optimizer": {"name": "SGD", "lr": 0.1},
        "sparsifier": {"name": "dense"} if density is None else {"name": "topk", "density": density},
        "memory": {"name": "auto"},
        "exchange": {"dense": "bfloat16" if half else "pieces"},
    }
    for key, value in changes.items():
        section, _, rest = key.partition("__")
        if rest and value is None:
            found[section].pop(rest)
        elif rest:
            found[section][rest] = value
        else:
            found[section] = value
    return found


def rounds(ranks: int, message: float, *, sparse: bool) -> tuple[int, int]:
    """Return how often ranks wait for a message: in trees and for pieces that go at once, and in long rings."""
    tree = math.ceil(math.log2(ranks))
    if sparse:
        return (2 * tree, 0) if ranks * message <= 2**19 else (tree, ranks - 1)
    at_once = math.ceil((ranks - 1) / 32)
    return (at_once, ranks - 1) if message > 2**19 else (at_once + tree, 0)


def seconds_of(ranks: int, density: float | None, *, half: bool = False, batch: float = BATCH) -> dict[str, float]:
    """Return the seconds of a step by phase, as the law has them."""
    found = dict.fromkeys(PHASES, 0.0)
    found["compute"] = 1e-3 + SAMPLE * batch / ranks
    sparse = density is not None
    message = NUMEL * density * 8 + 48 if density is not None else NUMEL * (2 if half else 4)
    if ranks > 1:
        found["agree"] = 20e-6 * math.ceil(math.log2(ranks))
        received = (ranks - 1) * message if sparse else 2 * (ranks - 1) / ranks * message
        short, long = rounds(ranks, message, sparse=sparse)
        found["exchange"] = ALPHA * short + RING * long + BETA * received
        found["exchange"] += 0.0 if sparse else ADD * NUMEL
    if density is not None:
        found["sparsify"] = SELECT * NUMEL
        found["encode"] = 50e-6 + 3e-9 * NUMEL * density
        found["decode"] = ranks * (OPEN + DECODE * NUMEL * density)
    return found


def write_run(
    directory: Path,
    settings: Mapping[str, Any] | None = None,
    *,
    ranks: int = 2,
    seconds: Mapping[str, float] | None = None,
    noise: float = 0.02,
    seed: int = 0,
    steps: int = 60,
    batch: float = BATCH,
    end: bool = True,
    **environment: Any,
) -> Path:
    """Write a run; its times are `seconds`, or the law's, each times a factor of the run and one of the step."""
    settings = dict(config() if settings is None else settings) | {"seed": seed}
    density = settings["sparsifier"].get("density")
    half = settings["exchange"].get("dense") == "bfloat16"
    means = dict(seconds_of(ranks, density, half=half, batch=batch) if seconds is None else seconds)
    generator = np.random.default_rng([seed, ranks, int(1e6 * (density or 0)), half])
    factor = math.exp(noise * generator.standard_normal())
    (directory / "ranks").mkdir(parents=True)
    (directory / "config.toml").write_text(tomli_w.dumps(settings))
    about = {"ranks": ranks, "nodes": 1, "library": "MPICH 5.0.2", "host": "alpha", "hosts": ["alpha"]}
    (directory / "environment.json").write_text(json.dumps(about | environment))
    lines: list[dict[str, Any]] = [{"kind": "start", "step": 0, "ranks": ranks, "steps": steps, "unix_seconds": 1e9}]
    own: list[list[dict[str, Any]]] = [[] for _ in range(ranks)]
    for step in range(1, steps + 1):
        spread = factor * np.exp(noise * generator.standard_normal(len(PHASES)))
        times = {phase: float(means.get(phase, 0.0) * spread[i]) for i, phase in enumerate(PHASES)}
        lines.append(step_line(step, ranks, density, half, batch, times))
        for rank in range(ranks):
            # The last rank computes a quarter longer than the others, which wait for it.
            late = 0.25 * times["compute"]
            changed = {"compute": times["compute"] + late} if rank == ranks - 1 else {"agree": times["agree"] + late}
            own[rank].append({"step": step, "seconds": {**times, **changed}})
        if step % 20 == 0:
            told = {"epoch": step // 10, "loss": 3.0 / step, "accuracy": 1 - 3.0 / step, "unix_seconds": 1e9 + step}
            lines.append({"kind": "evaluation", "step": step, **told})
    if end:
        lines.append({"kind": "end", "step": steps, "steps": steps, "unix_seconds": 1e9 + steps + 1})
    write_lines(directory / "metrics.jsonl", lines)
    for rank, its in enumerate(own):
        write_lines(directory / "ranks" / f"rank-{rank:05d}.jsonl", its)
    return directory


def step_line(
    step: int, ranks: int, density: float | None, half: bool, batch: float, times: Mapping[str, float]
) -> dict[str, Any]:
    """Return the line of a step."""
    width = 2 if half else 4
    message = NUMEL * density * 8 + 48 if density is not None else float(NUMEL * width)
    received = (ranks - 1) * message if density is not None else 2 * (ranks - 1) / ranks * message
    return {
        "kind": "step",
        "step": step,
        "epoch": step // 10,
        "samples": batch,
        "loss": 3.0 / step,
        "payload_bytes": int(ranks * message),
        "received_bytes": int(ranks * received),
        "dense_bytes": 8 * (ranks - 1) * NUMEL,
        "messages": ranks if density is not None else 0,
        "count": int(ranks * NUMEL * (1.0 if density is None else density)),
        "entries": ranks * NUMEL,
        "seconds": dict(times),
        "hidden_seconds": 0.0,
    }


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps({"schema": 1, **line}) + "\n" for line in lines))


def append(path: Path, *lines: Mapping[str, Any]) -> None:
    with path.open("a") as file:
        file.writelines(json.dumps({"schema": 1, **line}) + "\n" for line in lines)


METHODS = [(None, False), (None, True), (0.1, False), (0.01, False), (0.001, False)]


def write_study(
    directory: Path,
    *,
    ranks: tuple[int, ...] = (1, 2, 4),
    repeats: int = 3,
    noise: float = 0.02,
    steps: int = 60,
    methods: Sequence[tuple[float | None, bool]] = METHODS,
) -> Path:
    """Write strong scaling of methods: a density, or None for dense, and whether in 16 bits."""
    for density, half in methods:
        for count in ranks:
            for seed in range(repeats):
                where = directory / f"{density}-{half}-{count}-{seed}"
                settings = config(density=density, half=half)
                write_run(where, settings, ranks=count, seed=seed, noise=noise, steps=steps)
    return directory


def page_of(*paths: Path) -> str:
    """Return the page of the runs below some paths."""
    briefs, left_out = read_briefs(paths)
    studies, refusals = studies_of(briefs)
    return to_markdown(sections_of(studies), refusals, left_out, datetime.now(UTC))
