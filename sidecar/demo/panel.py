"""A stand-in panel that speaks the remote API with the semantics of the real ones, for the demo and for tests.

One row per server: the node that owns it and at most one active transfer. `success` moves the server and calls
`DELETE /api/servers/{uuid}` on the old node before it answers; `failure` ends the transfer; both answer 409 when none
is active. A transfer becomes active only once the source has answered its start with 2xx, because panels ask inside a
database transaction. An old panel does not check which node calls.

Rows change without an await in between, as in a transaction: what a call came to is decided at one moment, and a fault
may lose the call before that moment or its answer after it.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Final

import httpx
import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sidecar.demo.loopback import Dropped, LoopbackServer
from sidecar.demo.panel_documents import (
    Allocation,
    Document,
    Family,
    ServerKind,
    configuration,
    error_body,
    list_item,
    list_page,
    transfer_request,
    transfer_token,
)

log = logging.getLogger(__name__)

_CALL_S: Final = 15.0  # what panels wait for a node
_PER_PAGE: Final = 50


class PanelNode(msgspec.Struct, frozen=True):
    """A node as the panel knows it."""

    name: str
    token_id: str
    token: str
    url: str  # scheme://host:port of its daemon API


class Call(msgspec.Struct, frozen=True):
    """One call, of a node to the panel or of the panel to a node, when it was decided or lost."""

    time: float
    route: str  # configuration, list, success, failure; start, delete
    node: str | None  # who called, or who was called; None: nobody that the panel knows
    method: str
    path: str
    status: int | None  # None: no answer


class ActiveTransfer(msgspec.Struct, frozen=True):
    source: str
    destination: str


class TransferNotStarted(Exception):
    """The source did not take the transfer: the panel's transaction was rolled back."""

    def __init__(self, status: int | None, body: str) -> None:
        super().__init__(f"the source answered {status}: {body}" if status else f"the source did not answer: {body}")
        self.status = status
        self.body = body


class _Row:
    def __init__(self, number: int, node: str, kind: ServerKind, allocations: dict[str, Allocation]) -> None:
        self.number = number
        self.node = node
        self.kind = kind
        self.allocations = allocations
        self.transfer: ActiveTransfer | None = None
        self.backups: list[str] = []  # named by the last `success`


class StandInPanel:
    """The database and what may be asked of it. `app` is the remote API, an ASGI application.

    `script` puts faults in front of the next calls of a route; each takes one call: a status such as `"500"` instead of
    the work, `"drop-before"` or `"drop-after"` the work, closing the connection without an answer, `"hold"` until
    `release` and `"hold-after"` the work, `"delay:0.5"` seconds before it, `"body:..."` as the whole 200, `"ok"`. Calls
    of the panel itself (`start`, `delete`) know `"drop-before"`, `"drop-after"`, `"hold"` and `"delay"`.
    """

    def __init__(
        self,
        *,
        family: Family = Family.PTERODACTYL,
        checks_caller: bool = True,
        call_timeout_s: float = _CALL_S,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.family = family
        self.checks_caller = checks_caller
        self.url = ""  # set by the server that serves it
        self.calls: list[Call] = []
        self.before_call: Callable[[str], None] | None = None  # told the route before anything is decided
        self._call_timeout_s = call_timeout_s
        self._now = now
        self._nodes: dict[str, PanelNode] = {}
        self._rows: dict[str, _Row] = {}
        self._faults: defaultdict[tuple[str, str | None], deque[str]] = defaultdict(deque)
        self._released = asyncio.Event()
        self._changed = asyncio.Condition()
        base = "/api/remote/servers"
        self.app = Starlette(
            routes=[
                Route(base, self._route("list", self._list), methods=["GET"]),
                Route(f"{base}/reset", self._route("reset", self._reset), methods=["POST"]),
                Route(f"{base}/{{server}}", self._route("configuration", self._configuration), methods=["GET"]),
                Route(f"{base}/{{server}}/transfer/success", self._route("success", self._success), methods=["POST"]),
                Route(f"{base}/{{server}}/transfer/failure", self._route("failure", self._failure), methods=["POST"]),
            ]
        )

    # ---- what the demo and tests ask ------------------------------------------------------------------------------

    def add_node(self, name: str, *, token_id: str, token: str, url: str) -> PanelNode:
        """A node, or the same one with another address."""
        node = PanelNode(name, token_id, token, url.rstrip("/"))
        self._nodes[name] = node
        return node

    def add_server(
        self, server: str, node: str, kind: ServerKind | None = None, allocations: dict[str, Allocation] | None = None
    ) -> None:
        """A server that `node` owns. `allocations`: by node; without one it has no port."""
        self._rows[server] = _Row(len(self._rows) + 1, node, kind or ServerKind(), allocations or {})

    def remove_server(self, server: str) -> None:
        """As if it had never been there."""
        del self._rows[server]

    def owner(self, server: str) -> str:
        """The name of the node that owns the server."""
        return self._rows[server].node

    def backups(self, server: str) -> list[str]:
        """Those that the last accepted `success` named: they are on the owner's node."""
        return self._rows[server].backups

    def transfer(self, server: str) -> ActiveTransfer | None:
        return self._rows[server].transfer

    def assume_transfer(self, server: str, destination: str) -> None:
        """A transfer is active, as if the source had taken it."""
        row = self._rows[server]
        row.transfer = ActiveTransfer(row.node, destination)

    def end_transfer(self, server: str) -> None:
        """An administrator's hand in the database: the transfer is over, the owner stays."""
        self._rows[server].transfer = None

    def script(self, route: str, *faults: str, node: str | None = None) -> None:
        """Faults for the next calls of a route, in order; of that node or to it, where one is named."""
        self._faults[route, node].extend(faults)

    def release(self) -> None:
        """Let held calls go on."""
        self._released.set()
        self._released = asyncio.Event()

    def calls_of(self, route: str, node: str | None = None) -> list[Call]:
        return [call for call in self.calls if call.route == route and (node is None or call.node == node)]

    async def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition` holds; it is looked at after each call. Bound it with a time-out."""
        async with self._changed:
            await self._changed.wait_for(condition)

    def mint_token(self, server: str, destination: str) -> str:
        """The JWT that a transfer to `destination` carries, without `Bearer `."""
        node = self._nodes[destination]
        return transfer_token(
            self.family,
            server=server,
            source=self._rows[server].node,
            panel_url=self.url,
            node_url=node.url,
            key=node.token,
            now_s=int(self._now()),
            scope="transfer" if self.checks_caller else None,
        )

    async def start_transfer(
        self,
        server: str,
        destination: str,
        *,
        start_on_completion: bool = False,
        backups: Sequence[str] = (),
        delete_backups: bool = False,
    ) -> None:
        """What an administrator's click does. Returns when the transfer is active.

        Raises TransferNotStarted, also where one is active already.
        """
        row = self._rows[server]
        if row.transfer is not None:
            raise TransferNotStarted(None, "a transfer of this server is active at the panel")
        source, target = self._nodes[row.node], self._nodes[destination]
        body = transfer_request(
            self.family,
            server=server,
            url=f"{target.url}/api/transfers",
            token=self.mint_token(server, destination),
            start_on_completion=start_on_completion,
            backups=backups,
            delete_backups=delete_backups,
        )
        status, text = await self._ask_node("start", source, "POST", f"/api/servers/{server}/transfer", body)
        if status is None or not 200 <= status < 300:
            raise TransferNotStarted(status, text)
        row.transfer = ActiveTransfer(source.name, destination)
        await self._tell()

    # ---- the remote API -------------------------------------------------------------------------------------------

    async def _list(self, request: Request, node: PanelNode) -> Response:
        try:
            page, per_page = (int(request.query_params.get(*key)) for key in (("page", "1"), ("per_page", "50")))
        except ValueError:
            page, per_page = 1, _PER_PAGE
        if self.family is Family.CALAGOPUS and (page < 1 or not 1 <= per_page <= 100):
            return self._error(400, "invalid pagination")
        page, per_page = max(1, page), max(1, per_page)
        own = [server for server, row in self._rows.items() if row.node == node.name]
        shown = own[(page - 1) * per_page : page * per_page]
        items = [list_item(self.family, server, self._document(server)) for server in shown]
        return JSONResponse(list_page(self.family, items, len(own), page, per_page, self.url))

    async def _reset(self, request: Request, node: PanelNode) -> Response:
        return self._done()

    async def _configuration(self, request: Request, node: PanelNode) -> Response:
        server = request.path_params["server"]
        row = self._rows.get(server)
        if row is None:
            return self._error(404, "Server not found.")
        if self.checks_caller and node.name not in _parties(row):
            if self.family is Family.CALAGOPUS:
                return self._error(404, "Server not found.")
            return self._error(403, "Requesting node does not have permission to access this server.")
        return JSONResponse(self._document(server))

    async def _success(self, request: Request, node: PanelNode) -> Response:
        row, refusal = self._transferring(request)
        if row is None or row.transfer is None:
            return refusal
        transfer = row.transfer
        if self.checks_caller and node.name != transfer.destination:
            if self.family is Family.CALAGOPUS:
                return self._error(417, "Destination node must call success endpoint.")
            return self._error(403, "Requesting node does not have permission to access this server.")
        row.node, row.transfer = transfer.destination, None
        with suppress(ValueError):  # two families say null
            said = await request.json()
            row.backups = list(said["backups"]) if isinstance(said, dict) else []
        await self._delete(request.path_params["server"], transfer.source)
        return self._done()

    async def _failure(self, request: Request, node: PanelNode) -> Response:
        row, refusal = self._transferring(request)
        if row is None or row.transfer is None:
            return refusal
        transfer = row.transfer
        if self.checks_caller and node.name not in (transfer.source, transfer.destination):
            return self._error(403, "Requesting node does not have permission to access this server.")
        row.transfer = None
        if self.family is Family.CALAGOPUS:
            await self._delete(request.path_params["server"], transfer.destination)
        return self._done()

    def _transferring(self, request: Request) -> tuple[_Row | None, Response]:
        row = self._rows.get(request.path_params["server"])
        if row is None:
            return None, self._error(404, "Server not found.")
        return row, self._error(409, "Server is not being transferred.")

    def _document(self, server: str) -> Document:
        """With the allocations of the node that owns it: the old one's, as long as a transfer runs."""
        row = self._rows[server]
        return configuration(self.family, row.number, server, row.kind, row.allocations.get(row.node, Allocation()))

    def _done(self) -> Response:
        return JSONResponse({}) if self.family is Family.CALAGOPUS else Response(status_code=204)

    def _error(self, status: int, detail: str) -> Response:
        return JSONResponse(error_body(self.family, status, detail), status_code=status)

    def _caller(self, request: Request) -> PanelNode | Response:
        scheme, _, credentials = request.headers.get("Authorization", "").partition(" ")
        if scheme != "Bearer" or not credentials:
            return self._error(401, "Access to this endpoint must include an Authorization header.")
        token_id, dot, token = credentials.partition(".")
        if not dot or not token_id or not token or "." in token:
            return self._error(400, "The Authorization header provided was not in a valid format.")
        for node in self._nodes.values():
            if node.token_id == token_id and hmac.compare_digest(node.token.encode(), token.encode()):
                return node
        return self._error(403, "You are not authorized to access this resource.")

    # ---- calls, faults, records -----------------------------------------------------------------------------------

    def _route(
        self, route: str, handle: Callable[[Request, PanelNode], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            await request.body()
            caller = self._caller(request)
            fault = self._next_fault(route, caller.name if isinstance(caller, PanelNode) else None)
            released = self._released  # a release while the call is still at work counts for its hold behind it
            if self.before_call is not None:
                self.before_call(route)
            await self._wait(fault)
            if fault.isdigit():
                response: Response = self._error(int(fault), "Something went wrong.")
            elif fault.startswith("body:"):
                response = Response(fault.removeprefix("body:"), media_type="application/json")
            elif fault == "drop-before":
                response = Dropped()
            elif isinstance(caller, Response):
                response = caller
            else:
                response = await handle(request, caller)
            if fault == "drop-after":
                response = Dropped()
            name = caller.name if isinstance(caller, PanelNode) else None
            status = None if isinstance(response, Dropped) else response.status_code
            await self._record(route, name, request.method, request.url.path, status)
            if fault == "hold-after":
                await released.wait()
            return response

        return answer

    async def _delete(self, server: str, node: str) -> None:
        """The panel's DELETE on a node; an error is only logged."""
        await self._ask_node("delete", self._nodes[node], "DELETE", f"/api/servers/{server}", None)

    async def _ask_node(
        self, route: str, node: PanelNode, method: str, path: str, body: Document | None
    ) -> tuple[int | None, str]:
        """Call a node as panels do: one attempt, 15 s. Returns (status or None, body or what went wrong)."""
        fault = self._next_fault(route, node.name)
        await self._wait(fault)
        status: int | None = None
        text = "the call was lost"
        if fault != "drop-before":
            headers = {"Authorization": f"Bearer {node.token}", "Accept": "application/json"}
            try:
                async with (
                    asyncio.timeout(self._call_timeout_s),
                    httpx.AsyncClient(timeout=self._call_timeout_s, trust_env=False, verify=False) as client,
                ):
                    response = await client.request(method, node.url + path, json=body, headers=headers)
                    status, text = response.status_code, response.text
            except (httpx.HTTPError, TimeoutError) as error:
                text = repr(error)
                log.warning("%s %s at %s: %s", method, path, node.name, text)
        if fault == "drop-after":
            status, text = None, "the answer was lost"
        await self._record(route, node.name, method, path, status)
        return status, text

    def _next_fault(self, route: str, node: str | None) -> str:
        faults = self._faults[route, node] or self._faults[route, None]
        return faults.popleft() if faults else "ok"

    async def _wait(self, fault: str) -> None:
        if fault == "hold":
            await self._released.wait()
        elif fault.startswith("delay:"):
            await asyncio.sleep(float(fault.removeprefix("delay:")))

    async def _record(self, route: str, node: str | None, method: str, path: str, status: int | None) -> None:
        self.calls.append(Call(self._now(), route, node, method, path, status))
        await self._tell()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()


def _parties(row: _Row) -> tuple[str, ...]:
    return (row.node,) if row.transfer is None else (row.transfer.source, row.transfer.destination)


class PanelServer:
    """Serves a stand-in panel on loopback in the running loop, between `start` and `stop` or as a context manager."""

    def __init__(self, panel: StandInPanel | None = None, *, port: int = 0) -> None:
        self.panel = panel if panel is not None else StandInPanel()
        self._server = LoopbackServer(self.panel.app, port=port)

    @property
    def url(self) -> str:
        """http://127.0.0.1:port, once started."""
        return self.panel.url

    async def __aenter__(self) -> PanelServer:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Returns when it accepts connections. Started again after a stop it listens on the same port."""
        self.panel.url = await self._server.start()

    async def stop(self) -> None:
        """Close the listener and the connections. Held calls are released; those under way get a second."""
        self.panel.release()
        await self._server.stop()
