"""What README.md, docs/ and examples/ tell a reader to type is typed here, and does what the page says.

Every fenced block is decided about by its language and the tables below; one that is not fails. Commands run in a
scratch copy of what a checkout has, in the order of the pages, each once, on two ranks and for an epoch where a page
has more.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

from mpisparse.errors import ConfigError
from mpisparse.faults import VARIABLE, faults_of
from mpisparse.training.configfile import parse_config, read_config
from mpisparse.training.study import Launch, read_study
from tests import launch
from tests.pages import (
    PAGES,
    WHOLE,
    Block,
    all_blocks,
    command_lines,
    find_command,
    inline_commands,
    program_of,
    read_command,
    words_of,
)
from tests.paths import CHECKOUT


@dataclass(frozen=True)
class Rule:
    """What becomes of a command that matches. how: "run", "long" (run with the long tests), "make" (make -n) or "read".

    why: for what does not run, the reason. changes: patterns and what stands in their place. add: further words.
    before: commands that make what it needs.
    """

    pattern: str
    how: str
    why: str = ""
    changes: tuple[tuple[str, str], ...] = ()
    add: str = ""
    before: tuple[str, ...] = ()


TWO = (r"mpirun -n 4", "mpirun -n 2")
SHORT = '--set "training.length=1 epoch"'

#: The runs that pages tell of.
FIRST = f"mpirun -n 2 mpisparse train jobs/digits.toml {SHORT}"
SECOND = f"mpirun -n 2 mpisparse train jobs/digits.toml --set sparsifier.density=0.001 {SHORT}"
CODING = "mpisparse bench coding --draws 1 --json runs/paper/coding.json"

#: The first that matches counts.
RULES = [
    Rule(r"^make ", "make", "it would set up an environment from the index, or run these tests"),
    Rule(r"\bpip install\b", "read", "it takes packages from an index"),
    Rule(r"^python3 -m venv\b", "read", "the environment would be empty without the line after it"),
    Rule(r"^module load\b", "read", "modules are a site's"),
    Rule(r"\bsrun\b", "read", "it needs an allocation of Slurm; tests/slurm has one"),
    Rule(r"^MPISPARSE_FAULTS=", "read", "it is to fail; tests/faults has every fault"),
    Rule(r"mpirun .*mpisparse check$", "run", changes=(TWO,)),
    Rule(r"mpirun .*mpisparse train jobs/digits.toml", "run", changes=(TWO,), add=SHORT),
    Rule(r"mpirun .*mpisparse train jobs/svm.toml", "long", add=SHORT),
    Rule(r"^mpisparse config ", "run"),
    Rule(r"mpirun .*mpisparse sweep", "read", "it takes minutes; test_sweep.py and test_paper.py make such runs"),
    Rule(r"^mpisparse sweep .*--list", "run"),
    Rule(r"bench step", "long", changes=(TWO,), add="--steps 5"),
    Rule(r"bench exchange", "long", changes=(TWO, ("10000000", "100000")), add="--repeat 3"),
    Rule(r"bench kernels", "long", add="--size 100000 --repeat 3"),
    Rule(r"bench coding", "run", add="--draws 1", before=("mkdir -p runs/paper",)),
    Rule(r"analysis paper runs/paper", "run", before=("mkdir -p runs/paper", CODING)),
    Rule(r'analysis paper "\$SCRATCH', "read", "its runs are those of the srun above it"),
    Rule(r"python -m analysis compare ", "run", before=(FIRST, SECOND)),
    Rule(r"python -m analysis ", "run", before=(FIRST,)),
    Rule(r"jobs submit .*--local", "read", "it makes 30 runs; tests/unit/test_jobs.py makes fewer so"),
    Rule(r"jobs submit .*--(render|run-dir)", "run"),
    Rule(r"jobs submit ", "run", add="--run-dir runs/scaling"),
    Rule(r"jobs status ", "run"),
    Rule(r"^ *(for f in /dev/shm|\[ -O |done$|find /tmp )", "read", "it removes what programs left"),
    Rule(r"^(sbatch|cp|set|export) ", "run"),
    Rule(r"^jq ", "run" if shutil.which("jq") else "read", "jq is not on this machine"),
]

#: Pages with Python, and on how many ranks it runs. What the readers of files and messages on them make of real ones is
#: in tests/unit: test_checkpoint_golden.py, test_wire_page.py.
PYTHON: dict[str, int] = {
    "docs/user-guide.md": 2,
    "docs/run-directory.md": 1,
    "docs/checkpoint-format.md": 1,
    "docs/wire-format.md": 1,
}

#: A stand-in for Slurm: sbatch looks at its options and at the script, and numbers jobs; the queue is empty.
SBATCH = r"""#!/usr/bin/env bash
options='^--(nodes|ntasks|ntasks-per-node|time|job-name|output|error|array|cpus-per-task|dependency|parsable|test-only|export|'
options+='account|partition|signal|requeue|open-mode|hold|chdir|kill-on-invalid-dep|comment|exclusive|mem|wrap)(=.*)?$'
while [[ $1 == -* ]]; do
  [[ $1 =~ $options ]] || { echo "sbatch: unrecognized option '$1'" >&2; exit 1; }
  shift
done
[[ -f $1 ]] || { echo "sbatch: there is no script '$1'" >&2; exit 1; }
bash -n "$1" || exit 1
head -c 2 "$1" | grep -q '#!' || { echo "sbatch: '$1' has no #! line" >&2; exit 1; }
echo $((100 + RANDOM % 900))
"""


@dataclass
class Place:
    """A scratch directory, and what was run in it: commands with what they printed."""

    path: Path
    ran: dict[str, str] = field(default_factory=dict)

    def bash(self, script: str) -> str:
        """Run a script once, and return its standard output."""
        if script not in self.ran:
            path = os.pathsep.join([str(self.path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
            env = {"SCRATCH": str(self.path / "scratch"), "USER": "me", "PATH": path}
            done = launch.run(["bash", "-euo", "pipefail", "-c", script], timeout=280, cwd=self.path, env=env)
            assert done.code == 0, f"{script}\n{done.text}"
            self.ran[script] = done.stdout
        return self.ran[script]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    path = tmp_path_factory.mktemp("checkout")
    for name in ("jobs", "examples"):
        shutil.copytree(CHECKOUT / name, path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for site in (path / "jobs" / "sites").glob("*.env"):  # A reader puts an account in, as the pages say.
        site.write_text(site.read_text().replace("CHANGE_ME", "mine"))
    (path / "bin").mkdir()
    (path / "scratch").mkdir()
    launch.server().write_program(path / "bin")
    for name, text in {"sbatch": SBATCH, "squeue": "#!/bin/sh\n"}.items():
        (path / "bin" / name).write_text(text)
        (path / "bin" / name).chmod(0o755)
    return Place(path)


BLOCKS = all_blocks()
#: Whole programs, which take a number of steps.
PROGRAMS = [block for block in BLOCKS if block.language == "python" and WHOLE in block.text]
SHELL = [block for block in BLOCKS if block.language in ("bash", "console")]


@cache
def read_runs(path: Path, reduced: bool, settings: tuple[str, ...] = ()) -> int:
    """Return how many runs a study stands for; each of them is checked."""
    return len(read_study(path, reduced=reduced, settings=settings).runs)


def rule_of(line: str) -> Rule:
    found = next((rule for rule in RULES if re.search(rule.pattern, line)), None)
    assert found is not None, f"{line!r}: no rule of this test says what is to become of this command"
    return found


def as_run(line: str) -> str:
    """Return a command as it runs here."""
    rule = rule_of(line)
    for pattern, other in rule.changes:
        line = re.sub(pattern, other, line)
    head, pipe, tail = line.partition(" | ")
    return f"{head} {rule.add}".rstrip() + pipe + tail


def commands_of(block: Block) -> list[str]:
    lines = command_lines(block.text)
    return (
        [line.removeprefix("$ ") for line in lines if line.startswith("$ ")] if block.language == "console" else lines
    )


def run_block(block: Block, place: Place, ways: set[str]) -> None:
    """Run a block's commands: each for itself, or together where one changes the shell that the others run in."""
    lines = [line for line in commands_of(block) if rule_of(line).how in ways]
    if any(re.match(r"(set|export|cd) ", line) for line in lines):
        place.bash("\n".join(map(as_run, lines)))
        return
    for line in lines:
        for command in rule_of(line).before:
            place.bash(command)
        place.bash(as_run(line))


def test_every_block_is_decided_about() -> None:
    known = {"bash", "console", "python", "toml", "json", "diff", "text"}
    assert not [(block.place, block.first) for block in BLOCKS if block.language not in known]
    assert {block.page for block in BLOCKS if block.language == "python"} == set(PYTHON)
    for block in SHELL:
        for line in commands_of(block):
            assert rule_of(line).how in ("run", "long") or rule_of(line).why
    used = {rule_of(line).pattern for block in SHELL for line in commands_of(block)}
    assert {rule.pattern for rule in RULES} == used, "a rule that no command needs"
    for block in BLOCKS:  # What looks like a command is one.
        if block.language == "text":
            assert not re.match(r"(\$ |mpirun |mpisparse [a-z-]+( |$)|python |make |srun |sbatch )", block.first), (
                block.place
            )


@pytest.mark.parametrize("block", SHELL, ids=lambda block: block.place)
def test_commands_are_those_of_the_real_programs(block: Block, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.path)
    lines = commands_of(block)
    subprocess.run(["bash", "-n", "-c", "\n".join(lines)], check=True, capture_output=True)
    for line in lines:
        for variable in re.findall(r'MPISPARSE_FAULTS="([^"]*)"', line):
            assert any(faults_of(rank, {VARIABLE: variable}) for rank in range(4))
        if rule_of(line).how == "make":
            subprocess.run(["make", "-n", line.split()[1]], check=True, capture_output=True, cwd=CHECKOUT)
        for program, arguments in filter(None, map(program_of, words_of(line))):
            for word in arguments:
                if word.startswith("jobs/"):
                    assert (CHECKOUT / word).is_file(), f"{block.place}: there is no {word}"
            if arguments[0] not in ("status",):  # Its directory has to be there, as it is when it runs.
                context = read_command(program, arguments)
                settings = context.params.get("settings", ())
                if context.info_name in ("train", "config"):
                    read_config(context.params["config"], settings)
                if context.info_name in ("sweep", "submit"):
                    read_runs(context.params["study"], context.params["reduced"], settings)


@pytest.mark.parametrize("block", SHELL, ids=lambda block: block.place)
def test_commands_run(block: Block, place: Place) -> None:
    run_block(block, place, {"run"})


@pytest.mark.long
def test_the_long_commands_run(place: Place) -> None:
    for block in SHELL:
        run_block(block, place, {"long"})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_sentences_have_the_options_they_name(page: Path) -> None:
    for line in inline_commands(page):
        for program, arguments in filter(None, (program_of(words) for words in words_of(line))):
            command, _, rest = find_command(program, arguments)
            options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
            assert not [word for word in rest if word.startswith("-") and word.partition("=")[0] not in options], line


@pytest.mark.parametrize("ranks", sorted(set(PYTHON.values())))
def test_python_runs(ranks: int, place: Place) -> None:
    """The blocks of a page follow each other; what they have before the first one is in tests/mpi/page.py."""
    place.bash(FIRST)
    pages = [page for page in PYTHON if PYTHON[page] == ranks]
    done = launch.mpirun(ranks, str(CHECKOUT / "tests" / "mpi" / "page.py"), *pages, timeout=280, cwd=place.path)
    assert done.code == 0, done.text
    blocks = [block for block in BLOCKS if block.page in pages and block.language == "python"]
    assert done.stderr.count("ran ") == ranks * len([block for block in blocks if block not in PROGRAMS])


@pytest.mark.parametrize("block", PROGRAMS, ids=lambda block: block.place)
def test_whole_programs_run(block: Block, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(block.text)
    done = launch.mpirun(2, str(program), "60", timeout=280, cwd=tmp_path)
    assert done.code == 0, done.text
    assert done.stdout.count(": 60 steps") == 2


def test_the_example_is_the_diff_and_both_train(tmp_path: Path) -> None:
    (diff,) = [block.text for block in BLOCKS if block.language == "diff"]
    plain, ours = ((CHECKOUT / "examples" / f"digits_{name}.py").read_text() for name in ("plain", "mpisparse"))
    for line in diff.splitlines():
        for mark, text, other in (("+", ours, plain), ("-", plain, ours)):
            if line.startswith(mark):
                assert f"{line[1:]}\n" in text
                assert f"\n{line[1:]}\n" not in other
        if line.startswith(" ") and line.strip() != "...":
            assert f"{line[1:]}\n" in plain
            assert f"{line[1:]}\n" in ours
    for name, text, command in (
        ("plain.py", plain, [sys.executable, "plain.py"]),
        ("ours.py", ours, [launch.find_mpirun(), "-n", "2", sys.executable, "ours.py"]),
    ):
        assert text.count("range(20)") == 1
        (tmp_path / name).write_text(text.replace("range(20)", "range(4)"))
        done = launch.run(command, timeout=280, cwd=tmp_path, env={"OMP_NUM_THREADS": "1"})
        assert done.code == 0, done.text
        (accuracy,) = re.findall(r"^test accuracy ([\d.]+)%$", done.stdout, re.MULTILINE)
        assert float(accuracy) > 90


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "toml"], ids=lambda block: block.place)
def test_toml_is_read(block: Block, tmp_path: Path) -> None:
    tree = tomllib.loads(block.text)
    if "base" in tree:
        (tmp_path / "study.toml").write_text(block.text)
        runs = read_study(tmp_path / "study.toml").runs
        assert f"{len(runs)} runs" in f"{2 * 3 * 2} runs"
        assert read_study(tmp_path / "study.toml", reduced=True).runs
    elif "launch" in tree:
        Launch.model_validate(tree["launch"])
    else:
        base = tomllib.loads((CHECKOUT / "jobs" / "digits.toml").read_text())
        parse_config({**base, **tree}, block.place)
        with pytest.raises(ConfigError, match="unknown key"):
            parse_config({**base, **tree, "nonsense": 1}, block.place)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "json"], ids=lambda block: block.place)
def test_json_is_read(block: Block) -> None:
    text = re.sub(r",\s*\.\.\.\s*", "", block.text)
    assert json.loads(text if text.startswith("{") else f"{{{text}}}")


def test_the_shown_check_has_the_rows_of_a_real_one(place: Place) -> None:
    (block,) = [block for block in BLOCKS if block.language == "console"]
    (command,) = commands_of(block)
    names = r"^│ ([^│]+?) +│ ok │"
    shown, found = (re.findall(names, text, re.MULTILINE) for text in (block.text, place.bash(as_run(command))))
    assert shown
    assert shown == found


def test_counts_of_runs_are_those_of_the_studies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CHECKOUT)
    page = (CHECKOUT / "docs" / "paper.md").read_text()
    rows = re.findall(r"^\| `(\S+)\.toml` .*\| (\d+) \| (\d+)[^|]*\|$", page, re.MULTILINE)
    assert {name for name, _, _ in rows} == {path.stem for path in (CHECKOUT / "jobs" / "paper").glob("*.toml")}
    total = 0
    for name, full, reduced in rows:
        path = Path("jobs", "paper", f"{name}.toml")
        assert (read_runs(path, False), read_runs(path, True)) == (int(full), int(reduced)), name
        total += int(full)
    (said,) = re.findall(r"some ([\d,]+) runs", page)
    assert abs(int(said.replace(",", "")) - total) < 100
