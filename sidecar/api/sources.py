"""The routes of the source: a panel starts, cancels and follows the transfer of a server away from this node."""

from __future__ import annotations

import logging
from typing import Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sidecar.api.problems import json_response
from sidecar.api.reading import ApiLimits, maybe_connection, read_json, request_id, server_in_path
from sidecar.calls.auth import NodeAuth
from sidecar.calls.transfers import StartBody, not_remembered, shown, start_transfer
from sidecar.engine.contract import ServerView, Transfers
from sidecar.lifecycle.statuses import Role
from sidecar.views import TransferView

_log = logging.getLogger(__name__)


class _Resolve(msgspec.Struct, frozen=True):
    outcome: Literal["completed", "failed"]


class SourceRoutes:
    """Args: respond_async, whether every start is answered 202 before the server's stop, as with `Prefer`."""

    def __init__(self, *, transfers: Transfers, auth: NodeAuth, limits: ApiLimits, respond_async: bool) -> None:
        self._transfers = transfers
        self._auth = auth
        self._limits = limits
        self._respond_async = respond_async

    def routes(self) -> list[Route]:
        transfer = "/api/servers/{server}/transfer"
        return [
            Route(transfer, self.start, methods=["POST"]),
            Route(transfer, self.cancel, methods=["DELETE"]),
            Route(transfer, self.show, methods=["GET"]),
            Route(transfer + "/resolve", self.resolve, methods=["POST"]),
            Route("/api/servers", self.servers, methods=["GET"]),
            Route("/api/servers/{server}", self.server, methods=["GET"]),
            Route("/api/servers/{server}", self.delete_server, methods=["DELETE"]),
        ]

    async def start(self, request: Request) -> Response:
        server = self._checked(request)
        body = await read_json(request, StartBody, self._limits)
        prefers_async = _prefers_async(request)
        view = await self._transfers.start(
            start_transfer(server, body),
            caller=maybe_connection(request.scope),
            respond_async=self._respond_async or prefers_async,
        )
        _say(request, "outgoing transfer accepted", view)
        headers = {"Location": f"/api/servers/{server}/transfer", "Sidecar-Transfer": view.transfer}
        if prefers_async:
            headers["Preference-Applied"] = "respond-async"
        return Response(status_code=202, headers=headers)

    async def cancel(self, request: Request) -> Response:
        view = await self._transfers.cancel(self._checked(request), Role.SOURCE)
        _say(request, "cancelling the outgoing transfer", view)
        return Response(status_code=202)

    async def show(self, request: Request) -> Response:
        view = self._transfers.view(self._checked(request))
        if view is None:
            raise not_remembered()
        return json_response(shown(view))

    async def resolve(self, request: Request) -> Response:
        server = self._checked(request)
        body = await read_json(request, _Resolve, self._limits)
        view = await self._transfers.resolve(server, body.outcome)
        _say(request, f"an operator resolved the transfer as {body.outcome}", view)
        return json_response(shown(view))

    async def servers(self, request: Request) -> Response:
        self._auth.check_node_token(request.headers.getlist("authorization"))
        return json_response([_shown_server(view) for view in await self._transfers.servers()])

    async def server(self, request: Request) -> Response:
        return json_response(_shown_server(await self._transfers.server(self._checked(request))))

    async def delete_server(self, request: Request) -> Response:
        server = self._checked(request)
        await self._transfers.delete_server(server)
        _log.info("server %s deleted by the panel", server, extra={"request_id": request_id(request.scope)})
        return Response(status_code=204)

    def _checked(self, request: Request) -> str:
        """Who calls comes first: a stranger learns nothing about which servers or ids are good."""
        self._auth.check_node_token(request.headers.getlist("authorization"))
        return server_in_path(request.scope)


def _shown_server(view: ServerView) -> dict[str, Any]:
    """The daemons' shape. What a sidecar does not measure is zero; panels show it and decide nothing by it."""
    return {
        "state": view.state,
        "is_suspended": False,
        "is_transferring": view.is_transferring,
        "is_transferred": view.transferred,
        "utilization": {
            "memory_bytes": 0,
            "memory_limit_bytes": 0,
            "cpu_absolute": 0,
            "network": {"rx_bytes": 0, "tx_bytes": 0},
            "uptime": 0,
            "state": view.state,
            "disk_bytes": 0,
        },
        "configuration": {"uuid": view.uuid},
    }


def _prefers_async(request: Request) -> bool:
    """Whether `Prefer` holds `respond-async`. Source: RFC 7240 section 4.1."""
    preferences = ",".join(request.headers.getlist("prefer")).split(",")
    return any(preference.partition(";")[0].strip().lower() == "respond-async" for preference in preferences)


def _say(request: Request, what: str, view: TransferView) -> None:
    _log.info(
        "%s: server %s, transfer %s",
        what,
        view.server,
        view.transfer,
        extra={"request_id": request_id(request.scope), "transfer": view.transfer},
    )
