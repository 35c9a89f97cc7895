"""What is asked about transfers, and what is told of one: the same words whichever edge they cross.

A body is decoded as a whole and its bounds are in its shape; a field that is wrong is named with its path
(`$.server.uuid`). What a shape cannot say (a URL that can be used, a token that can stand in a header) is checked here
once, so that REST and the bus take and refuse the same.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, TypeVar
from urllib.parse import urlsplit

import msgspec

from sidecar.calls.auth import MAX_TOKEN_CHARS, maybe_uuid
from sidecar.engine.contract import StartTransfer
from sidecar.errors import Refused
from sidecar.views import TransferView

T = TypeVar("T")

_MAX_URL_CHARS: Final = 2_048  # what proxies and browsers take
_MAX_BACKUPS: Final = 1_000  # a panel keeps a few per server

_Url = Annotated[str, msgspec.Meta(min_length=1, max_length=_MAX_URL_CHARS)]
_Token = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_TOKEN_CHARS + len("Bearer "))]


class StartServer(msgspec.Struct, frozen=True):
    uuid: str | None = None
    start_on_completion: bool | None = None


class StartBody(msgspec.Struct, frozen=True):
    """The documented body. The documents require `server`; the daemons and one panel do without, and so do we."""

    url: _Url
    token: _Token
    server: StartServer | None = None
    backups: Annotated[list[Any], msgspec.Meta(max_length=_MAX_BACKUPS)] | None = None
    # Fields of Calagopus panels alone: their presence says how the destination wants its backups named.
    delete_backups: Any | msgspec.UnsetType = msgspec.UNSET
    archive_format: Any | msgspec.UnsetType = msgspec.UNSET
    multiplex_streams: Any | msgspec.UnsetType = msgspec.UNSET

    @property
    def is_calagopus(self) -> bool:
        return (self.delete_backups, self.archive_format, self.multiplex_streams) != (msgspec.UNSET,) * 3


def decode(body: bytes | bytearray, shape: type[T]) -> T:
    """A JSON body as `shape`; fields that `shape` does not have are ignored.

    Raises Refused (`request.malformed`, `request.invalid`).
    """
    try:
        return msgspec.json.decode(body, type=shape)
    except msgspec.ValidationError as error:
        raise Refused("request.invalid", f"The request body does not fit: {error}.") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused("request.malformed", f"The request body is not JSON: {error}.") from error


def start_transfer(server: str, body: StartBody) -> StartTransfer:
    """The checked request. Args: server, the one that the caller's route names. Raises Refused (`request.invalid`)."""
    if body.server is not None and body.server.uuid is not None and maybe_uuid(body.server.uuid) != server:
        raise Refused("request.invalid", "The body's server.uuid is not the server of the path.", field="server.uuid")
    try:
        url = urlsplit(body.url)
        is_usable = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        is_usable = False
    if not is_usable or not body.url.isprintable() or " " in body.url:
        raise Refused("request.invalid", "The body's url is not an http or https URL.", field="url")
    if not body.token.isascii() or not body.token.isprintable():  # it becomes a header: no line may end in it
        raise Refused("request.invalid", "The body's token cannot stand in a header.", field="token")
    backups = []
    for backup in body.backups or []:
        name = maybe_uuid(backup)
        if name is None:
            raise Refused("request.invalid", "The body's backups are not a list of UUIDs.", field="backups")
        backups.append(name)
    return StartTransfer(
        server=server,
        url=body.url,
        token=body.token,
        start_on_completion=bool(body.server is not None and body.server.start_on_completion),
        backups=tuple(dict.fromkeys(backups)),
        backup_form="calagopus" if body.is_calagopus else "pelican",
        delete_backups=body.delete_backups is True,
    )


def shown(view: TransferView) -> dict[str, Any]:
    """A transfer as JSON: the view's fields and the percentage that follows from them."""
    body: dict[str, Any] = msgspec.to_builtins(view)
    percent = view.progress.percent
    body["progress"]["percent"] = None if percent is None else round(percent, 2)
    return body


def not_remembered() -> Refused:
    return Refused("transfer.unknown", "This node remembers no transfer of that server.")
