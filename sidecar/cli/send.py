"""Sends a server to another node where there is no panel: asks this node as a panel would, and waits for the end.

The transfer's token is made here, with the destination's own token, as a panel makes it (docs/PROTOCOL.md). Nothing is
decided here: a caller that goes away leaves the transfer running.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final
from uuid import uuid4

import jwt

from sidecar.cli.own_node import NoAnswer, ask
from sidecar.settings import Secret, Settings

TOKEN_S: Final = 900  # to be presented by then; an upload that has begun may take longer
_SKEW_S: Final = 300
_POLL_S: Final = 0.5
_PATIENCE_S: Final = 60.0  # without an answer of our own node
_OVER: Final = frozenset({"completed", "failed", "cancelled"})


class NotSent(Exception):
    """The server was not sent, or its end is not known; the text says why."""


def send(
    settings: Settings, server: str, destination: str, key: Secret, *, start: bool | None, tell: Callable[[str], None]
) -> None:
    """Returns when both the files and the ownership have moved.

    Args: server, a UUID; destination, the other node's address, `https://host:port`; key, that node's token; start,
    whether it is started there, None for as it is here; tell, one line for a person at a time. Raises NotSent.
    """
    if settings.panel.url:
        raise NotSent(f"this node has a panel, {settings.panel.url}, which begins its transfers; ask for it there")
    if start is None:
        start = _asked(settings, "GET", f"/api/servers/{server}").get("state") == "running"
    body = {
        "url": f"{destination.rstrip('/')}/api/transfers",
        "token": f"Bearer {_token(server, settings.node.id, key)}",
        "server": {"uuid": server, "start_on_completion": start},
    }
    path = f"/api/servers/{server}/transfer"
    _asked(settings, "POST", path, body)
    tell(f"{server}: stopped; its files are on their way to {destination}")
    view = _wait(settings, path, tell)
    if view["status"] != "completed":
        reason = f" ({view['reason']})" if view.get("reason") else ""
        raise NotSent(f"{view['status']}: {view.get('message') or 'no reason was given'}{reason}")
    tell(f"{server}: completed; {destination} has it. Its old files stay here until the server is deleted here.")


def _token(server: str, node: str, key: Secret) -> str:
    now = int(time.time())
    claims = {"iss": node, "sub": server, "iat": now, "nbf": now - _SKEW_S, "exp": now + TOKEN_S, "scope": "transfer"}
    return jwt.encode(claims | {"jti": str(uuid4())}, key.reveal(), algorithm="HS256")


def _asked(settings: Settings, method: str, path: str, body: Any = None) -> Mapping[str, Any]:
    try:
        answer = ask(settings.api, method, path, token=settings.node.token, body=body)
    except NoAnswer as reason:
        raise NotSent(f"the node was not reached: {reason}") from reason
    if not 200 <= answer.status < 300:
        raise NotSent(f"the node refused ({answer.status}){answer.detail}")
    return answer.body if isinstance(answer.body, dict) else {}


def _wait(settings: Settings, path: str, tell: Callable[[str], None]) -> Mapping[str, Any]:
    """Until the transfer is over. A node that is restarted meanwhile goes on with it, so silence is not the end."""
    heard = time.monotonic()
    told = ""
    while True:
        try:
            view = _asked(settings, "GET", path)
            heard = time.monotonic()
        except NotSent as reason:
            if time.monotonic() - heard > _PATIENCE_S:
                raise NotSent(f"the transfer may go on, but its node does not answer: {reason}") from reason
        else:
            if view.get("status") in _OVER:
                return view
            if (line := _line(view)) != told:
                told = line
                tell(line)
        time.sleep(_POLL_S)


def _line(view: Mapping[str, Any]) -> str:
    progress = view.get("progress") or {}
    done, total = progress.get("bytes_done") or 0, progress.get("bytes_total")
    size = f"{done / 1e6:.1f} of {total / 1e6:.1f} MB" if total else f"{done / 1e6:.1f} MB"
    needs = f"; {view['needs']}" if view.get("needs") else ""
    return f"{view.get('server')}: {view.get('stage')}, {size}{needs}"
