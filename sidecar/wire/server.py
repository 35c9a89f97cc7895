"""HTTP for the REST API and for uploads: uvicorn's protocol, with what ASGI lacks.

ASGI has no way to close a connection without an answer, to leave a body unread, or to notice a caller that hangs up
while nothing is read from it; a transfer needs all three. So this subclass frames requests itself, one at a time:

- A head is collected until its blank line, within a bound and a time, and the parser is fed that head alone.
- A REST body is framed here and handed to uvicorn's request cycle. What follows it waits until the answer is out.
- A streamed body (of a request that is passed on) is such a body without a total time: only a stall ends it.
- An upload's body is not read at all: the transport stops reading, the application decides, and `take_body` hands the
  transport to a `wire.body.Body`. After its answer the connection is drained within bounds and closed.

Every scope carries a `Connection` in `scope["extensions"]["sidecar.connection"]`.

Memory per connection: `WireLimits.head_bytes` and one read of asyncio (256 KiB; TLS: 512 KiB more); an upload's body:
see `wire.body`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import socket
import struct
import uuid
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final, cast

import httptools
import uvicorn
from uvicorn._types import ASGI3Application, ASGIReceiveCallable, ASGIReceiveEvent, ASGISendCallable, Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from sidecar.errors import Refused
from sidecar.wire.body import Body, Drain
from sidecar.wire.flow import AnswerTransport, HeldFlow, WireLimits
from sidecar.wire.framing import Framing, LengthFraming, framing_of
from sidecar.wire.hangup import HangupWatch, has_hung_up

EXTENSION: Final = "sidecar.connection"
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: close() sends RST


def is_transfer_upload(method: str, path: str) -> bool:
    """The route of an upload."""
    return method == "POST" and path == "/api/transfers"


def is_nothing(method: str, path: str) -> bool:
    """For servers that pass nothing on."""
    return False


class WireConfig(uvicorn.Config):
    """uvicorn's configuration and ours. `watch` is shared by the connections of one server."""

    def __init__(
        self,
        app: ASGI3Application,
        *,
        watch: HangupWatch,
        limits: WireLimits,
        is_upload: Callable[[str, str], bool],
        is_streamed: Callable[[str, str], bool] = is_nothing,
        **options: Any,
    ) -> None:
        super().__init__(app, http=SidecarProtocol, **options)
        self.watch = watch
        self.limits = limits
        self.is_upload = is_upload
        self.is_streamed = is_streamed


class Connection:
    """The connection that a request came on. Use it in the event loop."""

    def __init__(self, protocol: SidecarProtocol) -> None:
        self._protocol = protocol

    @property
    def is_open(self) -> bool:
        """Whether the peer is still there: no FIN, no RST, not closed by us. Looked at now, not remembered."""
        return self._protocol.is_open

    @property
    def peer(self) -> str:
        """The peer's address, without its port."""
        client = self._protocol.client
        return client[0] if client else ""

    async def wait_closed(self) -> None:
        """Return once the peer has hung up or the connection is closed."""
        await self._protocol.wait_closed()

    def abort(self) -> None:
        """Close with RST and without an answer: what the application still sends goes nowhere, silently. Idempotent."""
        self._protocol.abort()

    def take_body(self, *, stall_timeout_s: float) -> Body:
        """Begin to receive the upload's body; once, and only for an upload. Answers `Expect: 100-continue`."""
        return self._protocol.take_body(stall_timeout_s)


class SidecarProtocol(HttpToolsProtocol):
    """One connection."""

    flow: HeldFlow

    def __init__(
        self,
        config: WireConfig,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._wire = config
        self._limits = config.limits
        self._fd = -1
        self._held = bytearray()  # received and not looked at yet
        self._framing: Framing | None = None  # of the REST body that is being received
        self._is_streamed = False  # that body is passed on: any size, any time, only stalls end it
        self._moved = False  # and some of it arrived since its stall timer was armed
        self._head_framing: tuple[Framing, bool] = (LengthFraming(0), False)
        self._timer: asyncio.TimerHandle | None = None
        self._closed = asyncio.Event()
        self._hung_up = False
        self._input_ended = False  # the FIN itself was read: nothing is left to drain
        self._ending = False  # the last answer is written, or the connection is not ours any more
        self._upload: RequestResponseCycle | None = None
        self._expects_continue = False
        self._body: Body | None = None
        self._body_taken = False

    # what Connection and Body ask

    @property
    def is_open(self) -> bool:
        return not (self._hung_up or self.transport.is_closing() or has_hung_up(self._fd))

    async def wait_closed(self) -> None:
        await self._closed.wait()

    def abort(self) -> None:
        self._silence_cycle()
        self._ending = True
        with contextlib.suppress(OSError, AttributeError):  # closed already
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.transport.abort()
        self._mark_hung_up()

    def take_body(self, stall_timeout_s: float) -> Body:
        if self._upload is None or self._body_taken:
            raise RuntimeError("the body of an upload is taken once, and other requests have none to take")
        self._body_taken = True
        framing, has_length = self._head_framing
        body = self._body = Body(
            self, self.transport, framing, bytes(self._held), has_length=has_length, stall_timeout_s=stall_timeout_s
        )
        self._held.clear()
        if self.transport.is_closing():
            body.abandon()
            return body
        self.transport.set_protocol(body)
        if self._expects_continue and not self._upload.response_started:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.flow.release()
        return body

    def end_of_input(self) -> None:
        """The peer's FIN was read."""
        self._input_ended = True
        self._mark_hung_up()

    # what asyncio tells

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = HeldFlow(transport)
        self._fd = transport.get_extra_info("socket").fileno()
        self._wire.watch.add(self._fd, self._on_hangup)
        limit = self.limit_concurrency
        if limit is not None and len(self.connections) > 2 * limit:  # from `limit` on requests are answered 503
            self.abort()
            return
        self._arm(self._limits.head_timeout_s, self._on_slow_head)

    def connection_lost(self, exc: Exception | None) -> None:
        self._wire.watch.remove(self._fd)
        self._disarm()
        self._unset_keepalive_if_required()
        self._ending = True
        self._held.clear()
        self._mark_hung_up()
        if self._body is not None:
            self._body.abandon()
            self._body = None  # its ring is large: no reference cycle may keep it
        super().connection_lost(exc)

    def eof_received(self) -> None:
        self.end_of_input()

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        self._held += data
        self._advance()

    def _on_hangup(self) -> None:
        self._mark_hung_up()
        self._close_if_deaf()

    def _mark_hung_up(self) -> None:
        self._hung_up = True
        self._closed.set()

    def _close_if_deaf(self) -> None:
        """With the peer gone and reading paused nobody else would tell the application. Uploads decide themselves."""
        if self._hung_up and self.flow.read_paused and self._upload is None and not self._ending:
            self._silence_cycle()
            self.transport.close()

    # requests, one at a time

    def _advance(self) -> None:
        try:
            while not self._ending and self._upload is None and self._step():
                pass
        except (Refused, httptools.HttpParserError) as error:
            self._refuse(400, str(error.message) if isinstance(error, Refused) else "Invalid HTTP request received.")

    def _step(self) -> bool:
        """Take one head or some body from what was received. Returns whether there may be more to take."""
        if self._framing is not None:
            return self._take_rest_body(self._framing)
        if self._held and self.cycle is not None and not self.cycle.response_complete:
            self.flow.hold()
            self._close_if_deaf()
            return False
        while self._held.startswith(b"\r\n"):  # RFC 9112 2.2
            del self._held[:2]
        if not self._held:
            return False
        end = self._held.find(b"\r\n\r\n", 0, self._limits.head_bytes)
        if end < 0:
            if len(self._held) >= self._limits.head_bytes:
                self._refuse(431, f"The head of the request is longer than {self._limits.head_bytes} bytes.")
            elif self._timer is None:
                self._arm(self._limits.head_timeout_s, self._on_slow_head)
            return False
        self._disarm()
        head = bytes(self._held[: end + 4])
        del self._held[: end + 4]
        return self._take_head(head)

    def _take_head(self, head: bytes) -> bool:
        previous = self.cycle
        self.parser = httptools.HttpRequestParser(self)
        try:
            self.parser.feed_data(head)
        except httptools.HttpParserUpgrade:
            if self._should_upgrade():
                self._ending = True
                self._wire.watch.remove(self._fd)
                self.handle_websocket_upgrade()
                return False
        if self.cycle is previous:
            raise Refused("request.malformed", "Invalid HTTP request received.")
        if self._upload is not None:
            self.flow.hold()
            return False
        framing, _ = self._head_framing
        if framing.done:
            super().on_message_complete()
        else:
            self._framing = framing
            self._is_streamed = self._wire.is_streamed(self.scope["method"], self.scope["path"])
            self._arm_body()
        return True

    def _take_rest_body(self, framing: Framing) -> bool:
        while self._held and not framing.done:
            start, stop = framing.advance(self._held, 0, len(self._held))
            data = bytes(self._held[start:stop])
            del self._held[:stop]
            if data:
                self._moved = True
                self.on_body(data)
        if not framing.done:
            return False
        self._framing = None
        self._disarm()
        super().on_message_complete()
        return True

    def on_message_complete(self) -> None:
        """The parser sees heads only; where a body ends is said by its framing."""

    def on_headers_complete(self) -> None:
        self._head_framing = framing_of(self.parser.get_http_version(), self.headers)
        cast("dict[str, Any]", self.scope)["extensions"] = {EXTENSION: Connection(self)}
        super().on_headers_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        if self._wire.is_upload(cycle.scope["method"], cycle.scope["path"]):
            self._upload = cycle
            self._expects_continue, cycle.waiting_for_100_continue = cycle.waiting_for_100_continue, False
            cycle.keep_alive = False
        cycle.transport = cast("asyncio.Transport", AnswerTransport(self))
        super()._start_asgi_task(cycle, functools.partial(self._run, cycle, app))

    async def _run(
        self,
        cycle: RequestResponseCycle,
        app: ASGI3Application,
        scope: Scope,
        receive: ASGIReceiveCallable,
        send: ASGISendCallable,
    ) -> None:
        if cycle is self._upload:
            receive = self._receive_hangup
        try:
            await app(scope, receive, send)
        except asyncio.CancelledError:  # the server stops; this is the top of the request's own task
            self.abort()
        if cycle is self._upload and not cycle.response_complete and (self._hung_up or cycle.disconnected):
            self.abort()

    async def _receive_hangup(self) -> ASGIReceiveEvent:
        await self._closed.wait()
        return {"type": "http.disconnect"}

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self._ending or self.transport.is_closing():
            return
        if self._framing is not None:  # answered before its body was read; the rest is not worth reading
            self.end_connection()
            return
        self.flow.release()
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)
        if self._held:
            self.loop.call_soon(self._advance)

    # endings

    def end_connection(self) -> None:
        """Close behind what was written, so that the peer can read it: input that is still coming is drained first."""
        if self._ending:
            return
        self._ending = True
        self._disarm()
        if self.transport.is_closing():
            return
        if self._input_ended or (self._upload is None and self._framing is None and not self._held):
            self.transport.close()
            return
        if self._body is not None:
            self._body.abandon()
        self._held.clear()
        self.transport.set_protocol(Drain(self, self.transport, self._limits.linger_bytes))
        self._arm(self._limits.linger_s, self.abort)
        if self.transport.can_write_eof():
            with contextlib.suppress(OSError):  # reset by the peer meanwhile
                self.transport.write_eof()
        self.flow.release()
        self.transport.resume_reading()  # a full Body had paused it behind the flow's back

    def _refuse(self, status: int, message: str) -> None:
        """Answer what never became a request, and close."""
        if self._ending:
            return
        if not self._silence_cycle():
            body = json.dumps({"error": message, "code": "request.malformed", "request_id": str(uuid.uuid4())}).encode()
            head = (
                f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self._framing = LengthFraming(1)  # whatever comes is the rest of it
        self.end_connection()

    def _silence_cycle(self) -> bool:
        """What the application still sends goes nowhere. Returns whether its answer has begun."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            return False
        cycle.disconnected = True
        cycle.message_event.set()
        return cycle.response_started

    def _on_slow_head(self) -> None:
        self._timer = None
        if self._held:
            self._refuse(408, "The head of the request took too long.")
        else:
            self._ending = True
            self.transport.close()

    def _arm_body(self) -> None:
        self._moved = False
        seconds = self._limits.stream_stall_s if self._is_streamed else self._limits.body_timeout_s
        self._arm(seconds, self._on_slow_body)

    def _on_slow_body(self) -> None:
        self._timer = None
        if self._is_streamed and (self._moved or self.flow.read_paused):  # paused: who takes it on is the slow one
            self._arm_body()
            return
        self._refuse(408, "The body of the request took too long.")

    def _arm(self, seconds: float, action: Callable[[], None]) -> None:
        self._disarm()
        self._timer = self.loop.call_later(seconds, action)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
