"""Words for people: numbers with their nouns, and text from outside that can neither steer a terminal nor mislead."""

from __future__ import annotations


def counted(number: float, noun: str, plural: str = "") -> str:
    """Return a number with its noun: "1 rank", "4 ranks"; `plural` is the noun's, if not with an s."""
    shown = f"{number:g}" if isinstance(number, float) else f"{number}"
    return f"{shown} {noun if number == 1 else plural or f'{noun}s'}"


def visible(text: str, *, keep: str = "") -> str:
    """Return text in which every character that cannot be seen is an escape, as in \\u001b.

    These are what `str.isprintable` calls so: control characters (ESC, carriage return, line feed), characters that
    turn the direction of writing or have no width, spaces other than the common one, and bytes of file names that are
    no UTF-8, which Python reads as lone surrogates. TOML and JSON read these escapes, too.

    Args:
        keep: characters that stay as they are, such as "\\n" in text of several lines.
    """
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter in keep else _escaped(ord(letter)) for letter in text)


def _escaped(code: int) -> str:
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
