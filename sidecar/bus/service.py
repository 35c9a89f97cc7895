"""A NATS service: requests in, answers out, and what `nats micro ls`, `info` and `stats` ask (ADR-32 of NATS).

Written here and not taken from the client library, whose service handles one request of an endpoint after the other,
shows `repr` of an exception to the caller, keeps its subscriptions to itself (so that what is in flight at the end
cannot be waited for) and begins anew, with another id, on each connection. The shapes on the wire are the library's.

One object lives as long as the node; `open` binds it to each new connection. Every request is a task of its own, at
most `MAX_RUNNING` at once for an endpoint; one more is answered "busy" at once. So a slow request delays no other, and
none of one endpoint keeps another endpoint from answering.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.micro.service import (
    EndpointInfo,
    EndpointStats,
    ServiceInfo,
    ServicePing,
    ServiceStats,
    ServiceVerb,
    control_subject,
)

_log = logging.getLogger(__name__)

MAX_RUNNING: Final = 16  # requests of one endpoint at once
PENDING_MESSAGES: Final = 1_024  # between the socket and the task; they are taken at once
PENDING_BYTES: Final = 4 * 1024 * 1024
HEADER_BYTES: Final = 4 * 1024  # generously, what an answer's headers take
LOG_EVERY_S: Final = 30.0
_ANSWER_ERRORS: Final = (nats.errors.Error, OSError, ValueError)


class Call(msgspec.Struct, frozen=True):
    """A request as it came, from anyone who may publish to the subject."""

    data: bytes
    headers: Mapping[str, str]

    def header(self, name: str) -> list[str]:
        """The values of all headers of that name, in whatever case they came."""
        return [str(value) for key, value in self.headers.items() if key.lower() == name]


class Reply(msgspec.Struct, frozen=True):
    body: bytes
    headers: dict[str, str]
    error: str | None = None  # a code, for the statistics


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One subject. `handle` never raises; `refuse` makes the answer of a code, for what no handler is asked about.
    `metadata` is shown to whoever asks for `INFO`."""

    name: str
    subject: str
    queue: str
    handle: Callable[[Call], Awaitable[Reply]]
    refuse: Callable[[str], Reply]
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass
class _Counts:
    requests: int = 0
    errors: int = 0
    running: int = 0
    nanoseconds: int = 0
    last_error: str = ""


class Service:
    """Use it as `async with service.running():`.

    Args: name, version (semantic), description and metadata, as shown; endpoints; is_answerable, whether a reply
    subject is one to answer on.
    """

    def __init__(
        self,
        *,
        name: str,
        version: str,
        description: str,
        metadata: Callable[[], dict[str, str]],
        endpoints: Sequence[Endpoint],
        is_answerable: Callable[[str], bool],
    ) -> None:
        self.id = uuid.uuid4().hex
        self._name = name
        self._version = version
        self._description = description
        self._metadata = metadata
        self._endpoints = tuple(endpoints)
        self._is_answerable = is_answerable
        self._counts = [_Counts() for _ in self._endpoints]
        self._started_at = datetime.now(UTC)
        self._subscriptions: list[Subscription] = []
        self._asked: list[Subscription] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._group: asyncio.TaskGroup | None = None
        self._said_at = -LOG_EVERY_S

    @asynccontextmanager
    async def running(self, drain_s: float) -> AsyncIterator[Service]:
        """On leaving no request is taken any more, and those in flight have `drain_s` to be answered."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                yield self
            finally:
                await self.close(drain_s)
                self._group = None
                for task in self._tasks:
                    task.cancel()

    async def open(self, client: Client) -> None:
        """Take requests on this connection; the subscriptions are in place once a round trip has followed.

        Raises the client library's errors.
        """
        subscriptions = []
        for endpoint, counts in zip(self._endpoints, self._counts, strict=True):
            subscriptions.append(
                await client.subscribe(
                    endpoint.subject,
                    queue=endpoint.queue,
                    cb=self._taker(client, endpoint, counts),
                    pending_msgs_limit=PENDING_MESSAGES,
                    pending_bytes_limit=PENDING_BYTES,
                )
            )
        self._subscriptions = subscriptions

    def forget(self) -> None:
        """The connection is gone, and the subscriptions with it."""
        self._subscriptions = []

    async def show(self, client: Client) -> None:
        """Answer PING, INFO and STATS on this connection. Raises the client library's errors."""
        self._asked = []
        answers = {ServiceVerb.PING: self._ping, ServiceVerb.INFO: self._info, ServiceVerb.STATS: self._stats}
        for verb, answer in answers.items():
            for name, own_id in ((None, None), (self._name, None), (self._name, self.id)):
                subject = control_subject(verb, name, own_id)
                self._asked.append(await client.subscribe(subject, cb=self._answering(client, answer)))

    async def close(self, drain_s: float) -> None:
        """Take no more requests on this connection, and wait for those in flight, for `drain_s` at most."""
        subscriptions, self._subscriptions = self._subscriptions, []
        with suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                for subscription in subscriptions:
                    with suppress(*_ANSWER_ERRORS):  # the connection is gone, and they with it
                        await subscription.drain()  # type: ignore[no-untyped-call]
                if self._tasks:
                    await asyncio.wait(set(self._tasks))

    @property
    def is_open(self) -> bool:
        return bool(self._subscriptions)

    def _taker(self, client: Client, endpoint: Endpoint, counts: _Counts) -> Callable[[Msg], Awaitable[None]]:
        async def take(message: Msg) -> None:
            counts.requests += 1
            if not message.reply or not self._is_answerable(message.reply):
                counts.errors += 1
                counts.last_error = "request.no_reply"
                self._say_unanswerable(endpoint.name)
            elif counts.running >= MAX_RUNNING or self._group is None:
                await self._answer(client, message.reply, endpoint, endpoint.refuse("request.busy"), counts)
            else:
                counts.running += 1
                serving = self._serve(client, endpoint, message, counts)
                task = self._group.create_task(serving, name=f"bus command {endpoint.name}")
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

        return take

    async def _serve(self, client: Client, endpoint: Endpoint, message: Msg, counts: _Counts) -> None:
        began = time.perf_counter_ns()
        try:
            reply = await endpoint.handle(Call(message.data, message.headers or {}))
            await self._answer(client, message.reply, endpoint, reply, counts)
        finally:
            counts.running -= 1
            counts.nanoseconds += time.perf_counter_ns() - began

    async def _answer(self, client: Client, to: str, endpoint: Endpoint, reply: Reply, counts: _Counts) -> None:
        if len(reply.body) + HEADER_BYTES > client.max_payload:  # the broker would close the connection
            reply = endpoint.refuse("transfer.internal")
        if reply.error is not None:
            counts.errors += 1
            counts.last_error = reply.error
        try:
            await client.publish(to, reply.body, headers=reply.headers)
        except _ANSWER_ERRORS as error:  # the connection is gone: whoever asked asks again
            _log.info("bus: a command's answer was lost: %s", type(error).__name__)

    def _say_unanswerable(self, name: str) -> None:
        now = time.monotonic()
        if now - self._said_at >= LOG_EVERY_S:
            self._said_at = now
            _log.warning("bus: a command (%s) without a subject to answer on was refused; nothing was done", name)

    # -- what the tools of NATS ask ------------------------------------------------------------------------------------
    def _ping(self) -> dict[str, Any]:
        return ServicePing(self.id, self._name, self._version, self._metadata()).to_dict()

    def _info(self) -> dict[str, Any]:
        endpoints = [
            EndpointInfo(endpoint.name, endpoint.subject, endpoint.queue, endpoint.metadata)
            for endpoint in self._endpoints
            if self.is_open
        ]
        info = ServiceInfo(self._name, self.id, self._version, self._description, endpoints, self._metadata())
        return info.to_dict()

    def _stats(self) -> dict[str, Any]:
        endpoints = [
            EndpointStats(
                name=endpoint.name,
                subject=endpoint.subject,
                queue_group=endpoint.queue,
                num_requests=counts.requests,
                num_errors=counts.errors,
                processing_time=counts.nanoseconds,
                average_processing_time=counts.nanoseconds // max(1, counts.requests),
                last_error=counts.last_error,
                data={"running": counts.running},
            )
            for endpoint, counts in zip(self._endpoints, self._counts, strict=True)
            if self.is_open
        ]
        stats = ServiceStats(self.id, self._name, self._version, self._started_at, endpoints, self._metadata())
        return stats.to_dict()

    def _answering(self, client: Client, answer: Callable[[], dict[str, Any]]) -> Callable[[Msg], Awaitable[None]]:
        async def say(message: Msg) -> None:
            if message.reply and self._is_answerable(message.reply):  # as for commands: not with our permissions
                with suppress(*_ANSWER_ERRORS):
                    await client.publish(message.reply, json.dumps(answer()).encode())

        return say
