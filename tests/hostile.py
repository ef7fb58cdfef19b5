"""A name that holds everything that something might follow instead of showing it, and what is harmless."""

from __future__ import annotations

#: What terminals, rich, Markdown, HTML, formulas, spreadsheets and formats read.
EVIL = (
    "=1+1 [/y][bold]:smile:\x1b[31m\x1b]8;;http:\\\\e\x07\x9b2J\u202eabc\u2066\r\nfaked line\t`code` "
    "``|*b* _i_ ~~s~~ $x^$ "
    "%s {} {0}<img src=http:e onerror=a><script>a</script>![p](http:e.png) [l](javascript:a) [d]: &lt; \u2028 \u200b]\\"
)

#: The same as one part of a path, with a byte that is no UTF-8; a path that goes on from "[" reads "[/y]" in it.
FOLDER = f"y]{EVIL[15:]}".replace("/", "\u2215") + "\udcff"


def assert_harmless(text: str) -> None:
    """Assert that a terminal shows all of this: no character is unseen, but the ends of lines, none of them faked."""
    assert not [letter for letter in text if not letter.isprintable() and letter != "\n"]
    assert not any(line.startswith("faked line") for line in text.split("\n"))
