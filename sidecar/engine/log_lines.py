"""The lines of a transfer's log as consoles show them, in the documented form and in the node daemons' own.

A line is put together from words of ours and from names that strangers chose: file names of any bytes, reasons of other
nodes. `printable` is therefore the only way into a line: nothing that a terminal would obey (control characters,
escape sequences, direction overrides) and nothing that JSON cannot carry (lone surrogates, which stand for bytes of a
name that are not UTF-8) gets through. The documented form's tags (`[yellow]`) have no escape; a name that contains one
can at worst change a colour.

Times are written by hand: `strftime` would follow the locale of the process.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

from sidecar.lifecycle.statuses import Role

MAX_LINE_CHARS: Final = 2_000  # a path has at most 4,096 bytes; more than this nobody reads on a console

_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_NODES: Final = {Role.SOURCE: "Source Node", Role.DESTINATION: "Destination Node"}

# C0 and DEL, C1, the line and paragraph separators, marks and overrides of the writing direction, surrogates.
_UNPRINTABLE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a name that is not UTF-8, as `os.fsdecode` keeps it
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def printable(text: str, *, max_chars: int = MAX_LINE_CHARS) -> str:
    """The text with everything that is not plain printing escaped (`\\x1b`, `\\u202e`), cut to `max_chars`."""
    if len(text) > max_chars:  # before the escaping, so that a huge text costs nothing
        text = text[:max_chars]
    escaped = _UNPRINTABLE.sub(_escape, text)
    return escaped if len(escaped) <= max_chars else escaped[: max_chars - 3] + "..."


def format_line(role: Role, time: float, text: str) -> str:
    """The documented form of a `transfer.logs` line: `[yellow][bold]Mar 04 2026 22:30:15 [Transfer System] ...`.

    Args: role of this node; time in seconds since 1970, written as UTC; text of any characters.
    Source: the documented contract, "Monitoring Cancellation".
    """
    at = datetime.fromtimestamp(time, UTC)
    stamp = f"{_MONTHS[at.month - 1]} {at.day:02d} {at.year:04d} {at:%H:%M:%S}"
    return f"[yellow][bold]{stamp} [Transfer System] [{_NODES[role]}]:[default] {printable(text)}"


def format_ansi_line(role: Role, time: float, text: str) -> str:
    """The same in the node daemons' form, with terminal colours and an RFC 1123 time. Source: docs/PROTOCOL.md."""
    at = datetime.fromtimestamp(time, UTC)
    stamp = f"{_DAYS[at.weekday()]}, {at.day:02d} {_MONTHS[at.month - 1]} {at.year:04d} {at:%H:%M:%S} UTC"
    return f"\x1b[33m\x1b[1m{stamp} [Transfer System] [{_NODES[role]}]:\x1b[39m {printable(text)}\x1b[0m"
