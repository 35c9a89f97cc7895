"""How values of events are written: everything in them comes from elsewhere, so no text reaches a terminal as it is."""

from __future__ import annotations

from typing import Final

_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB", "EB")


def clean(text: str, limit: int = 500) -> str:
    """A text without anything that a terminal obeys: controls, escapes, line ends, marks that turn the direction."""
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(character if character.isprintable() else "?" for character in cut)


def size(count: float) -> str:
    """`210 MB`: three digits at most, decimal units."""
    value, unit = max(0.0, float(count)), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    digits = 0 if unit == 0 or value >= 99.5 else 1
    return f"{value:.{digits}f} {_UNITS[unit]}"


def duration(seconds: float) -> str:
    """`7s`, `12m`, `3h`, `4d`: one unit, because it is read at a glance."""
    whole = max(0, int(seconds))
    for length, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if whole >= length:
            return f"{min(whole // length, 9999)}{unit}"
    return f"{whole}s"


def clock(seconds: float) -> str:
    """`0:07`, `12:30`, `3:05:00`: what is left of something that is waited for."""
    whole = max(0, min(int(seconds + 0.5), 99 * 3600))
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
