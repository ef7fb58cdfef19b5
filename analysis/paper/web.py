"""The page as HTML: one file that needs nothing but the figures beside it."""

from __future__ import annotations

from markdown_it import MarkdownIt

from analysis.paper.evidence import FAILS, HOLDS, NOT_MEASURED

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

_VERDICTS = {HOLDS: "holds", FAILS: "fails", NOT_MEASURED: "unknown"}


def to_html(markdown: str) -> str:
    """Return a page of HTML from Markdown whose first line is its title; HTML inside is shown as text."""
    title = markdown.partition("\n")[0].removeprefix("# ")
    body = str(MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown))
    for verdict, kind in _VERDICTS.items():
        body = body.replace(f"<td>{verdict}</td>", f'<td class="{kind}">{verdict}</td>')
    return f"{_HEAD.format(title=title)}{body}</body>\n</html>\n"
