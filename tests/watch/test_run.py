"""`transfer-sidecar watch` as a program, with a real broker that restarts, strangers on it, and a real terminal."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ParamSpec

import psutil

from sidecar.bus.watch import FORGOTTEN_AFTER_S
from tests.bus.broker import broker
from tests.bus.event_rig import until
from tests.bus.events import SERVER, TRANSFER, message, publish, streaming, transfer_id
from tests.bus.test_watch import consumers, until_kept, until_no_consumer

P = ParamSpec("P")

# Or "reconnecting since": the first events are heard a moment before the connection counts as made.
CONNECTING = "connecting since"
END_S = 90.0  # of a test; a start of the program takes a second, where there is nothing else to do


def in_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), END_S))

    return run


def environ(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SIDECAR_") and name != "NO_COLOR"}
    return kept | {"TERM": "xterm-256color", "PYTHONWARNINGS": "error"} | more


class Program:
    """A running `watch` and what it has said so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def line(self) -> str:
        assert self.process.stdout is not None
        return (await self.process.stdout.readline()).decode().rstrip("\n")

    async def complaint(self) -> str:
        assert self.process.stderr is not None
        return (await self.process.stderr.readline()).decode().rstrip("\n")

    async def end(self, number: signal.Signals = signal.SIGINT) -> tuple[int, str]:
        """Exit code and what is left on standard error."""
        self.process.send_signal(number)
        _, said = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, said.decode()


@asynccontextmanager
async def program(url: str, *arguments: str, **more: str) -> AsyncIterator[Program]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sidecar", "watch", "--nats", url, *arguments),
        env=environ(**more),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield Program(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def once(url: str, *arguments: str, **more: str) -> tuple[int, list[str], str]:
    async with program(url, "--once", *arguments, **more) as watch:
        said, complained = await watch.process.communicate()
        assert watch.process.returncode is not None
        return watch.process.returncode, said.decode().splitlines(), complained.decode()


A_TRANSFER = [
    message(seq=1, status="pending", stage="stopping"),
    message(seq=2),
    message(seq=1, node="node-b", role="destination"),
    message("logs", 3, message="a line"),
    message("progress", 3),
]
ANOTHER = message(transfer=transfer_id(5), server=transfer_id(5), status="failed", reason="disk.full", message="Full.")


@in_loop
async def test_once(tmp_path: Path) -> None:
    async with streaming(tmp_path) as (server, client):
        await publish(client, *A_TRANSFER, ANOTHER)
        await until_kept(client, 6)
        assert await once(server.url) == (
            0,
            [
                f"{SERVER}  node-a → node-b  processing  sending/receiving  43% 129 MB/300 MB",
                f"{transfer_id(5)}  node-a → ?  failed  disk.full: Full.",
            ],
            "",
        )
        code, lines, _ = await once(server.url, "--json", "--server", SERVER.upper(), "--active")
        assert code == 0
        heard = [json.loads(line) for line in lines]
        assert [(one["node"], one["event"], one["seq"]) for one in heard] == [
            ("node-a", "transfer.status", 2),
            ("node-b", "transfer.status", 1),
            ("node-a", "transfer.logs", 3),
            ("node-a", "transfer.progress", 3),
        ]
        assert heard[0]["id"] == f"node-a-{TRANSFER}-source-transfer.status-2"


@in_loop
async def test_what_is_filtered(tmp_path: Path) -> None:
    async with streaming(tmp_path) as (server, client):
        await publish(client, *A_TRANSFER, ANOTHER)
        await until_kept(client, 6)
        (by_node, by_both) = await asyncio.gather(
            once(server.url, "--node", "node-b"), once(server.url, "--active", "--server", transfer_id(5))
        )
        assert [line.split()[0] for line in by_node[1]] == [SERVER]
        assert by_both == (0, [], "")


@in_loop
async def test_once_without_anything_to_know_it_from(tmp_path: Path) -> None:
    with broker(tmp_path) as server:
        await server.wait_listening()
        code, lines, complained = await once(server.url)
        assert (code, lines) == (1, [])
        assert complained == "transfer-sidecar: the present state is not kept: the broker has no JetStream\n"


@in_loop
async def test_every_event_is_a_line_of_json_also_across_a_restart(tmp_path: Path) -> None:
    async with streaming(tmp_path) as (server, client), program(server.url, "--json") as watch:
        await publish(client, *A_TRANSFER[:3])
        while json.loads(await watch.line())["node"] != "node-b":
            pass
        server.stop()
        assert CONNECTING in await watch.complaint()
        server.start()
        await until(lambda: client.is_connected)
        await publish(client, *(message("logs", seq) for seq in range(4, 30)))
        assert [json.loads(await watch.line())["seq"] for _ in range(26)] == list(range(4, 30))
        assert await watch.complaint() == "transfer-sidecar: connected"
        assert await watch.end() == (130, "")


@in_loop
async def test_lines_where_there_is_no_terminal(tmp_path: Path) -> None:
    async with streaming(tmp_path) as (server, client):
        await publish(client, *A_TRANSFER)
        await until_kept(client, 5)
        async with program(server.url) as watch:
            assert "node-a → node-b  processing  sending/receiving  43%" in await watch.line()
            await publish(client, *A_TRANSFER, message(seq=4, status="completed", stage="settling"))
            assert "processing  receiving" in await watch.line()
            server.stop()
            assert CONNECTING in await watch.complaint()
            server.start()
            assert await watch.complaint() == "transfer-sidecar: connected"
            await until(lambda: client.is_connected)
            await publish(client, message(seq=2, node="node-b", role="destination", status="completed"))
            assert "completed" in await watch.line()  # and nothing of before was said again
            assert await watch.end(signal.SIGTERM) == (143, "")


@in_loop
async def test_without_a_stream_it_says_that_it_hears_the_present_only(tmp_path: Path) -> None:
    with broker(tmp_path) as server:
        await server.wait_listening()
        async with program(server.url) as watch:
            assert await watch.complaint() == "transfer-sidecar: live only, the broker has no JetStream"


@in_loop
async def test_where_there_are_no_arrows(tmp_path: Path) -> None:
    async with streaming(tmp_path) as (server, client):
        await publish(client, *A_TRANSFER)
        await until_kept(client, 5)
        code, lines, complained = await once(server.url, PYTHONIOENCODING="ascii")
        assert (code, complained) == (0, "")
        assert lines[0].startswith(f"{SERVER}  node-a ? node-b  processing")


@in_loop
async def test_a_killed_one_leaves_nothing_at_the_broker(tmp_path: Path) -> None:
    async with streaming(tmp_path) as (server, client):
        await publish(client, message())
        async with program(server.url, "--json") as watch:
            await watch.line()
            assert await consumers(client) == 1
            watch.process.kill()
            await watch.process.wait()
            assert await until_no_consumer(client) < FORGOTTEN_AFTER_S + 5


@asynccontextmanager
async def terminal(url: str, *arguments: str, columns: int = 100, lines: int = 20, **more: str) -> AsyncIterator[Any]:
    """`watch` on a terminal of its own. Gives the process and a function that reads what it wrote until a text came."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    os.set_blocking(master, False)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sidecar", "watch", "--nats", url, *arguments),
        env=environ(**more),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    written = bytearray()

    async def until_shown(text: str) -> str:
        while text not in written.decode("utf-8", "replace"):
            with contextlib.suppress(BlockingIOError, OSError):
                written.extend(os.read(master, 65536))
            await asyncio.sleep(0.01)
        return written.decode("utf-8", "replace")

    try:
        yield process, until_shown
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        os.close(master)


@in_loop
async def test_the_live_table_on_a_terminal(tmp_path: Path) -> None:
    hostile = message(
        transfer=transfer_id(9),
        status="failed",
        reason="x",
        message="\x1b]0;owned\x07\x1b[2J\u009b31m",
        time=1.0,
    )
    async with streaming(tmp_path) as (server, client):
        await publish(client, *A_TRANSFER, hostile)
        await until_kept(client, 6)
        async with terminal(server.url) as (process, until_shown):
            await until_shown("43%")
            shown = await until_shown("x: ?]0;owned??[2J?31m")
            assert "owned\x07" not in shown
            assert "1 active, 1 ended" in shown
            assert "\x1b[?1049h" in shown  # the terminal's other screen
            server.stop()
            await until_shown("reconnecting since")
            server.start()
            await until(lambda: client.is_connected)
            await publish(client, *(message(seq=4, status="completed", node=node, role=role)
                                    for node, role in (("node-a", "source"), ("node-b", "destination"))))  # fmt: skip
            await until_shown("0 active, 2 ended")
            os.kill(process.pid, signal.SIGINT)
            shown = await until_shown("\x1b[?1049l")
            assert await process.wait() == 130
            assert "\x1b[?25h" in shown  # the cursor is back
            assert "Traceback" not in shown


@in_loop
async def test_no_colour_where_none_is_wanted(tmp_path: Path) -> None:
    async with streaming(tmp_path) as (server, client):
        await publish(client, *A_TRANSFER)
        await until_kept(client, 5)
        async with terminal(server.url, "--once", NO_COLOR="1") as (_, until_shown):
            assert "\x1b[3" not in await until_shown("node-b")
        async with terminal(server.url, "--once") as (_, until_shown):
            assert "\x1b[3" in await until_shown("node-b")


@in_loop
async def test_a_flood_does_not_grow(tmp_path: Path) -> None:
    """Of strangers' transfers without end, and of bodies that are none."""
    async with streaming(tmp_path) as (server, client), terminal(server.url) as (process, until_shown):
        await until_shown("no transfers")
        await publish(client, *(message(transfer=transfer_id(number)) for number in range(3000)))
        for _ in range(2):
            await client.publish(message()[0], os.urandom(900_000))
        await until_shown("3000 active")
        await publish(client, *(message(transfer=transfer_id(number)) for number in range(3000, 6000)))
        await until_kept(client, 6002)
        await publish(client, message(seq=2, transfer=transfer_id(5999), status="failed"))
        await until_shown(", 1 ended")
        assert psutil.Process(process.pid).memory_info().rss < 150_000_000
