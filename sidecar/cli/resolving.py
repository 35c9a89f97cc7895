"""`transfer-sidecar resolve`: what an operator knows, told to the node that waits; what it means is shown first."""

from __future__ import annotations

from typing import Any, Final

import typer

from sidecar.cli.ending import fail
from sidecar.cli.own_node import Answer, NoAnswer, ask
from sidecar.engine.log_lines import printable
from sidecar.settings import Settings

_CONSEQUENCES: Final = {
    ("source", "completed"): "Server {server} will never be started on {node} again. The destination has it.",
    ("source", "failed"): "Server {server} will belong to {node} again and may be started there. The destination does "
    "not have it; if it did, the world would exist twice.",
    (
        "destination",
        "completed",
    ): "Server {server} will belong to {node} and may be started there. The source has "
    "given it up; if it had not, the world would exist twice.",
    ("destination", "failed"): "The files of server {server} that arrived on {node} go to the trash there, for "
    "transfer.retain_s. The source still has the server.",
}


def resolve(settings: Settings, server: str, outcome: str, *, ask_first: bool) -> None:
    """Args: server, a UUID; outcome, completed or failed. Ends the program by typer.Exit where it was not decided."""
    path = f"/api/servers/{server}/transfer"
    if ask_first:
        _make_sure(_asked(settings, "GET", path).body, settings.node.id, server, outcome)
    _asked(settings, "POST", f"{path}/resolve", {"outcome": outcome})
    typer.echo(f"{server}: {outcome}")


def _make_sure(transfer: Any, node: str, server: str, outcome: str) -> None:
    found = transfer if isinstance(transfer, dict) else {}
    words = _CONSEQUENCES.get((str(found.get("role")), outcome))
    if words is None or not found.get("in_doubt"):
        fail("no transfer of that server is in doubt on this node")
    typer.echo(f"This node is the {found['role']}; the other end is {printable(str(found.get('peer')))}.", err=True)
    typer.echo(words.format(server=server, node=node), err=True)
    try:
        is_sure = typer.confirm("Is that so?", err=True)
    except typer.Abort:  # no terminal to answer on
        is_sure = False
    if not is_sure:
        fail("nothing was decided")


def _asked(settings: Settings, method: str, path: str, body: object = None) -> Answer:
    try:
        answer = ask(settings.api, method, path, token=settings.node.token, body=body)
    except NoAnswer as reason:
        fail(f"the node was not reached: {reason}")
    if not 200 <= answer.status < 300:
        fail(f"the node refused ({answer.status}){answer.detail}")
    return answer
