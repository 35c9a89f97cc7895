"""The commands of the command line that go over the bus, against a node on a real broker."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest

from sidecar.lifecycle.statuses import Status
from tests.api.fake_transfers import OTHER, SERVER, TRANSFER, FakeTransfers, view
from tests.api.tokens import NODE_TOKEN
from tests.bus.broker import broker
from tests.bus.command_rig import NODE, commanded
from tests.cli.test_cli import run

OTHER_TOKEN = "token-of-node-b-0123456789abcdef0123456789"


@contextmanager
def node_on_the_bus(directory: Path, transfers: FakeTransfers, *, jetstream: bool = True) -> Iterator[str]:
    """The broker's address, while a node takes commands there, in a thread of its own."""
    loop, ready, problem = asyncio.new_event_loop(), threading.Event(), list[BaseException]()
    url = ""

    async def serve(end: asyncio.Event) -> None:
        nonlocal url
        lines = f'jetstream {{ store_dir: "{directory / "store"}" }}' if jetstream else ""
        with broker(directory, lines) as server:
            await server.wait_listening()
            url = server.url
            async with commanded(url, transfers=transfers, directory="create" if jetstream else "off") as node:
                await node.wait_ready()
                ready.set()
                await end.wait()

    end = asyncio.Event()

    def work() -> None:
        try:
            loop.run_until_complete(asyncio.wait_for(serve(end), 60))
        except BaseException as error:  # noqa: BLE001 - the test asks for it
            problem.append(error)
            ready.set()
        finally:
            loop.close()

    thread = threading.Thread(target=work)
    thread.start()
    assert ready.wait(30)
    try:
        yield url
    finally:
        if not problem:
            loop.call_soon_threadsafe(end.set)
        thread.join()
        assert not problem


@pytest.fixture
def token_file(tmp_path: Path) -> str:
    path = tmp_path / "node.token"
    path.write_text(f"{NODE_TOKEN}\n")
    return str(path)


def test_a_node_is_driven_over_the_bus(tmp_path: Path, token_file: str) -> None:
    destination = tmp_path / "b.token"
    destination.write_text(OTHER_TOKEN)
    transfers = FakeTransfers()
    with node_on_the_bus(tmp_path, transfers) as url:
        bus = ("--nats", url)
        proof = (*bus, "--token-file", token_file)
        code, shown, _ = run("nodes", *bus)
        assert code == 0
        assert [line.split()[0] for line in shown.splitlines()] == ["NODE", NODE]
        assert json.loads(run("nodes", *bus, "--json")[1])[0]["free_bytes"] == 12345

        to_b = ("--destination-token-file", str(destination), "--start")
        begun = run("transfer", "start", NODE, SERVER.upper(), "https://node-b.test:8080/", *to_b, *proof)
        assert begun == (0, f"{TRANSFER}: pending\n", "")
        ((request, _, _),) = transfers.started
        assert (request.url, request.start_on_completion) == ("https://node-b.test:8080/api/transfers", True)
        assert request.key is not None
        claims: dict[str, Any] = jwt.decode(request.token.removeprefix("Bearer "), OTHER_TOKEN, algorithms=["HS256"])
        assert (claims["sub"], claims["scope"]) == (SERVER, "transfer")
        assert run("transfer", "start", NODE, SERVER, NODE, *to_b, *proof)[0] == 0  # found in the directory
        assert transfers.started[1][0].url == "https://node-a.test/api/transfers"
        nowhere = run("transfer", "start", NODE, SERVER, "node-x", *to_b, *proof)
        assert nowhere[0] == 1 and "no address of node-x" in nowhere[2]

        assert json.loads(run("transfer", "status", NODE, SERVER, *proof)[1])["transfer"] == TRANSFER
        assert run("transfer", "cancel", NODE, SERVER, *proof) == (0, f"{TRANSFER}: processing\n", "")
        transfers.current[OTHER] = view(OTHER, status=Status.COMPLETED, transfer=OTHER)
        listed = run("transfer", "list", NODE, *proof)[1].splitlines()
        assert [line.split()[2] for line in listed] == ["STATUS", "processing", "completed"]
        assert json.loads(run("transfer", "list", NODE, "--json", *proof)[1])["total"] == 2


def test_refusals_are_one_line(tmp_path: Path, token_file: str) -> None:
    wrong = tmp_path / "wrong.token"
    wrong.write_text("token-of-somebody-else-0123456789abcdef")
    empty = tmp_path / "empty.token"
    empty.touch()
    with node_on_the_bus(tmp_path, FakeTransfers(), jetstream=False) as url:
        bus = ("--nats", url)
        proof = (*bus, "--token-file", token_file)
        for arguments, code, words in (
            (("nodes", *bus), 1, "the directory"),
            (("transfer", "list", "node-x", *proof), 1, "no node node-x takes commands"),
            (("transfer", "list", "a.b", *proof), 2, "node id"),
            (("transfer", "status", NODE, "nonsense", *proof), 2, "not the UUID of a server"),
            (("transfer", "status", NODE, SERVER, *proof), 1, "transfer.unknown"),
            (("transfer", "cancel", NODE, SERVER, *proof), 1, "transfer.none"),
            (("transfer", "list", NODE, *bus, "--token-file", str(wrong)), 1, "auth.jwt"),
            (("transfer", "list", NODE, *bus, "--token-file", str(empty)), 2, "holds no token"),
            (("transfer", "list", NODE, *bus, "--token-file", str(tmp_path / "none")), 2, "cannot be read"),
            (("transfer", "list", NODE, "--nats", "http://x"), 2, "nats.url"),
        ):
            ended, shown, said = run(*arguments)
            assert (ended, shown, len(said.splitlines())) == (code, "", 1), arguments
            assert words in said
        # The configuration is this node's own, so its token is there.
        own = {"SIDECAR_NODE_TOKEN": NODE_TOKEN}
        assert run("transfer", "list", NODE, *bus, environ=own)[0] == 0
        assert "auth.missing" in run("transfer", "list", NODE, *bus, environ={"SIDECAR_NODE_ID": "other"})[2]
