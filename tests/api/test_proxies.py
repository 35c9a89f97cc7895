"""The documented proxy configurations, run for real: what goes where, and that uploads survive the way.

Each file under docs/proxies is taken as it is; only addresses are replaced, and its TLS is left out.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import os
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

from sidecar.demo.node import free_port
from tests.api.fake_transfers import SERVER
from tests.api.front_rig import Dialled, Exchange, closed_port, raw_daemon
from tests.api.node import in_loop
from tests.engine.pair import running_pair
from tests.engine.rig import token_of
from tests.programs import needed

DOCS: Final = Path(__file__).parents[2] / "docs" / "proxies"
KINDS: Final = ("nginx", "caddy", "traefik")

READY: Final = "/is-the-dynamic-configuration-there"  # Traefik listens before, and answers 404 to everything

each_proxy = pytest.mark.parametrize("kind", KINDS)


def replaced(text: str, changes: dict[str, str]) -> str:
    for before, after in changes.items():
        text, count = re.subn(before, after, text)
        assert count, f"the documented file has no {before}"
    return text


def nginx_files(home: Path, port: int, sidecar: str, daemon: str) -> list[str]:
    text = replaced(
        (DOCS / "nginx.conf").read_text(),
        {
            r"listen 8080 ssl;": f"listen 127.0.0.1:{port};",
            r"ssl_certificate.*;": "",
            r"127\.0\.0\.1:8081": daemon,
            r"127\.0\.0\.1:8082": sidecar,
        },
    )
    (home / "site.conf").write_text(text)
    own = "".join(f"{name}_temp_path {home}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (home / "nginx.conf").write_text(
        f"daemon off; worker_processes 1; pid {home}/pid; events {{ worker_connections 256; }}\n"
        f"http {{ access_log off; {own} include {home}/site.conf; }}\n"
    )
    return ["-e", str(home / "error.log"), "-p", str(home), "-c", str(home / "nginx.conf")]


def caddy_files(home: Path, port: int, sidecar: str, daemon: str) -> list[str]:
    text = replaced(
        (DOCS / "Caddyfile").read_text(),
        {
            r"(?m)^node\.example\.com:8080 \{": f"http://:{port} {{\n\tbind 127.0.0.1",
            r"127\.0\.0\.1:8081": daemon,
            r"127\.0\.0\.1:8082": sidecar,
        },
    )
    (home / "Caddyfile").write_text("{\n\tadmin off\n\tauto_https off\n}\n" + text)
    return ["run", "--adapter", "caddyfile", "--config", str(home / "Caddyfile")]


def traefik_files(home: Path, port: int, sidecar: str, daemon: str) -> list[str]:
    ready = f"{{rule: Path(`{READY}`), service: noop@internal, priority: 99}}"
    dynamic = replaced(
        (DOCS / "traefik.yml").read_text(),
        {
            r"Host\(`node\.example\.com`\)": "PathPrefix(`/`)",
            r"tls: \{\}": "",
            r"(?m)^  routers:$": f"  routers:\n    ready: {ready}",
            r"127\.0\.0\.1:8081": daemon,
            r"127\.0\.0\.1:8082": sidecar,
        },
    )
    (home / "node.yml").write_text(dynamic)
    static = replaced(
        (DOCS / "traefik-static.yml").read_text(),
        {r'":8080"': f"127.0.0.1:{port}", r"/etc/traefik/dynamic/node\.yml": str(home / "node.yml")},
    )
    (home / "traefik.yml").write_text(static)
    return ["--configFile", str(home / "traefik.yml")]


FILES: Final[dict[str, Callable[[Path, int, str, str], list[str]]]] = {
    "nginx": nginx_files,
    "caddy": caddy_files,
    "traefik": traefik_files,
}


@asynccontextmanager
async def proxy(kind: str, home: Path, *, sidecar: str, daemon: str) -> AsyncIterator[int]:
    """Its port, when it listens. Args: sidecar, daemon: URLs."""
    program, port = needed(kind), free_port()
    options = FILES[kind](home, port, sidecar.removeprefix("http://"), daemon.removeprefix("http://"))
    with (home / "output.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            program,
            *options,
            stdout=log,
            stderr=log,
            env={"PATH": os.environ.get("PATH", ""), "HOME": str(home)},
        )
    try:
        while True:
            assert process.returncode is None, (home / "output.log").read_text()
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionError:
                await asyncio.sleep(0.02)
                continue
            writer.close()
            await writer.wait_closed()
            break
        while kind == "traefik" and b" 404 " in await asked(port, f"GET {READY} HTTP/1.1"):  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.02)
        yield port
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


@asynccontextmanager
async def dialled(port: int) -> AsyncIterator[Dialled]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Dialled(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def asked(port: int, head: str) -> bytes:
    async with dialled(port) as connection:
        await connection.ask(head + "|Host: node.example.com:8080|Connection: close")
        return await connection.rest()


async def named(name: bytes, exchange: Exchange) -> None:
    forwarded = {key.lower() for key, _ in exchange.fields}
    assert {"host", "x-forwarded-for", "x-forwarded-proto"} <= forwarded
    await exchange.say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(name), name))


ROUTES: Final = [
    ("POST", f"/api/servers/{SERVER}/transfer", b"sidecar"),
    ("DELETE", f"/api/servers/{SERVER}/transfer", b"sidecar"),
    ("GET", f"/api/servers/{SERVER}/transfer", b"sidecar"),
    ("POST", f"/api/servers/{SERVER}/transfer/resolve", b"sidecar"),
    ("POST", "/api/transfers", b"sidecar"),
    ("DELETE", f"/api/transfers/{SERVER}", b"sidecar"),
    ("GET", f"/api/servers/{SERVER}/ws", b"sidecar"),
    ("DELETE", f"/api/servers/{SERVER}", b"sidecar"),
    ("GET", f"/api/servers/{SERVER}", b"daemon"),
    ("POST", f"/api/servers/{SERVER}/power", b"daemon"),
    ("POST", f"/api/servers/{SERVER}/ws/deny", b"daemon"),
    ("GET", "/api/servers", b"daemon"),
    ("DELETE", f"/api/servers/{SERVER}/backup/x", b"daemon"),
    ("GET", "/download/file?token=x", b"daemon"),
]


@each_proxy
@in_loop
async def test_only_transfers_go_to_the_sidecar(kind: str, tmp_path: Path) -> None:
    async with (
        raw_daemon(functools.partial(named, b"sidecar")) as sidecar,
        raw_daemon(functools.partial(named, b"daemon")) as daemon,
        proxy(kind, tmp_path, sidecar=sidecar, daemon=daemon) as port,
    ):
        for method, path, owner in ROUTES:
            answer = await asked(port, f"{method} {path} HTTP/1.1|Content-Length: 0")
            assert answer.endswith(owner), (method, path, answer)


@each_proxy
@in_loop
async def test_an_upload_of_any_size_streams(kind: str, tmp_path: Path) -> None:
    piece = bytes(range(256)) * 4096  # 1 MiB, which is what nginx takes at most by default
    got = asyncio.Event()
    digest = hashlib.sha256()

    async def sidecar(exchange: Exchange) -> None:
        first = await exchange.reader.readline()
        got.set()
        size = int(first, 16)
        while size:
            digest.update(await exchange.reader.readexactly(size))
            await exchange.reader.readexactly(2)
            size = int(await exchange.reader.readline(), 16)
        await exchange.say(b"HTTP/1.1 422 Odd\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")

    async with (
        raw_daemon(sidecar) as url,
        proxy(kind, tmp_path, sidecar=url, daemon=await closed_port()) as port,
        dialled(port) as connection,
    ):
        await connection.ask("POST /api/transfers HTTP/1.1|Host: node.example.com|Transfer-Encoding: chunked")
        await connection.say(b"%x\r\n%s\r\n" % (len(piece), piece))
        await got.wait()  # before the end of the upload: nobody stores it first
        for _ in range(31):
            await connection.say(b"%x\r\n%s\r\n" % (len(piece), piece))
        await connection.say(b"0\r\n\r\n")
        assert (await connection.head()).startswith("HTTP/1.1 422 "), "what the sidecar answers is passed on"
        assert await connection.reader.readexactly(2) == b"ok"
    assert digest.hexdigest() == hashlib.sha256(piece * 32).hexdigest()


@pytest.mark.parametrize("kind", ["nginx", "caddy"])
@pytest.mark.parametrize("trouble", ["down", "breaks off", "no answer"])
@in_loop
async def test_an_upload_is_never_answered_by_the_proxy(kind: str, trouble: str, tmp_path: Path) -> None:
    """A Calagopus source takes any answer for success."""
    assert await answer_in_trouble(kind, trouble, tmp_path) == b""


@pytest.mark.parametrize("trouble", ["down", "no answer"])
@in_loop
async def test_traefik_answers_itself_as_its_file_says(trouble: str, tmp_path: Path) -> None:
    """So it is no proxy for nodes that receive from Calagopus. Where this fails, it has learnt better: say so there."""
    pieces = 1 if trouble == "down" else None  # of more it takes none, and a reset may overtake the answer
    assert (await answer_in_trouble("traefik", trouble, tmp_path, pieces=pieces)).startswith(b"HTTP/1.1 502 ")


async def answer_in_trouble(kind: str, trouble: str, tmp_path: Path, *, pieces: int | None = None) -> bytes:
    """The first line of what a proxy answers to an upload when the sidecar does not. `pieces`: how many are sent."""
    size = 32 << 20

    async def sidecar(exchange: Exchange) -> None:
        await exchange.reader.readexactly(1000 if trouble == "breaks off" else size)
        exchange.writer.transport.abort()

    async with (
        raw_daemon(sidecar) as url,
        proxy(kind, tmp_path, sidecar=await closed_port() if trouble == "down" else url, daemon=url) as port,
        dialled(port) as connection,
    ):

        async def send() -> None:
            with contextlib.suppress(ConnectionError):
                for _ in range(size >> 16 if pieces is None else pieces):
                    await connection.say(bytes(1 << 16))

        head = "POST /api/transfers HTTP/1.1|Host: node.example.com|Connection: close"
        await connection.ask(f"{head}|Content-Length: {size}")
        answered = b""
        async with asyncio.TaskGroup() as group:
            group.create_task(send())
            with contextlib.suppress(ConnectionError):
                answered = await connection.reader.readline()  # at once: a reset may follow it
        return answered


@each_proxy
@in_loop
async def test_the_console_socket_passes(kind: str, tmp_path: Path) -> None:
    async def echo(console: ServerConnection) -> None:
        async for message in console:
            await console.send(message)
        assert console.request is not None

    async with (
        serve(echo, "127.0.0.1", 0) as server,
        proxy(
            kind,
            tmp_path,
            sidecar=f"http://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}",
            daemon=await closed_port(),
        ) as port,
        connect(f"ws://127.0.0.1:{port}/api/servers/{SERVER}/ws", proxy=None) as console,
    ):
        await console.send("hello")
        assert await console.recv() == "hello"


@each_proxy
@in_loop
async def test_a_whole_transfer_passes(kind: str, tmp_path: Path) -> None:
    home = tmp_path / "proxy"
    home.mkdir()
    async with (
        running_pair(tmp_path) as pair,
        raw_daemon(functools.partial(named, b"daemon")) as daemon,
        proxy(kind, home, sidecar=pair.b.url, daemon=daemon) as port,
    ):
        pair.panel.add_node("b", token_id="id-b", token=token_of("b"), url=f"http://127.0.0.1:{port}")
        await pair.move()
        left, came = await pair.settled()
        assert left.status == came.status == "completed", (left, came)
        assert pair.check() == "b"
