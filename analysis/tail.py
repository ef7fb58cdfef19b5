"""tail: how a run is doing, while it goes on. It reads what was added to the log since the last look, and no more."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from analysis.files import open_regular, parse_json, read_json
from analysis.markdown import number
from analysis.report.tables import bytes_text, time_text
from analysis.terminal import Screen

#: Steps that rates and means are of; seconds without a line after which a run counts as stalled, and how many times the
#: usual pause between lines that has to be.
_WINDOW, _STALLED, _PAUSES = 200, 60.0, 5.0


@dataclass
class Progress:
    """What was read of a run so far.

    offset: bytes of the log that were read. aim: steps of the whole run. ended: whether it came to its end.
    recent: the last steps. modified: when the log was written to, in Unix seconds. pause: between two such times.
    """

    directory: Path
    offset: int = 0
    aim: int = 0
    ranks: int = 1
    ended: bool = False
    received: float = 0.0
    evaluation: dict[str, Any] = field(default_factory=dict)
    recent: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    modified: float = 0.0
    pause: float = 0.0

    @property
    def step(self) -> int:
        """Return the steps done."""
        return int(self.recent[-1]["step"]) if self.recent else 0

    @property
    def seconds_a_step(self) -> float:
        """Return the mean seconds of the last steps; 0 before the first."""
        total = sum(sum(line["seconds"].values()) for line in self.recent)
        return total / len(self.recent) if self.recent else 0.0

    def has_begun(self) -> bool:
        """Return True once there is a log, or word that the run failed before it had one.

        Raises:
            ValueError: what is there is no run, and will be none.
        """
        if (self.directory / "metrics.jsonl").exists() or (self.directory / "failed.json").exists():
            return True
        if self.directory.exists() and not self.directory.is_dir():
            raise ValueError(f"{self.directory} is a file: give the directory of a run")
        runs = sorted(path.parent.name for path in self.directory.glob("*/config.toml"))
        if runs:
            named = ", ".join(runs[:5]) + (", ..." if len(runs) > 5 else "")
            raise ValueError(f"{self.directory} holds runs, {named}: give one of them")
        return False

    def look(self) -> None:
        """Read what was added to the log.

        Raises:
            ValueError: there is no run in the directory.
        """
        path = self.directory / "metrics.jsonl"
        try:
            about = path.stat()
        except OSError as error:
            if (self.directory / "config.toml").exists():
                return
            raise ValueError(f"{self.directory} is no run directory: it has no config.toml and no log") from error
        if about.st_size < self.offset:
            # A resumed run has cut its log: everything is read again.
            self._forget()
        if self.modified and about.st_mtime > self.modified:
            self.pause = max(0.5 * self.pause, about.st_mtime - self.modified)
        self.modified = about.st_mtime
        with open_regular(path) as file:
            file.seek(self.offset)
            for raw in iter(lambda: file.readline(_LINE), b""):
                if not raw.endswith(b"\n"):
                    break
                self.offset += len(raw)
                self._take(raw)

    def _forget(self) -> None:
        self.offset, self.received, self.ended, self.evaluation = 0, 0.0, False, {}
        self.recent.clear()

    def _take(self, raw: bytes) -> None:
        try:
            line = parse_json(raw, constants=True)
        except ValueError:
            return
        if not isinstance(line, dict):
            return
        kind = line.get("kind")
        if kind == "start":
            self.aim, self.ranks, self.ended = int(line["steps"]), int(line["ranks"]), False
        elif kind == "step":
            self.received += line["received_bytes"] / self.ranks
            self.recent.append(line)
        elif kind == "evaluation":
            self.evaluation = line
        elif kind == "end":
            self.ended = True

    def state(self, now: float) -> str:
        """Return in words whether the run goes on, has ended, or seems to have stopped; `now` is in Unix seconds."""
        failed = self.directory / "failed.json"
        if failed.exists():
            return f"failed: {_message(failed)}"
        if self.ended:
            return "ended"
        if not self.modified:
            return "starting: there is no log yet"
        silent = now - self.modified
        if silent > max(_STALLED, _PAUSES * self.pause):
            return f"stalled or stopped: nothing was written for {_duration(silent)}"
        return "running"


#: Bytes of a line at most.
_LINE = 2**20


def _message(failed: Path) -> str:
    """Return what a failed.json says, or that it cannot be read."""
    try:
        content = read_json(failed)
        return str(content["message"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        return f"{failed.name} cannot be read: {error!r:.200}"


def show(progress: Progress, now: float) -> Table:
    """Return what is known of the run as a table."""
    table = Table(title=str(progress.directory), show_header=False, title_justify="left")
    table.add_row("state", progress.state(now))
    aim = progress.aim or None
    share = f" of {aim:,} ({progress.step / aim:.0%})" if aim else ""
    table.add_row("steps", f"{progress.step:,}{share}, {number(progress.ranks, 'rank')}")
    each = progress.seconds_a_step
    if progress.recent:
        left = max(0, progress.aim - progress.step) * each
        table.add_row("rate", f"{1 / each:.1f} steps a second, {time_text(each)} each" if each else "unknown")
        if not progress.ended:
            table.add_row("time left", f"{_duration(left)}, without evaluation and checkpoints")
        _add_numbers(table, progress)
    if progress.evaluation:
        line = progress.evaluation
        told = [f"{key} {line[key]:.4g}" for key in ("loss", "accuracy", "suboptimality") if line.get(key) is not None]
        table.add_row("evaluation", f"{', '.join(told)} after {number(line['step'], 'step')}")
    return table


def _add_numbers(table: Table, progress: Progress) -> None:
    losses = [line["loss"] for line in progress.recent if line.get("loss") is not None]
    if losses:
        table.add_row(
            "training loss", f"{losses[-1]:.4f}, mean of the last {number(len(losses), 'step')} {_mean(losses):.4f}"
        )
    count = sum(line["count"] for line in progress.recent)
    entries = sum(line["entries"] for line in progress.recent)
    if entries:
        table.add_row("density", f"{100 * count / entries:.3g} %")
    last = progress.recent[-1]
    dense, own = last["dense_bytes"] / progress.ranks, last["received_bytes"] / progress.ranks
    fewer = f", dense {dense / own:.1f} times as many" if own and dense > own else ""
    table.add_row("into each rank", f"{bytes_text(own)} a step{fewer}; {bytes_text(progress.received)} so far")


def follow(
    directory: Path,
    *,
    once: bool = False,
    every: float = 1.0,
    wait: float = 600.0,
    console: Console | None = None,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """Show a run until it has ended or stalled, and return its state. Without a terminal, print when a step was added.

    Args:
        once: print once; no waiting.
        every: seconds between looks.
        wait: seconds at most until a run that is about to begin has a log.

    Raises:
        ValueError: there is no run in the directory, and none has begun in that time.
    """
    console = console or Screen()
    progress = Progress(directory)
    if not once:
        _wait_for(progress, console, every, wait, sleep)
    progress.look()
    if once or not console.is_terminal:
        return _print(progress, console, once, every, clock, sleep)
    with Live(show(progress, clock()), console=console, auto_refresh=False) as live:
        while progress.state(clock()).startswith(("running", "starting")):
            sleep(every)
            progress.look()
            live.update(show(progress, clock()), refresh=True)
    return progress.state(clock())


def _wait_for(progress: Progress, console: Console, every: float, wait: float, sleep: Callable[[float], None]) -> None:
    """Return when the run has a log; a line says what is waited for."""
    waited = 0.0
    while not progress.has_begun():
        what = "its log" if (progress.directory / "config.toml").exists() else "a run to begin there"
        if not waited < wait:
            raise ValueError(
                f"{progress.directory}: waited {wait:g} s for {what}, and nothing came: give the directory of a run, "
                "or a longer --wait"
            )
        if not waited:
            line = f"{progress.directory}: waiting for {what}, for {wait:g} s at most"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        sleep(every)
        waited += every


def _print(
    progress: Progress,
    console: Console,
    once: bool,
    every: float,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> str:
    console.print(show(progress, clock()))
    shown = progress.step
    while not once and progress.state(clock()).startswith(("running", "starting")):
        sleep(every)
        progress.look()
        if progress.step > shown or progress.ended:
            each, shown = progress.seconds_a_step, progress.step
            loss = progress.recent[-1].get("loss")
            told = "" if loss is None else f", loss {loss:.4f}"
            console.print(f"step {shown:,} of {progress.aim:,}{told}, {time_text(each)} a step")
    state = progress.state(clock())
    if not once:
        console.print(state)
    return state


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
