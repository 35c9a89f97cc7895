"""What a connection may take, and how it is slowed down and ended."""

from __future__ import annotations

import asyncio
from typing import Protocol

import msgspec
from uvicorn.protocols.http.flow_control import FlowControl


class WireLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What one connection may take. All times in seconds."""

    head_bytes: int = 32 * 1024  # a JWT and a proxy's fields take below 4 KiB
    head_timeout_s: float = 10.0  # from the connection, or the head's first byte, to its blank line
    body_timeout_s: float = 30.0  # a REST body, from its head to its last byte; uploads have a stall time instead
    stream_stall_s: float = 120.0  # a streamed body, without a byte of it; noticed after one to two of these
    linger_s: float = 5.0  # after an answer that leaves input unread
    linger_bytes: int = 256 << 20


class Answering(Protocol):
    """The protocol behind a request cycle."""

    transport: asyncio.Transport

    def end_connection(self) -> None: ...


class HeldFlow(FlowControl):
    """Back-pressure in which a hold wins: a request cycle that wants more does not restart a held transport."""

    held = False

    def hold(self) -> None:
        self.held = True
        self.pause_reading()

    def release(self) -> None:
        self.held = False
        self.resume_reading()

    def resume_reading(self) -> None:
        if not self.held:
            super().resume_reading()


class AnswerTransport:
    """The transport as a request cycle sees it: closing it waits for the peer to have read the answer."""

    def __init__(self, protocol: Answering) -> None:
        self._protocol = protocol

    def write(self, data: bytes) -> None:
        self._protocol.transport.write(data)

    def is_closing(self) -> bool:
        return self._protocol.transport.is_closing()

    def close(self) -> None:
        self._protocol.end_connection()
