"""Numbers as tables and sentences show them: three digits, with a unit."""

from __future__ import annotations


def digits(number: float) -> str:
    """Return a number with three digits, never in powers of ten: 1234, 123, 12.3, 1.23, 0.123, 0.012."""
    size = abs(number)
    places = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{number:.{places}f}"


def milliseconds(seconds: float) -> str:
    """Return seconds in milliseconds."""
    return digits(1e3 * seconds)


def entries_text(count: int) -> str:
    """Return a number of entries: 512, 64.0 k or 10.0 M."""
    return f"{count / 1e6:.1f} M" if count >= 10**6 else f"{count / 1e3:.1f} k" if count >= 10**3 else str(count)


def density_text(density: float) -> str:
    """Return a density in per cent, with at most two digits that count."""
    return f"{float(f'{100 * density:.2g}'):g} %"
