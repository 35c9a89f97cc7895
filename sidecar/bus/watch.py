"""Listening to transfers on the bus, for consumers: `transfer-sidecar watch`, the demo, a panel.

    async with Watch(settings, [event_filter()], stream=EVENT_STREAM) as events:
        async for happened in events: ...

With a stream, a consumer of its own tells first the newest event of each subject, which is the present state, and then
what happens. Without one (no JetStream, no such stream, no permission) only what happens is heard, and `live_only` says
why. Either survives restarts of the broker: whenever there is a new connection the present state is told again, or,
with `resumes`, everything since the last event that arrived.

The consumer is pulled from, and pulled by hand. A pushed one needs answers to the broker's flow control, which is one
more permission; the library's own fetch waits for a full batch, or leaves the events that it has lying. It is never
deleted, because a permission to delete one's own consumer is one to delete everybody's: the broker forgets it
`FORGOTTEN_AFTER_S` after the last request, whatever ended this process.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import uuid
from collections.abc import Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Final, Self

import msgspec
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js.api import AckPolicy, ConsumerConfig, ConsumerInfo, DeliverPolicy

from sidecar.bus.connection import BusConnection
from sidecar.bus.events import BusEvent, NoEvent, read_event, root_of
from sidecar.bus.settings import BusSettings
from sidecar.bus.stream import DEFAULT_STREAM
from sidecar.views import EventKind

_log = logging.getLogger(__name__)

EVENT_STREAM: Final = DEFAULT_STREAM
MAX_WAITING: Final = 2_048  # events between the broker and a consumer, of about 1 KiB and at most 64
BATCH: Final = 256  # events that are asked for at once; there is room for all of them then
FORGOTTEN_AFTER_S: Final = 5.0
_REQUEST_S: Final = 30.0  # one request for events waits so long at the broker
_HEARTBEAT_S: Final = 5.0  # meanwhile it says that it still does
_SILENCE_S: Final = 2.5 * _HEARTBEAT_S
_API_S: Final = 2.0
_FLUSH_S: Final = 5
_AGAIN_S: Final = 2.0  # a stream that is missing may be made at any time
_PULL_BYTES: Final = 4 * 1024 * 1024
_BUS_ERRORS: Final = (nats.errors.Error, OSError, TimeoutError)
_NANOSECONDS: Final = 1_000_000_000


class Heard(msgspec.Struct, frozen=True):
    """An event with what came beside it. headers: names in lower case."""

    event: BusEvent
    headers: dict[str, str]
    body: bytes


class _Inbox:
    """Where one client's requests are answered. The library's own waiting costs two tasks for each message."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self._arrived: asyncio.Queue[Msg] = asyncio.Queue()  # never more than what was asked for

    async def put(self, message: Msg) -> None:
        self._arrived.put_nowait(message)

    async def get(self, within_s: float) -> Msg:
        """The next message. Raises TimeoutError."""
        if not self._arrived.empty():
            return self._arrived.get_nowait()
        async with asyncio.timeout(within_s):
            return await self._arrived.get()


class _ConsumerLost(Exception):
    """The broker no longer has our consumer, or its stream."""


class Watch:
    """Args: settings of the broker; subjects: filters of one root, see `subjects.event_filter`; stream: where the past
    is kept, or None to hear the present only; resumes: after a lost connection nothing is left out (with a stream)."""

    def __init__(
        self, settings: BusSettings, subjects: str | Sequence[str], *, stream: str | None = None, resumes: bool = False
    ) -> None:
        self._subjects = [subjects] if isinstance(subjects, str) else list(subjects)
        self._root = root_of(self._subjects[0])
        self._stream = stream
        self._resumes = resumes
        self._waiting: asyncio.Queue[Heard] = asyncio.Queue(MAX_WAITING)
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._caught_up = asyncio.Event()
        self._connection = BusConnection(settings, on_connected=self._begin)
        self._following: asyncio.Task[None] | None = None
        self._last: tuple[int, datetime] | None = None  # number and time in the stream of the last event that arrived
        self._known: tuple[int, datetime] | None = None  # the same, until it arrives again first of all
        self._live_only = "" if stream else "no stream is asked for"
        self._is_barred = False
        self.refused = 0
        """Messages so far that were no events."""

    @property
    def is_connected(self) -> bool:
        return self._connection.is_connected

    @property
    def connections(self) -> int:
        return self._connection.connections

    @property
    def last_error(self) -> str:
        """Why there is no connection; empty while there is one."""
        return self._connection.last_error

    @property
    def live_only(self) -> str:
        """Why the present state is not known, in words; empty where it is told first."""
        return self._live_only

    @property
    def is_caught_up(self) -> bool:
        """Whether all that was kept before the first connection has arrived here."""
        return self._caught_up.is_set()

    async def wait_connected(self) -> None:
        """Return once events published from now on arrive here."""
        await self._connection.wait_connected()

    async def wait_caught_up(self) -> None:
        """Return once the caller has taken all that was kept before the first connection. Never, where live only."""
        await self._connection.wait_connected()
        await self._caught_up.wait()
        await self._waiting.join()

    async def __aenter__(self) -> Self:
        await self._connection.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end_following()
        await self._connection.__aexit__(kind, error, trace)
        await self._end_following()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> BusEvent:
        return (await self.next_heard()).event

    async def next_with_headers(self) -> tuple[BusEvent, dict[str, str]]:
        """The next event and its headers, names in lower case."""
        heard = await self.next_heard()
        return heard.event, heard.headers

    async def next_heard(self) -> Heard:
        """The next event. Ends only by being cancelled."""
        heard = await self._waiting.get()
        self._waiting.task_done()
        if self._waiting.qsize() <= MAX_WAITING - BATCH:
            self._has_room.set()
        return heard

    # with each new connection

    async def _begin(self, client: Client) -> None:
        await self._end_following()
        if self._stream is None:
            await self._listen(client)
            return
        inbox = _Inbox(client.new_inbox() + ".")
        await client.subscribe(inbox.prefix + "*", cb=inbox.put, pending_msgs_limit=4 * BATCH)
        consumer = await self._try_consumer(client, self._stream)
        live = [] if consumer else await self._listen(client)
        if not self._is_barred:
            following = self._follow(client, inbox, self._stream, consumer, live)
            self._following = asyncio.create_task(following, name="bus watch")

    async def _end_following(self) -> None:
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
            self._following = None

    async def _listen(self, client: Client) -> list[Subscription]:
        """Hear what happens; all of it, or, where the user may not, the statuses."""
        live, is_denied = await self._subscribe(client, self._subjects)
        if is_denied:
            more, is_denied = await self._subscribe(client, [_statuses(subject) for subject in self._subjects])
            live += more
            self._live_only += ", and hears no events at all" if is_denied else ", and statuses only"
        return live

    async def _subscribe(self, client: Client, subjects: Sequence[str]) -> tuple[list[Subscription], bool]:
        """The subscriptions, and whether the broker refuses any of them."""
        denied = self._denied
        made = [
            await client.subscribe(subject, cb=self._take_live, pending_bytes_limit=4 * _PULL_BYTES)
            for subject in subjects
        ]
        for _ in range(2):  # the first may be answered before the subscriptions are sent
            await client.flush(timeout=_FLUSH_S)
        return made, self._denied > denied

    @property
    def _denied(self) -> int:
        return int(self._connection.facts()["denied"])

    # from the stream

    async def _follow(
        self, client: Client, inbox: _Inbox, stream: str, consumer: str | None, live: list[Subscription]
    ) -> None:
        """Until cancelled, or the client is closed: the connection's supervisor makes the next one.

        Args: consumer: a first one; live: what is listened to where there is none.
        """
        while not client.is_closed:
            try:
                if consumer is None:
                    await asyncio.sleep(_AGAIN_S)  # what is missing may be made, what does not answer may recover
                    live = live or await self._listen(client)
                    consumer = await self._try_consumer(client, stream)
                else:
                    for subscription in live:
                        await subscription.unsubscribe()
                    live = []
                    await self._pull(client, inbox, stream, consumer)
            except (_ConsumerLost, *_BUS_ERRORS) as lost:
                _log.info("bus watch: the consumer is lost: %s", lost)
                consumer = None

    async def _try_consumer(self, client: Client, stream: str) -> str | None:
        """Its name; None where none is to be had, and `live_only` says why. Raises where the connection is gone."""
        denied = self._denied
        try:
            name = await self._make_consumer(client, stream)
        except _BUS_ERRORS as error:
            if not client.is_connected:
                raise
            self._is_barred = self._denied > denied  # which stays so: no use in asking again
            self._live_only = "this user may not follow the stream" if self._is_barred else _why(error, stream)
            return None
        self._is_barred, self._live_only = False, ""
        return name

    async def _make_consumer(self, client: Client, stream: str) -> str:
        """Its name. Raises errors of the library."""
        if self._resumes and self._last is not None:
            # from the last one itself, which shows that the stream is still the same
            info = await self._add_consumer(
                client, stream, deliver_policy=DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=self._last[0]
            )
            if info.num_pending:
                self._known = self._last
                return info.name
            self._last = None  # a younger stream of the same name, or one that was emptied
        info = await self._add_consumer(client, stream, deliver_policy=DeliverPolicy.LAST_PER_SUBJECT)
        if not info.num_pending:
            self._caught_up.set()
        return info.name

    async def _add_consumer(self, client: Client, stream: str, **policy: Any) -> ConsumerInfo:
        config = ConsumerConfig(
            name=f"watch-{uuid.uuid4().hex}",
            description="transfer-sidecar watch",
            ack_policy=AckPolicy.NONE,
            filter_subject=self._subjects[0] if len(self._subjects) == 1 else None,
            filter_subjects=self._subjects if len(self._subjects) > 1 else None,
            inactive_threshold=FORGOTTEN_AFTER_S,
            num_replicas=1,
            mem_storage=True,
            **policy,
        )
        return await client.jetstream(timeout=_API_S).add_consumer(stream, config)

    async def _pull(self, client: Client, inbox: _Inbox, stream: str, consumer: str) -> None:
        """Raises _ConsumerLost; TimeoutError for a broker that says nothing any more; errors of the library."""
        request = json.dumps(
            {
                "batch": BATCH,
                "max_bytes": max(
                    _PULL_BYTES, 2 * client.max_payload
                ),  # a larger message would never come, nor the next
                "expires": int(_REQUEST_S * _NANOSECONDS),
                "idle_heartbeat": int(_HEARTBEAT_S * _NANOSECONDS),
            }
        ).encode()
        for number in itertools.count(1):
            await self._wait_room()
            reply = f"{inbox.prefix}{number}"  # of its own: a request that is full may yet be told its end
            await client.publish(f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}", request, reply=reply)
            left = BATCH
            while left:
                message = await inbox.get(_SILENCE_S)
                if not message.subject.startswith(
                    inbox.prefix
                ):  # the event's own; a header of a publisher is no status
                    if message.metadata.consumer == consumer:  # and not one that was given up
                        left -= 1
                        self._take_kept(message)
                elif message.subject == reply and _ends_request(message):
                    break

    async def _wait_room(self) -> None:
        if self._waiting.qsize() > MAX_WAITING - BATCH:
            self._has_room.clear()
            while not self._has_room.is_set():
                await self._has_room.wait()

    def _take_kept(self, message: Msg) -> None:
        metadata = message.metadata
        known, self._known = self._known, None
        self._last = (metadata.sequence.stream, metadata.timestamp)
        if known == self._last:
            return
        if known is not None and self._last[0] <= known[0]:
            self._last = None
            raise _ConsumerLost("the stream was made anew")
        self._take(message)
        if not metadata.num_pending:
            self._caught_up.set()

    # one message

    async def _take_live(self, message: Msg) -> None:
        if self._waiting.full():
            self._waiting.get_nowait()  # the oldest goes first
            self._waiting.task_done()
        self._take(message)

    def _take(self, message: Msg) -> None:
        try:
            event = read_event(self._root, message.subject, message.data)
        except NoEvent as reason:
            self.refused += 1
            _log.debug("bus watch: a message on %r is no event: %s", message.subject, reason)
            return
        headers: dict[str, Any] = message.headers or {}
        self._waiting.put_nowait(
            Heard(event, {name.lower(): str(value) for name, value in headers.items()}, message.data)
        )


def _statuses(subject: str) -> str:
    """A filter narrowed to statuses."""
    words = subject.split(".")
    return ".".join([*words[:-3], EventKind.STATUS.value, *words[-2:]])


def _ends_request(status: Msg) -> bool:
    """Whether a status of the broker ends the request for events that waits there. Raises _ConsumerLost."""
    headers = status.headers or {}
    code, text = headers.get("Status", ""), headers.get("Description", "")
    if code == "100":  # it still waits
        return False
    if code in ("404", "408") or (code == "409" and text in ("Batch Completed", "Message Size Exceeds MaxBytes")):
        return True
    raise _ConsumerLost(f"{code} {text}")


def _why(error: Exception, stream: str) -> str:
    """Why there is no consumer, in words."""
    match error:
        case nats.js.errors.NotFoundError():
            return f"there is no stream {stream}"
        case nats.errors.NoRespondersError() | nats.js.errors.ServiceUnavailableError():
            return "the broker has no JetStream"
        case nats.errors.TimeoutError() | TimeoutError():
            return "JetStream does not answer"
        case nats.js.errors.APIError():
            return f"the broker refuses: {error.description}"
    return type(error).__name__
