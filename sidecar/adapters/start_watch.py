"""Notices that a server was started by somebody else, from the engine's event stream.

The stream is opened first and the engine looked at afterwards, so nothing falls between them; the same after each loss
of X
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from sidecar.adapters.docker_engine import DockerEngine, Document, EventStream
from sidecar.adapters.server_containers import ServerContainers
from sidecar.errors import HostFailed

_STARTS: Final = {"type": ["container"], "event": ["start", "restart", "unpause"]}


class StartWatch:
    """One watch of one server. `run` in a thread; `close` from any other."""

    def __init__(
        self,
        engine: DockerEngine,
        servers: ServerContainers,
        server: str,
        has_run_since: Callable[[str, Document], bool],
        *,
        reconnect_s: float,
    ) -> None:
        self._engine = engine
        self._servers = servers
        self._server = server
        self._has_run_since = has_run_since
        self._reconnect_s = reconnect_s
        self._container: str | None = None
        self._stream: EventStream | None = None
        self._closed = threading.Event()
        self._changing = threading.Lock()

    def run(self) -> bool:
        """Return True when the server was started, False when closed. Raises nothing for a lost engine."""
        while not self._closed.is_set():
            try:
                if self._watch():
                    return True
            except HostFailed:
                pass  # an engine that is away starts nothing; it is asked again
            self._closed.wait(self._reconnect_s)
        return False

    def close(self) -> None:
        """Make `run` return soon."""
        with self._changing:
            self._closed.set()
            if self._stream is not None:
                self._stream.close()

    def _watch(self) -> bool:
        stream = self._engine.events(_STARTS)
        try:
            with self._changing:
                if self._closed.is_set():
                    return False
                self._stream = stream
            if self._is_started():
                return True
            return any(self._is_own(event) or self._is_started() for event in stream)
        finally:
            with self._changing:
                self._stream = None
            stream.discard()

    def _is_started(self) -> bool:
        found = self._servers.find(self._server)
        if found.is_running or found.strangers:
            return True
        if found.id is None:
            return False
        self._container = found.id
        details = self._engine.inspect(found.id)
        return details is not None and self._has_run_since(self._server, details)

    def _is_own(self, event: Document) -> bool:
        return self._container is not None and (event.get("Actor") or {}).get("ID") == self._container
