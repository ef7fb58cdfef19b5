"""The command line of the analysis: `python -m analysis table RUNS...`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from analysis.load import load_run
from analysis.table import rows_of, to_markdown


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Read run directories."""


@cli.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
def table(runs: tuple[Path, ...]) -> None:
    """Print a Markdown table of RUNS; runs that differ in the seed alone make one row."""
    try:
        click.echo(to_markdown(rows_of(load_run(run) for run in runs)))
    except ValueError as error:
        click.echo(f"analysis: {error}", err=True)
        sys.exit(78)


if __name__ == "__main__":
    cli()
