"""The command `transfer-sidecar`: what can be asked for, and how its errors are told.

Everything heavy is imported by the command that needs it, so that `--help` and `healthcheck` start quickly. Exit codes:
0 done, 1 it did not work, 2 wrong usage or wrong configuration.
"""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sidecar import __version__
from sidecar.cli import bus_commands
from sidecar.cli.ending import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, fail, fail_settings

if TYPE_CHECKING:
    from sidecar.settings import Loaded

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        envvar="SIDECAR_CONFIG",
        help="Our configuration, TOML. Any setting can also be `SIDECAR_<SECTION>_<FIELD>` in the environment.",
    ),
]
WingsOption = Annotated[
    Path | None,
    typer.Option(
        "--wings-config",
        metavar="FILE",
        envvar="SIDECAR_WINGS_CONFIG",
        help="config.yml of a Wings on this node: its id, tokens, panel, address, TLS and volumes are taken over.",
    ),
]


class DemoMode(StrEnum):
    STANDALONE = "standalone"
    BESIDE = "beside"


app = typer.Typer(
    name="transfer-sidecar",
    help="Moves game servers from node to node: stopped, streamed, verified, committed, and only then announced.",
    epilog="Try it on this machine, with nothing to configure:  transfer-sidecar demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
config_app = typer.Typer(no_args_is_help=True, help="Look at the configuration.")
app.add_typer(config_app, name="config")
app.add_typer(bus_commands.app, name="transfer")


def load_settings(config: Path | None, wings_config: Path | None, *, is_probe: bool = False) -> Loaded:
    """The effective settings, or the end of the program with one line per problem (all on one line for a probe)."""
    from sidecar.errors import HostFailed
    from sidecar.settings import load

    try:
        return load(config, wings_config, os.environ)
    except HostFailed as wrong:
        if is_probe:  # to a container engine 1 is unhealthy and 2 is undefined
            fail(f"unhealthy: the configuration is wrong: {'; '.join(wrong.message.splitlines())}")
        fail_settings(wrong)


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"transfer-sidecar {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def serve(config: ConfigOption = None, wings_config: WingsOption = None) -> None:
    """Run this node: answer the panel, send and receive servers.

    Runs until SIGTERM or Ctrl-C; transfers then have `transfer.shutdown_grace_s` to end, or until you ask again. Those
    that are cut short are finished at the next start.

    **Examples**

        transfer-sidecar serve --config /etc/transfer-sidecar.toml
        transfer-sidecar serve --wings-config /etc/pterodactyl/config.yml
        SIDECAR_NODE_ID=a SIDECAR_NODE_TOKEN_FILE=/run/secrets/token transfer-sidecar serve
    """
    import asyncio

    from sidecar.errors import HostFailed

    loaded = load_settings(config, wings_config)
    from sidecar.wiring import serve as serve_node

    try:
        asyncio.run(serve_node(loaded.settings))
    except (HostFailed, OSError, ExceptionGroup) as failed:
        cause: Exception = failed
        while isinstance(cause, ExceptionGroup) and len(cause.exceptions) == 1:  # as the scopes around it wrapped it
            cause = cause.exceptions[0]
        if not isinstance(cause, (HostFailed, OSError)):
            raise  # a bug: with all that is known of it
        fail(f"the node cannot serve: {cause}")
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None


@app.command()
def watch(
    nats: Annotated[
        str | None, typer.Option("--nats", metavar="URL", help="NATS servers: nats://host:4222, or tls://host:4222.")
    ] = None,
    config: ConfigOption = None,
    servers: Annotated[
        list[str] | None, typer.Option("--server", metavar="UUID", help="Only this server; may be repeated.")
    ] = None,
    nodes: Annotated[
        list[str] | None,
        typer.Option("--node", metavar="ID", help="Only transfers from or to this node; may be repeated."),
    ] = None,
    active: Annotated[bool, typer.Option("--active", help="Leave out what has ended.")] = False,
    once: Annotated[bool, typer.Option("--once", help="Show the present state, and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON per event, for scripts.")] = False,
    user: Annotated[str | None, typer.Option("--user", metavar="NAME", help="User at the broker.")] = None,
    password_file: Annotated[str | None, typer.Option("--password-file", metavar="FILE", help="Its password.")] = None,
    token_file: Annotated[str | None, typer.Option("--token-file", metavar="FILE", help="The broker's token.")] = None,
    creds: Annotated[
        str | None, typer.Option("--creds", metavar="FILE", help="Credentials file (user JWT and seed).")
    ] = None,
    nkey_seed_file: Annotated[
        str | None, typer.Option("--nkey-seed-file", metavar="FILE", help="Seed of an nkey.")
    ] = None,
    tls_ca: Annotated[
        str | None, typer.Option("--tls-ca", metavar="FILE", help="Certificates that sign the broker's.")
    ] = None,
    tls_cert: Annotated[str | None, typer.Option("--tls-cert", metavar="FILE", help="Client certificate.")] = None,
    tls_key: Annotated[str | None, typer.Option("--tls-key", metavar="FILE", help="Its private key.")] = None,
    inbox_prefix: Annotated[
        str | None,
        typer.Option("--inbox-prefix", metavar="PREFIX", help=r"Of answers to us. Default: \_INBOX\_ and the user."),
    ] = None,
    root: Annotated[
        str | None, typer.Option("--root", metavar="WORD", help="First part of every subject. Default: transfer.")
    ] = None,
) -> None:
    """Show all transfers of all nodes, as the bus tells them.

    On a terminal a table that moves, elsewhere a line per change. Begins with the present state where the broker keeps
    the events (the stream TRANSFER_EVENTS); without, only what happens from now on is seen. AGE is the time since the
    newest event. Ctrl-C ends it.

    How to reach the broker can also stand in the environment (`SIDECAR_NATS_URL`, `SIDECAR_NATS_PASSWORD`, ...) or in
    the section `[nats]` of `--config`. No option takes a secret, because other users of a machine can read those.

    **Examples**

        transfer-sidecar watch --nats nats://127.0.0.1:4222
        transfer-sidecar watch --active --node node-a
        transfer-sidecar watch --once --json --server 12345678-1234-1234-1234-123456789012
    """
    from sidecar.cli.watching import run

    options = {
        "url": (nats, "--nats"),
        "user": (user, "--user"),
        "password_file": (password_file, "--password-file"),
        "token_file": (token_file, "--token-file"),
        "creds": (creds, "--creds"),
        "nkey_seed_file": (nkey_seed_file, "--nkey-seed-file"),
        "tls_ca": (tls_ca, "--tls-ca"),
        "tls_cert": (tls_cert, "--tls-cert"),
        "tls_key": (tls_key, "--tls-key"),
        "inbox_prefix": (inbox_prefix, "--inbox-prefix"),
        "root": (root, "--root"),
    }
    given = {key: (text, name) for key, (text, name) in options.items() if text is not None}
    run(config, given, servers or [], nodes or [], active_only=active, once=once, as_json=as_json)


@app.command()
def demo(
    size: Annotated[
        int, typer.Option("--size", min=1, max=1_000_000, metavar="MB", help="Size of the game volume.")
    ] = 300,
    docker: Annotated[
        bool | None,
        typer.Option(
            "--docker/--no-docker", help="Insist on a running container, or do without. Default: if an engine answers."
        ),
    ] = None,
    mode: Annotated[
        DemoMode, typer.Option("--mode", help="The nodes run their servers themselves, or each beside a node daemon.")
    ] = DemoMode.STANDALONE,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the nodes running at the end, for the examples of the README.")
    ] = False,
) -> None:
    """Move a game server between two nodes on this machine, and watch.

    Starts a NATS server, a stand-in for the panel and two nodes on loopback; makes a game volume; asks for the transfer
    as a panel does; shows what the bus tells; compares both volumes file by file. Leaves nothing behind.

    With `--mode beside` each node has a stand-in node daemon that runs the server, and the sidecar in front of it.

    **Examples**

        transfer-sidecar demo
        transfer-sidecar demo --mode beside
        transfer-sidecar demo --size 2000 --no-docker
    """
    try:
        from sidecar.demo.run import run
    except ModuleNotFoundError as missing:  # an installation without the extra
        fail(f"the demo needs the package {missing.name}: pip install 'transfer-sidecar[demo]'", EXIT_USAGE)
    raise typer.Exit(run(size_mb=size, use_docker=docker, keep=keep, is_beside=mode is DemoMode.BESIDE))


@config_app.command("check")
def config_check(config: ConfigOption = None, wings_config: WingsOption = None) -> None:
    """Show the effective configuration, each value with where it came from.

    Prints TOML with the secrets masked. Problems go to standard error, all at once, with exit code 2; remarks on what
    works but deserves a word go there too, with exit code 0.
    """
    from sidecar.settings.checks import remarks
    from sidecar.settings.render import effective

    loaded = load_settings(config, wings_config)
    typer.echo(effective(loaded), nl=False)
    for remark in remarks(loaded.settings):
        typer.echo(f"remark: {remark}", err=True)


@config_app.command("table")
def config_table() -> None:
    """Show every setting with its default and meaning, as a Markdown table."""
    from sidecar.settings.render import table

    typer.echo(table())


@app.command()
def schemas(
    directory: Annotated[Path, typer.Argument(metavar="DIRECTORY", help="Where to write them; made where missing.")],
) -> None:
    """Write the JSON Schemas of what is said on the bus, one file each.

    **Example**

        transfer-sidecar schemas docs/schemas
    """
    from sidecar.bus.schemas import files

    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in files().items():
            (directory / name).write_text(content)
    except OSError as error:
        fail(f"{directory} cannot be written to: {error.strerror}")


@app.command()
def healthcheck(
    config: ConfigOption = None,
    wings_config: WingsOption = None,
    ready: Annotated[
        bool, typer.Option("--ready", help="Ask whether the node can work (/readyz), not only whether it runs.")
    ] = False,
    timeout_s: Annotated[float, typer.Option("--timeout", min=0.1, max=60, metavar="SECONDS", help="Deadline.")] = 5.0,
) -> None:
    """Ask the node of this configuration whether it is alive. Exit code 0 or 1, one line.

    For the HEALTHCHECK of a container image or a Kubernetes exec probe.
    """
    from sidecar.cli.own_node import NoAnswer, ask

    settings = load_settings(config, wings_config, is_probe=True).settings
    path = "/readyz" if ready else "/healthz"
    try:
        answer = ask(settings.api, "GET", path, timeout_s=timeout_s)
    except NoAnswer as reason:
        fail(f"unhealthy: {reason}")
    if answer.status != 200:
        fail(f"unhealthy: {path} answered {answer.status}{answer.detail}")
    typer.echo("healthy")


@app.command()
def send(
    server: Annotated[str, typer.Argument(metavar="SERVER", help="UUID of the server.")],
    destination: Annotated[str, typer.Argument(metavar="URL", help="Address of the other node, `https://host:port`.")],
    token_file: Annotated[
        Path, typer.Option("--token-file", metavar="FILE", help="File with the other node's token.", dir_okay=False)
    ],
    start: Annotated[
        bool | None, typer.Option("--start/--no-start", help="Start it there, or do not. Default: as it is here.")
    ] = None,
    config: ConfigOption = None,
    wings_config: WingsOption = None,
) -> None:
    """Send a server to another node, where no panel does.

    Asks the node of this configuration, shows how far it is, and ends when the other node has the server. Interrupting
    it leaves the transfer running. A node that has a panel refuses: the panel would not know who has the server.

    **Example**

        transfer-sidecar send 12345678-1234-1234-1234-123456789012 https://node-b:8080 --token-file node-b.token
    """
    from sidecar.cli.send import NotSent
    from sidecar.cli.send import send as send_server
    from sidecar.settings import Secret

    uuid = _server_uuid(server)
    try:
        key = Secret(token_file.read_text("utf-8").strip())
    except (OSError, UnicodeDecodeError) as error:
        fail(f"the token cannot be read from {token_file}: {getattr(error, 'strerror', None) or error}", EXIT_USAGE)
    if not key:
        fail(f"{token_file} holds no token", EXIT_USAGE)
    settings = load_settings(config, wings_config).settings
    try:
        send_server(settings, uuid, destination, key, start=start, tell=typer.echo)
    except NotSent as reason:
        fail(str(reason))


@app.command()
def resolve(
    server: Annotated[str, typer.Argument(metavar="SERVER", help="UUID of the server.")],
    outcome: Annotated[str, typer.Argument(metavar="completed|failed", help="What you know to be true.")],
    config: ConfigOption = None,
    wings_config: WingsOption = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Decide a transfer in doubt, on the node that waits for somebody to say how it ended.

    A transfer is in doubt when all bytes were sent and neither the other node nor the panel could say how it ended.
    The server then stays stopped on both, its files untouched, until the panel answers. Use this only when it never
    will, after looking at both nodes with your own eyes, and say the same on each that waits. What it means for this
    one is shown before anything is decided.

    **completed**: the destination has the server. The source never starts it again; the files there stay until they
    are deleted.

    **failed**: the source has the server, as before; what arrived at the destination goes to the trash there.

    If that is wrong, **the world exists twice**, and what is played on one of the two is lost.

    **Example**

        transfer-sidecar resolve 12345678-1234-1234-1234-123456789012 completed --config sidecar.toml
    """
    from sidecar.cli import resolving

    uuid = _server_uuid(server)
    if outcome not in ("completed", "failed"):
        fail(f"{outcome!r} is neither completed nor failed", EXIT_USAGE)
    resolving.resolve(load_settings(config, wings_config).settings, uuid, outcome, ask_first=not yes)


app.command()(bus_commands.nodes)
app.command()(bus_commands.prepare_bus)


def _server_uuid(server: str) -> str:
    from uuid import UUID

    try:
        return str(UUID(server))
    except ValueError:
        fail(f"{server!r} is not the UUID of a server", EXIT_USAGE)


def main() -> None:
    """The console script."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_FAILED)
