"""The words that others read: problems, log lines, the two dialects, origins."""

from __future__ import annotations

import json

import pytest

from sidecar.api.dialects import Speaker, daemon_words
from sidecar.api.origins import Origins
from sidecar.api.problems import problem
from sidecar.calls.problems import DOCUMENTED
from sidecar.engine.log_lines import MAX_LINE_CHARS, format_ansi_line, format_line, printable
from sidecar.errors import CODES, HostFailed, Refused, SidecarError
from sidecar.lifecycle.statuses import Role, Status
from sidecar.settings.values import Dialect
from tests.api.fake_transfers import log_event, progress_event, status_event, view


@pytest.mark.parametrize("code", CODES)
def test_every_code_is_a_sane_problem(code: str) -> None:
    response = problem(SidecarError(code, "A \x1b[31msentence.", path="/srv/\udcff", size_bytes=7, error="x"), "id-1")
    body = json.loads(bytes(response.body))
    assert 400 <= response.status_code <= 599
    assert response.status_code == CODES[code][0]
    assert body["code"] == code
    assert body["request_id"] == response.headers["x-request-id"] == "id-1"
    assert body["error"]
    assert "\x1b" not in bytes(response.body).decode()
    if code == "transfer.internal":
        assert set(body) == {"error", "code", "request_id"}
    else:
        assert (body["path"], body["size_bytes"]) == ("/srv/\\xff", 7)


def test_documented_texts() -> None:
    assert set(DOCUMENTED) <= set(CODES)
    for code, text in (
        ("transfer.exists", "A transfer is already in progress for this server."),
        ("transfer.none", "Server is not currently being transferred."),
        ("auth.missing", "The required authorization heads were not present in the request."),
        ("auth.jwt", "The required authorization heads were not present in the request."),
        ("upload.content_type", "invalid content type"),
        ("upload.order", "archive must be sent before the checksum"),
        ("upload.missing_part", "missing archive or checksum"),
        ("archive.checksum", "checksums don't match"),
        ("socket.too_many", "Too many open websocket connections."),
    ):
        assert json.loads(bytes(problem(Refused(code, "more"), "x").body))["error"] == text


def test_headers_of_problems() -> None:
    assert problem(Refused("auth.missing", "x"), "i").headers["www-authenticate"] == "Bearer"
    assert problem(HostFailed("transfer.too_many", "x"), "i").headers["retry-after"] == "30"


def test_the_documented_line() -> None:
    assert (
        format_line(Role.SOURCE, 1772663415.9, "Canceled.")
        == "[yellow][bold]Mar 04 2026 22:30:15 [Transfer System] [Source Node]:[default] Canceled."
    )


def test_the_daemons_line() -> None:
    assert format_ansi_line(Role.DESTINATION, 1795317134, "Streaming") == (
        "\x1b[33m\x1b[1mSun, 22 Nov 2026 03:12:14 UTC [Transfer System] [Destination Node]:\x1b[39m Streaming\x1b[0m"
    )


def test_names_of_strangers_cannot_command_a_terminal() -> None:
    assert printable("a\x1b[2Jb\r\n\x7f\x9b\u202e\u2028") == "a\\x1b[2Jb\\x0d\\x0a\\x7f\\x9b\\u202e\\u2028"
    assert printable("caf\udce9 région ☃") == "caf\\xe9 région ☃"
    assert printable("\ud800") == "\\ud800"
    assert len(printable("\n" * 100_000)) == MAX_LINE_CHARS
    assert printable("\x00" * 400, max_chars=200).endswith("...")


def test_both_dialects_of_a_whole_transfer() -> None:
    speaker = Speaker(Dialect)
    told = [
        message
        for event in (
            status_event(1, Status.PENDING),
            status_event(2, Status.PROCESSING),
            status_event(3, Status.PROCESSING),
            progress_event(5),
            log_event("Streaming"),
            status_event(5, Status.CANCELLING),
            status_event(6, Status.CANCELLED),
        )
        for message in speaker.tell(event, sees_logs=True)
    ]
    assert told == [
        ("transfer.status", ["pending"]),
        ("transfer.status", ["processing"]),
        ("transfer status", ["processing"]),
        ("transfer.logs", ["documented: Streaming"]),
        ("transfer logs", [format_ansi_line(Role.SOURCE, 1772663415.25, "Streaming")]),
        ("transfer.status", ["cancelling"]),
        ("transfer status", ["cancelling"]),
        ("transfer.status", ["cancelled"]),
        ("transfer status", ["failure"]),
    ]


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("status", Status)
def test_the_daemons_words(role: Role, status: Status) -> None:
    words = {
        (Role.SOURCE, Status.PROCESSING): ["processing"],
        (Role.SOURCE, Status.CANCELLING): ["cancelling"],
        (Role.SOURCE, Status.CANCELLED): ["failure"],
        (Role.SOURCE, Status.FAILED): ["failure"],
        (Role.SOURCE, Status.COMPLETED): ["completed"],
        (Role.DESTINATION, Status.CANCELLED): ["failure"],
        (Role.DESTINATION, Status.FAILED): ["failure"],
        (Role.DESTINATION, Status.COMPLETED): ["success", "completed"],
    }
    assert daemon_words(role, status) == words.get((role, status), [])


def test_the_current_state_is_told_in_the_documented_dialect_only() -> None:
    """A panel reconnects at each `transfer status`: sent after authentication it would do so for ever."""
    assert Speaker(Dialect).current(view()) == [("transfer.status", ["processing"])]
    assert Speaker([Dialect.DAEMON]).current(view()) == []
    assert Speaker(Dialect).current(view(status=Status.COMPLETED)) == []


def test_logs_without_permission() -> None:
    assert Speaker(Dialect).tell(log_event("x"), sees_logs=False) == []


@pytest.mark.parametrize(
    ("panel", "allowed", "given", "is_good"),
    [
        ("https://panel.test/base", (), ["https://panel.test"], True),
        ("https://panel.test", (), ["https://PANEL.test:443"], True),
        ("https://panel.test", (), ["http://panel.test"], False),
        ("https://panel.test", (), ["https://panel.test.evil"], False),
        ("https://panel.test", (), ["https://evil/https://panel.test"], False),
        ("https://panel.test", (), [], False),
        ("https://panel.test", (), ["null"], False),
        ("https://panel.test", (), ["https://[bad"], False),
        ("https://panel.test", (), ["https://panel.test", "https://evil"], False),
        ("https://panel.test", ("http://other:8080",), ["http://other:8080"], True),
        ("https://panel.test", ("*",), [], True),
        ("", (), [], True),
        ("", (), ["https://anything"], True),
        ("", ("http://only",), [], False),
        ("http://[::1]:8000", (), ["http://[::1]:8000"], True),
    ],
)
def test_origins(panel: str, allowed: tuple[str, ...], given: list[str], is_good: bool) -> None:
    origins = Origins(panel, allowed)
    if is_good:
        origins.check(given)
    else:
        with pytest.raises(Refused) as refused:
            origins.check(given)
        assert refused.value.status == 403
