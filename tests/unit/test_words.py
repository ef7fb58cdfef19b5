"""Text from outside at each border: terminals, Markdown and pages, figures, CSV. Numbers with their nouns."""

from __future__ import annotations

import csv
import io
import re
import sys
import tomllib
import warnings
from pathlib import Path

import click
import numpy as np
import pytest
import tomli_w
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from analysis import markdown, terminal
from analysis.drawing.curve import Curve
from analysis.drawing.draw import draw
from analysis.drawing.drawing import Drawing, Heat, Line, Panel, Stack, to_csv
from analysis.drawing.lettering import lettered
from analysis.method import Method
from analysis.web import to_html
from mpisparse.terminal import STDERR, STDOUT, Screen, say, say_usage
from mpisparse.training.console import Console, SweepConsole
from mpisparse.words import counted, visible
from tests.hostile import EVIL, assert_harmless

ANY = st.one_of(
    st.text(st.characters(exclude_categories=[]), max_size=60), st.text("[]()!`*_<>|\\&#-=+1.~: \na\"'", max_size=40)
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, ümlaut 漢字 🙂", "plain, ümlaut 漢字 🙂"),
        ("\x1b[31m", "\\u001b[31m"),
        ("a\nb\tc\r", "a\\u000ab\\u0009c\\u000d"),
        ("\x9b \u202e \u2066 \u200b \u2028 \xa0", "\\u009b \\u202e \\u2066 \\u200b \\u2028 \\u00a0"),
        ("\udcff", "\\udcff"),
        ("\U000e0041", "\\U000e0041"),
        ("", ""),
    ],
)
def test_what_cannot_be_seen_is_spelt_out(text: str, shown: str) -> None:
    assert visible(text) == shown
    assert visible(f"x\n{text}", keep="\n").startswith("x\n")


@given(ANY)
def test_all_that_is_shown_can_be_seen(text: str) -> None:
    assert visible(text).isprintable()
    assert visible(visible(text)) == visible(text)


def test_the_analysis_has_the_same_characters() -> None:
    for code in range(sys.maxunicode + 1):
        assert terminal.visible(chr(code)) == visible(chr(code))


@pytest.mark.parametrize("module", ["mpisparse", "analysis"])
def test_lines_are_lines(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    speak, complain = (say, say_usage) if module == "mpisparse" else (terminal.say, terminal.say_usage)
    speak(EVIL)
    speak(EVIL, error=True)
    speak("two\nlines", keep="\n")
    complain(click.UsageError(EVIL.replace("\n", "")))
    out, err = capsys.readouterr()
    assert out == f"{visible(EVIL)}\ntwo\nlines\n"
    assert err.startswith(f"{visible(EVIL)}\n")
    assert_harmless(err)


def test_a_stream_that_lacks_letters_gets_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    say("é\udcff")
    assert raw.getvalue() == b"\\xe9\\udcff\n"


def test_screens_show_strings_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    for stream in (STDOUT, STDERR):
        Screen(stream).say(EVIL)
    out, err = capsys.readouterr()
    assert out == err == f"{visible(EVIL)}\n"


def test_closing_tables_and_lines_of_runs_show_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    with Console(True, 10, 0) as console:
        console.say(EVIL)
        console.advance(1, 0, 0.5)
        console.summary([("run directory", EVIL), ("[/y]", "[rank 0 of 2]")], EVIL, EVIL)
    with SweepConsole(0, 1) as sweep:
        sweep.ended(EVIL, EVIL, {}, 1.0)
        sweep.summary({EVIL: EVIL}, 1, 1)
    out, err = capsys.readouterr()
    assert_harmless(out)
    assert_harmless(err)
    assert "[rank 0 of 2]" in out
    assert ":smile:" in out
    assert "[/y]" in out.replace(visible(EVIL), "")
    assert "1 run made, 1 was finished before, 1 failed" in out


def rendered(text: str) -> str:
    """Return what any reader of Markdown makes of it, one that follows all links."""
    reader = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    setattr(reader, "validateLink", lambda target: True)  # noqa: B010
    return str(reader.render(text))


def shown_in(html: str) -> str:
    plain = re.sub(r"<[^>]*>", "", html)
    for entity, letter in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&amp;", "&")):
        plain = plain.replace(entity, letter)
    return " ".join(plain.split())


@given(ANY)
@example(EVIL)
@example("[a]: http://e 'x'")
@example("1. one")
def test_markdown_shows_text_as_it_is(text: str) -> None:
    expected = " ".join(visible(text.replace("\n", " ")).split())
    pieces = {
        markdown.text(text): {"p"},
        f"x {markdown.text(text)}(y)[z]: w": {"p"},
        f"## a {markdown.text(text)} b": {"h2"},
        markdown.bullets([text, "other"]): {"ul", "li"},
        markdown.figure("n", text): {"p", "img", "a"},
        markdown.table(["x", "y"], [["1", text], [text, "2"]]): {"table", "thead", "tbody", "tr", "th", "td"},
    }
    for piece, tags in pieces.items():
        html = rendered(piece)
        assert set(re.findall(r"<(\w+)", html)) <= tags, (piece, html)
        assert set(re.findall(r'(?:src|href)="([^"]*)"', html)) <= {"n.png", "n.svg", "n.csv"}
        assert expected in shown_in(html) or "img" in tags, (piece, html)


@given(ANY)
@example(EVIL)
def test_code_in_markdown_is_text_as_it_is(text: str) -> None:
    for piece in (f"x {markdown.code(text)}: y", markdown.table(["x", "y"], [["1", markdown.code(text)]])):
        html = rendered(piece)
        assert set(re.findall(r"<(\w+)", html)) <= {"p", "code", "table", "thead", "tbody", "tr", "th", "td"}


def test_pages_follow_links_to_their_own_files_alone() -> None:
    page = (
        "# <title>\n\n![a](http://e/x.png) ![b](//e/x.png) ![c](own.png) [d](javascript:a) [e](../own.csv) <img src=x>"
    )
    html = to_html(page)
    assert re.findall(r'(?:src|href)="([^"]*)"', html) == ["own.png"]
    assert "<title>&lt;title&gt;</title>" in html
    assert "<img src=x" not in html


def drawing(label: str) -> Drawing:
    x = np.array([1.0, 2.0])
    method = Method(label)
    one, other = (Line(method, f"{label}{i}", Curve(x, x * i, x, x * 2), runs=(label,)) for i in (1, 2))
    return Drawing("name", label, label, (Panel(label, 0, 0, (one, other), label, "linear", label),), label, label)


@pytest.mark.parametrize(
    "label", [EVIL, "$x^$", "$\\frac", "\\$", 300 * "long ", 300 * "$", "_hidden", "=1+1", "漢字", ""]
)
def test_figures_and_their_tables_take_any_text(label: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paths = draw(drawing(label), tmp_path)
    assert all(path.stat().st_size > 0 for path in paths)
    assert paths[0].stat().st_size < 2**20
    with paths[2].open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    assert not any(cell.startswith(("=", "+", "-", "@")) or "\n" in cell for row in rows for cell in row.values())


def test_legends_keep_apart_what_differs_and_show_all() -> None:
    names = [entry.label for panel in lettered(drawing(300 * "x")).panels for entry in panel.lines]
    assert len(set(names)) == 2
    assert all(len(name) < 80 for name in names)
    (hidden, _) = lettered(drawing("_a")).panels[0].lines
    assert not hidden.label.startswith("_")
    assert hidden.label.strip() == "_a1"


def test_bars_and_maps_take_any_text(tmp_path: Path) -> None:
    heights = np.array([1.0])
    stack = Stack((EVIL,), {EVIL: heights}, {EVIL: "#000000"}, 2.0, (heights, heights, heights), EVIL)
    heat = Heat(np.ones((2, 2)), 1.0, EVIL)
    for name, panel in (("bars", Panel(EVIL, 0, 0, stack=stack)), ("map", Panel(EVIL, 0, 0, heat=heat))):
        shown = Drawing(name, "x", "x", (panel,), "x", "y", footnotes=(EVIL,))
        draw(shown, tmp_path)
        assert_harmless(to_csv(shown))


def test_numbers_have_their_nouns() -> None:
    assert [counted(n, "rank") for n in (0, 1, 2)] == ["0 ranks", "1 rank", "2 ranks"]
    assert [counted(n, "entry", "entries") for n in (1, 3)] == ["1 entry", "3 entries"]
    assert [counted(n, "core") for n in (1.0, 0.5)] == ["1 core", "0.5 cores"]


def test_shown_configurations_can_be_read_again() -> None:
    text = tomli_w.dumps({"name": EVIL})
    shown = visible(text, keep="\n")
    assert_harmless(shown)
    assert tomllib.loads(shown) == {"name": EVIL}
