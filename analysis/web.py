"""The page as HTML: one file that needs nothing but the figures beside it, or with `folded`, nothing at all."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping
from pathlib import Path

from markdown_it import MarkdownIt

_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; }}
body {{ max-width: 76rem; margin: 2rem auto; padding: 0 1.25rem; }}
h1, h2, h3 {{ line-height: 1.25; margin: 2em 0 0.6em; }}
h1 {{ margin-top: 0; }}
img {{ max-width: 100%; height: auto; display: block; margin: 1em 0 0.3em; }}
table {{ border-collapse: collapse; font-size: 0.9em; margin: 1em 0; display: block; overflow-x: auto; }}
th, td {{ text-align: left; vertical-align: top; padding: 0.35em 0.8em 0.35em 0; border-bottom: 1px solid #ddd; }}
th {{ border-bottom: 2px solid #888; }}
td.holds {{ color: #00573f; font-weight: 600; }}
td.fails {{ color: #a33c00; font-weight: 600; }}
td.unknown {{ color: #666; }}
code {{ font-size: 0.92em; }}
</style>
</head>
<body>
"""


#: What a page may carry inside: the SVG in the place of a PNG, since it is sharp at any size, and the numbers.
_TYPES = {"svg": "image/svg+xml", "csv": "text/csv"}


#: A file beside the page.
_BESIDE = re.compile(r"[\w.-]+\.(png|svg|csv)")


def to_html(markdown: str, cells: Mapping[str, str] | None = None) -> str:
    """Return a page of HTML from Markdown whose first line is its title; HTML inside is shown as text.

    Args:
        markdown: the page.
        cells: the CSS class of table cells that hold exactly a text.
    """
    title = markdown.partition("\n")[0].removeprefix("# ")
    body = str(_reader().render(markdown))
    for text, kind in (cells or {}).items():
        body = body.replace(f"<td>{text}</td>", f'<td class="{kind}">{text}</td>')
    return f"{_HEAD.format(title=html.escape(title))}{body}</body>\n</html>\n"


def _reader() -> MarkdownIt:
    """Return a reader that shows HTML as text, and follows links and pictures to files beside the page alone."""
    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    setattr(reader, "validateLink", _is_beside)  # noqa: B010  a method of the reader, which asks it for each link
    return reader


def _is_beside(target: str) -> bool:
    return _BESIDE.fullmatch(target) is not None


def folded(page: str, directory: Path) -> str:
    """Return the page with its figures and their CSV inside, so that it can be sent as one file.

    Raises:
        OSError: a file that the page names is not in `directory`.
    """

    def picture(match: re.Match[str]) -> str:
        return f'<img src="{_inside(directory / match[1], "svg")}"'

    def link(match: re.Match[str]) -> str:
        name = f"{match[1]}.{match[2]}"
        return f'<a download="{name}" href="{_inside(directory / match[1], match[2])}"'

    page = re.sub(r'<img src="([\w.-]+)\.png"', picture, page)
    return re.sub(r'<a href="([\w.-]+)\.(svg|csv)"', link, page)


def _inside(path: Path, kind: str) -> str:
    content = base64.b64encode(path.with_name(f"{path.name}.{kind}").read_bytes()).decode()
    return f"data:{_TYPES[kind]};base64,{content}"
