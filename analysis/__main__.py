"""The command line of the analysis: `python -m analysis table`, `paper`, `report`, `compare` and `tail`."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import TextIO

import click

from analysis.markdown import number
from analysis.table import read_runs, rows_of, to_markdown
from analysis.terminal import say, say_markdown, say_usage

#: Warnings that are printed; the page has all.
_SAID = 20


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Read run directories."""


@cli.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
def table(runs: tuple[Path, ...]) -> None:
    """Print a Markdown table of RUNS; runs that differ in the seed alone make one row.

    RUNS are run directories, sweep directories, or parents of them; what is none is left out.
    """
    try:
        found, left_out = read_runs(runs)
    except ValueError as error:
        say(f"analysis: {error}", error=True)
        sys.exit(78)
    for line in left_out:
        say(f"analysis: left out: {line}", error=True)
    say_markdown(to_markdown(rows_of(found)))


@cli.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "output", required=True, type=click.Path(path_type=Path, file_okay=False), help="Where to write.")
def paper(runs: tuple[Path, ...], output: Path) -> None:
    """Draw the GSpar paper's figures from RUNS, and a page of claims beside measurements.

    RUNS are run directories, sweep directories, parents of them, or JSON files of `mpisparse bench coding`.
    """
    # matplotlib takes a second to import, which the table does not need.
    from analysis.paper.build import build_page

    try:
        written, left_out = build_page(runs, output)
    except (ValueError, OSError) as error:
        say(f"analysis: {error}", error=True)
        sys.exit(78)
    for line in left_out:
        say(f"analysis: left out: {line}", error=True)
    pictures = sum(path.suffix == ".png" for path in written)
    say(f"{number(pictures, 'figure')} and the page: {output / 'index.html'}")


@cli.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "output", required=True, type=click.Path(path_type=Path, file_okay=False), help="Where to write.")
@click.option(
    "--extra-p", type=click.Path(path_type=Path, dir_okay=False), help="Write medians for Extra-P, JSON lines."
)
@click.option("--mllog", type=click.Path(path_type=Path, dir_okay=False), help="Write MLPerf's log lines of all runs.")
def report(runs: tuple[Path, ...], output: Path, extra_p: Path | None, mllog: Path | None) -> None:
    """Report on RUNS: scaling, phases, bytes, learning, and a model of rank counts that were not measured.

    RUNS are run directories, sweep directories, or parents of them. Runs of one `name` have to agree in all but method
    (sparsifier, memory, exchange), batch and seed.
    """
    from analysis.report.build import build_report

    try:
        written, problems = build_report(runs, output, extra_p=extra_p, mllog=mllog)
    except (ValueError, OSError) as error:
        say(f"analysis: {error}", error=True)
        sys.exit(78)
    for line in problems[:_SAID]:
        say(f"analysis: {line}", error=True)
    if problems[_SAID:]:
        say(f"analysis: and {number(len(problems) - _SAID, 'more warning')}, see the page", error=True)
    pictures = sum(path.suffix == ".png" for path in written)
    say(f"{number(pictures, 'figure')} and the page: {output / 'index.html'}")


@cli.command()
@click.argument("one", metavar="A", type=click.Path(path_type=Path))
@click.argument("other", metavar="B", type=click.Path(path_type=Path))
def compare(one: Path, other: Path) -> None:
    """Compare the run or the repeats below A with those below B, and say what follows."""
    from analysis.compare import compare as compared
    from analysis.compare import to_text

    try:
        say_markdown(to_text(compared(one, other)))
    except ValueError as error:
        say(f"analysis: {error}", error=True)
        sys.exit(78)


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--once", is_flag=True, help="Print once, and end.")
@click.option(
    "--every",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0, 3600, min_open=True),
    help="Seconds between looks.",
)
@click.option(
    "--wait",
    default=600.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Seconds to wait for a run that is about to begin.",
)
def tail(run: Path, once: bool, every: float, wait: float) -> None:
    """Follow RUN while it goes on. Ends when the run has ended (exit code 0), failed or stalled (1)."""
    from analysis.tail import follow

    try:
        state = follow(run, once=once, every=every, wait=wait)
    except ValueError as error:
        say(f"analysis: {error}", error=True)
        sys.exit(78)
    except KeyboardInterrupt:
        return
    sys.exit(1 if state.startswith(("failed", "stalled")) else 0)


def main() -> None:
    """Run the command line; what is wrong with it is said as it is, and so are warnings."""
    warnings.showwarning = _warn
    try:
        cli.main(prog_name="python -m analysis", standalone_mode=False)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.ClickException as error:
        say_usage(error)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    say(f"analysis: {message}", error=True)


if __name__ == "__main__":
    main()
