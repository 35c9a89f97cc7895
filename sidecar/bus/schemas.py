"""JSON Schemas of everything that is said on the bus, made from the structs that read and write it.

`docs/schemas/` holds them for people and their tools (`transfer-sidecar schemas DIRECTORY` writes them anew, a test
compares), and the service shows those of each command to `nats micro info`.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any, Final

import msgspec

from sidecar.bus import messages
from sidecar.bus.events import BusEvent
from sidecar.views import TransferView

DRAFT: Final = "https://json-schema.org/draft/2020-12/schema"
# The percentage follows from the other numbers and is added where a transfer is shown: `calls.transfers.shown`.
_PERCENT: Final = {"anyOf": [{"type": "number", "minimum": 0, "maximum": 100}, {"type": "null"}]}

COMMANDS: Final[dict[str, tuple[type[Any], type[Any]]]] = {
    "start": (messages.StartCommand, messages.StartReply),
    "cancel": (messages.TransferCommand, messages.CancelReply),
    "status": (messages.TransferCommand, TransferView),
    "list": (messages.ListCommand, messages.ListReply),
    "info": (messages.InfoCommand, messages.NodeEntry),
}


def schema(shape: type[Any], title: str) -> dict[str, Any]:
    """One schema that stands by itself. Args: shape, a struct; title, what it is called."""
    (top,), parts = msgspec.json.schema_components([shape], ref_template="#/$defs/{name}")
    if "Progress" in parts:
        parts["Progress"]["properties"]["percent"] = _PERCENT
    return {"$schema": DRAFT, "title": title, **top, "$defs": dict(sorted(parts.items()))}


@cache
def all_schemas() -> dict[str, dict[str, Any]]:
    """By file name without `.json`."""
    found = {"event": schema(BusEvent, "event"), "node": schema(messages.NodeEntry, "node"), "error": _error()}
    for word, (request, reply) in COMMANDS.items():
        found[f"{word}.request"] = schema(request, f"{word} request")
        found[f"{word}.reply"] = schema(reply, f"{word} reply")
    return found


def files() -> dict[str, str]:
    """Name and content of each file of `docs/schemas/`."""
    return {f"{name}.json": json.dumps(value, indent=2) + "\n" for name, value in all_schemas().items()}


def _compact(name: str) -> str:
    return json.dumps(all_schemas()[name], separators=(",", ":"))


def metadata(word: str) -> dict[str, str]:
    """What the service shows of a command's endpoint."""
    return {"request": _compact(f"{word}.request"), "reply": _compact(f"{word}.reply"), "error": _compact("error")}


def _error() -> dict[str, Any]:
    return schema(messages.Problem, "error")
