"""A stand-in node daemon that behaves as the unmodified ones were seen to, for the demo and for tests.

It lists its servers from the panel at boot only, runs them in containers, brings back what was stopped behind its back,
and receives transfers with each family's own carelessness: the Go daemons answer 200 though the panel refused or never
heard their `success`, and hold the server as transferring from then on; a second transfer of a server they know is
registered twice; where even their `failure` is not accepted they delete the files. Calagopus answers 409, 417 and 500
as it was recorded. `restart` forgets everything that the panel does not say.

Source: docs/PROTOCOL.md.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import shutil
import time
import uuid
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, Final

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from sidecar.demo import daemon_words as words
from sidecar.demo.daemon_console import Console
from sidecar.demo.daemon_containers import Containers, FakeContainers
from sidecar.demo.daemon_panel import PanelCalls
from sidecar.demo.daemon_receipt import Shelves
from sidecar.demo.daemon_servers import DaemonServer, Power
from sidecar.demo.daemon_transfers import Reception
from sidecar.demo.loopback import Dropped, LoopbackServer
from sidecar.demo.panel_documents import Document, Family

log = logging.getLogger(__name__)

_METHODS: Final = ["GET", "POST", "PUT", "PATCH", "DELETE"]
_ACTIONS: Final = frozenset({"start", "stop", "restart", "kill"})


class DaemonCall(msgspec.Struct, frozen=True):
    """One call to the daemon, when it was answered or lost."""

    route: str
    method: str
    path: str
    status: int | None  # None: no answer


class StandInDaemon:
    """One daemon on loopback, between `start` and `stop` or as a context manager.

    `script` puts faults in front of the next calls of a route (`system`, `servers`, `server`, `power`, `delete`,
    `transfer`); each takes one call: a status such as `"500"` instead of the work, `"drop-before"` or `"drop-after"`
    the work, `"hold"` until `release` and `"hold-after"` the work, `"delay:0.5"`, `"body:..."` as the whole 200 and
    `"ok"`. A transfer knows `"crash"` too: the process dies with the files extracted and the panel untold, and every
    call is dropped until `restart`. The route `files`: `"hold"` keeps the removal of a deleted server's files waiting.

    Args: `retry_s` how long a Go daemon repeats a call to the panel, and the unit of Calagopus' pauses (really 30 s and
    1 s); `shelves` where it files backups and installation logs; `crash_delay_s` between a crash and the new container.
    """

    def __init__(
        self,
        family: Family,
        *,
        token_id: str,
        token: str,
        volumes: Path,
        panel_url: str,
        containers: Containers | None = None,
        owner: tuple[int, int] | None = None,
        panel_call_s: float = 15.0,
        retry_s: float = 0.3,
        crash_delay_s: float = 1.0,
        crash_window_s: float = 60.0,
        port: int = 0,
        shelves: Shelves | None = None,
    ) -> None:
        self.family = family
        self.url = ""
        self.calls: list[DaemonCall] = []
        self.held: list[str] = []  # routes of the calls that are held at this moment; they have come whole
        self.servers: list[DaemonServer] = []  # a server may stand there twice
        self.booted = 0.0
        self.panel = PanelCalls(
            family, panel_url, token_id=token_id, token=token, call_timeout_s=panel_call_s, retry_s=retry_s
        )
        self._token_id = token_id
        self._token = token
        self._volumes = volumes
        self.shelves = shelves or Shelves(volumes.parent / "daemon-backups", volumes.parent / "daemon-logs")
        for directory in (self.shelves.backups, self.shelves.logs):
            directory.mkdir(parents=True, exist_ok=True)
        self._panel_url = panel_url
        self._reception = Reception(self, token=token, owner=owner)
        self._tasks: set[asyncio.Task[None]] = set()
        self._faults: defaultdict[str, deque[str]] = defaultdict(deque)
        self._released = asyncio.Event()
        self._changed = asyncio.Condition()
        self._is_down = False
        self.containers = containers if containers is not None else FakeContainers()
        self.power = Power(
            family,
            self.containers,
            self.volume_path,
            self._spawn,
            self._refresh,
            crash_delay_s=crash_delay_s,
            crash_window_s=crash_window_s,
        )
        self._server = LoopbackServer(Starlette(routes=self._routes()), port=port, websockets=True)

    def _routes(self) -> list[Any]:
        one = "/api/servers/{server}"
        table: list[tuple[str, str, str, Callable[[Request], Awaitable[Response]]]] = [
            ("GET", "/api/system", "system", self._system),
            ("GET", "/api/servers", "servers", self._list),
            ("GET", one, "server", self._show),
            ("DELETE", one, "delete", self._delete),
            ("POST", f"{one}/power", "power", self._power_action),
            ("POST", f"{one}/commands", "commands", self._commands),
            ("POST", f"{one}/sync", "sync", self._sync),
            ("DELETE", f"{one}/transfer", "cancel", self._cancel),
            ("POST", "/api/transfers", "transfer", self._reception.take),
        ]
        routes: list[Any] = [
            Route(path, self._route(name, handle), methods=[method]) for method, path, name, handle in table
        ]
        routes.append(WebSocketRoute(f"{one}/ws", self._socket))
        routes.append(Route("/{path:path}", self._route("unknown", self._no_route), methods=_METHODS))
        return routes

    # ---- what the demo and tests ask -------------------------------------------------------------------------------

    async def __aenter__(self) -> StandInDaemon:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Boot, and return when it accepts connections; after a stop on the same port."""
        await self.boot()
        self.url = await self._server.start()

    async def stop(self) -> None:
        """Close the listener, end what runs in the background; containers run on, as those of the real ones do."""
        self.release()
        await self._server.stop()
        await self._end_tasks()
        await self.containers.close()

    async def die_with_its_work(self) -> None:
        """The process ends at once, with whatever it had begun; nobody listens until `start`."""
        await self._end_tasks()
        await self.stop()

    async def restart(self) -> None:
        """The process is another one now: only what the panel lists is known."""
        await self._end_tasks()
        await self.boot()

    async def boot(self) -> None:
        """List the servers from the panel; those whose containers run are running."""
        self.booted = time.time()
        self.servers = []
        for item in await self.panel.listed():
            await self._list_at_boot(item)
        self._is_down = False

    async def _list_at_boot(self, item: Document) -> None:
        document = {name: item[name] for name in ("settings", "process_configuration")}
        server = DaemonServer(str(item["settings"]["uuid"]), document)
        self.servers.append(server)
        container = await self.containers.running(server.uuid)
        if container is not None:
            self.power.watch(server, container)
            server.state = "running"

    def volume_path(self, server: str) -> Path:
        return self._volumes / server

    def find(self, server: str) -> DaemonServer | None:
        return next((known for known in self.servers if known.uuid == server), None)

    def script(self, route: str, *faults: str) -> None:
        """Faults for the next calls of a route, in order."""
        self._faults[route].extend(faults)

    def release(self) -> None:
        """Let held calls go on."""
        self._released.set()
        self._released = asyncio.Event()

    def calls_of(self, route: str) -> list[DaemonCall]:
        return [call for call in self.calls if call.route == route]

    async def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition` holds; it is looked at after each call. Bound it with a time-out."""
        async with self._changed:
            await self._changed.wait_for(condition)

    # ---- calls, faults ---------------------------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _end_tasks(self) -> None:
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _route(
        self, route: str, handle: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            response = await self._answer(route, handle, request)
            if self._is_down:
                response = Dropped()
            if not isinstance(response, Dropped):
                is_protected = route not in ("transfer", "unknown")
                for name, value in words.headers_of(self.family, self._token_id, protected=is_protected).items():
                    response.headers[name] = value
            status = None if isinstance(response, Dropped) else response.status_code
            self.calls.append(DaemonCall(route, request.method, request.url.path, status))
            async with self._changed:
                self._changed.notify_all()
            return response

        return answer

    async def _answer(self, route: str, handle: Callable[[Request], Awaitable[Response]], request: Request) -> Response:
        if self._is_down:
            return Dropped()
        is_protected = route not in ("transfer", "unknown")
        refusal = self._refusal(request) if is_protected else None
        if refusal is not None:
            return refusal
        fault = self._next_fault(route)
        released = self._released  # a release while the call is still at work counts for its hold behind it
        if fault == "hold":
            await request.body()
            await self._hold(route, released)
        elif fault.startswith("delay:"):
            await asyncio.sleep(float(fault.removeprefix("delay:")))
        elif fault.isdigit():
            return words.error(int(fault), "Something went wrong.")
        elif fault.startswith("body:"):
            return Response(fault.removeprefix("body:"), media_type="application/json")
        elif fault == "drop-before":
            return Dropped()
        request.state.fault = fault
        response = await handle(request)
        if fault == "hold-after":
            await self._hold(route, released)
        return Dropped() if fault == "drop-after" else response

    async def _hold(self, route: str, released: asyncio.Event) -> None:
        self.held.append(route)
        try:
            await released.wait()
        finally:
            self.held.remove(route)

    def _next_fault(self, route: str) -> str:
        faults = self._faults[route]
        return faults.popleft() if faults else "ok"

    def _refusal(self, request: Request) -> Response | None:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme != "Bearer" or not token:
            return words.no_header(self.family)
        if not hmac.compare_digest(token.encode(), self._token.encode()):
            return words.wrong_token(self.family)
        return None

    # ---- the daemon API --------------------------------------------------------------------------------------------

    async def _no_route(self, request: Request) -> Response:
        if self.family is Family.CALAGOPUS and request.url.path == "/openapi.json" and request.method == "GET":
            return JSONResponse({"openapi": "3.1.0", "info": {"title": "Wings"}})
        return words.no_route(self.family)

    async def _system(self, request: Request) -> Response:
        return JSONResponse(
            {"architecture": "amd64", "cpu_count": 2, "kernel_version": "6.1", "os": "linux", "version": "develop"}
        )

    async def _list(self, request: Request) -> Response:
        return JSONResponse([self._document(server) for server in self.servers])

    def _document(self, server: DaemonServer) -> Document:
        return words.server_document(
            server.state, suspended=server.is_suspended, settings=server.settings, disk_bytes=0
        )

    def _asked(self, request: Request) -> DaemonServer | Response:
        name = str(request.path_params["server"])
        if self.family is Family.CALAGOPUS:
            try:
                name = str(uuid.UUID(name))
            except ValueError:
                return words.error(400, "invalid server uuid")
        return self.find(name) or words.no_server(self.family)

    async def _show(self, request: Request) -> Response:
        server = self._asked(request)
        return server if isinstance(server, Response) else JSONResponse(self._document(server))

    async def _power_action(self, request: Request) -> Response:
        server = self._asked(request)
        if isinstance(server, Response):
            return server
        try:
            asked = await request.json()
            action, wait_s = asked["action"], asked.get("wait_seconds")
        except (ValueError, KeyError, TypeError, AttributeError):
            return words.error(400, "The data passed in the request was not in a parsable format. Please try again.")
        if action not in _ACTIONS:
            return words.error(422, "The power action provided was not valid")
        self.power.act(server, action, wait_s)
        return JSONResponse({}, 202) if self.family is Family.CALAGOPUS else Response(status_code=202)

    async def _commands(self, request: Request) -> Response:
        server = self._asked(request)
        if isinstance(server, Response):
            return server
        if server.container is None:
            return words.error(502, "Cannot send commands to a stopped server instance.")
        for line in (await request.json()).get("commands", ()):
            await self.containers.write(server.container, str(line))
        return words.done(self.family, 204)

    async def _sync(self, request: Request) -> Response:
        """Does not help a server that is held as transferring."""
        server = self._asked(request)
        if isinstance(server, Response):
            return server
        return words.done(self.family, 204) if await self._refresh(server) else words.unexpected(self.family)

    async def _cancel(self, request: Request) -> Response:
        """Of an outgoing transfer, which a stand-in never has; but Calagopus lets go of any server here."""
        server = self._asked(request)
        if isinstance(server, Response):
            return server
        if words.is_go(self.family):
            return words.error(409, "Server is not currently being transferred.")
        if not server.is_transferring:
            return words.error(417, "server is not transferring")
        server.is_transferring = False
        return JSONResponse({})

    async def _delete(self, request: Request) -> Response:
        server = self._asked(request)
        if isinstance(server, Response):
            return server
        server.is_suspended = True
        if words.is_go(self.family):
            if server.is_transferring:
                self.power.publish(server, "transfer status", "completed")
            self.power.publish(server, "deleted", "null")
            self.power.close_listeners(server)
            if self.family is Family.PELICAN:  # `backups.remove_backups_on_server_delete`: true is its default
                await asyncio.to_thread(shutil.rmtree, self.shelves.backups / server.uuid, ignore_errors=True)
                self.shelves.install_log(self.family, server.uuid).unlink(missing_ok=True)
            await self.containers.remove(server.uuid)
        self.unregister(server.uuid)
        self.destroy(server.uuid)
        return words.done(self.family, 204)

    def unregister(self, server: str) -> None:
        """All of that name."""
        self.servers = [known for known in self.servers if known.uuid != server]

    def destroy(self, server: str) -> None:
        """Delete a server's files, in the background."""
        self._spawn(self._destroy(server))

    def die(self) -> None:
        """Every call is dropped from now on, until `restart`."""
        self._is_down = True

    async def _refresh(self, server: DaemonServer) -> bool:
        """What a start and `sync` do first: read the configuration anew."""
        document = await self.panel.configuration(server.uuid)
        if document is not None:
            server.document = document
        return document is not None

    async def _destroy(self, server: str) -> None:
        """The files, after the answer; Calagopus removes the container then, too, and before."""
        if self._next_fault("files") == "hold":
            await self._released.wait()
        if self.family is Family.CALAGOPUS:
            await self.containers.remove(server)
        await asyncio.to_thread(shutil.rmtree, self.volume_path(server), ignore_errors=True)

    async def _socket(self, socket: WebSocket) -> None:
        server = self.find(str(socket.path_params["server"]))
        if server is None or self._is_down:
            await socket.send_denial_response(words.no_server(self.family))
            return
        console = Console(self.power, server, socket, key=self._token, origin=self._panel_url, booted=self.booted)
        await console.run()
