"""What is believed of a message on the bus."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sidecar.bus.event_message import body_of
from sidecar.bus.events import MAX_BODY_BYTES, NoEvent, read_body, read_event
from sidecar.bus.subjects import Subjects
from sidecar.lifecycle.statuses import Role, Status
from sidecar.views import EventKind, TransferEvent
from tests.api.fake_transfers import log_event, progress_event, status_event
from tests.bus.events import message


@pytest.mark.parametrize(
    "sent", [status_event(1, Status.PENDING), log_event("a line", role=Role.DESTINATION), progress_event(40)]
)
def test_what_a_node_publishes_is_read(sent: TransferEvent) -> None:
    body = body_of(sent, seq=3, number=7)
    event = read_event("transfer", Subjects("node-a").event(sent), body)
    assert (event.kind, event.seq, event.number) == (sent.kind, 3, 7)
    assert (event.role, event.status) == (sent.role, sent.status)
    assert event.progress == sent.progress
    assert read_body(body)["number"] == 7


def test_fields_of_a_later_version_do_not_hurt() -> None:
    subject, body = message("logs", 3, something={"new": [1]})
    assert read_event("transfer", subject, body).kind is EventKind.LOGS
    assert read_body(body)["something"] == {"new": [1]}


@pytest.mark.parametrize(
    "body", [b"", b"\xff", b"[]", b"{}", b'{"event": 1}', b"[" * 60_000, b'{"event": "' + b"x" * 99]
)
def test_what_is_no_event(body: bytes) -> None:
    with pytest.raises(NoEvent):
        read_event("transfer", message()[0], body)


@pytest.mark.parametrize(
    "facts",
    [
        {"status": "owned"},
        {"role": "panel"},
        {"seq": -1},
        {"seq": 2**80},
        {"time": 1e300},
        {"time": -1},
        {"stage": "x" * 65},
        {"server": "*"},
        {"server": "\x1b[2J5678-1234-4234-8234-123456789012"},
        {"server": "12345678-1234-4234-8234-12345678901G"},
        {"server": "12345678-1234-4234-8234-123456789012\n"},
        {"transfer": "F0F0F0F0-0000-4000-8000-000000000001"},
        {"node": "\x1b[2J"},
        {"node": ""},
        {"message": "x" * MAX_BODY_BYTES},
        {"progress": {"bytes_done": -5}},
        {"progress": {"bytes_done": 2**70}},
        {"progress": {"eta_s": 1e300}},
        {"progress": "much"},
        {"args": [1]},
        {"event": "transfer.other"},
    ],
)
def test_hostile_values(facts: dict[str, Any]) -> None:
    subject, body = message(**facts)
    with pytest.raises(NoEvent):
        read_event("transfer", subject, body)


@pytest.mark.parametrize(
    "claimed",
    [
        {"node": "node-b"},
        {"server": "99999999-1234-4234-8234-123456789012"},
        {"transfer": "99999999-1234-4234-8234-123456789012"},
        {"direction": "incoming"},
        {"role": "destination"},
        {"event": "transfer.logs"},
    ],
)
def test_no_node_speaks_for_another(claimed: dict[str, Any]) -> None:
    """The broker's permissions bind the subject, and nothing binds the body."""
    subject, body = message()
    with pytest.raises(NoEvent, match="subject"):
        read_event("transfer", subject, json.dumps(json.loads(body) | claimed).encode())


def test_another_root() -> None:
    subject, body = message()
    with pytest.raises(NoEvent):
        read_event("elsewhere", subject, body)
