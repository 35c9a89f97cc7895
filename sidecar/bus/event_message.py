"""An event as a message: its JSON body and its CloudEvents headers. `docs/PROTOCOL.md` is the authority."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from sidecar.bus.outbox_file import Row
from sidecar.views import EventKind, TransferEvent

MAX_BODY_BYTES: Final = 60 * 1024  # far below a broker's usual 1 MiB, and with headers below the 64 KiB of its clients
_CUT: Final = " [...]"
_ID: Final = re.compile(r"(?P<node>[A-Za-z0-9_-]{1,48})-(?P<epoch>[0-9a-z]{1,32})-(?P<number>[0-9]{1,18})", re.ASCII)
_AGAIN_ID: Final = re.compile(rf"{_ID.pattern}-again(?P<again>[0-9]{{1,18}})", re.ASCII)

_encode = msgspec.json.Encoder().encode


def body_of(event: TransferEvent, *, seq: int, number: int) -> bytes:
    """The JSON body: the WebSocket envelope (`event`, `args`) and the facts, at most `MAX_BODY_BYTES`.

    Args: seq, of the transfer's events on this node; number, of all of this node's events.
    """
    match event.kind:
        case EventKind.STATUS:
            args = [event.status.value]
        case EventKind.LOGS:
            args = [event.line or event.message or ""]
        case EventKind.PROGRESS:
            args = []
    progress: dict[str, Any] | None = None
    if event.progress is not None:
        progress = msgspec.to_builtins(event.progress)
        percent = event.progress.percent
        progress["percent"] = None if percent is None else round(percent, 2)
    fields = {
        "event": f"transfer.{event.kind.value}",
        "args": args,
        "transfer": event.transfer,
        "server": event.server,
        "node": event.node,
        "role": event.role.value,
        "direction": event.role.direction,
        "status": event.status.value,
        "stage": event.stage,
        "seq": seq,
        "number": number,
        "time": event.time,
        "reason": event.reason,
        "message": event.message,
        "progress": progress,
    }
    try:
        body = _encode(fields)
    except UnicodeEncodeError:  # half a surrogate pair: a text that is none loses its strange characters, not its event
        fields |= {"args": [_plain(arg) for arg in args], "message": event.message and _plain(event.message)}
        body = _encode(fields)
    return body if len(body) <= MAX_BODY_BYTES else shortened(body, MAX_BODY_BYTES)


def shortened(body: bytes, at_most_bytes: int) -> bytes:
    """The same event with its texts cut, where that is enough; else with none. A status is never lost to its text."""
    fields: dict[str, Any] = msgspec.json.decode(body)
    kept = max(0, at_most_bytes - len(_encode(_cut(fields, 0))))
    for length in (kept // 8, kept // 32, 0):  # two texts; a character may take six bytes in JSON
        cut = _encode(_cut(fields, length))
        if len(cut) <= at_most_bytes:
            return cut
    return cut


def _cut(fields: dict[str, Any], length: int) -> dict[str, Any]:
    """Only log lines have free text in `args`."""
    is_log = fields["event"] == f"transfer.{EventKind.LOGS.value}"
    return fields | {
        "args": [_shorter(arg, length) for arg in fields["args"]] if is_log else fields["args"],
        "message": fields["message"] and _shorter(fields["message"], length),
    }


def _shorter(text: str, length: int) -> str:
    return text if len(text) <= length else text[:length] + _CUT


def _plain(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def event_id(node: str, epoch: str, number: int) -> str:
    return f"{node}-{epoch}-{number}"


class Stored(msgspec.Struct, frozen=True):
    """Which event a stream has. again: see `headers_of`."""

    epoch: str
    number: int
    again: int = 0


def read_headers(node: str, headers: Mapping[str, str]) -> Stored | None:
    """Of an event of this node, what `headers_of` made; None: of something else."""
    folded = {name.lower(): value for name, value in headers.items()}
    found = _ID.fullmatch(folded.get("ce-id", ""))
    if found is None or found["node"] != node:
        return None
    again = _AGAIN_ID.fullmatch(folded.get("nats-msg-id", ""))
    return Stored(found["epoch"], int(found["number"]), int(again["again"]) if again is not None else 0)


def headers_of(node: str, row: Row, again: int = 0) -> dict[str, str]:
    """CloudEvents, binary mode (NATS protocol binding), and the broker's own key for dropping repeats.

    `again`: above 0, for which time this is sent to a stream that was made anew. Each time has a key of its own, so
    that the broker stores the event once more.

    All words of ours: nothing that a stranger wrote is in a header.
    """
    at = datetime.fromtimestamp(row.time, UTC)
    identity = event_id(node, row.epoch, row.number)
    return {
        "Nats-Msg-Id": f"{identity}-again{again}" if again else identity,
        "ce-specversion": "1.0",
        "ce-id": identity,
        "ce-source": f"/transfer-sidecar/{node}",
        "ce-type": f"transfer.v1.{row.kind.value}",
        "ce-subject": row.server,
        "ce-time": at.isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "ce-datacontenttype": "application/json",
    }
