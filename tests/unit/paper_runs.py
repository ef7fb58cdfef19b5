"""Run directories of the paper's experiments, made up: curves that fall as 1/t, slower the larger a method's var is."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

N, FEATURES, RANKS, BATCH = 1024, 2048, 4, 8

DENSE: dict[str, Any] = {"name": "dense"}


def gspar(density: float) -> dict[str, Any]:
    return {"name": "gspar", "density": density, "iterations": 2}


def uniform(density: float) -> dict[str, Any]:
    return {"name": "uniform", "density": density}


def qsgd(bits: int) -> dict[str, Any]:
    return {"name": "qsgd", "bits": bits}


TERNGRAD: dict[str, Any] = {"name": "terngrad"}


def var_of(rule: Mapping[str, Any]) -> float:
    """Return about what the paper's rules add, in squared norms."""
    if rule["name"] == "gspar":
        return max(1.0, 0.46 / float(rule["density"]))
    if rule["name"] == "uniform":
        return float(1 / rule["density"])
    other = 1 + 40 * float(0.25 ** int(rule.get("bits", 1)))
    return {"dense": 1.0, "terngrad": 6.0}.get(str(rule["name"]), other)


def bits_of(rule: Mapping[str, Any]) -> float:
    """Return about how many bits a message takes, without its header."""
    if rule["name"] in ("gspar", "uniform"):
        return FEATURES * float(rule["density"]) * (9 if rule["name"] == "gspar" else 40)
    return FEATURES * {"dense": 32.0, "terngrad": 1.5}.get(str(rule["name"]), float(rule.get("bits", 1)))


def convex_config(name: str, rule: Mapping[str, Any], lr: float, **changes: Any) -> dict[str, Any]:
    """Return a configuration of paper-sgd, paper-svrg or paper-real; `changes` have dotted keys with _ for the dot."""
    config: dict[str, Any] = {
        "name": name,
        "seed": 0,
        "data": {"name": "synthetic", "samples": N, "features": FEATURES, "c1": 0.6, "c2": 0.25},
        "model": {"name": "logistic", "l2": 1 / (10 * N), "halved": False, "penalty": "local"},
        "training": {"length": "15 epochs", "batch": BATCH, "objective": True},
        "optimizer": {"name": "SGD", "lr": lr},
        "schedule": {"name": "inverse", "period": "1 epoch"},
        "sparsifier": dict(rule),
        "exchange": {"gauge": True},
    }
    for key, value in changes.items():
        section, _, rest = key.partition("_")
        if rest:
            config.setdefault(section, {})[rest] = value
        else:
            config[section] = value
    return config


def write_convex(
    directory: Path, config: Mapping[str, Any], *, epochs: int = 15, linear: bool = False, var: float | None = None
) -> Path:
    """Write a convex run; suboptimality falls as 1/t, or in a straight line on a log scale if `linear`.

    A learning rate away from 0.2 / sqrt(var) costs, twice as much for each factor of 4.
    """
    rule = config["sparsifier"]
    grows = var_of(rule) if var is None else var
    slow = grows * (1 + math.log2(config["optimizer"]["lr"] * math.sqrt(grows) / 0.2) ** 2 / 4)
    per_epoch = N // (RANKS * BATCH)
    bits = bits_of(rule)
    passes_a_step = (3 if "svrg" in config else 1) / per_epoch
    lines: list[dict[str, Any]] = [{"kind": "start", "step": 0, "ranks": RANKS, "steps": epochs * per_epoch}]
    for step in range(epochs * per_epoch + 1):
        passes = step * passes_a_step
        value = 0.69 * math.exp(-passes / (3 * slow)) if linear else 0.69 / (1 + 2 * passes / slow)
        if step:
            lines.append(step_line(step, (step - 1) // per_epoch, 0.3 + value, bits, grows, spa_of(rule)))
        if step % (per_epoch // 2) == 0:
            lines.append(
                {"kind": "evaluation", "step": step, "epoch": step // per_epoch, "passes": passes, "loss": 0.4 + value}
                | {"accuracy": 0.9, "objective": 0.25 + value, "suboptimality": value}
            )
    lines.append({"kind": "end", "step": epochs * per_epoch, "steps": epochs * per_epoch, "wall_seconds": 1.0})
    write(directory, config, lines)
    optimum = {"objective": 0.25, "gradient_norm": 1e-9, "gap": 1e-12}
    (directory / "optimum.json").write_text(json.dumps(optimum))
    return directory


def spa_of(rule: Mapping[str, Any]) -> float:
    return float(rule.get("density", {"dense": 1.0, "terngrad": 0.3}.get(rule["name"], 0.5)))


def step_line(step: int, epoch: int, loss: float, bits: float, var: float, spa: float) -> dict[str, Any]:
    """Return the line of a step of RANKS ranks, whose messages take `bits` each."""
    coding = int(RANKS * bits / 8)
    seconds = {"compute": 0.001, "exchange": 0.001}
    return {
        "kind": "step",
        "step": step,
        "epoch": epoch,
        "samples": RANKS * BATCH,
        "gradients": RANKS * BATCH,
        "loss": loss,
        "learning_rate": 0.1,
        "payload_bytes": coding + 48 * RANKS,
        "coding_bytes": coding,
        "messages": RANKS,
        "received_bytes": (RANKS - 1) * (coding + 48 * RANKS),
        "dense_bytes": 8 * FEATURES * (RANKS - 1),
        "count": int(RANKS * FEATURES * spa),
        "entries": RANKS * FEATURES,
        "gradient_square": 2.0,
        "sent_square": 2.0 * var,
        "seconds": seconds,
        "seconds_slowest": seconds,
        "hidden_seconds": 0.0,
    }


def write_cnn(directory: Path, rule: Mapping[str, Any], *, channels: int = 24, seed: int = 0, epochs: int = 6) -> Path:
    """Write a run on CIFAR-10 whose loss falls slower the larger its var is."""
    config = {
        "name": "paper-cnn",
        "seed": seed,
        "data": {"name": "cifar10", "path": "cifar10", "train_limit": 10000},
        "model": {"name": "cnn", "channels": channels, "hidden": 256},
        "training": {"length": f"{epochs} epochs", "global_batch": 128},
        "optimizer": {"name": "Adam", "lr": 0.02},
        "sparsifier": dict(rule),
    }
    slow, per_epoch = var_of(rule) ** 0.15, 20
    lines: list[dict[str, Any]] = [{"kind": "start", "step": 0, "ranks": RANKS, "steps": epochs * per_epoch}]
    for step in range(1, epochs * per_epoch + 1):
        loss = 0.4 + 1.9 / (1 + step / per_epoch / slow) + 0.02 * math.sin(3 * seed + step)
        line = step_line(step, (step - 1) // per_epoch, loss, bits_of(rule) * 200, 1.0, spa_of(rule))
        lines.append({key: value for key, value in line.items() if not key.endswith("_square")})
        if step % per_epoch == 0:
            accuracy = 0.9 - loss / 4
            epoch = step // per_epoch
            lines.append({"kind": "evaluation", "step": step, "epoch": epoch, "loss": loss, "accuracy": accuracy})
    lines.append({"kind": "end", "step": epochs * per_epoch, "wall_seconds": 1.0})
    write(directory, config, lines)
    return directory


def write_svm(
    directory: Path,
    rule: Mapping[str, Any],
    ranks: int,
    *,
    lr: float = 0.05,
    gain: float = 1.0,
    l2: float = 0.05,
    spa: float | None = None,
) -> Path:
    """Write an asynchronous run: what writes less has fewer conflicts and is faster; dense's grow by `gain` a doubling.

    spa: the share of entries that is written; that of the rule by default.
    """
    config = {
        "name": "paper-svm",
        "seed": 0,
        "data": {"name": "synthetic_svm", "samples": 51200, "features": 256},
        "model": {"name": "svm", "l2": l2, "halved": False},
        "training": {"length": "5 epochs", "batch": 1},
        "optimizer": {"name": "SGD", "lr": lr},
        "sparsifier": dict(rule),
        "asynchronous": {"window": "auto", "snapshots": 50},
    }
    spa, updates = spa_of(rule) if spa is None else spa, 5 * 51200
    conflict = 0.004 * spa**0.5 * math.log2(ranks) * (gain ** math.log2(ranks) if spa == 1 else 1)
    wall = updates * 4e-6 * (0.4 + 0.6 * spa + 40 * conflict) / ranks
    lines: list[dict[str, Any]] = [{"kind": "start", "step": 0, "ranks": ranks, "steps": updates}]
    for i in range(51):
        objective = 0.55 + 0.45 / (1 + i / 3 / (0.8 + 0.2 * math.log2(var_of(rule) + 1)))
        lines.append(
            {"kind": "evaluation", "step": updates * i // 50, "milliseconds": 1e3 * wall * i / 50, "passes": i / 10}
            | {"objective": objective}
        )
    written = int(updates * 256 * spa)
    lines.append(
        {"kind": "end", "step": updates, "updates": updates, "entries_written": written, "window": "shared"}
        | {"conflicts": int(conflict * written), "waiting_seconds": 20 * conflict * wall, "wall_seconds": wall}
        | {"staleness": {"mean": 0.8 * (ranks - 1), "max": 40 * (ranks - 1), "histogram": [[0, 10], [1, 3]]}}
    )
    write(directory, config, lines, ranks)
    return directory


def write(directory: Path, config: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], ranks: int = RANKS) -> None:
    """Write the files of a run directory."""
    directory.mkdir(parents=True)
    (directory / "config.toml").write_text(tomli_w.dumps(dict(config)))
    about = {"ranks": ranks, "nodes": 1, "library": "MPICH 5.0.2", "host": "alpha", "started": "2026-11-24T10:00:00"}
    (directory / "environment.json").write_text(json.dumps(about))
    text = "".join(json.dumps({"schema": 1, **line}) + "\n" for line in lines)
    (directory / "metrics.jsonl").write_text(text)


def write_sweep(directory: Path, study: str, *, reduced: bool, runs: int) -> None:
    """Write the files that make a directory that of a sweep."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "study.toml").write_text(f'name = "{study}"\n[reduced]\nset = {{}}\n')
    (directory / "sweep.json").write_text(json.dumps({"study": study, "reduced": reduced, "runs": runs}))


def coding_rows(*, over: float = 0.9) -> list[dict[str, Any]]:
    """Return rows of a coding study in which GSpar takes the part `over` of Theorem 4's bound."""
    rows = []
    for numel in (4096, 65536):
        for share in (0.001, 0.01, 0.1):
            for rho in (0.1, 0.5):
                s, index = max(1, round(share * numel)), math.log2(numel)
                bound = s * (32 + index) + min(rho * s * index, numel) + 32
                about = {"numel": numel, "s": s, "rho": rho, "bound": bound, "dense": 32 * numel}
                about |= {"count_bound": (1 + rho) * s, "count": 0.9 * (1 + rho) * s}
                sent = {"gspar": over * bound, "qsgd-2": 1.1 * numel, "qsgd-8": 6.0 * numel, "terngrad": 0.8 * numel}
                for method, bits in sent.items():
                    var = 1 + 0.99 * rho if method == "gspar" else 3.0
                    row = {"method": method, "bits": bits, "bits_with_header": bits + 384, "variance": var}
                    rows.append(about | row)
    return rows


def write_coding(file: Path, *, over: float = 0.9) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"study": "coding", "rows": coding_rows(over=over)}))
    return file


def methods(*, quantised: bool = True) -> Iterator[dict[str, Any]]:
    """Yield the rules of the convex studies."""
    yield DENSE
    yield from (gspar(0.1), gspar(0.02), uniform(0.1), uniform(0.02))
    if quantised:
        yield from (qsgd(2), qsgd(4), qsgd(8), TERNGRAD)


def change_config(directory: Path, **sections: Mapping[str, Any] | str | int) -> None:
    """Change sections of a run's configuration that was written."""
    path = directory / "config.toml"
    config = tomllib.loads(path.read_text())
    for name, section in sections.items():
        config[name] = {**config.get(name, {}), **section} if isinstance(section, Mapping) else section
    path.write_text(tomli_w.dumps(config))
