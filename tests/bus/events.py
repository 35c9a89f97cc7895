"""Events of two nodes on a real broker, as the nodes publish them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import nats
from nats.aio.client import Client

from sidecar.bus.events import BusEvent, read_event
from sidecar.bus.watch import EVENT_STREAM
from tests.bus.broker import Broker, broker

SERVER = "12345678-1234-4234-8234-123456789012"
TRANSFER = "f0f0f0f0-0000-4000-8000-000000000001"
NOW = 1_760_000_000.0
PROGRESS = {
    "bytes_done": 129_000_000,
    "bytes_total": 300_000_000,
    "files_done": 51,
    "files_total": 120,
    "wire_bytes": 90_000_000,
    "rate_bytes_per_s": 210_300_000.0,
    "eta_s": 0.8,
}


def transfer_id(number: int) -> str:
    return str(UUID(int=0xF0F0F0F0_0000_4000_8000_000000000000 + number))


def message(
    kind: str = "status", seq: int = 1, *, node: str = "node-a", role: str = "source", **facts: Any
) -> tuple[str, bytes]:
    """Subject and body."""
    body: dict[str, Any] = {
        "event": f"transfer.{kind}",
        "args": [],
        "transfer": TRANSFER,
        "server": SERVER,
        "node": node,
        "role": role,
        "direction": "outgoing" if role == "source" else "incoming",
        "status": "processing",
        "stage": "sending" if role == "source" else "receiving",
        "seq": seq,
        "time": NOW + seq,
        "reason": None,
        "message": None,
        "progress": PROGRESS if kind == "progress" else None,
    } | facts
    subject = f"transfer.v1.event.{node}.{body['direction']}.{kind}.{body['server']}.{body['transfer']}"
    return subject, json.dumps(body).encode()


def event(kind: str = "status", seq: int = 1, **facts: Any) -> BusEvent:
    return read_event("transfer", *message(kind, seq, **facts))


async def publish(client: Client, *messages: tuple[str, bytes]) -> None:
    """Into the stream where there is one, or simply out; each with a ce-id of its own content."""
    for subject, body in messages:
        facts = json.loads(body)
        event_id = f"{facts['node']}-{facts['transfer']}-{facts['role']}-{facts['event']}-{facts['seq']}"
        await client.publish(subject, body, headers={"ce-id": event_id})
    await client.flush()


async def make_stream(client: Client, **facts: Any) -> None:
    await client.jetstream().add_stream(name=EVENT_STREAM, subjects=["transfer.v1.event.>"], **facts)


@asynccontextmanager
async def streaming(directory: Path, *, has_stream: bool = True) -> AsyncIterator[tuple[Broker, Client]]:
    """A broker with JetStream, and a client of it that outlives restarts."""
    with broker(directory, f'jetstream {{ store_dir: "{directory}/jetstream" }}') as server:
        await server.wait_listening()
        client = await nats.connect(
            server.url, max_reconnect_attempts=-1, reconnect_time_wait=0.05, error_cb=_ignore, allow_reconnect=True
        )
        try:
            if has_stream:
                await make_stream(client)
            yield server, client
        finally:
            await client.close()


async def _ignore(error: Exception) -> None:
    pass
