"""The HTTP face of a node: routes, and the one layer around them that every request passes.

That layer (`_EveryRequest`) gives each request its id, turns whatever a route raises into the JSON of `problems.py`,
keeps silent where silence is the answer, and writes one log line. It is plain ASGI, so that nothing stands between a
route and the connection its caller is on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sidecar.api.destinations import DestinationRoutes
from sidecar.api.front import PASSED_ON_KEY, Front, ServerRoute, is_own
from sidecar.api.front_line import DaemonAddress, FrontLimits
from sidecar.api.health import Readiness
from sidecar.api.metrics import PATH as METRICS_PATH
from sidecar.api.metrics import MetricsRoutes
from sidecar.api.passthrough import PassThrough
from sidecar.api.problems import problem
from sidecar.api.reading import REQUEST_ID_KEY, ApiLimits, CallerGone, NoAnswer, maybe_connection, request_id
from sidecar.api.sources import SourceRoutes
from sidecar.api.system import EngineInfo, SystemRoutes
from sidecar.api.websocket import Sockets, SocketSettings
from sidecar.calls.auth import NodeAuth
from sidecar.calls.problems import INTERNAL
from sidecar.engine.contract import SourceCut, Transfers
from sidecar.engine.log_lines import printable
from sidecar.errors import HostFailed, Refused, SidecarError

_log = logging.getLogger(__name__)

_QUIET = frozenset({"/healthz", "/readyz", METRICS_PATH})  # asked every few seconds by orchestrators


class Beside(msgspec.Struct, frozen=True, kw_only=True):
    """A node daemon beside this sidecar. Serve such an application with `ApiServer(is_streamed=front.is_passed_on)`."""

    daemon_url: str  # http[s]://host[:port]
    is_front: bool = False  # whether this address is the daemon's public one, so that everything else is passed on
    limits: FrontLimits = FrontLimits()


def build_app(
    *,
    transfers: Transfers,
    auth: NodeAuth,
    readiness: Readiness,
    limits: ApiLimits,
    sockets: SocketSettings,
    codecs: tuple[str, ...],
    respond_async: bool = False,
    engine_info: EngineInfo | None = None,
    now: Callable[[], float] = time.time,
    beside: Beside | None = None,
    metrics_token: str = "",
) -> Starlette:
    """The application of one node.

    Args: transfers, the engine; auth, who may call; readiness, the checks of `/readyz`; limits and sockets, bounds on
    what callers send; codecs, the compressions this node reads, in its order of preference; respond_async, answer
    every start 202 before the stop; engine_info, the container engine's facts for `/api/system`; now, seconds since
    1970 for the sockets' tokens; beside, the daemon that owns the servers, whose routes and sockets are passed
    through to it; metrics_token, of who may read the metrics, or empty: the node's. Raises ValueError where the
    daemon's URL is none.
    """
    source = SourceRoutes(transfers=transfers, auth=auth, limits=limits, respond_async=respond_async)
    destination = DestinationRoutes(
        transfers=transfers, auth=auth, limits=limits, codecs=codecs, beside=beside is not None
    )
    system = SystemRoutes(auth=auth, readiness=readiness, engine_info=engine_info)
    metrics = MetricsRoutes(transfers=transfers, readiness=readiness, auth=auth, token=metrics_token)
    hub = Sockets(transfers=transfers, auth=auth, settings=sockets, now=now)
    routes: list[BaseRoute] = [*metrics.routes(), *source.routes(), *destination.routes(), *system.routes()]
    serve_socket = hub.serve
    passed_on: ASGIApp | None = None
    if beside is not None:
        address = DaemonAddress.of(beside.daemon_url)
        front = Front(address=address, limits=beside.limits)
        server = ServerRoute(front=front, transfers=transfers, auth=auth)
        daemons = [Route(path, front) for path in ("/api/servers", "/api/system")]
        routes = [*daemons, Route("/api/servers/{server}", server), *routes]  # the first that fits is taken
        through = PassThrough(
            address=address,
            limits=beside.limits,
            transfers=transfers,
            auth=auth,
            settings=sockets,
            own=hub,
            now=now,
        )
        serve_socket = through.serve
        if beside.is_front:
            passed_on = _Other(front, through)
    routes.append(WebSocketRoute("/api/servers/{server}/ws", serve_socket))
    app = Starlette(
        routes=routes,
        middleware=[Middleware(_EveryRequest)],
        exception_handlers={HTTPException: _unrouted},
    )
    app.router.redirect_slashes = False  # a redirect is no documented answer, and no daemon follows one
    if passed_on is not None:
        app.router.default = passed_on
    return app


class _Other:
    """What no route of ours takes."""

    def __init__(self, front: Front, through: PassThrough) -> None:
        self._front = front
        self._through = through

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._through.pass_on(scope, receive, send)
        elif is_own(scope["path"]):
            raise HTTPException(404)
        else:
            await self._front(scope, receive, send)


async def _unrouted(request: Request, error: Exception) -> Response:
    """Starlette's own refusals: no such route, no such method."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        refused = Refused("request.method", f"This route does not take {printable(request.method, max_chars=32)}.")
    else:
        refused = Refused("request.unknown_route", "There is no such route.")
    return problem(refused, request_id(request.scope), error.headers)


class _EveryRequest:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        scope[REQUEST_ID_KEY] = str(uuid4())
        if scope["type"] == "websocket":
            await self._app(scope, receive, send)  # answers for itself: `websocket.py`
            return
        await self._http(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        started_at = time.perf_counter()
        status: int | None = None

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if PASSED_ON_KEY in scope:  # the daemon's answer, with its own id
                    await send(message)
                    return
                headers = [pair for pair in message["headers"] if pair[0].lower() != b"x-request-id"]
                message["headers"] = [*headers, (b"x-request-id", scope[REQUEST_ID_KEY].encode())]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception as error:
            if status is not None:  # the answer has begun: only the server can end it, by closing
                raise
            await _answer(error, scope)(scope, receive, noted)
        finally:
            _note(scope, status, time.perf_counter() - started_at)


def _answer(error: Exception, scope: Scope) -> Response:
    """What is answered for an exception; the only place that logs one."""
    match error:
        case SidecarError():
            level = logging.ERROR if error.status >= 500 else logging.INFO
            _log.log(level, "refused: %s: %s", error.code, printable(error.message), extra=_tags(scope))
            return problem(error, request_id(scope))
        case SourceCut() | CallerGone():
            connection = maybe_connection(scope)
            if connection is not None:
                return NoAnswer(connection)
            return problem(HostFailed("transfer.internal", INTERNAL), request_id(scope))
        case _:
            _log.error("a bug in a route", exc_info=error, extra=_tags(scope))
            return problem(HostFailed("transfer.internal", INTERNAL), request_id(scope))


def _note(scope: Scope, status: int | None, seconds: float) -> None:
    """One line per request: never its headers, its query or its body, which can hold tokens."""
    level = logging.DEBUG if scope["path"] in _QUIET or PASSED_ON_KEY in scope else logging.INFO
    path = printable(scope["path"], max_chars=200)
    answer = "no answer" if status is None else str(status)
    _log.log(level, "%s %s: %s in %.0f ms", scope["method"], path, answer, seconds * 1000, extra=_tags(scope))


def _tags(scope: Scope) -> dict[str, Any]:
    return {"request_id": request_id(scope)}
