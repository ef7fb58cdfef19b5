"""The command line: studies on clusters.

    python -m jobs submit jobs/scaling.toml --site lumi
    python -m jobs submit jobs/scaling.toml --local --ranks 1,2
    python -m jobs status runs/scaling

Exit codes: 0 done, 2 usage, 78 configuration, or Slurm refused; with --local that of the first run that failed.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import click
from click.core import ParameterSource

from jobs.local import MPIRUN, make_here
from jobs.plan import Batch, plan
from jobs.prepare import find_command, look_around, prepare
from jobs.render import SUBMIT, render
from jobs.site import Site, find_site, read_site
from jobs.status import read_queue, read_status, to_data, to_table
from mpisparse.errors import ConfigError, MpiSparseError
from mpisparse.terminal import Screen, say, say_usage
from mpisparse.training.study import Launch, Study, read_study
from mpisparse.words import counted

CHECKOUT = Path(__file__).resolve().parent.parent


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Make the runs of a study on a cluster, or on this machine."""


@cli.command()
@click.argument("study", type=click.Path(path_type=Path))
@click.option("--site", "site_name", default="generic", show_default=True, metavar="NAME|PATH", help="Whose site file.")
@click.option("--run-dir", type=click.Path(path_type=Path), help="Where to write; the site's scratch, or runs/.")
@click.option("--ranks", metavar="1,2,4", help="On how many ranks, instead of what the study says.")
@click.option("--set", "settings", multiple=True, metavar="SECTION.KEY=VALUE", help="Set a key over the base.")
@click.option("--reduced", is_flag=True, help="Make the study's reduced version.")
@click.option("--retry", is_flag=True, help="Make runs again that failed before.")
@click.option("--local", is_flag=True, help="Make the runs on this machine, one after another.")
@click.option(
    "--launcher", default=MPIRUN, show_default=True, metavar="COMMAND", help="With --local: what starts a run."
)
@click.option(
    "--render", "render_to", type=click.Path(path_type=Path), metavar="DIR", help="Write it all, submit none."
)
@click.option("--test-only", is_flag=True, help="Have sbatch check every job, and submit none.")
def submit(
    study: Path,
    site_name: str,
    run_dir: Path | None,
    ranks: str | None,
    settings: tuple[str, ...],
    reduced: bool,
    retry: bool,
    local: bool,
    launcher: str,
    render_to: Path | None,
    test_only: bool,
) -> None:
    """Submit the runs of STUDY that are not finished."""
    if local + (render_to is not None) + test_only > 1:
        raise click.UsageError("--local, --render and --test-only exclude each other")
    site = read_site(find_site(site_name), os.environ)
    plans = _with_ranks(read_study(study, reduced=reduced, settings=settings), ranks)
    directory = (render_to or run_dir or (site.scratch or Path("runs")) / plans.name).absolute()
    numbers = plans.launch.ranks if plans.launch else []
    if (file := next((place for place in (directory, *directory.parents) if place.is_file()), None)) is not None:
        raise ConfigError(f"cannot write to the study's directory {directory}: {file} is a file, use another --run-dir")
    _refuse_while_queued(directory)
    batches = plan(plans, look_around(plans, directory, numbers, retry=retry))
    if not batches and numbers:
        say(f"all runs of {plans.name} in {directory} are made")
        return
    options = _options(settings, reduced, retry)
    if local:
        prepare(plans, directory, batches, {})
        raise SystemExit(make_here(directory, batches, options, launcher, _typed(click.get_current_context())))
    _submit(plans, directory, batches, site, options, render_to is not None, test_only)


@cli.command()
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def status(directory: Path, as_json: bool) -> None:
    """Show what has become of each run of the study in DIRECTORY."""
    found = read_status(directory.absolute(), read_queue(directory))
    if as_json:
        click.echo(json.dumps(to_data(found), indent=2))
    else:
        Screen().print(to_table(found, str(directory)))


def _submit(
    study: Study, directory: Path, batches: list[Batch], site: Site, options: list[str], only_render: bool, test: bool
) -> None:
    if not only_render:
        site.require_filled()
    files = render(study.name, batches, site, directory, CHECKOUT, options)
    if not only_render:
        find_command("sbatch")
    prepare(study, directory, batches, files)
    command = ["bash", str(directory / SUBMIT), *(["--test-only"] if test else [])]
    runs = sum(len(batch.runs) for batch in batches)
    if only_render:
        jobs = counted(len(batches), "job or array", "jobs or arrays")
        say(f"{counted(runs, 'run')} in {jobs}; to submit them: {shlex.join(command)}")
        return
    code = subprocess.run(command, stdin=subprocess.DEVNULL).returncode
    if code:
        raise ConfigError(f"{shlex.join(command)} ended with exit code {code}: what sbatch said is above")
    if not test:
        say(f"{counted(runs, 'run')} to make; python -m jobs status {shlex.quote(str(directory))}")


def _with_ranks(study: Study, ranks: str | None) -> Study:
    """Return the study as it is made on `ranks`, the list of an option."""
    if ranks is None:
        return study
    try:
        numbers = [int(word) for word in ranks.split(",")]
        launch = Launch.model_validate({**(study.launch.model_dump() if study.launch else {}), "ranks": numbers})
    except ValueError:
        raise click.UsageError(f"--ranks {ranks!r}: give different numbers from 1 on, as in 1,2,4") from None
    return replace(study, launch=launch)


def _options(settings: tuple[str, ...], reduced: bool, retry: bool) -> list[str]:
    """Return what every `mpisparse sweep` has to be told to read the same study."""
    words = [word for setting in settings for word in ("--set", setting)]
    return [*words, *(["--reduced"] if reduced else []), *(["--retry"] if retry else [])]


def _typed(context: click.Context) -> str:
    """Return the command that was typed, for a shell."""
    words = ["python", "-m", "jobs", str(context.info_name)]
    for option in context.command.params:
        name, given = str(option.name), context.params.get(str(option.name))
        if context.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
            continue
        if isinstance(option, click.Argument):
            words.append(str(given))
        else:
            for value in given if isinstance(given, tuple) else (given,):
                words += option.opts[:1] if value is True else [option.opts[0], str(value)]
    return shlex.join(words)


def _refuse_while_queued(directory: Path) -> None:
    """Raise ConfigError if jobs of the study are still there: two that write to one run would spoil it."""
    if any(directory.glob("ranks-*/runs.csv")):
        here = [run for run in read_status(directory, {}) if run.state == "running"]
        if here:
            run = f"ranks-{here[0].ranks:03d}/{here[0].directory}"
            raise ConfigError(f"{run} of {directory} is being made on this machine: wait for it, or end it")
    queue = read_queue(directory)
    if queue:
        jobs = ", ".join(sorted({name.partition("_")[0] for name in queue}))
        raise ConfigError(
            f"jobs {jobs} of {directory} are still in the queue, and would write to the same runs: wait for them, or "
            f"scancel {jobs.replace(',', '')}"
        )


def main() -> None:
    """Run the command line; what is wrong is said in one line."""
    try:
        cli.main(prog_name="python -m jobs", standalone_mode=False)
    except click.exceptions.Exit as done:
        raise SystemExit(done.exit_code) from None
    except click.ClickException as error:
        say_usage(error)
        raise SystemExit(error.exit_code) from None
    except (click.Abort, KeyboardInterrupt):
        raise SystemExit(130) from None
    except MpiSparseError as error:
        say(f"jobs: {type(error).__name__}: {error}", error=True)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
