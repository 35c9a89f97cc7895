"""`transfer-sidecar nodes` and `transfer-sidecar transfer`: any node of the bus, driven over the bus alone.

The broker is that of `--nats`, of the section `[nats]` of `--config`, or of the environment, as for `watch`. This is no
node: nothing else of a configuration has to be there.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar
from uuid import UUID, uuid4

import typer

from sidecar.cli.ending import EXIT_USAGE, fail, fail_settings

T = TypeVar("T")

START_S: Final = 60.0  # a start that has not arrived by then is not wanted any more
UPLOAD_TOKEN_S: Final = 900.0  # to be presented by then; an upload that has begun may take longer

NatsOption = Annotated[str | None, typer.Option("--nats", metavar="URL", help="NATS servers: nats://host:4222.")]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", metavar="FILE", envvar="SIDECAR_CONFIG", help="Configuration with a section [nats]."
    ),
]
NodeArgument = Annotated[str, typer.Argument(metavar="NODE", help="Id of the node that is asked.")]
ServerArgument = Annotated[str, typer.Argument(metavar="SERVER", help="UUID of the server.")]
TokenOption = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        metavar="FILE",
        dir_okay=False,
        help="File with that node's token. Default: that of the configuration, where it is that node's; else none.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the answer as it came.")]

app = typer.Typer(no_args_is_help=True, help="Start, cancel and look at transfers of any node, over the bus.")


def nodes(nats: NatsOption = None, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show the nodes that are on the bus, from its directory.

    **Example**

        transfer-sidecar nodes --config sidecar.toml
    """
    from sidecar.bus.asking import Asker
    from sidecar.bus.messages import NodeEntry

    async def ask(asker: Asker) -> list[NodeEntry]:
        return await asker.nodes()

    found = _on_the_bus(nats, config, ask)
    if as_json:
        import msgspec

        typer.echo(json.dumps(msgspec.to_builtins(found)))  # in plain characters
        return
    rows = [("NODE", "VERSION", "SENDS", "RECEIVES", "FREE", "URL")]
    rows += [
        (
            node.node,
            node.version,
            f"{node.outgoing}/{node.max_outgoing}",
            f"{node.incoming}/{node.max_incoming}",
            "-" if node.free_bytes is None else f"{node.free_bytes / 1024**3:.1f} GiB",
            node.url or "-",
        )
        for node in found
    ]
    _print(rows)


def prepare_bus(nats: NatsOption = None, config: ConfigOption = None) -> None:
    """Make what nodes need on a NATS server, once, where it is missing: the stream of events, the directory's bucket.

    For an operator's user (`SIDECAR_NATS_USER`, `SIDECAR_NATS_PASSWORD_FILE`): nodes need not be allowed to. What is
    there already is never changed.

    **Example**

        SIDECAR_NATS_USER=admin SIDECAR_NATS_PASSWORD_FILE=admin.password \\
        transfer-sidecar prepare-bus --nats nats://127.0.0.1:4222
    """
    from sidecar.bus.control import Pace
    from sidecar.bus.prepare import prepare

    section, settings = _broker(nats, config)
    work = prepare(settings, root=section.root, stream=section.stream, expiry_s=Pace().expiry_s)
    for line in _run(work):
        typer.echo(line)


@app.command("list")
def list_transfers(
    node: NodeArgument,
    nats: NatsOption = None,
    config: ConfigOption = None,
    token_file: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the transfers that a node remembers, unfinished ones first.

    **Example**

        transfer-sidecar transfer list node-b --token-file node-b.token
    """
    answer = _command(node, "list", {}, nats, config, token_file)
    if as_json:
        typer.echo(json.dumps(answer))
        return
    from sidecar.bus.asking import Listed

    rows: list[tuple[str, ...]] = [("SERVER", "DIRECTION", "STATUS", "PERCENT", "PEER", "REASON")]
    for one in _understood(node, answer, Listed).transfers:
        percent = "-" if one.progress.percent is None else f"{one.progress.percent:.0f}"
        rows.append((one.server, one.direction, one.status, percent, one.peer or "-", one.reason or "-"))
    _print(rows)


@app.command()
def status(
    node: NodeArgument,
    server: ServerArgument,
    nats: NatsOption = None,
    config: ConfigOption = None,
    token_file: TokenOption = None,
) -> None:
    """Show the newest transfer of a server, as JSON."""
    body = {"server": _uuid(server)}
    typer.echo(json.dumps(_command(node, "status", body, nats, config, token_file), indent=2))


@app.command()
def cancel(
    node: NodeArgument,
    server: ServerArgument,
    nats: NatsOption = None,
    config: ConfigOption = None,
    token_file: TokenOption = None,
) -> None:
    """Cancel the transfer of a server, on the node that sends or receives it."""
    _say_begun(node, _command(node, "cancel", {"server": _uuid(server)}, nats, config, token_file))


@app.command()
def start(
    node: NodeArgument,
    server: ServerArgument,
    destination: Annotated[
        str, typer.Argument(metavar="DESTINATION", help="Id of the other node, or its address, `https://host:port`.")
    ],
    destination_token_file: Annotated[
        Path, typer.Option("--destination-token-file", metavar="FILE", dir_okay=False, help="File with its token.")
    ],
    nats: NatsOption = None,
    config: ConfigOption = None,
    token_file: TokenOption = None,
    start_there: Annotated[bool, typer.Option("--start", help="Start the server there when it has arrived.")] = False,
) -> None:
    """Send a server from one node to another, where no panel decides who owns it.

    Returns when the transfer has begun. The address of the other node is looked up in the bus's directory where its id
    is given. The same request is never begun twice, however often the bus delivers it.

    **Example**

        transfer-sidecar transfer start node-a 12345678-1234-1234-1234-123456789012 node-b \\
            --token-file node-a.token --destination-token-file node-b.token
    """
    import jwt

    uuid, key, now = _uuid(server), _token(destination_token_file), int(time.time())
    claims = {"sub": uuid, "iat": now, "nbf": now - 300, "exp": now + UPLOAD_TOKEN_S, "scope": "transfer"}
    body: dict[str, Any] = {
        "url": destination,
        "token": f"Bearer {jwt.encode(claims | {'jti': str(uuid4())}, key, algorithm='HS256')}",
        "server": {"uuid": uuid, "start_on_completion": start_there},
        "idempotency_key": str(uuid4()),
        "expires_at": now + START_S,
    }
    _say_begun(node, _command(node, "start", body, nats, config, token_file))


def _command(
    node: str, command: str, body: dict[str, Any], nats: str | None, config: Path | None, token_file: Path | None
) -> dict[str, Any]:
    from sidecar.bus.asking import Asker, NotReached

    key = _token(token_file) if token_file is not None else _own_token(node, config)

    async def ask(asker: Asker) -> dict[str, Any]:
        if command == "start":
            body["url"] = await _upload_url(asker, body["url"])
        return await asker.ask(node, command, body, key=key)

    async def _upload_url(asker: Asker, destination: str) -> str:
        if "://" in destination:
            return f"{destination.rstrip('/').removesuffix('/api/transfers')}/api/transfers"
        for entry in await asker.nodes():
            if entry.node == destination and entry.url:
                return entry.url
        raise NotReached(f"the directory has no address of {destination}: give it instead of the id")

    return _on_the_bus(nats, config, ask)


def _own_token(node: str, config: Path | None) -> str | None:
    """The node's token where the configuration is that node's own."""
    from sidecar.errors import HostFailed
    from sidecar.settings import load

    try:
        own = load(config, None, os.environ).settings.node
    except HostFailed:  # it has a section [nats] and no more
        return None
    return own.token.reveal() if own.id == node else None


def _on_the_bus(nats: str | None, config: Path | None, work: Callable[[Any], Awaitable[T]]) -> T:
    from sidecar.bus.asking import asking

    section, settings = _broker(nats, config)

    async def run() -> T:
        async with asking(settings, section.root) as asker:
            return await work(asker)

    return _run(run())


def _broker(nats: str | None, config: Path | None) -> tuple[Any, Any]:
    """The section `[nats]` and how to connect."""
    from sidecar.bus.settings import BusSettings
    from sidecar.errors import HostFailed
    from sidecar.settings import load_nats

    try:
        section = load_nats(config, os.environ, {"url": (nats, "--nats")} if nats is not None else {})
        return section, BusSettings.of_user(section, name="transfer-sidecar")
    except HostFailed as wrong:
        fail_settings(wrong)


def _run(work: Coroutine[Any, Any, T]) -> T:
    import asyncio
    import logging

    from sidecar.bus.asking import NodeRefused, NotReached
    from sidecar.engine.log_lines import printable

    logging.getLogger().addHandler(logging.NullHandler())  # what is wrong is said once, at the end
    try:
        return asyncio.run(work)
    except NodeRefused as refused:
        fail(f"the node refused: {printable(str(refused))}")
    except NotReached as reason:
        fail(printable(str(reason)))
    except ValueError as wrong:  # a node id that cannot stand in a subject
        fail(str(wrong), EXIT_USAGE)


def _uuid(server: str) -> str:
    try:
        return str(UUID(server))
    except ValueError:
        fail(f"{server!r} is not the UUID of a server", EXIT_USAGE)


def _token(path: Path) -> str:
    try:
        token = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        fail(f"the token cannot be read from {path}: {getattr(error, 'strerror', None) or error}", EXIT_USAGE)
    if not token:
        fail(f"{path} holds no token", EXIT_USAGE)
    return token


def _understood(node: str, answer: dict[str, Any], form: type[T]) -> T:
    from sidecar.bus.asking import NotReached, understood

    try:
        return understood(node, answer, form)
    except NotReached as reason:
        fail(str(reason))


def _say_begun(node: str, answer: dict[str, Any]) -> None:
    from sidecar.bus.asking import Begun
    from sidecar.engine.log_lines import printable

    begun = _understood(node, answer, Begun)
    typer.echo(printable(f"{begun.transfer}: {begun.status}", max_chars=200))


def _print(rows: Sequence[tuple[str, ...]]) -> None:
    for line in _aligned(rows):
        typer.echo(line)


def _aligned(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """What other nodes say is shown in plain characters only."""
    from sidecar.engine.log_lines import printable

    plain = [[printable(cell, max_chars=200) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in plain) for column in range(len(plain[0]))]
    for row in plain:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
