"""The routes of the destination: a source uploads a server, and may ask how that ended.

An upload is let in by its token, then by its content type; its headers are believed only then, and its body is not
touched here at all: the engine takes it from the connection.

Some answers must not be given. One family of daemons (recognised by its `Multiplex-...` headers) takes any complete
answer, a 401 or 500 included, for success, and then deletes what it sent. Such a source is failed by a closed
connection and nothing else, from its very first mistake on. A bug of ours in the middle of an upload is answered in the
same way to every source but our own, because behind a header that a proxy dropped may be such a daemon too.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sidecar import __version__
from sidecar.api.problems import json_response, problem
from sidecar.api.reading import ApiLimits, NoAnswer, maybe_connection, read_json, request_id, server_in_path
from sidecar.calls.auth import NodeAuth, maybe_uuid
from sidecar.calls.problems import INTERNAL
from sidecar.calls.transfers import shown
from sidecar.engine.contract import IncomingUpload, SourceCut, Transfers
from sidecar.engine.log_lines import printable
from sidecar.errors import HostFailed, Refused, SidecarError
from sidecar.lifecycle.statuses import Role
from sidecar.wire.headers import PROTOCOL_VERSION, decode
from sidecar.wire.multipart import parse_content_type

if TYPE_CHECKING:
    from sidecar.wire.server import Connection

_log = logging.getLogger(__name__)

SETTLE_S: Final = 24 * 3600.0  # a source may have been down for a day before it asks how its transfer ended

STREAM_COUNT: Final = "multiplex-stream-count"
STREAM: Final = "multiplex-stream"
_STREAM_NUMBER: Final = re.compile(r"[0-9]{1,3}", re.ASCII)


class _Settle(msgspec.Struct, frozen=True):
    server: str
    transfer: str


class _Outcome(msgspec.Struct, frozen=True):
    outcome: Literal["completed", "failed"]


class DestinationRoutes:
    """Args: codecs, the compressions that this node reads, and beside, whether it hands servers over to a node daemon:
    both are told to sources that ask."""

    def __init__(
        self, *, transfers: Transfers, auth: NodeAuth, limits: ApiLimits, codecs: tuple[str, ...], beside: bool
    ) -> None:
        self._transfers = transfers
        self._auth = auth
        self._limits = limits
        self._codecs = codecs
        self._beside = beside

    def routes(self) -> list[Route]:
        return [
            Route("/api/transfers", self.receive, methods=["POST"]),
            Route("/api/transfers", self.transfers, methods=["GET"]),
            Route("/api/transfers/sidecar", self.about, methods=["GET"]),
            Route("/api/transfers/sidecar/settle", self.settle, methods=["POST"]),
            Route("/api/transfers/{server}", self.cancel, methods=["DELETE"]),
        ]

    async def receive(self, request: Request) -> Response:
        connection = maybe_connection(request.scope)
        if connection is None:  # a server without it cannot run the engine: a mistake of the wiring
            raise HostFailed("transfer.internal", INTERNAL)
        tags: dict[str, Any] = {"request_id": request_id(request.scope)}
        is_calagopus = STREAM_COUNT in request.headers or STREAM in request.headers
        is_sidecar = False
        try:
            upload = self._admit(request, connection, is_calagopus)
            is_sidecar = upload.is_sidecar
            tags["transfer"] = upload.transfer
            _log.info("upload of server %s from %s", upload.server, upload.peer, extra=tags)
            view = await self._transfers.receive(upload)
        except SidecarError as error:
            _log.warning("upload failed: %s: %s", error.code, printable(error.message), extra=tags)
            return NoAnswer(connection) if is_calagopus else problem(error, tags["request_id"])
        except SourceCut as cut:
            reason = cut.__cause__
            if isinstance(reason, SidecarError):
                _log.warning("upload failed: %s: %s", reason.code, printable(reason.message), extra=tags)
            return NoAnswer(connection)
        except Exception:  # noqa: BLE001 - which answer is safe depends on the source, not on the bug
            _log.exception("a bug stopped an upload", extra=tags)
            if is_sidecar:
                return problem(HostFailed("transfer.internal", INTERNAL), tags["request_id"])
            return NoAnswer(connection)
        _log.info("upload of server %s accepted", view.server, extra={**tags, "transfer": view.transfer})
        kept = {"backups": view.backups} if view.backups else {}
        return json_response(kept, headers={"Sidecar-Transfer": view.transfer})

    async def cancel(self, request: Request) -> Response:
        self._auth.check_node_token(request.headers.getlist("authorization"))
        view = await self._transfers.cancel(server_in_path(request.scope), Role.DESTINATION)
        tags = {"request_id": request_id(request.scope), "transfer": view.transfer}
        _log.info("cancelling the incoming transfer: server %s", view.server, extra=tags)
        return Response(status_code=202)

    async def transfers(self, request: Request) -> Response:
        self._auth.check_node_token(request.headers.getlist("authorization"))
        return json_response([shown(view) for view in self._transfers.views()])

    async def about(self, request: Request) -> Response:
        """Tells a source that it talks to a sidecar. Open to all, so it names no node and no server."""
        return json_response(
            {"sidecar": __version__, "protocol": [PROTOCOL_VERSION], "codecs": self._codecs, "beside": self._beside}
        )

    async def settle(self, request: Request) -> Response:
        claims = self._auth.upload_claims(request.headers.getlist("authorization"), expired_for_s=SETTLE_S)
        body = await read_json(request, _Settle, self._limits)
        transfer = maybe_uuid(body.transfer)
        if transfer is None:
            raise Refused("request.invalid", "The body's transfer is not a UUID.", field="transfer")
        if maybe_uuid(body.server) != claims.server:
            raise Refused("auth.jwt_scope", "The token was issued for another server.")
        outcome = await self._transfers.settle(claims.server, transfer)
        tags = {"request_id": request_id(request.scope), "transfer": transfer}
        _log.info("the source asked how its transfer ended: %s", outcome, extra=tags)
        return json_response(_Outcome(outcome))

    def _admit(self, request: Request, connection: Connection, is_calagopus: bool) -> IncomingUpload:
        """Token, content type, headers, in this order. Raises Refused."""
        claims = self._auth.upload_claims(request.headers.getlist("authorization"))
        boundary = parse_content_type(request.headers.get("content-type"))
        said = decode(request.headers)
        return IncomingUpload(
            server=claims.server,
            transfer=said.transfer,
            connection=connection,
            boundary=boundary,
            peer=request.client.host if request.client else "unknown",
            start_on_completion=said.start_on_completion,
            content_bytes=said.content_bytes,
            entries=said.entries,
            is_sidecar=said.protocol > 0,
            is_calagopus=is_calagopus,
            multiplex_streams=_stream_number(request, STREAM_COUNT) or 0,
            multiplex_stream=_stream_number(request, STREAM),
        )


def _stream_number(request: Request, name: str) -> int | None:
    value = request.headers.get(name)
    if value is None:
        return None
    if not _STREAM_NUMBER.fullmatch(value):
        raise Refused("request.invalid", f"The header {name} is not a small number.", field=name)
    return int(value)
