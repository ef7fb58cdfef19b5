"""The command line: `mpisparse train`, `sweep`, `config`, `check`, `bench`, `checkpoint` and `explain-hang`.

    mpirun -n 4 mpisparse train jobs/digits.toml --set sparsifier.density=0.001
    mpisparse config jobs/digits.toml
    mpirun -n 4 mpisparse check
    mpirun -n 4 mpisparse bench exchange
    mpisparse checkpoint list runs/digits-001
    mpisparse explain-hang runs/digits-001

Exit codes: 0 done, 2 usage, 70 an invariant broke, 74 a rank did not come, 75 stopped with its state saved and to be
started again, 78 configuration, data or launch, 130 interrupted.
"""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table

from mpisparse.bench.command import bench
from mpisparse.comm.launcher import speaks
from mpisparse.errors import MpiSparseError
from mpisparse.terminal import Screen, say, say_usage
from mpisparse.tools.command import checkpoint
from mpisparse.version import __version__

if TYPE_CHECKING:
    from mpisparse.training.study import Study

_SET = click.option(
    "--set", "settings", multiple=True, metavar="SECTION.KEY=VALUE", help="Set a key over the file; may be repeated."
)
_CONFIG = click.argument("config", type=click.Path(path_type=Path))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mpisparse")
def cli() -> None:
    """Data-parallel PyTorch training over MPI with sparsified gradients."""


cli.add_command(bench)
cli.add_command(checkpoint)


@cli.command()
@_CONFIG
@_SET
@click.option("--run-dir", type=click.Path(path_type=Path), help="Where to write; a new directory under runs/.")
@click.option("--resume", default="auto", show_default=True, metavar="auto|never|PATH", help="What to go on from.")
@click.option("--allow-changes", is_flag=True, help="Go on in a run directory although the configuration changed.")
def train(config: Path, settings: tuple[str, ...], run_dir: Path | None, resume: str, allow_changes: bool) -> None:
    """Train as CONFIG, a TOML file, says. Start it under mpirun or srun."""
    from mpisparse.comm import agreed
    from mpisparse.runtime import Preemption, start
    from mpisparse.training.command import Command
    from mpisparse.training.configfile import read_config
    from mpisparse.training.run import run_training

    # The run brings a watchdog of its own, which knows where to write.
    comm, surroundings = start(watchdog=0, crash_directory=(run_dir or Path()) / "crash")
    with agreed(comm):
        run = read_config(config, settings)
    options = ("--allow-changes",) if allow_changes else ()
    with Preemption(interrupts=False) as preemption:
        result = run_training(
            comm,
            surroundings,
            run,
            run_dir=run_dir,
            resume=resume,
            allow_changes=allow_changes,
            command=Command("train", config, settings, options, comm.size),
            preemption=preemption,
        )
        raise SystemExit(result.exit_code)


@cli.command()
@click.argument("study", type=click.Path(path_type=Path))
@_SET
@click.option("--reduced", is_flag=True, help="Make the study's reduced version.")
@click.option(
    "--run-dir", type=click.Path(path_type=Path), help="Where to write; runs/ and the study's name if left out."
)
@click.option("--only", metavar="I|I:J", help="Make run I alone, or runs I to J - 1.")
@click.option("--retry", is_flag=True, help="Make runs again that failed before.")
@click.option("--if-data", is_flag=True, help="Where the study's data is missing, say so and exit with 0.")
@click.option("--list", "listed", is_flag=True, help="Print the runs, and make none.")
@click.option("--json", "as_json", is_flag=True, help="With --list: print JSON.")
def sweep(
    study: Path,
    settings: tuple[str, ...],
    reduced: bool,
    run_dir: Path | None,
    only: str | None,
    retry: bool,
    if_data: bool,
    listed: bool,
    as_json: bool,
) -> None:
    """Make all runs of STUDY, a TOML file, one after another. Start it under mpirun or srun."""
    from mpisparse.training.study import read_study

    chosen = _indices(only)
    if listed:
        _print_runs(read_study(study, reduced=reduced, settings=settings), chosen, as_json)
        return
    if as_json:
        raise click.UsageError("--json prints a list as data: give it with --list")
    from mpisparse.comm import agreed
    from mpisparse.errors import DataError
    from mpisparse.runtime import Preemption, start
    from mpisparse.training.command import Command
    from mpisparse.training.sweep import run_sweep

    comm, surroundings = start(crash_directory=(run_dir or Path()) / "crash")
    with agreed(comm):
        plan = read_study(study, reduced=reduced, settings=settings)
    directory = run_dir or Path("runs") / plan.name
    given = {"--reduced": reduced, "--only": only, "--retry": retry, "--if-data": if_data}
    options = [word for option, value in given.items() if value for word in (option, value) if word is not True]
    command = Command("sweep", study, settings, tuple(map(str, options)), comm.size).going_on(directory)
    try:
        with Preemption(interrupts=False) as preemption:
            tally = run_sweep(
                comm, surroundings, plan, directory, only=chosen, retry=retry, preemption=preemption, command=command
            )
            raise SystemExit(tally.exit_code)
    except DataError as error:
        if not (if_data and error.on_all_ranks):
            raise
        if speaks():
            say(f"mpisparse: {plan.name} is left out: {error}", error=True)


def _print_runs(study: Study, only: range | None, as_json: bool) -> None:
    """Print the runs of a study: a line each, or JSON."""
    from mpisparse.training.study import describe
    from mpisparse.training.sweepfiles import listing

    runs = listing(study, only)
    if as_json:
        click.echo(json.dumps(runs, indent=2))
    else:
        for run in runs:
            say(f"{run['index']:4d}  {describe(run['settings'])}")


def _indices(only: str | None) -> range | None:
    """Return the runs that --only names."""
    if only is None:
        return None
    first, colon, stop = only.partition(":")
    try:
        return range(int(first), int(stop) if colon else int(first) + 1)
    except ValueError:
        raise click.UsageError(f"--only {only!r}: give the index of a run, or two as in 3:7") from None


@cli.command("config")
@_CONFIG
@_SET
@click.option("--check", "checked", is_flag=True, help="Load the data and build the run, as train would; print a line.")
@click.option("--ranks", type=click.IntRange(min=1), metavar="P", help="With --check: the number of ranks to come.")
def show_config(config: Path, settings: tuple[str, ...], checked: bool, ranks: int | None) -> None:
    """Print CONFIG as it would be used, every key with its value. With --check: refuse what train would."""
    from mpisparse.training.configfile import read_config, to_toml

    run = read_config(config, settings)
    if ranks is not None and not checked:
        raise click.UsageError("--ranks says for how many ranks to check: give it with --check")
    if not checked:
        say(to_toml(run).rstrip("\n"), keep="\n")
        return
    from mpisparse.training.check import check_run

    say(f"{config} can be trained: {check_run(run, ranks)}")


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option(
    "--directory",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=".",
    help="Where runs are to write.",
)
def check(as_json: bool, directory: Path) -> None:
    """Examine the installation: MPI, launcher, threads, HDF5, file system. Start it as a run would be started."""
    from mpisparse.runtime import start
    from mpisparse.runtime.check import examine

    comm, surroundings = start(banner=False)
    findings = examine(comm, surroundings, directory)
    well = all(finding.ok for finding in findings)
    if comm.rank == 0 and as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    elif comm.rank == 0:
        table = Table("what", "", "found", title=f"mpisparse {surroundings.mpisparse}", title_justify="left")
        for finding in findings:
            table.add_row(finding.what, "ok" if finding.ok else "FAILS", finding.found)
            if finding.hint:
                table.add_row("", "", finding.hint)
        Screen().print(table)
    raise SystemExit(0 if well else MpiSparseError.exit_code)


@cli.command("explain-hang")
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
def explain_hang(directory: Path) -> None:
    """Say which ranks were behind when a watchdog ended a job. DIRECTORY is its crash/, or the run directory above."""
    from mpisparse.runtime.dump import read_dumps
    from mpisparse.runtime.hang import explain

    below = directory / "crash"
    for line in explain(read_dumps(below if below.is_dir() else directory)):
        say(line)


def main() -> None:
    """Run the command line. What goes wrong on all ranks is said once, by rank 0, and every rank exits alike."""
    # A shell's script starts its background commands with Ctrl-C ignored; one that is sent on purpose is to count.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Exit as done:
        raise SystemExit(done.exit_code) from None
    except click.ClickException as error:
        if speaks():
            say_usage(error)
        raise SystemExit(error.exit_code) from None
    except (click.Abort, KeyboardInterrupt):
        _leave_interrupted()
    except MpiSparseError as error:
        _leave(error)


def _leave_interrupted() -> None:
    """End the job with 130, after Ctrl-C where there was nothing to save: other ranks may be waiting for this one."""
    from mpisparse.runtime.preemption import INTERRUPTED

    if speaks():
        say("mpisparse: interrupted", error=True)
    if "mpi4py.MPI" in sys.modules:
        from mpisparse.comm.abort import abort_job

        abort_job(INTERRUPTED)
    raise SystemExit(INTERRUPTED)


def _leave(error: MpiSparseError) -> None:
    """Say what went wrong and exit; an error of this rank alone ends the job, as the others do not know of it."""
    from mpisparse.errors import LaunchError

    alone = not (error.on_all_ranks or isinstance(error, LaunchError))
    if speaks() or alone:
        say(f"mpisparse: {type(error).__name__}: {error}", error=True)
        for note in getattr(error, "__notes__", ()):
            say(f"mpisparse: {note}", error=True)
    if alone and "mpi4py.MPI" in sys.modules:
        from mpisparse.comm.abort import abort_job

        abort_job(error.exit_code)
    raise SystemExit(error.exit_code)
