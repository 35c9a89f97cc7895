"""What is shown of recorded events, on a terminal and elsewhere."""

from __future__ import annotations

import io
import json
from typing import Any

from rich.console import Console

from sidecar.bus.events import BusEvent, read_event
from sidecar.demo.show import Show, describe
from sidecar.lifecycle.statuses import Role
from sidecar.views import Progress

SERVER = "12345678-1234-4234-8234-123456789012"
NOW = 1_760_000_000.0


def recorded(kind: str, seq: int, role: str = "source", **facts: Any) -> BusEvent:
    direction = "outgoing" if role == "source" else "incoming"
    transfer = "f0f0f0f0-0000-4000-8000-000000000001"
    body = {
        "event": f"transfer.{kind}",
        "args": [],
        "transfer": transfer,
        "server": SERVER,
        "node": f"node-{role}",
        "role": role,
        "direction": direction,
        "status": "processing",
        "stage": "streaming",
        "seq": seq,
        "time": NOW + seq,
        "reason": None,
        "message": None,
    }
    subject = f"transfer.v1.event.node-{role}.{direction}.{kind}.{SERVER}.{transfer}"
    return read_event("transfer", subject, json.dumps(body | facts).encode())


PROGRESS = {
    "bytes_done": 129_000_000,
    "bytes_total": 300_000_000,
    "files_done": 51,
    "files_total": 120,
    "wire_bytes": 90_000_000,
    "rate_bytes_per_s": 210_300_000.0,
    "eta_s": 0.8,
}

A_TRANSFER = [
    recorded("status", 1, status="pending", stage="stopping"),
    recorded("status", 2, status="processing", stage="streaming"),
    recorded("status", 1, "destination", status="processing", stage="receiving"),
    recorded("logs", 3, message="Streaming archive to destination..."),
    recorded("progress", 3, progress=PROGRESS),
    recorded("progress", 1, "destination", progress=PROGRESS | {"bytes_total": None, "files_total": None}),
    recorded("logs", 4, args=["[yellow][bold]Mar 04 2026 22:30:15 [Transfer System] [Source Node]:[default] Bye."]),
    recorded("logs", 4, message="a repeated message"),
    recorded("status", 2, "destination", status="completed", stage="completed"),
    recorded("status", 5, status="completed", stage="settling"),
]


def shown(events: list[BusEvent], *, is_terminal: bool) -> str:
    file = io.StringIO()
    console = Console(file=file, force_terminal=is_terminal, width=120, color_system=None, legacy_windows=False)
    ticks = iter(range(0, 1000, 10))
    with Show(console, clock=lambda: next(ticks)) as show:
        for event in events:
            show.feed(event)
    return file.getvalue()


def test_plain_lines_where_there_is_no_terminal() -> None:
    assert shown(A_TRANSFER, is_terminal=False).splitlines() == [
        "source       pending (stopping)",
        "source       processing (streaming)",
        "destination  processing (receiving)",
        "  source       Streaming archive to destination...",
        "  source        43 %  129.0 / 300.0 MB, 51 / 120 files, 210.3 MB/s, 1 s left",
        "  destination  129.0 MB, 51 files, 210.3 MB/s, 1 s left",
        "  source       Mar 04 2026 22:30:15 [Transfer System] [Source Node]: Bye.",
        "destination  completed",
        "source       completed",
    ]


def test_a_bar_on_a_terminal() -> None:
    output = shown(A_TRANSFER, is_terminal=True)
    assert "source       processing (streaming)" in output
    assert "━" in output
    assert "43 %  129.0 / 300.0 MB" in output
    assert output.count("Streaming archive to destination...") == 1


def test_plain_progress_is_not_a_flood() -> None:
    file = io.StringIO()
    with Show(Console(file=file, width=120), clock=lambda: 1.0) as show:
        for _ in range(50):
            show.feed(recorded("progress", 1, progress=PROGRESS))
    assert file.getvalue().count("\n") == 1


def test_a_failure_says_why() -> None:
    event = recorded("status", 3, status="failed", reason="peer.reset", message="the connection broke")
    assert "failed: the connection broke" in shown([event], is_terminal=False)
    event = recorded("status", 3, status="failed", stage="failed", reason="peer.reset")
    assert "failed: peer.reset" in shown([event], is_terminal=False)


def test_texts_from_elsewhere_are_only_text() -> None:
    output = shown([recorded("logs", 1, message="\x1b[2J[red]not red[/red]\n\x07")], is_terminal=False)
    assert output == "  source       ?[2J[red]not red[/red]??\n"


def test_the_ends_that_have_told_theirs() -> None:
    show = Show(Console(file=io.StringIO(), width=120))
    for event in A_TRANSFER[:-1]:
        show.feed(event)
    assert show.ended == {Role.DESTINATION}
    show.feed(A_TRANSFER[-1])
    assert show.ended == set(Role)


def test_progress_with_nothing_known() -> None:
    assert describe(Progress()) == "0.0 MB, 0 files"
    assert describe(Progress(bytes_done=5, bytes_total=0)) == "0.0 MB, 0 files"
