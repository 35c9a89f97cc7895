"""The listening end of the API: sockets, TLS, start and orderly stop. Signals belong to the composition root."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal, cast

from starlette.types import ASGIApp
from uvicorn._types import ASGI3Application
from uvicorn.server import ServerState

from sidecar.errors import HostFailed
from sidecar.wire.certificate import RenewedCertificate
from sidecar.wire.flow import WireLimits
from sidecar.wire.hangup import HangupWatch
from sidecar.wire.server import SidecarProtocol, WireConfig, is_nothing, is_transfer_upload

MAX_CONNECTIONS: Final = 512  # requests and WebSockets at once; from there on 503
_POLL_S: Final = 0.01
_POLLS: Final = 500  # aborted connections are gone at once; this only bounds a bug


class ApiServer:
    """One listening address. `start` once, `stop` once, in one event loop."""

    def __init__(
        self,
        app: ASGIApp | ASGI3Application,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tls_cert: Path | None = None,
        tls_key: Path | None = None,
        limits: WireLimits | None = None,
        is_upload: Callable[[str, str], bool] = is_transfer_upload,
        is_streamed: Callable[[str, str], bool] = is_nothing,
        max_connections: int = MAX_CONNECTIONS,
        websockets: Literal["websockets-sansio", "none"] = "websockets-sansio",
        websocket_message_bytes: int = 32 * 1024,
    ) -> None:
        self._app = cast(ASGI3Application, app)  # uvicorn writes the same protocol down in its own types
        self._host = host
        self._port = port
        self._tls_cert = tls_cert
        self._tls_key = tls_key
        self._limits = limits if limits is not None else WireLimits()
        self._is_upload = is_upload
        self._is_streamed = is_streamed
        self._max_connections = max_connections
        self._websockets = websockets
        self._websocket_message_bytes = websocket_message_bytes
        self._state = ServerState()
        self._watch: HangupWatch | None = None
        self._server: asyncio.Server | None = None

    async def start(self) -> int:
        """Listen. Returns the port.

        Raises OSError (address in use ...), HostFailed (`settings.invalid`: certificate or key).
        """
        loop = asyncio.get_running_loop()
        watch = HangupWatch(loop)
        try:
            config = WireConfig(
                self._app,
                watch=watch,
                limits=self._limits,
                is_upload=self._is_upload,
                is_streamed=self._is_streamed,
                ws=self._websockets,
                ws_max_size=self._websocket_message_bytes,
                ws_per_message_deflate=False,  # a compressed bomb is not worth the few bytes saved
                lifespan="off",
                interface="asgi3",
                log_config=None,
                access_log=False,
                proxy_headers=False,  # an address that the caller can write is no address
                server_header=False,
                date_header=False,
                limit_concurrency=self._max_connections,
                ssl_certfile=self._tls_cert,
                ssl_keyfile=self._tls_key,
            )
            certificate = self._load(config)
            if config.ssl is not None and certificate is not None:
                config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
                certificate.follow(config.ssl)
            self._server = await loop.create_server(
                lambda: SidecarProtocol(config, self._state, {}),
                self._host,
                self._port,
                ssl=config.ssl,
                ssl_handshake_timeout=self._limits.head_timeout_s if config.ssl is not None else None,
                ssl_shutdown_timeout=self._limits.linger_s if config.ssl is not None else None,
            )
        except BaseException:
            watch.close()
            raise
        self._watch = watch
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def _load(self, config: WireConfig) -> RenewedCertificate | None:
        if self._tls_cert is None:
            config.load()
            return None
        try:
            # Looked at before it is loaded: a renewal in between is noticed at the first handshake.
            certificate = RenewedCertificate(self._tls_cert, self._tls_key)
            config.load()
        except OSError as error:  # OpenSSL's own errors too, which name no file
            files = " and ".join(str(path) for path in (self._tls_cert, self._tls_key) if path is not None)
            message = f"api.tls_cert, api.tls_key: {files} cannot be used: {error.strerror or error}"
            raise HostFailed("settings.invalid", message) from error
        return certificate

    async def stop(self, grace_s: float) -> None:
        """Accept nothing new, let running requests end for `grace_s`, then cancel them and close every connection."""
        if self._server is None or self._watch is None:
            return
        self._server.close()
        for connection in list(self._state.connections):
            connection.shutdown()
        if self._state.tasks:
            _, late = await asyncio.wait(self._state.tasks, timeout=grace_s)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
        for connection in list(self._state.connections):
            connection.transport.abort()
        for _ in range(_POLLS):  # one turn of the loop is enough, three with TLS
            if not self._state.connections:
                break
            await asyncio.sleep(_POLL_S)
        await self._server.wait_closed()
        self._watch.close()
        self._server = None
