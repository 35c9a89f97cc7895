"""The node daemon beside this sidecar, over its own HTTP API on this machine: state, power, hand-over, deletion.

Three families are met (Pterodactyl, Pelican, Calagopus) and none is configured: one request without credentials to a
protected route tells them apart by the shape of the refusal and changes nothing. What the daemon answers is never taken
for more than it is: a 404 counts as "unknown server" only in the words of a daemon, and what became of a hand-over is
said only as far as the connection proves it (H1, H2).

Source: docs/PROTOCOL.md; read in the three daemons and tried against them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from enum import StrEnum
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
import msgspec

from sidecar import __version__
from sidecar.adapters.daemon_deletion import Deletions
from sidecar.adapters.daemon_hand_over import hand_over_pieces, mint_token
from sidecar.adapters.daemon_socket import accepts_token, sees_transferring
from sidecar.engine.backups import BackupForm
from sidecar.errors import HostFailed
from sidecar.ports import CarriedFile, Carries, Delivery, FilePlace
from sidecar.wire import multipart

log = logging.getLogger(__name__)

HAND_OVER_S: Final = 900.0  # Calagopus repeats its panel call for up to 500 s; an image may have to be pulled before
_MAX_ANSWER_BYTES: Final = 4 * 1024 * 1024  # one server with its configuration is some 10 kB
_MAX_SAID: Final = 200
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


class DaemonKind(StrEnum):
    PTERODACTYL = "pterodactyl"
    PELICAN = "pelican"
    CALAGOPUS = "calagopus"
    UNKNOWN = "unknown"


class DaemonState(StrEnum):
    """A server's state in the words of all three families."""

    OFFLINE = "offline"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"


class PowerAction(StrEnum):
    START = "start"
    STOP = "stop"
    RESTART = "restart"
    KILL = "kill"


class _Server(msgspec.Struct, frozen=True):
    state: DaemonState


class _Named(msgspec.Struct, frozen=True):
    uuid: str


class _Listed(msgspec.Struct, frozen=True):
    configuration: _Named


class _Refusal(msgspec.Struct, frozen=True):
    error: str
    code: str | None = None  # a sidecar's


_SERVER: Final = msgspec.json.Decoder(_Server)
_LISTED: Final = msgspec.json.Decoder(list[_Listed])
_REFUSAL: Final = msgspec.json.Decoder(_Refusal)
_UNKNOWN_SERVER: Final = frozenset({"The requested resource does not exist on this instance.", "server not found"})


class HttpDaemon:
    """Fulfils `ports.Daemon`. Close it with `close` or as a context manager.

    Args: `url` its API on this machine; `token` the node's token, presented and signed with; `origin` the panel's URL,
    without which two families accept no WebSocket and `is_stuck` cannot see; `volume_path` where a server's files are:
    without it `forget` refuses; `hand_over_s` how long an answer to the hand-over is waited for; `forget_s` how long a
    deletion may take, `idle_s` how long one must have rested whose daemon was restarted; `stuck_s` how long the sign
    that a server is free may take, for which the daemon may have to measure the volume.

    Memory: one answer at a time and call, at most 4 MiB.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str,
        origin: str = "",
        volume_path: Callable[[str], Path] | None = None,
        call_timeout_s: float = 10.0,
        hand_over_s: float = HAND_OVER_S,
        forget_s: float = 120.0,
        idle_s: float = 10.0,
        stuck_s: float = 10.0,
        poll_s: float = 0.25,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.url = url.rstrip("/")
        self._token = token
        self._origin = origin
        self._volume_path = volume_path
        self._call_timeout_s = call_timeout_s
        self._hand_over_s = hand_over_s
        self._stuck_s = stuck_s
        self._now = now
        self._kind: DaemonKind | None = None
        self.absences = 0  # how often nobody listened at its port
        self._deletions = Deletions(self, forget_s=forget_s, idle_s=idle_s, poll_s=poll_s)
        self._client = self._new_client(call_timeout_s)

    def _new_client(self, timeout_s: float | None) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            headers={"Accept": "application/json", "User-Agent": f"transfer-sidecar/{__version__}"},
            timeout=httpx.Timeout(timeout_s, connect=self._call_timeout_s),
            follow_redirects=False,
            verify=self._checks_certificate,
            trust_env=False,  # it is on this machine
        )

    @property
    def _checks_certificate(self) -> bool:
        """On loopback nobody can stand between, and the certificate names the node's public address."""
        parts = urlsplit(self.url)
        return parts.scheme == "https" and parts.hostname not in _LOOPBACK

    async def __aenter__(self) -> HttpDaemon:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    # ---- what it is ------------------------------------------------------------------------------------------------

    async def kind(self) -> DaemonKind:
        """Which family it is; asked once, and again after any trouble, because daemons are replaced.

        Raises HostFailed (`daemon.unreachable`).
        """
        if self._kind is None or self._kind is DaemonKind.UNKNOWN:
            status, headers, body = await self._call("GET", "/api/system", authorized=False)
            self._kind = kind_of(status, headers, body)
            log.info("the node daemon at %s is of kind %s", self.url, self._kind)
        return self._kind

    async def check(self) -> None:
        """Return when it is a daemon of a known kind that accepts this node's token.

        Raises HostFailed (`daemon.unreachable`, `daemon.strange`, `daemon.refused`).
        """
        if await self.kind() is DaemonKind.UNKNOWN:
            raise HostFailed("daemon.strange", f"what answers at {self.url} is no node daemon of a known kind")
        status, _, body = await self._call("GET", "/api/system")
        if status != httpx.codes.OK:
            raise self._refused("tell about itself", status, body)

    # ---- one server ------------------------------------------------------------------------------------------------

    async def state(self, server: str) -> DaemonState | None:
        """The server's state, or None where the daemon says that it has no such server.

        Raises HostFailed (`daemon.*`): then nothing may be assumed.
        """
        status, _, body = await self._call("GET", f"/api/servers/{server}")
        if status == httpx.codes.NOT_FOUND and _said(body) in _UNKNOWN_SERVER:
            return None
        if status != httpx.codes.OK:
            raise self._refused("show a server", status, body)
        try:
            return _SERVER.decode(body).state
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            self._kind = None
            raise HostFailed("daemon.strange", f"the node daemon's answer is not a server: {error}") from error

    async def power(self, server: str, action: PowerAction, *, wait_s: int = 0) -> None:
        """Ask for a power action. Accepted says nothing about its outcome: look at the state.

        Args: `wait_s` how long the daemon may keep it back behind the action before it, at most 300. Without, two
        families accept one that comes meanwhile and drop it, and one keeps it for ever.
        Raises HostFailed (`daemon.*`).
        """
        asked = {"action": action.value, "wait_seconds": wait_s}
        status, _, body = await self._call("POST", f"/api/servers/{server}/power", json=asked)
        if not 200 <= status < 300:
            raise self._refused(f"{action} a server", status, body)

    async def knows(self, server: str) -> bool | None:
        try:
            return await self.state(server) is not None
        except HostFailed as error:
            log.info("whether the node daemon knows server %s: %s", server, error.message)
            return None

    # ---- the hand-over ---------------------------------------------------------------------------------------------

    async def carries(self) -> Carries:
        """As `ports.Daemon.carries`. Raises HostFailed (`daemon.unreachable`, `daemon.strange`)."""
        match await self.kind():
            case DaemonKind.PELICAN:
                return Carries(frozenset(FilePlace), frozenset({FilePlace.BACKUPS}))
            case DaemonKind.CALAGOPUS:
                return Carries(frozenset(FilePlace))
            case DaemonKind.PTERODACTYL:
                return Carries()
            case _:
                raise HostFailed("daemon.strange", f"what answers at {self.url} is no node daemon of a known kind")

    async def hand_over(self, server: str, files: Sequence[CarriedFile] = ()) -> Delivery:
        """As `ports.Daemon.hand_over`: looks first, sends once, and says only what the connection proves.

        If cancelled: it may have been sent.
        """
        try:
            known = await self.state(server) is not None
            kind = await self.kind()
        except HostFailed as error:
            log.warning("server %s is not handed over: %s", server, error.message)
            return Delivery.UNSENT
        if known or kind is DaemonKind.UNKNOWN:
            reason = "the node daemon knows it already" if known else "what answers is no known kind of node daemon"
            log.warning("server %s is not handed over: %s", server, reason)
            return Delivery.UNSENT
        token = mint_token(
            server, key=self._token, audience=self.url, now_s=int(self._now()), valid_s=self._hand_over_s
        )
        is_calagopus, boundary = kind is DaemonKind.CALAGOPUS, multipart.new_boundary()
        pieces = hand_over_pieces(
            boundary,
            form=BackupForm.CALAGOPUS if is_calagopus else BackupForm.PELICAN,
            files=files if kind is not DaemonKind.PTERODACTYL else (),
            types_tar=is_calagopus,
        )
        headers = {
            "Authorization": f"Bearer {token}",
            "Content-Type": f"multipart/form-data; boundary={boundary.decode('ascii')}",
        }
        # Without files the body is a few hundred bytes, and has a length.
        body = b"".join(pieces) if not files else None
        return await self._send_hand_over(server, headers, pieces if body is None else iter([body]), is_whole=not files)

    async def _send_hand_over(
        self, server: str, headers: dict[str, str], pieces: Iterator[bytes], *, is_whole: bool
    ) -> Delivery:
        """On a connection of its own: one that was kept could be dead, and then nobody knows whether it was sent.

        The time-out counts from the last piece that the daemon took.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._hand_over_s) as patience, self._new_client(None) as client:

                def went_on() -> None:
                    patience.reschedule(loop.time() + self._hand_over_s)

                content = next(pieces) if is_whole else _streamed(pieces, went_on)
                async with client.stream(
                    "POST", f"{self.url}/api/transfers", content=content, headers=headers
                ) as response:
                    said = await _read(response)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            log.warning("server %s is not handed over: the node daemon cannot be reached: %s", server, error)
            self._kind = None
            return Delivery.UNSENT
        except TimeoutError:
            log.warning("the node daemon did not answer the hand-over of server %s in %g s", server, self._hand_over_s)
            return Delivery.UNANSWERED
        except (httpx.HTTPError, OSError, HostFailed) as error:
            log.warning("the node daemon's answer to the hand-over of server %s was lost: %r", server, error)
            self._kind = None
            return Delivery.UNANSWERED
        level = logging.INFO if response.status_code == httpx.codes.OK else logging.WARNING
        log.log(level, "the node daemon answered the hand-over of server %s: %d %s", server, response.status_code,
                _shown(said))  # fmt: skip
        return Delivery.ACCEPTED if response.status_code == httpx.codes.OK else Delivery.ANSWERED

    async def forget(self, server: str) -> None:
        """As `ports.Daemon.forget` and `daemon_deletion.Deletions.forget`."""
        if self._volume_path is None:
            raise HostFailed("daemon.refused", "without the volumes' directory no server is deleted at the daemon")
        await self._deletions.forget(server, self._volume_path(server))

    async def knows_server(self, server: str) -> bool:
        """As `state`."""
        return await self.state(server) is not None

    async def delete(self, server: str) -> int | HostFailed:
        """As `daemon_deletion.Answers.delete`."""
        status, _, body = await self._call("DELETE", f"/api/servers/{server}")
        is_done = 200 <= status < 300 or status == httpx.codes.NOT_FOUND
        return status if is_done else self._refused("delete a server", status, body)

    async def was_started_after(self, time_s: float) -> bool:
        """Whether it takes a console's token of now, and none of that time: they refuse what is older than they are.

        Both are asked twice, in turns: where a refusal is a closed socket, one that broke by chance must prove nothing.
        It takes any other server of the daemon to ask, and the panel's address. Looking changes nothing.
        """
        issued_s = int(time_s) + 1
        now_s = int(self._now())
        if now_s <= issued_s or not self._origin:
            return False
        with suppress(HostFailed):
            status, _, body = await self._call("GET", "/api/servers")
            if status != httpx.codes.OK:
                return False
            try:
                servers = _LISTED.decode(body)
            except (msgspec.MsgspecError, ValueError, RecursionError):
                return False
            for listed in servers[:1]:
                asked = partial(
                    accepts_token,
                    self.url,
                    listed.configuration.uuid,
                    key=self._token,
                    origin=self._origin,
                    now_s=now_s,
                    wait_s=self._call_timeout_s,
                    checks_certificate=self._checks_certificate,
                    closes=await self.kind() is DaemonKind.CALAGOPUS,
                )
                for _ in range(2):
                    if await asked(issued_s=now_s) is not True or await asked(issued_s=issued_s) is not False:
                        return False
                return await asked(issued_s=now_s) is True
        return False

    async def is_stuck(self, server: str) -> bool | None:
        """As `ports.Daemon.is_stuck`. Ask only after the hand-over was answered.

        No family shows it in its API. Pterodactyl and Pelican tell a console that connects the statistics of a server
        that is offline, unless it is being transferred. Calagopus answers the cancelling of a transfer with 417 where
        there is none; where there is one it lets go of the server, which is what it was asked for, so it is not stuck
        afterwards.
        """
        try:
            kind, state = await self.kind(), await self.state(server)
            if state is None or state is not DaemonState.OFFLINE:
                return False  # it was started: no family starts a server that it holds
            if kind is DaemonKind.CALAGOPUS:
                return await self._let_go(server)
            if kind is DaemonKind.UNKNOWN or not self._origin:
                return None
            return await sees_transferring(
                self.url,
                server,
                key=self._token,
                origin=self._origin,
                now_s=int(self._now()),
                wait_s=self._stuck_s,
                checks_certificate=self._checks_certificate,
            )
        except HostFailed as error:
            log.info("whether the node daemon holds server %s: %s", server, error.message)
            return None

    async def _let_go(self, server: str) -> bool | None:
        status, _, _ = await self._call("DELETE", f"/api/servers/{server}/transfer")
        if 200 <= status < 300:
            log.warning("the node daemon held server %s as transferring, and has let go of it", server)
            return False
        return False if status == httpx.codes.EXPECTATION_FAILED else None

    # ---- calls -----------------------------------------------------------------------------------------------------

    async def _call(
        self, method: str, path: str, *, json: dict[str, Any] | None = None, authorized: bool = True
    ) -> tuple[int, httpx.Headers, bytes]:
        """One request, one deadline. Raises HostFailed (`daemon.unreachable`, `daemon.strange`)."""
        headers = {"Authorization": f"Bearer {self._token}"} if authorized else {}
        try:
            async with (
                asyncio.timeout(self._call_timeout_s),
                self._client.stream(method, self.url + path, json=json, headers=headers) as response,
            ):
                return response.status_code, response.headers, await _read(response)
        except TimeoutError as error:
            self._kind = None
            message = f"the node daemon did not answer within {self._call_timeout_s:g} s"
            raise HostFailed("daemon.unreachable", message) from error
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            self._kind = None
            self.absences += _was_refused(error)
            said = str(error) or type(error).__name__
            raise HostFailed("daemon.unreachable", f"the node daemon cannot be reached: {said}") from error

    def _refused(self, what: str, status: int, body: bytes) -> HostFailed:
        self._kind = None
        if _said(body) is None and status not in (401, 403) and status < 500:
            return HostFailed("daemon.strange", f"asked to {what}, the node daemon answered {status}", status=status)
        return HostFailed(
            "daemon.refused", f"the node daemon refused to {what}: {status} {_shown(body)}".rstrip(), status=status
        )


def kind_of(status: int, headers: httpx.Headers, body: bytes) -> DaemonKind:
    """Which family answers a protected route without credentials like this.

    Pelican names itself in a `User-Agent` header of its answers; the two Go daemons number their requests; Calagopus
    does neither and has words of its own. A sidecar answers in Pterodactyl's words, with a code.
    """
    try:
        refusal = _REFUSAL.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return DaemonKind.UNKNOWN
    if status != httpx.codes.UNAUTHORIZED or refusal.code is not None:
        return DaemonKind.UNKNOWN
    if refusal.error == "invalid authorization header":
        return DaemonKind.CALAGOPUS
    if "X-Request-Id" not in headers or not refusal.error.startswith("The required authorization head"):
        return DaemonKind.UNKNOWN
    is_pelican = headers.get("User-Agent", "").startswith("Pelican")
    return DaemonKind.PELICAN if is_pelican else DaemonKind.PTERODACTYL


def _said(body: bytes) -> str | None:
    """The sentence of a daemon's refusal; None where it is not the daemon that speaks."""
    try:
        return _REFUSAL.decode(body).error
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def _shown(body: bytes) -> str:
    return (_said(body) or body.decode("utf-8", "replace"))[:_MAX_SAID]


def _was_refused(error: BaseException | None) -> bool:
    """Whether nobody listened: this host's kernel said so, and not a lack of anything on our side."""
    while error is not None:
        if isinstance(error, ConnectionRefusedError):
            return True
        if isinstance(error, BaseExceptionGroup) and any(_was_refused(one) for one in error.exceptions):
            return True
        error = error.__cause__ or error.__context__
    return False


async def _streamed(pieces: Iterator[bytes], went_on: Callable[[], None]) -> AsyncIterator[bytes]:
    """The pieces, each made in a thread, one at a time."""
    while True:
        making = asyncio.ensure_future(asyncio.to_thread(next, pieces, b""))
        try:
            piece = await asyncio.shield(making)
        except asyncio.CancelledError:
            await asyncio.wait([making])  # the thread reads from the disk, and ends by itself
            raise
        went_on()
        if not piece:
            return
        yield piece


async def _read(response: httpx.Response) -> bytes:
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > _MAX_ANSWER_BYTES:
            raise HostFailed("daemon.strange", f"the node daemon's answer is longer than {_MAX_ANSWER_BYTES} bytes")
    return bytes(body)
