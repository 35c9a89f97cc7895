"""Publishing into a stream without waiting, each message's acknowledgement a future of its own.

The client library has this too, but its handler raises on most refusals (every one with a code of 400, 404, 500, 503),
and then nobody ever hears of the message again.
"""

from __future__ import annotations

import asyncio

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg

NO_STREAM = 503  # the code where nothing takes the subject
TOO_LARGE = 10054
OTHER_STREAM = 10060


class Refusal(msgspec.Struct, frozen=True):
    """What the stream says instead of taking a message. code: `err_code` of JetStream, or NO_STREAM."""

    err_code: int = 0
    description: str = ""

    def __str__(self) -> str:
        return f"{self.description} ({self.err_code})"


class Ack(msgspec.Struct, frozen=True):
    """The stream's answer. seq: of the message in the stream."""

    seq: int = 0
    duplicate: bool = False
    error: Refusal | None = None


class Acks:
    """On one client; nothing of it outlives the client. Raises the client library's errors."""

    def __init__(self, client: Client, stream: str) -> None:
        self.client = client
        self._stream = stream
        self._inbox = client.new_inbox()
        self._count = 0
        self._awaited: dict[str, asyncio.Future[Ack]] = {}
        self._is_open = False

    async def publish(self, subject: str, payload: bytes, headers: dict[str, str]) -> asyncio.Future[Ack]:
        """Send one message; another stream than ours refuses it. Cancel the future to forget it."""
        if not self._is_open:
            self._is_open = True
            await self.client.subscribe(f"{self._inbox}.*", cb=self._take)
        self._count += 1
        reply = f"{self._inbox}.{self._count}"
        future: asyncio.Future[Ack] = asyncio.get_running_loop().create_future()
        self._awaited[reply] = future
        future.add_done_callback(lambda _: self._awaited.pop(reply, None))
        expected = {"Nats-Expected-Stream": self._stream, **headers}
        try:
            await self.client.publish(subject, payload, reply=reply, headers=expected)
        except BaseException:
            future.cancel()
            raise
        return future

    async def _take(self, message: Msg) -> None:
        future = self._awaited.get(message.subject)
        if future is None or future.done():
            return
        if (message.headers or {}).get("Status") == str(NO_STREAM):
            future.set_result(Ack(error=Refusal(NO_STREAM, "no stream takes the subject")))
            return
        try:
            future.set_result(msgspec.json.decode(message.data, type=Ack))
        except msgspec.MsgspecError:
            future.set_result(Ack(error=Refusal(0, "the broker's acknowledgement is none")))
