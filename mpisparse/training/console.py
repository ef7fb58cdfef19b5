"""What a person sees of a run: progress while it lasts, a table at its end. Rank 0 alone speaks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from mpisparse.terminal import STDERR, Screen, say
from mpisparse.words import counted


class Console:
    """A progress bar on a terminal, plain lines elsewhere, nothing where it does not speak, as on other ranks."""

    def __init__(self, speaks: bool, total_steps: int, done_steps: int) -> None:
        self._speaks = speaks
        self._screen = Screen(STDERR)
        self._total = total_steps
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._screen,
            disable=not (self._speaks and self._screen.is_shown),
            transient=True,
        )
        self._task = self._progress.add_task("train", total=total_steps, completed=done_steps, epoch=0, loss="-")

    def __enter__(self) -> Console:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def advance(self, step: int, epoch: int, loss: float | None) -> None:
        """Show that `step` steps are done."""
        shown = "-" if loss is None else f"{loss:.4f}"
        self._progress.update(self._task, completed=step, epoch=epoch + 1, loss=shown)

    def evaluated(self, step: int, epoch: int, train_loss: float | None, metrics: Mapping[str, float]) -> None:
        """Print one line on an evaluation after `step` steps."""
        train = "" if train_loss is None else f"train loss {train_loss:.4f} | "
        self.say(f"epoch {epoch} | step {step}/{self._total} | {train}{_evaluation(metrics)}")

    def say(self, line: str) -> None:
        """Print one line, above the bar if there is one."""
        if self._speaks:
            self._screen.say(line)

    def summary(self, rows: list[tuple[str, str]], title: str, following: str) -> None:
        """Print the closing table, and a line after it, on standard output."""
        if not self._speaks:
            return
        _print_table(rows, title)
        if following:
            Screen().say(following)


def _print_table(rows: Iterable[tuple[str, str]], title: str) -> None:
    """Print a table of names and values on standard output."""
    table = Table(title=title, title_justify="left", show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    Screen().print(table)


def _evaluation(metrics: Mapping[str, float]) -> str:
    """Return an evaluation as one line, with the training objective where it was asked for."""
    told = [f"test loss {metrics['loss']:.4f}, accuracy {metrics['accuracy']:.2%}"] if "loss" in metrics else []
    if "objective" in metrics:
        above = f", {metrics['suboptimality']:.2e} above the least" if "suboptimality" in metrics else ""
        told.append(f"objective {metrics['objective']:.6g}{above}")
    return " | ".join(told)


class SweepConsole:
    """A line for each run of a sweep, and on a terminal a progress bar below them. Rank 0 alone speaks."""

    def __init__(self, rank: int, runs: int) -> None:
        self._speaks = rank == 0
        self._screen = Screen(STDERR)
        self._progress = Progress(
            TextColumn("runs"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._screen,
            disable=not (self._speaks and self._screen.is_shown),
            transient=True,
        )
        self._runs = runs
        self._ended = 0
        self._task = self._progress.add_task("sweep", total=runs)

    def __enter__(self) -> SweepConsole:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def say(self, line: str) -> None:
        """Print one line, above the bar if there is one."""
        if self._speaks:
            self._screen.say(line)

    def ended(self, name: str, news: str, metrics: Mapping[str, float], seconds: float) -> None:
        """Print how a run ended: its `news`, or what its last evaluation said."""
        self._ended += 1
        self._progress.update(self._task, completed=self._ended)
        self.say(f"[{self._ended}/{self._runs}] {name} | {news or _evaluation(metrics)} | {seconds:.1f} s")

    def summary(self, failed: Mapping[str, str], done: int, before: int) -> None:
        """Print which runs failed, and how many did not, on standard output."""
        if not self._speaks:
            return
        self._progress.stop()
        if failed:
            _print_table(failed.items(), f"{len(failed)} failed")
        before_words = f"{before} {'was' if before == 1 else 'were'} finished before"
        say(f"{counted(done, 'run')} made, {before_words}, {len(failed)} failed")


def ignore(line: str) -> None:
    """Do nothing with a line that nobody wants to see."""


def summary_rows(metrics: Mapping[str, float], totals: Mapping[str, Any], size: int) -> list[tuple[str, str]]:
    """Return the rows of the closing table that tell the result, the time and the bytes.

    Args:
        metrics: of the last evaluation.
        totals: "seconds" by phase (mean over ranks), "hidden" (seconds that messages moved meanwhile), "wall",
            "payload", "received", "dense" (bytes of all ranks),
            "count" and "entries" of all ranks, "steps", "skipped" of them, "mended" checks of replicas.
        size: ranks.
    """
    seconds = totals["seconds"]
    shown = ("compute", "sparsify", "encode", "exchange", "decode", "agree", "apply", "data")
    hidden = []
    if totals["hidden"] >= 0.05:  # less, such as the trial of "auto" that chose otherwise, would be shown as 0.0 s
        hidden.append(
            ("exchange", f"{seconds['exchange']:.1f} s exposed, {totals['hidden']:.1f} s hidden while a rank computed")
        )
    rows = [
        ("test loss", f"{metrics['loss']:.4f}"),
        ("test accuracy", f"{metrics['accuracy']:.2%}"),
        ("time", f"{totals['wall']:.1f} s for {counted(totals['steps'], 'step')}"),
        *_troubles(totals),
        ("of which per rank", ", ".join(f"{name} {seconds[name]:.1f} s" for name in shown)),
        *hidden,
        ("density sent", f"{totals['count'] / max(1, totals['entries']):.2%} of entries"),
        ("message", f"{bytes_text(totals['payload'] / max(1, totals['steps']) / size)} per rank and step"),
    ]
    if size > 1:
        less = totals["dense"] / max(1, totals["received"])
        rows.append(
            (
                "network",
                f"{bytes_text(totals['received'] / size)} into each rank; "
                f"dense would be {bytes_text(totals['dense'] / size)} ({less:.1f} times as much)",
            )
        )
    return rows


def _troubles(totals: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return rows for what should not have happened, and was got over."""
    rows = []
    if totals.get("skipped"):
        skipped = counted(totals["skipped"], "step")
        rows.append(("skipped", f"{skipped}, as a gradient held NaN or infinity (see metrics.jsonl)"))
    if totals.get("mended"):
        mended = counted(totals["mended"], "time")
        rows.append(("replicas mended", f"{mended}, as ranks held different bits (see metrics.jsonl)"))
    return rows


def bytes_text(count: float) -> str:
    """Return bytes as "12.3 MB"; 1 kB are 1000 bytes."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
