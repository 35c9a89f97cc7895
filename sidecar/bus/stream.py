"""The JetStream stream that keeps the events: what it must be, whether it is that, and what of ours it has.

An operator makes it (`docker/nats/transfer_events.json`); by a setting it is made here where it is missing. It is never
changed and never deleted: one that differs is used as it is, and said to differ.

Without JetStream, by a setting or because the broker has none, events are published all the same, at most once. What a
broker says of itself counts only as long as this node has never had a stream there: a JetStream that is gone for a
while must not make anybody believe that its events have been kept.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, Final

import msgspec
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig, StreamInfo

from sidecar.bus.connection import BusConnection
from sidecar.bus.event_message import Stored, read_headers
from sidecar.bus.link import BusDenied
from sidecar.bus.subjects import Subjects

DEFAULT_STREAM: Final = "TRANSFER_EVENTS"
DUPLICATE_WINDOW_S: Final = 600.0
MAX_AGE_S: Final = 7 * 86_400.0
MAX_BYTES: Final = 2 * 1024**3
ANSWER_S: Final = 5.0
_NOT_ENABLED: Final = (10039, 10076)  # JetStream is off, for the account or at all
_GONE: Final = (nats.js.errors.ServiceUnavailableError, nats.errors.NoRespondersError)


class Held(Exception):
    """Events wait because the stream does not take them. code: a key of `errors.CODES`."""

    def __init__(self, code: str, words: str) -> None:
        super().__init__(words)
        self.code = code
        self.words = words


class NotTold(Exception):
    """This node may not look for its events in the stream."""


class Opened(msgspec.Struct, frozen=True):
    """How events are kept. differs: what the stream should be and is not, in words; max_message_bytes: 0, no bound;
    made: when the stream was made, in Unix microseconds, which tells it from another of its name; 0: not known."""

    is_kept: bool = True  # False: core NATS, at most once
    differs: tuple[str, ...] = ()
    max_message_bytes: int = 0
    made: int = 0


def stream_config(name: str = DEFAULT_STREAM, root: str = "transfer") -> StreamConfig:
    """What the stream is to be, for one server. In a cluster: three replicas."""
    return StreamConfig(
        name=name,
        description="Events of transfer-sidecar nodes",
        subjects=[f"{root}.v1.event.>"],
        retention=RetentionPolicy.LIMITS,
        storage=StorageType.FILE,
        discard=DiscardPolicy.OLD,
        max_age=MAX_AGE_S,
        max_bytes=MAX_BYTES,
        duplicate_window=DUPLICATE_WINDOW_S,
        allow_direct=True,
        num_replicas=1,
    )


def stream_file() -> str:
    """The configuration as `nats stream add --config` takes it."""
    fields: dict[str, Any] = stream_config().as_dict()
    return json.dumps({name: value for name, value in fields.items() if value not in (None, False)}, indent=2) + "\n"


def differences(found: StreamConfig, wanted: StreamConfig) -> tuple[str, ...]:
    """What of a stream matters here and is otherwise, a few words each."""
    subjects = found.subjects or []
    missing = [subject for subject in wanted.subjects or [] if not any(covers(other, subject) for other in subjects)]
    said = [f"its subjects lack {subject}" for subject in missing]
    for name in ("retention", "storage", "discard"):
        have, want = getattr(found, name), getattr(wanted, name)
        if have is not None and str(getattr(have, "value", have)) != str(want.value):
            said.append(f"its {name} is {getattr(have, 'value', have)}, not {want.value}")
    if found.duplicate_window < wanted.duplicate_window:
        said.append(f"its duplicate window is {found.duplicate_window:g} s, less than {wanted.duplicate_window:g} s")
    if found.no_ack:
        said.append("it does not acknowledge")
    if not found.allow_direct:
        said.append("direct get is off")
    return tuple(said)


def covers(pattern: str, subject: str) -> bool:
    """Whether everything on `subject`, which may be a pattern too, is on `pattern`."""
    wanted = subject.split(".")
    for index, token in enumerate(pattern.split(".")):
        if token == ">":
            return index < len(wanted)
        if index >= len(wanted) or (token != wanted[index] and (token != "*" or wanted[index] == ">")):
            return False
    return len(pattern.split(".")) == len(wanted)


class EventStream:
    """Args: connection; subjects; name; may_create; is_wanted, False: core NATS by a setting."""

    def __init__(
        self, connection: BusConnection, subjects: Subjects, *, name: str, may_create: bool, is_wanted: bool = True
    ) -> None:
        self._connection = connection
        self._subjects = subjects
        self._wanted = stream_config(name, subjects.root)
        self.name = name
        self._may_create = may_create
        self._is_wanted = is_wanted

    async def open(self, *, had_stream: bool) -> Opened:
        """Look at the stream, and make it where that is asked for. Raises Held, BusDown."""
        if not self._is_wanted:
            return Opened(is_kept=False)
        try:
            info = await self._info()
        except nats.js.errors.NotFoundError:
            return await self._create()
        except _GONE as error:
            return self._without_jetstream(error, had_stream=had_stream)
        except nats.js.errors.APIError as error:
            if error.err_code in _NOT_ENABLED:
                return self._without_jetstream(error, had_stream=had_stream)
            raise Held("bus.stream_refuses", _words(error)) from error
        except (BusDenied, TimeoutError):  # whether it takes events shows itself
            await self._connection.settle(ANSWER_S)
            if not had_stream and not self._connection.server_info.get("jetstream"):
                return Opened(is_kept=False)
            return Opened(differs=("this node may not look at it",))
        return self._opened(info)

    async def _info(self) -> StreamInfo:
        async def ask(client: Client) -> StreamInfo:
            return await client.jsm(timeout=ANSWER_S).stream_info(self.name)

        return await self._connection.use(ask, ANSWER_S + 1, subject=f".stream.info.{self.name}")

    def _opened(self, info: StreamInfo) -> Opened:
        return Opened(
            differs=differences(info.config, self._wanted),
            max_message_bytes=max(0, info.config.max_msg_size or 0),
            made=_microseconds(info.created),
        )

    async def _create(self) -> Opened:
        if not self._may_create:
            raise Held("bus.stream_missing", f"there is no stream {self.name}")

        async def make(client: Client) -> StreamInfo:
            return await client.jsm(timeout=ANSWER_S).add_stream(self._wanted)

        try:
            subject = f".stream.create.{self.name}"
            return self._opened(await self._connection.use(make, ANSWER_S + 1, subject=subject))
        except (*_GONE, nats.js.errors.APIError, BusDenied, TimeoutError) as error:
            raise Held("bus.stream_missing", f"the stream {self.name} cannot be made: {_words(error)}") from error

    def _without_jetstream(self, error: Exception, *, had_stream: bool) -> Opened:
        """A cluster without a leader answers like a broker without JetStream; what the broker says of itself tells."""
        if self._connection.server_info.get("jetstream") and not _is_not_enabled(error):
            raise Held("bus.stream_missing", f"JetStream does not answer: {_words(error)}") from error
        if had_stream:
            words = "the broker has no JetStream now, and had one before; nats.jetstream = false would give it up"
            raise Held("bus.stream_missing", words) from error
        return Opened(is_kept=False)

    async def last_stored(self) -> Stored | None:
        """This node's newest event in the stream; None: it has none of ours.

        Raises NotTold, BusDown.
        """
        headers: dict[str, Any] | None = None
        for is_direct in (True, False):

            async def ask(client: Client, is_direct: bool = is_direct) -> dict[str, Any] | None:
                found = await client.jsm(timeout=ANSWER_S).get_last_msg(
                    self.name, self._subjects.all_events, direct=is_direct
                )
                return dict(found.headers or {})

            try:
                headers = await self._connection.use(ask, ANSWER_S + 1, subject=f".get.{self.name}")
            except nats.js.errors.NotFoundError:
                return None
            except (*_GONE, nats.js.errors.APIError, BusDenied, TimeoutError):
                continue
            break
        if headers is None:
            await self._connection.settle(ANSWER_S)
            raise NotTold
        return read_headers(self._subjects.node, headers) or Stored("", 0)


def _microseconds(at: datetime | None) -> int:
    return round(at.timestamp() * 1_000_000) if at is not None else 0


def _is_not_enabled(error: Exception) -> bool:
    return isinstance(error, nats.js.errors.APIError) and error.err_code in _NOT_ENABLED


def _words(error: Exception) -> str:
    if isinstance(error, nats.js.errors.APIError):
        return f"{error.description} ({error.err_code})"
    return str(error) or type(error).__name__
