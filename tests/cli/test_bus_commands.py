"""The commands of the command line that go over the bus, against a node on a real broker."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jwt
import nats
import pytest
from nats.aio.msg import Msg

from sidecar.lifecycle.statuses import Status
from tests.api.fake_transfers import OTHER, SERVER, TRANSFER, FakeTransfers, view
from tests.api.tokens import NODE_TOKEN
from tests.bus.broker import broker
from tests.bus.command_rig import NODE, commanded
from tests.cli.test_cli import run

OTHER_TOKEN = "token-of-node-b-0123456789abcdef0123456789"


Ready = Callable[[str], None]


@contextmanager
def bus(serve: Callable[[Ready, asyncio.Event], Coroutine[Any, Any, None]]) -> Iterator[str]:
    """The address that `serve` says when it is ready; it runs in a thread of its own until it is told to end."""
    loop, is_ready, problem = asyncio.new_event_loop(), threading.Event(), list[BaseException]()
    url = ""

    def ready(address: str) -> None:
        nonlocal url
        url = address
        is_ready.set()

    end = asyncio.Event()

    def work() -> None:
        try:
            loop.run_until_complete(asyncio.wait_for(serve(ready, end), 60))
        except BaseException as error:  # noqa: BLE001 - the test asks for it
            problem.append(error)
            is_ready.set()
        finally:
            loop.close()

    thread = threading.Thread(target=work)
    thread.start()
    assert is_ready.wait(30)
    try:
        yield url
    finally:
        if not problem:
            loop.call_soon_threadsafe(end.set)
        thread.join()
        assert not problem


@contextmanager
def node_on_the_bus(directory: Path, transfers: FakeTransfers, *, jetstream: bool = True) -> Iterator[str]:
    """The broker's address, while a node takes commands there."""

    async def serve(ready: Ready, end: asyncio.Event) -> None:
        lines = f'jetstream {{ store_dir: "{directory / "store"}" }}' if jetstream else ""
        with broker(directory, lines) as server:
            await server.wait_listening()
            kind = "create" if jetstream else "off"
            async with commanded(server.url, transfers=transfers, directory=kind) as node:
                await node.wait_ready()
                ready(server.url)
                await end.wait()

    with bus(serve) as url:
        yield url


@contextmanager
def stranger_on_the_bus(directory: Path, answers: dict[str, object]) -> Iterator[str]:
    """The broker's address, while something answers a node's commands, and stands in the directory under its name."""

    async def serve(ready: Ready, end: asyncio.Event) -> None:
        with broker(directory, f'jetstream {{ store_dir: "{directory / "store"}" }}') as server:
            await server.wait_listening()
            client = await nats.connect(server.url)

            async def answer(message: Msg) -> None:
                await message.respond(json.dumps(answers[message.subject.rpartition(".")[2]]).encode())

            await client.subscribe("transfer.v1.command.node-a.*", cb=answer)
            entries = await client.jetstream().create_key_value(bucket="transfer_nodes")
            await entries.put(NODE, json.dumps(answers["entry"], ensure_ascii=False).encode())
            await client.flush()
            ready(server.url)
            await end.wait()
            await client.close()

    with bus(serve) as url:
        yield url


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
        at = ("--nats", url)
        proof = (*at, "--token-file", token_file)
        code, shown, _ = run("nodes", *at)
        assert code == 0
        assert [line.split()[0] for line in shown.splitlines()] == ["NODE", NODE]
        assert json.loads(run("nodes", *at, "--json")[1])[0]["free_bytes"] == 12345

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
        at = ("--nats", url)
        proof = (*at, "--token-file", token_file)
        for arguments, code, words in (
            (("nodes", *at), 1, "the directory"),
            (("transfer", "list", "node-x", *proof), 1, "no node node-x takes commands"),
            (("transfer", "list", "a.b", *proof), 2, "node id"),
            (("transfer", "status", NODE, "nonsense", *proof), 2, "not the UUID of a server"),
            (("transfer", "status", NODE, SERVER, *proof), 1, "transfer.unknown"),
            (("transfer", "cancel", NODE, SERVER, *proof), 1, "transfer.none"),
            (("transfer", "list", NODE, *at, "--token-file", str(wrong)), 1, "auth.jwt"),
            (("transfer", "list", NODE, *at, "--token-file", str(empty)), 2, "holds no token"),
            (("transfer", "list", NODE, *at, "--token-file", str(tmp_path / "none")), 2, "cannot be read"),
            (("transfer", "list", NODE, "--nats", "http://x"), 2, "nats.url"),
        ):
            ended, shown, said = run(*arguments)
            assert (ended, shown, len(said.splitlines())) == (code, "", 1), arguments
            assert words in said
        # The configuration is this node's own, so its token is there.
        own = {"SIDECAR_NODE_TOKEN": NODE_TOKEN}
        assert run("transfer", "list", NODE, *at, environ=own)[0] == 0
        assert "auth.missing" in run("transfer", "list", NODE, *at, environ={"SIDECAR_NODE_ID": "other"})[2]


EVIL = "\x1b[2J\nnode-x: completed\u202e"


def test_what_a_stranger_answers_is_shown_in_plain_characters(tmp_path: Path, token_file: str) -> None:
    entry = {
        "node": NODE,
        "epoch": "e",
        "version": EVIL,
        "protocol": [1],
        "codecs": [],
        "beside": False,
        "url": EVIL,
        "commands": "off",
        "max_outgoing": 1,
        "max_incoming": 1,
        "started_at": 0,
    }
    begun = {"transfer": EVIL, "status": EVIL}
    one = {"server": EVIL, "direction": EVIL, "status": EVIL, "peer": EVIL, "progress": {"percent": 5}}
    listed = {"transfers": [one], "total": 1}
    answers = {"entry": entry, "start": begun, "cancel": begun, "status": begun, "list": listed}
    with stranger_on_the_bus(tmp_path, answers) as url:
        proof = ("--nats", url, "--token-file", token_file)
        for arguments in (
            ("nodes", "--nats", url),
            ("nodes", "--json", "--nats", url),
            ("transfer", "list", NODE, *proof),
            ("transfer", "list", NODE, "--json", *proof),
            ("transfer", "status", NODE, SERVER, *proof),
            ("transfer", "cancel", NODE, SERVER, *proof),
            ("transfer", "start", NODE, SERVER, "https://b.test", "--destination-token-file", token_file, *proof),
        ):
            code, shown, said = run(*arguments)
            assert (code, said) == (0, ""), arguments
            assert shown.isascii() and shown.replace("\n", "").isprintable(), arguments
            assert "\nnode-x" not in shown


@pytest.mark.parametrize("answer", [{}, {"transfer": 5, "status": "pending"}, {"transfers": [5]}, {"transfers": {}}])
def test_an_answer_that_is_none_is_one_line(tmp_path: Path, token_file: str, answer: object) -> None:
    with stranger_on_the_bus(tmp_path, {"entry": {}, "cancel": answer, "list": answer}) as url:
        proof = ("--nats", url, "--token-file", token_file)
        for arguments in (("cancel", NODE, SERVER), ("list", NODE)):
            code, shown, said = run("transfer", *arguments, *proof)
            assert (code, shown) == (1, "")
            assert said.startswith(f"transfer-sidecar: {NODE}: its answer is not understood: ")
            assert len(said.splitlines()) == 1
        assert run("nodes", "--nats", url)[:2] == (0, "NODE  VERSION  SENDS  RECEIVES  FREE  URL\n")


def test_a_broker_that_is_away_is_one_line() -> None:
    code, shown, said = run("nodes", "--nats", "nats://127.0.0.1:1")
    assert (code, shown, said) == (1, "", "transfer-sidecar: nats://127.0.0.1:1: Connection refused\n")
