"""Site: what a site file says of a cluster."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mpisparse.errors import ConfigError
from mpisparse.files import read_text
from mpisparse.training.section import unknown_key

SITES = Path(__file__).resolve().parent / "sites"

#: Keys that sbatch would read from the environment, each with the option that says the same.
_SBATCH = {
    "SBATCH_ACCOUNT": "--account",
    "SBATCH_PARTITION": "--partition",
    "SBATCH_QOS": "--qos",
    "SBATCH_CONSTRAINT": "--constraint",
    "SBATCH_RESERVATION": "--reservation",
}
#: Keys of ours that the scripts alone read.
_SCRIPTS = {
    "MPISPARSE_SRUN_MPI",
    "MPISPARSE_SRUN_OPTIONS",
    "MPISPARSE_MODULES",
    "MPISPARSE_VENV",
    "MPISPARSE_RESTARTS",
}
_OURS = {
    "MPISPARSE_SBATCH_OPTIONS",
    "MPISPARSE_RANKS_PER_NODE",
    "MPISPARSE_CPUS_PER_RANK",
    "MPISPARSE_SCRATCH",
}
#: What people and templates write where a value is still to come: CHANGE_ME, <project>, your-account, mXXXX, TODO.
_PLACEHOLDER = re.compile(
    r"(?<![a-z])(change|replace|fill)[-_ ]?(me|this|in)(?![a-z])|<[^<>]*>|(?<![a-z])todo(?![a-z])|fixme|placeholder"
    r"|x{4,}|(?<![a-z])(my|your)[-_ ]?(project|account|partition|allocation|budget|group|queue)(?![a-z])",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """What is needed to submit a job; the job itself reads the file again.

    options: of sbatch, those that hold for every job.
    cpus_per_rank: CPUs as Slurm counts them; None leaves it to the site.
    scratch: where studies are written, if the site says so.
    unfilled: lines whose value stands for one that somebody has to fill in, each with its place.
    """

    path: Path
    options: tuple[str, ...] = ()
    ranks_per_node: int = 1
    cpus_per_rank: int | None = None
    scratch: Path | None = None
    unfilled: tuple[str, ...] = ()

    def require_filled(self) -> None:
        """Return nothing: refuse a file that was not filled in, as its jobs would be refused one by one.

        Raises:
            ConfigError: a value is a placeholder.
        """
        if self.unfilled:
            raise ConfigError(
                f"{'; '.join(self.unfilled)}: this stands for a value of your own: put it in, as the site's "
                "documentation or your project's page has it, or take the line out where the site needs none"
            )


def find_site(name: str) -> Path:
    """Return the file of a site: that of jobs/sites by its name, or a path.

    Raises:
        ConfigError: there is none.
    """
    for path in (SITES / f"{name}.env", Path(name)):
        if path.is_file():
            return path.resolve()
    known = ", ".join(sorted(path.stem for path in SITES.glob("*.env")))
    raise ConfigError(f"no site {name!r}: give one of {known}, or the path of a site file")


def read_site(path: Path, environ: Mapping[str, str]) -> Site:
    """Return what a site file says.

    Args:
        environ: where its $VARIABLES are looked up.

    Raises:
        ConfigError: the file cannot be read, a line is no KEY=VALUE, a key is unknown, or a value is wrong.
    """
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the site file {path}: {error}") from error
    values: dict[str, str] = {}
    unfilled = []
    for number, line in enumerate(text.splitlines(), 1):
        pair = _pair(line, f"{path}, line {number}")
        if pair is not None:
            values[pair[0]] = _expand(pair[1], {**environ, **values}, f"{path}, line {number}")
            if pair[0].startswith(("SBATCH_", "MPISPARSE_SBATCH_")) and _PLACEHOLDER.search(pair[1]):
                unfilled.append(f"{path}, line {number}: {pair[0]}={pair[1]}")
    options = [f"{option}={values[key]}" for key, option in _SBATCH.items() if values.get(key)]
    scratch = values.get("MPISPARSE_SCRATCH")
    return Site(
        path=path,
        options=(*options, *shlex.split(values.get("MPISPARSE_SBATCH_OPTIONS", ""))),
        ranks_per_node=_number(values, "MPISPARSE_RANKS_PER_NODE", path) or 1,
        cpus_per_rank=_number(values, "MPISPARSE_CPUS_PER_RANK", path),
        scratch=Path(scratch) if scratch else None,
        unfilled=tuple(unfilled),
    )


def _pair(line: str, place: str) -> tuple[str, str] | None:
    """Return the key and the value of a line, or None for one that says nothing."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError as error:
        raise ConfigError(f"{place}: {error}") from error
    if not words:
        return None
    key, equals, value = words[0].partition("=")
    if len(words) > 1 or not equals or not re.fullmatch(r"[A-Za-z_]\w*", key):
        raise ConfigError(f'{place}: {line.strip()!r} is no KEY=VALUE; put a value of several words into "quotes"')
    # Others are the environment of the job, as OMP_NUM_THREADS.
    if key.startswith(("SBATCH_", "MPISPARSE_")) and key not in {*_SBATCH, *_SCRIPTS, *_OURS}:
        raise ConfigError(f"{place}: {unknown_key(key, {*_SBATCH, *_SCRIPTS, *_OURS})}")
    return key, value


def _expand(value: str, environ: Mapping[str, str], place: str) -> str:
    """Return a value with $NAME and ${NAME} looked up."""

    def look_up(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in environ:
            raise ConfigError(f"{place}: ${name} is not set here: set it, or write out what it stands for")
        return environ[name]

    return re.sub(r"\$(?:(\w+)|\{(\w+)\})", look_up, value)


def _number(values: Mapping[str, str], key: str, path: Path) -> int | None:
    value = values.get(key)
    if not value:
        return None
    if not value.isdigit() or int(value) < 1:
        raise ConfigError(f"{path}: {key}={value!r} is no whole number from 1 on")
    return int(value)
