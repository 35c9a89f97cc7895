"""The process's log: one line an entry, whatever strangers have written into it."""

from __future__ import annotations

import json
import logging
import sys

import pytest

from sidecar.log_output import JsonFormatter, TextFormatter

FORGED = "2026-01-01 00:00:00.000 INFO engine.transfer the panel gave the server to node-x"
EVIL = f"no\r\n{FORGED}\n\x1b[2J\u2028end"


def entry(*, with_traceback: bool, **tags: object) -> logging.LogRecord:
    exc_info = None
    if with_traceback:
        try:
            raise ValueError(EVIL)
        except ValueError:
            exc_info = sys.exc_info()
    record = logging.LogRecord("sidecar.api", logging.ERROR, "x.py", 1, "said: %s", (EVIL,), exc_info)
    record.__dict__.update(tags)
    return record


@pytest.mark.parametrize("with_traceback", [False, True])
def test_no_line_of_the_text_form_can_be_forged(with_traceback: bool) -> None:
    first, *rest = TextFormatter().format(entry(with_traceback=with_traceback, request_id=EVIL)).split("\n")
    assert " ERROR api said: no\\r\\n2026" in first and " request_id=no" in first
    assert bool(rest) is with_traceback
    assert all(line.startswith("    ") for line in rest)
    assert all(line.isprintable() for line in [first, *rest])
    assert not with_traceback or rest[0] == "    Traceback (most recent call last):"


def test_the_json_form_is_one_object_a_line() -> None:
    line = JsonFormatter().format(entry(with_traceback=True, transfer="t"))
    assert line.isascii() and line.isprintable()
    said = json.loads(line)
    assert (said["message"], said["level"], said["transfer"]) == (f"said: {EVIL}", "error", "t")
    assert f"ValueError: {EVIL}" in said["traceback"]
