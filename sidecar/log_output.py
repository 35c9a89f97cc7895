"""Log lines of the process on standard error: for people or for machines, each with the transfer it is about."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator

_TAGS = ("transfer", "server", "request_id")  # what `extra` may carry


class TextFormatter(logging.Formatter):
    """`2026-03-04 22:30:15.123 INFO engine.transfer message transfer=...`."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(record.created))
        name = record.name.removeprefix("sidecar.")
        tags = "".join(
            f" {tag}={one_line(str(value))}" for tag in _TAGS if (value := getattr(record, tag, None)) is not None
        )
        line = f"{stamp}.{int(record.msecs):03d} {record.levelname} {name} {one_line(record.getMessage())}{tags}"
        if record.exc_info is None:
            return line
        return "\n".join([line, *indented(self.formatException(record.exc_info))])


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "time": record.created,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields.update(_tags(record))
        if record.exc_info is not None:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=True)


def _tags(record: logging.LogRecord) -> list[tuple[str, object]]:
    return [(tag, value) for tag in _TAGS if (value := getattr(record, tag, None)) is not None]


def one_line(message: str) -> str:
    """A message with its line breaks and other control characters escaped: it cannot forge a second line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)


def indented(traceback: str) -> Iterator[str]:
    """Its lines, none of which can be taken for a line of the log: an error's text may be a stranger's."""
    for line in traceback.split("\n"):
        yield f"    {one_line(line)}"


def set_up(level: str, form: str) -> None:
    """Send the log to standard error. Libraries speak from warnings on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("sidecar").setLevel(level.upper())
