"""`mpisparse checkpoint`: list, show, verify, prune, reshape and export checkpoints. One process, no mpirun.

mpisparse checkpoint list runs/digits-001
mpisparse checkpoint reshape runs/digits-001 --ranks 8 -o reshaped
mpisparse checkpoint export runs/digits-001 -o digits.pt
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import click
from rich.table import Table

from mpisparse.checkpoint import Residual
from mpisparse.errors import CheckpointError
from mpisparse.terminal import Screen, say
from mpisparse.tools.export import What
from mpisparse.words import counted

_WHICH = click.argument("which", metavar="RUN|CHECKPOINT", type=click.Path(path_type=Path))
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


@click.group()
def checkpoint() -> None:
    """Look at checkpoints, check, thin out, reshape and export them. Needs no mpirun.

    RUN is a run's directory, or one that holds checkpoints; where one checkpoint is needed, its newest is meant.
    """


@checkpoint.command("list")
@_WHICH
@click.option("--verify", is_flag=True, help="Read every file and check its digest; else manifests and lengths alone.")
@_JSON
def list_checkpoints(which: Path, verify: bool, as_json: bool) -> None:
    """List the checkpoints of a run."""
    from mpisparse.tools.listing import list_run

    found = list_run(which, verify=verify)
    if as_json:
        click.echo(json.dumps([asdict(listed) for listed in found], indent=2))
        return
    table = Table("checkpoint", "ranks", "size", "written (UTC)", "", "state", title=f"{which}", title_justify="left")
    for listed in found:
        state = "; ".join(listed.flaws) or ("verified" if verify else "complete")
        latest, ranks = "latest" if listed.latest else "", "?" if listed.ranks is None else str(listed.ranks)
        table.add_row(listed.name, ranks, _bytes(listed.bytes), listed.written[:19].replace("T", " "), latest, state)
    Screen().print(table)


@checkpoint.command()
@_WHICH
@_JSON
def show(which: Path, as_json: bool) -> None:
    """Show what a checkpoint holds, and how large memories are. Reads all of it."""
    from mpisparse.checkpoint import open_checkpoint
    from mpisparse.tools.contents import describe_contents

    contents = describe_contents(open_checkpoint(which))
    if as_json:
        click.echo(json.dumps(contents, indent=2))
        return
    say(f"{contents['path']}: step {contents['step']}, {counted(contents['ranks'], 'rank')}")
    if contents["configuration"] is not None:
        say(f"configuration {contents['configuration']}")
    if contents["sampler"] is not None:
        say(", ".join(f"{key} {value}" for key, value in contents["sampler"].items()))
    for name, held in contents["trees"].items():
        Screen().print(_leaves_table(name, held))
    if contents["norms"]["mean"]:
        Screen().print(_norms_table(contents["norms"]))


@checkpoint.command()
@_WHICH
def verify(which: Path) -> None:
    """Check every digest and read every array, of one checkpoint or all of a run. One line for each flaw."""
    from mpisparse.checkpoint import find_checkpoints, find_flaws

    damaged = False
    for path in find_checkpoints(which):
        flaws = find_flaws(path)
        damaged = damaged or bool(flaws)
        for line in flaws or ["verified"]:
            say(f"{path.name}: {line}")
    raise SystemExit(CheckpointError.exit_code if damaged else 0)


@checkpoint.command()
@_WHICH
@click.option("--keep", type=click.IntRange(min=1), required=True, metavar="N", help="How many of the newest stay.")
@click.option("--dry-run", is_flag=True, help="Say what would go, and remove nothing.")
def prune(which: Path, keep: int, dry_run: bool) -> None:
    """Remove all but the newest checkpoints of a run; one that a job is writing to is refused.

    The newest whose digests hold stays in any case, and so does the one that `latest` names.
    """
    from mpisparse.tools.prune import doomed, remove_all

    paths = doomed(which, keep)
    for path in paths:
        if not dry_run:
            remove_all([path])
        say(f"{'would remove' if dry_run else 'removed'} {path}")
    if not paths:
        say("nothing to remove")


@checkpoint.command()
@_WHICH
@click.option("--ranks", type=click.IntRange(min=1), required=True, metavar="Q", help="Ranks of the new checkpoint.")
@click.option("--residual", type=click.Choice(get_args(Residual)), default="redistribute", show_default=True)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Holds the new one."
)
def reshape(which: Path, ranks: int, residual: Residual, output: Path) -> None:
    """Write a training run's checkpoint anew for another number of ranks.

    What the ranks hold back is redistributed so that its mean over ranks is conserved, or dropped. `mpisparse train`
    does the same by itself when it resumes; --resume DIR takes the one written here.
    """
    from mpisparse.checkpoint import open_checkpoint, write_alike
    from mpisparse.training.reshape import Reshaper

    saved = open_checkpoint(which)
    reshaper = Reshaper(residual)
    written = write_alike(saved, output, reshaper.all_ranks(saved, ranks), ranks)
    say(reshaper.describe(saved.ranks, ranks))
    say(f"written to {written}")


@checkpoint.command()
@_WHICH
@click.option("--what", type=click.Choice(get_args(What)), default="model", show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="FILE", help="A new file.")
def export(which: Path, what: What, output: Path) -> None:
    """Write a model's state dict to a plain torch file: torch.load(FILE, weights_only=True).

    Running statistics are the mean over ranks, which is what evaluations use.
    """
    from mpisparse.checkpoint import open_checkpoint
    from mpisparse.tools.contents import leaves
    from mpisparse.tools.export import export as export_state

    saved = open_checkpoint(which)
    held = [leaf for leaf in leaves(export_state(saved, output, what)) if leaf.shape is not None]
    size = _bytes(sum(leaf.bytes for leaf in held))
    say(f"{output}: {what} after step {saved.step}, {counted(len(held), 'tensor')}, {size}")


def _leaves_table(name: str, held: list[dict[str, Any]]) -> Table:
    arrays = [leaf for leaf in held if leaf["shape"] is not None]
    total, others = sum(leaf["bytes"] for leaf in arrays), len(held) - len(arrays)
    title = f"{name}: {counted(len(arrays), 'array')}, {_bytes(total)}, and {counted(others, 'other value')}"
    table = Table("name", "dtype", "shape", "size", title=title, title_justify="left")
    for leaf in arrays:
        table.add_row(leaf["name"], leaf["dtype"], " x ".join(map(str, leaf["shape"])), _bytes(leaf["bytes"]))
    return table


def _norms_table(norms: dict[str, Any]) -> Table:
    names = list(norms["mean"])
    table = Table("rank", *names, title="norms of memories", title_justify="left")
    for rank, found in enumerate(norms["ranks"]):
        table.add_row(str(rank), *(f"{found[name]:.6g}" for name in names))
    table.add_row("mean over ranks", *(f"{norms['mean'][name]:.6g}" for name in names))
    return table


def _bytes(count: float) -> str:
    from mpisparse.training.console import bytes_text

    return bytes_text(count)
