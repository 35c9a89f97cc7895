"""How the unmodified daemons take part in a transfer as its destination, and what they make of the panel's answers."""

from __future__ import annotations

import asyncio
import logging
import uuid
from pathlib import Path
from typing import Protocol

import jwt
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from sidecar.demo import daemon_words as words
from sidecar.demo.daemon_panel import PanelCalls
from sidecar.demo.daemon_receipt import ReceiptFailed, Shelves, file_parts, parts_of, receive
from sidecar.demo.daemon_servers import DaemonServer, Power
from sidecar.demo.loopback import Dropped
from sidecar.demo.panel_documents import Family

log = logging.getLogger(__name__)


class Receiving(Protocol):
    """What a reception needs of its daemon."""

    family: Family
    panel: PanelCalls
    power: Power
    servers: list[DaemonServer]
    booted: float
    shelves: Shelves

    def find(self, server: str) -> DaemonServer | None: ...

    def volume_path(self, server: str) -> Path: ...

    def unregister(self, server: str) -> None: ...

    def destroy(self, server: str) -> None: ...

    def die(self) -> None: ...


class Reception:
    """Of one daemon. `owner` of the files; None: the process's own."""

    def __init__(self, daemon: Receiving, *, token: str, owner: tuple[int, int] | None) -> None:
        self._daemon = daemon
        self._token = token
        self._owner = owner

    async def take(self, request: Request) -> Response:
        """`POST /api/transfers`."""
        daemon, family = self._daemon, self._daemon.family
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme != "Bearer" or not token:
            return words.no_header(family, is_transfer=True)
        subject = self._subject(token)
        if isinstance(subject, Response):
            return subject
        if family is Family.CALAGOPUS and daemon.find(subject) is not None:
            return words.error(409, "server with this uuid already exists")
        document = await daemon.panel.configuration(subject)
        if document is None:
            # Pterodactyl trips over its own feet here; nobody tells the panel of a failure
            return Response(status_code=500) if family is Family.PTERODACTYL else words.unexpected(family)
        server = DaemonServer(subject, document, transferring=True)
        daemon.servers.append(server)
        try:
            backups = await self._receive(request, server)
        except (ReceiptFailed, ClientDisconnect) as failure:
            log.info("the transfer of server %s failed: %s", subject, failure)
            return await self._failed(server)
        if request.state.fault == "crash":
            daemon.die()
            return Dropped()
        return await self._succeeded(server, backups)

    def _subject(self, token: str) -> str | Response:
        is_calagopus = self._daemon.family is Family.CALAGOPUS
        refusal = words.error(401, "invalid token") if is_calagopus else words.unexpected(self._daemon.family)
        try:
            claims = jwt.decode(
                token, self._token, algorithms=["HS256"], options={"verify_aud": False, "require": ["exp", "sub"]}
            )
            if any(not isinstance(claims.get(name, 0), int) for name in ("exp", "iat", "nbf")):
                return refusal
            subject = str(uuid.UUID(claims["sub"]))
        except (jwt.InvalidTokenError, ValueError):
            return refusal
        if is_calagopus and (
            not isinstance(claims.get("aud"), list)
            or not {"iss", "jti"} <= claims.keys()
            or int(claims.get("iat", 0)) < int(self._daemon.booted)
        ):
            return refusal
        if self._daemon.family is Family.PELICAN and "transfer" not in str(claims.get("scope", "")).split():
            return words.error(403, "Forbidden.")
        return subject

    async def _receive(self, request: Request, server: DaemonServer) -> list[str]:
        """Returns the backups to be named. Raises ReceiptFailed, ClientDisconnect."""
        media_type, _, boundary = request.headers.get("Content-Type", "").partition("boundary=")
        if not media_type.startswith("multipart/"):
            raise ReceiptFailed("the content type is no form's")
        parts = parts_of(await request.body(), boundary.strip('"'))
        await asyncio.to_thread(receive, self._daemon.family, parts, self._daemon.volume_path(server.uuid), self._owner)
        backups = await asyncio.to_thread(file_parts, self._daemon.family, parts, server.uuid, self._daemon.shelves)
        if words.is_go(self._daemon.family):
            try:
                await self._daemon.power.make_container(server)
            except Exception as error:
                raise ReceiptFailed(f"the container cannot be made: {error}") from error
        return backups

    async def _succeeded(self, server: DaemonServer, backups: list[str]) -> Response:
        """The panel is told; the Go daemons answer 200 whatever it said."""
        is_accepted = await self._daemon.panel.tell(server.uuid, "success", backups)
        if not is_accepted:
            return (
                Response(status_code=200) if words.is_go(self._daemon.family) else words.unexpected(self._daemon.family)
            )
        server.is_transferring = False
        self._daemon.power.publish(
            server, "transfer status", "success" if words.is_go(self._daemon.family) else "completed"
        )
        return words.done(self._daemon.family, 200)

    async def _failed(self, server: DaemonServer) -> Response:
        """Calagopus keeps the server; the Go daemons forget it, and delete its files where the panel refuses."""
        if self._daemon.family is Family.CALAGOPUS:
            await self._daemon.panel.tell(server.uuid, "failure")
            return words.error(417, "failed to complete server transfer")
        self._daemon.power.publish(server, "transfer status", "failure")
        self._daemon.unregister(server.uuid)
        if await self._daemon.panel.tell(server.uuid, "failure"):
            self._daemon.power.publish(server, "transfer status", "success")
        else:
            self._daemon.destroy(server.uuid)
        return words.unexpected(self._daemon.family)
