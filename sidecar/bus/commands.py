"""The commands: start, cancel, status, list and info, as one NATS service.

Each is the bus's form of a REST route and goes through the same code: `calls/` says who may call and what is asked,
`engine.contract.Transfers` decides, `calls/problems.py` tells a failure. The proof stands in the header `Authorization`
as over HTTP, and comes first: a stranger learns nothing about which servers or ids are good.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final
from uuid import uuid4

import msgspec

from sidecar import __version__
from sidecar.bus import messages, schemas
from sidecar.bus.service import Call, Endpoint, Reply, Service
from sidecar.bus.subjects import Subjects
from sidecar.calls.auth import maybe_uuid
from sidecar.calls.command_auth import CommandAuth
from sidecar.calls.problems import INTERNAL, told
from sidecar.calls.transfers import decode, not_remembered, shown, start_transfer
from sidecar.engine.contract import Transfers
from sidecar.engine.log_lines import printable
from sidecar.errors import CODES, HostFailed, Refused, SidecarError
from sidecar.lifecycle.state import first
from sidecar.lifecycle.statuses import Role
from sidecar.views import TransferView

_log = logging.getLogger(__name__)

NAME: Final = "transfer-sidecar"
MAX_ERROR_CHARS: Final = 300  # of the sentence in a header; the body has it whole
ERROR_HEADER: Final = "Nats-Service-Error"
ERROR_CODE_HEADER: Final = "Nats-Service-Error-Code"

_encode = msgspec.json.Encoder().encode
_Handler = Callable[[Call, str], Awaitable[Any]]


class Commands:
    """Args: transfers, the engine; auth; subjects; entry, this node as it is now; max_bytes, of a request."""

    def __init__(
        self,
        *,
        transfers: Transfers,
        auth: CommandAuth,
        subjects: Subjects,
        entry: Callable[[], Awaitable[messages.NodeEntry]],
        max_bytes: int,
    ) -> None:
        self._transfers = transfers
        self._auth = auth
        self._subjects = subjects
        self._entry = entry
        self._max_bytes = max_bytes

    def service(self, metadata: Callable[[], dict[str, str]]) -> Service:
        """The service that answers them. Args: metadata, shown by the tools of NATS."""
        handlers: dict[str, _Handler] = {
            "start": self._start,
            "cancel": self._cancel,
            "status": self._status,
            "list": self._list,
            "info": self._info,
        }
        endpoints = [
            self._endpoint(word, word, self._subjects.command(word), handler) for word, handler in handlers.items()
        ]
        endpoints.append(self._endpoint("list-all", "list", self._subjects.broadcast("list"), self._list))
        return Service(
            name=NAME,
            version=__version__,
            description="Moves game servers between nodes",
            metadata=metadata,
            endpoints=endpoints,
            is_answerable=self._subjects.is_answerable,
        )

    def _endpoint(self, name: str, word: str, subject: str, handler: _Handler) -> Endpoint:
        async def handle(call: Call) -> Reply:
            return await self._answer(word, handler, call)

        return Endpoint(
            name=name,
            subject=subject,
            queue=self._subjects.node,
            handle=handle,
            refuse=lambda code: self._problem(SidecarError(code, CODES[code][1].capitalize() + "."), str(uuid4())),
            metadata=schemas.metadata(word),
        )

    async def _answer(self, word: str, handler: _Handler, call: Call) -> Reply:
        """The one place that knows how a command ends: nothing gets past it but an answer."""
        request_id = str(uuid4())
        try:
            self._auth.check(call.header("authorization"), word)
            if len(call.data) > self._max_bytes:
                message = f"The request body has more than {self._max_bytes} bytes."
                raise Refused("request.too_large", message, limit_bytes=self._max_bytes)
            answer = await handler(call, request_id)
            return Reply(_encode(answer), self._headers(request_id))
        except SidecarError as error:
            level = logging.ERROR if error.status >= 500 else logging.INFO
            tags = {"request_id": request_id}
            _log.log(level, "command %s refused: %s: %s", word, error.code, printable(error.message), extra=tags)
            return self._problem(error, request_id)
        except Exception:  # noqa: BLE001 - of a bug the caller learns that there is one
            _log.exception("a bug in the command %s", word, extra={"request_id": request_id})
            return self._problem(HostFailed("transfer.internal", INTERNAL), request_id)

    def _problem(self, error: SidecarError, request_id: str) -> Reply:
        body = told(error, request_id)
        # A header holds one line of ASCII: the sentence may quote what the caller sent.
        words = printable(body["error"], max_chars=MAX_ERROR_CHARS).encode("ascii", "backslashreplace").decode()
        headers = {ERROR_HEADER: words, ERROR_CODE_HEADER: str(error.status), **self._headers(request_id)}
        return Reply(_encode(body), headers, error.code)

    def _headers(self, request_id: str) -> dict[str, str]:
        return {"X-Request-Id": request_id, "Sidecar-Node": self._subjects.node, "Content-Type": "application/json"}

    # -- the commands --------------------------------------------------------------------------------------------------
    async def _start(self, call: Call, request_id: str) -> messages.StartReply:
        body = decode(call.data, messages.StartCommand)
        server = _server(body.server.uuid, "server.uuid")
        # Whether it has expired is asked where it would begin: a key that is known has its answer.
        request = msgspec.structs.replace(
            start_transfer(server, body), key=body.idempotency_key, expires_at=body.expires_at
        )
        view = await self._transfers.start(request, caller=None, respond_async=True)
        _say(request_id, "outgoing transfer accepted", view)
        # Word for word what was answered the first time, however far the transfer is by now.
        return messages.StartReply(view.transfer, first(Role.SOURCE, respond_async=True).status)

    async def _cancel(self, call: Call, request_id: str) -> messages.CancelReply:
        found = self._find(call)
        # The engine cancels the newest transfer of a server: no await lies between this look and its own.
        newest = self._transfers.view(found.server) if found is not None else None
        if found is None or newest is None or newest.transfer != found.transfer:
            raise Refused("transfer.none", "Server is not currently being transferred.")
        view = await self._transfers.cancel(found.server, found.role)
        _say(request_id, f"cancelling the {view.direction} transfer", view)
        return messages.CancelReply(view.transfer, view.status)

    async def _status(self, call: Call, request_id: str) -> dict[str, Any]:
        view = self._find(call)
        if view is None:
            raise not_remembered()
        return shown(view)

    async def _list(self, call: Call, request_id: str) -> dict[str, Any]:
        limit = decode(call.data or b"{}", messages.ListCommand).limit
        views = self._transfers.views()
        listed = [shown(view) for view in views[:limit]]
        return {"node": self._subjects.node, "transfers": listed, "total": len(views)}

    async def _info(self, call: Call, request_id: str) -> messages.NodeEntry:
        decode(call.data or b"{}", messages.InfoCommand)
        return await self._entry()

    def _find(self, call: Call) -> TransferView | None:
        asked = decode(call.data, messages.TransferCommand)
        if (asked.server is None) == (asked.transfer is None):
            raise Refused("request.invalid", "One of server and transfer is needed, not both.", field="server")
        if asked.server is not None:
            return self._transfers.view(_server(asked.server, "server"))
        transfer = maybe_uuid(asked.transfer)
        if transfer is None:
            raise Refused("request.invalid", "The body's transfer is not a UUID.", field="transfer")
        return self._transfers.find(transfer)


def _server(value: str, field: str) -> str:
    """As the path of the REST routes: anything but a UUID is an unknown server."""
    server = maybe_uuid(value)
    if server is None:
        raise Refused("server.unknown", f"The body's {field} is no UUID of a server.")
    return server


def _say(request_id: str, what: str, view: TransferView) -> None:
    tags = {"request_id": request_id, "transfer": view.transfer}
    _log.info("%s: server %s, transfer %s, over the bus", what, view.server, view.transfer, extra=tags)
