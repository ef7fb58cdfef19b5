"""The pages of the project, block by block: what there is, and the command lines in it read as the real ones are."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from sybil import Example, Sybil
from sybil.document import Document
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown.lexers import FencedCodeBlockLexer
from sybil.region import Region

from analysis.__main__ import cli as analysis_cli
from jobs.__main__ import cli as jobs_cli
from mpisparse.cli import cli as mpisparse_cli
from tests.paths import CHECKOUT

PAGES = [CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").glob("*.md"))]

#: Words before a command that another one runs: launchers with the options they take a value for, and variables.
_LAUNCHERS = {"mpirun": {"-n"}, "srun": {"-n", "-N"}}
_COMMANDS = {"mpisparse": mpisparse_cli, "analysis": analysis_cli, "jobs": jobs_cli}


#: What a block has that is a program of its own, and is started as one.
WHOLE = "if __name__ == "


@dataclass(frozen=True)
class Block:
    """A fenced block. line: of its first line in the page, from 1."""

    page: str
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        """Return where it stands."""
        return f"{self.page}:{self.line}"

    @property
    def first(self) -> str:
        """Return its first line that is not empty."""
        return next((line for line in self.text.splitlines() if line.strip()), "")


def parse(path: Path) -> Document:
    """Return a page whose examples are its fenced blocks; those of Python run in a namespace that they share."""
    run = PythonEvaluator()

    def blocks(document: Document) -> Iterator[Region]:
        for region in FencedCodeBlockLexer(r"[^\n]*")(document):
            region.parsed, region.evaluator = region.lexemes["source"], run
            yield region

    return Sybil(parsers=[blocks]).parse(path)


def block_of(example: Example) -> Block:
    """Return the block of an example."""
    page = str(Path(example.path).relative_to(CHECKOUT))
    return Block(page, example.line + 1, example.region.lexemes["language"], str(example.parsed))


def all_blocks() -> list[Block]:
    """Return the blocks of all pages, in order."""
    return [block_of(example) for path in PAGES for example in parse(path)]


def command_lines(text: str) -> list[str]:
    """Return the commands of a block of shell, one a line, without their comments."""
    lines = (re.sub(r"(^|\s)#.*", "", line).rstrip() for line in text.replace("\\\n", " ").splitlines())
    return [line for line in lines if line]


def inline_commands(path: Path) -> list[str]:
    """Return the command lines that stand in the sentences and tables of a page."""
    text = re.sub(r"^ *```.*?^ *```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    spans = re.findall(r"`([^`\n]+)`", text)
    return [
        span for span in spans if re.match(r"(mpirun |srun )?.*\b(mpisparse|python -m (analysis|jobs)) [a-z-]", span)
    ]


def program_of(words: Sequence[str]) -> tuple[str, list[str]] | None:
    """Return which of the project's programs a command starts, through launchers, and with which arguments."""
    rest = list(words)
    while rest and ("=" in rest[0].split("/")[0] or rest[0] in _LAUNCHERS):
        takes = _LAUNCHERS.get(rest.pop(0), set())
        while rest and rest[0].startswith("-"):
            del rest[: 2 if rest[0] in takes else 1]
    if rest[:2] == ["bash", "jobs/rank.sh"]:
        rest = rest[2:]
    if rest[:1] == ["mpisparse"]:
        return "mpisparse", rest[1:]
    if rest[:2] == ["python", "-m"] and rest[2] in _COMMANDS:
        return rest[2], rest[3:]
    return None


def read_command(program: str, arguments: Sequence[str]) -> click.Context:
    """Return a command line as click reads it.

    Raises:
        click.ClickException: a command or an option does not exist, or a value is wrong.
    """
    command, name, rest = find_command(program, arguments)
    return command.make_context(name, rest)


def find_command(program: str, arguments: Sequence[str]) -> tuple[click.Command, str, list[str]]:
    """Return the command that arguments name, its name, and what is left of them."""
    command: click.Command = _COMMANDS[program]
    name, rest = program, list(arguments)
    while isinstance(command, click.Group) and rest:
        found, inner, rest = command.resolve_command(click.Context(command), rest)
        assert inner is not None
        name, command = found or name, inner
    return command, name, rest


def words_of(line: str) -> list[list[str]]:
    """Return the words of each command in a line of shell, where pipes, `&&` and `;` separate them."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    commands: list[list[str]] = [[]]
    for word in lexer:
        if word in ("|", "&&", ";", ">"):
            commands.append([])
        else:
            commands[-1].append(word)
    return [words for words in commands if words]
