"""What a stand-in node daemon says, in the words of each family: refusals, a server's document, socket messages.

Source: docs/PROTOCOL.md and recordings of the real daemons. Two of them (Go) share nearly all words.
"""

from __future__ import annotations

import json
import uuid
from typing import Any, Final

from starlette.responses import JSONResponse, PlainTextResponse, Response

from sidecar.demo.panel_documents import Document, Family

SERVICES: Final = {Family.PTERODACTYL: "Pterodactyl", Family.PELICAN: "Pelican", Family.CALAGOPUS: "Calagopus"}
_UNEXPECTED: Final = "An unexpected error was encountered while processing this request"


def is_go(family: Family) -> bool:
    return family is not Family.CALAGOPUS


def headers_of(family: Family, token_id: str, *, protected: bool) -> dict[str, str]:
    """What every answer carries. Pelican names itself on the routes that ask for the node's token."""
    headers = {"Access-Control-Allow-Credentials": "true", "Access-Control-Max-Age": "7200"}
    if is_go(family):
        headers["X-Request-Id"] = str(uuid.uuid4())
    if family is Family.PELICAN and protected:
        headers["User-Agent"] = f"Pelican Wings/vdevelop (id:{token_id})"
    return headers


def error(status: int, sentence: str, **more: str) -> Response:
    return JSONResponse({"error": sentence, **more}, status_code=status)


def unexpected(family: Family) -> Response:
    if is_go(family):
        return error(500, _UNEXPECTED, request_id=str(uuid.uuid4()))
    return error(500, "internal server error")


def no_route(family: Family) -> Response:
    return PlainTextResponse("404 page not found", 404) if is_go(family) else error(404, "route not found")


def no_server(family: Family) -> Response:
    if is_go(family):
        return error(404, "The requested resource does not exist on this instance.")
    return error(404, "server not found")


def no_header(family: Family, *, is_transfer: bool = False) -> Response:
    """Authorization is missing or not a bearer token."""
    if family is Family.CALAGOPUS:
        response = error(401, "invalid authorization header")
    else:
        word = "headers" if family is Family.PELICAN and is_transfer else "heads"
        response = error(401, f"The required authorization {word} were not present in the request.")
    response.headers["WWW-Authenticate"] = "Bearer"
    return response


def wrong_token(family: Family) -> Response:
    if is_go(family):
        return error(403, "You are not authorized to access this endpoint.")
    return error(401, "invalid authorization token")


def done(family: Family, status: int) -> Response:
    """An empty answer: nothing, or Calagopus' empty object."""
    return (
        Response(status_code=status)
        if is_go(family)
        else JSONResponse({}, status_code=200 if status == 204 else status)
    )


def server_document(state: str, *, suspended: bool, settings: Document, disk_bytes: int) -> Document:
    return {
        "state": state,
        "is_suspended": suspended,
        "utilization": usage(state, disk_bytes),
        "configuration": settings,
    }


def usage(state: str, disk_bytes: int) -> Document:
    return {
        "memory_bytes": 0,
        "memory_limit_bytes": 0,
        "cpu_absolute": 0,
        "network": {"rx_bytes": 0, "tx_bytes": 0},
        "uptime": 0,
        "state": state,
        "disk_bytes": disk_bytes,
    }


def message(family: Family, event: str, *args: str) -> str:
    """A socket's message; Go leaves empty arguments out and ends with a newline."""
    document: dict[str, Any] = {"event": event, "args": list(args)}
    if is_go(family) and not args:
        del document["args"]
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False)
    return f"{text}\n" if is_go(family) else text
