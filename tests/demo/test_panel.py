"""The stand-in panel behaves as the real ones do, where the rules of ownership depend on it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import httpx
import jwt
import msgspec
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sidecar.demo.loopback import LoopbackServer
from sidecar.demo.panel import PanelServer, StandInPanel, TransferNotStarted
from sidecar.demo.panel_documents import Allocation, Family

KEYS = {node: node * 32 for node in "abc"}
SERVER = "6f1c3f0e-2b1d-4c55-9c7e-0d6b1a2c3d4e"
FAMILIES = pytest.mark.parametrize("family", list(Family))


class Daemon:
    """A node's daemon: answers as told and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, Any]] = []
        self.status = 202
        self.before_answer: Callable[[], Awaitable[None]] | None = None
        self.app = Starlette(routes=[Route("/{path:path}", self._answer, methods=["GET", "POST", "DELETE"])])

    async def _answer(self, request: Request) -> Response:
        body = await request.body()
        self.asked.append((request.method, request.url.path, msgspec.json.decode(body) if body else None))
        if self.before_answer is not None:
            await self.before_answer()
        return Response(status_code=self.status)


class World:
    def __init__(self, panel: StandInPanel, a: Daemon, b: Daemon, client: httpx.AsyncClient) -> None:
        self.panel, self.a, self.b, self._client = panel, a, b, client

    async def call(self, node: str, method: str, path: str, **options: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer id-{node}.{KEYS[node]}"}
        return await self._client.request(method, self.panel.url + "/api/remote" + path, headers=headers, **options)

    async def report(self, node: str, outcome: str) -> int:
        body = b'{"backups":[]}'
        return (await self.call(node, "POST", f"/servers/{SERVER}/transfer/{outcome}", content=body)).status_code


@asynccontextmanager
async def world(**options: Any) -> AsyncIterator[World]:
    a, b = Daemon(), Daemon()
    server_a, server_b = LoopbackServer(a.app), LoopbackServer(b.app)
    async with PanelServer(StandInPanel(**options)) as server, httpx.AsyncClient(trust_env=False) as client:
        panel = server.panel
        panel.add_node("a", token_id="id-a", token=KEYS["a"], url=await server_a.start())
        panel.add_node("b", token_id="id-b", token=KEYS["b"], url=await server_b.start())
        panel.add_node("c", token_id="id-c", token=KEYS["c"], url="http://127.0.0.1:1")
        panel.add_server(
            SERVER, "a", allocations={"a": Allocation("10.0.0.1", 1000), "b": Allocation("10.0.0.2", 2000)}
        )
        try:
            yield World(panel, a, b, client)
        finally:
            await server_a.stop()
            await server_b.stop()


def run(scenario: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await scenario

    asyncio.run(bounded())


@FAMILIES
def test_success_moves_the_server_and_deletes_it_at_the_old_node_before_it_answers(family: Family) -> None:
    async def scenario() -> None:
        async with world(family=family) as w:
            await w.panel.start_transfer(SERVER, "b")
            assert w.panel.owner(SERVER) == "a"
            assert await w.report("b", "success") in (200, 204)
            assert w.panel.owner(SERVER) == "b" and w.panel.transfer(SERVER) is None
            assert [(method, path) for method, path, _ in w.a.asked] == [
                ("POST", f"/api/servers/{SERVER}/transfer"),
                ("DELETE", f"/api/servers/{SERVER}"),
            ]
            assert [call.route for call in w.panel.calls] == ["start", "delete", "success"]
            assert await w.report("b", "success") == 409

    run(scenario())


@FAMILIES
def test_failure_of_either_node_ends_the_transfer_once(family: Family) -> None:
    async def scenario() -> None:
        async with world(family=family) as w:
            for node in ("a", "b"):
                await w.panel.start_transfer(SERVER, "b")
                assert await w.report(node, "failure") in (200, 204)
                assert await w.report("a", "failure") == 409
                assert w.panel.owner(SERVER) == "a"
            deleted = [method for method, _, _ in w.b.asked]
            assert deleted == (["DELETE", "DELETE"] if family is Family.CALAGOPUS else [])

    run(scenario())


def test_a_new_panel_checks_who_calls_and_an_old_one_does_not() -> None:
    async def scenario() -> None:
        async with world() as w:
            await w.panel.start_transfer(SERVER, "b")
            assert await w.report("a", "success") == 403
            assert await w.report("c", "failure") == 403
            assert (await w.call("c", "GET", f"/servers/{SERVER}")).status_code == 403
            assert (await w.call("b", "GET", f"/servers/{SERVER}")).status_code == 200
        async with world(checks_caller=False) as w:
            await w.panel.start_transfer(SERVER, "b")
            assert (await w.call("c", "GET", f"/servers/{SERVER}")).status_code == 200
            assert await w.report("c", "success") == 204
            assert w.panel.owner(SERVER) == "b"

    run(scenario())


def test_a_transfer_is_unknown_until_the_source_has_taken_it() -> None:
    async def scenario() -> None:
        async with world() as w:
            seen: list[int] = []

            async def look() -> None:
                seen.append((await w.call("b", "GET", f"/servers/{SERVER}")).status_code)
                seen.append(await w.report("a", "failure"))

            w.a.before_answer = look
            await w.panel.start_transfer(SERVER, "b")
            assert seen == [403, 409]
            assert w.panel.transfer(SERVER) is not None

    run(scenario())


def test_a_source_that_refuses_rolls_the_transaction_back() -> None:
    async def scenario() -> None:
        async with world() as w:
            w.a.status = 500
            with pytest.raises(TransferNotStarted) as refused:
                await w.panel.start_transfer(SERVER, "b")
            assert refused.value.status == 500
            assert w.panel.transfer(SERVER) is None
            w.a.status = 202
            w.panel.script("start", "drop-after")
            with pytest.raises(TransferNotStarted):
                await w.panel.start_transfer(SERVER, "b")
            assert w.panel.transfer(SERVER) is None and len(w.a.asked) == 2

    run(scenario())


@FAMILIES
def test_the_request_to_the_source_carries_a_token_of_the_destination(family: Family) -> None:
    async def scenario() -> None:
        async with world(family=family) as w:
            await w.panel.start_transfer(SERVER, "b", start_on_completion=True)
            _, _, body = w.a.asked[0]
            assert body["url"].endswith("/api/transfers")
            scheme, token = body["token"].split(" ")
            claims = jwt.decode(token, KEYS["b"], algorithms=["HS256"], options={"verify_aud": False})
            assert scheme == "Bearer" and claims["sub"] == SERVER and claims["scope"] == "transfer"
            assert isinstance(claims["aud"], list) and isinstance(claims["exp"], int)
            assert body.get("server", {"start_on_completion": True})["start_on_completion"] is True

    run(scenario())


def test_an_old_panel_gives_tokens_no_scope() -> None:
    panel = StandInPanel(checks_caller=False)
    panel.add_node("a", token_id="i", token="k" * 32, url="http://127.0.0.1:1")
    panel.add_server(SERVER, "a")
    claims = jwt.decode(panel.mint_token(SERVER, "a"), "k" * 32, algorithms=["HS256"], options={"verify_aud": False})
    assert "scope" not in claims


def test_the_configuration_has_the_old_nodes_allocations_until_success() -> None:
    async def scenario() -> None:
        async with world() as w:

            async def address() -> Any:
                document = (await w.call("b", "GET", f"/servers/{SERVER}")).json()
                return document["settings"]["allocations"]["default"]["ip"]

            await w.panel.start_transfer(SERVER, "b")
            assert await address() == "10.0.0.1"
            await w.report("b", "success")
            assert await address() == "10.0.0.2"

    run(scenario())


@FAMILIES
def test_the_list_has_the_nodes_own_servers_page_by_page(family: Family) -> None:
    async def scenario() -> None:
        async with world(family=family) as w:
            for number in range(6):
                w.panel.add_server(f"00000000-0000-4000-8000-{number:012}", "a")
            seen = []
            for page in (1, 2, 3):
                answer = await w.call("a", "GET", "/servers", params={"page": page, "per_page": 3})
                document = answer.json()
                assert document["meta"]["last_page"] == 3 and document["meta"]["total"] == 7
                seen += [item["settings"]["uuid"] for item in document["data"]]
            assert len(set(seen)) == 7
            empty = (await w.call("b", "GET", "/servers")).json()
            assert empty["data"] == [] and empty["meta"]["total"] == 0

    run(scenario())


def test_callers_without_good_credentials_are_turned_away() -> None:
    async def scenario() -> None:
        async with world() as w, httpx.AsyncClient(trust_env=False) as client:
            url = f"{w.panel.url}/api/remote/servers"
            statuses = [
                (await client.get(url, headers=headers)).status_code
                for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": f"Bearer id-a.{KEYS['b']}"})
            ]
            assert statuses == [401, 400, 403]

    run(scenario())


def test_faults_are_taken_one_by_one_and_say_what_was_done() -> None:
    async def scenario() -> None:
        async with world() as w:
            await w.panel.start_transfer(SERVER, "b")
            w.panel.script("failure", "500", "drop-before", "drop-after")
            assert await w.report("a", "failure") == 500
            for is_active in (True, False):
                with pytest.raises(httpx.RemoteProtocolError):
                    await w.report("a", "failure")
                assert (w.panel.transfer(SERVER) is not None) is is_active
            assert await w.report("a", "failure") == 409
            assert [call.status for call in w.panel.calls_of("failure", "a")] == [500, None, None, 409]

    run(scenario())


def test_a_held_call_lands_although_its_caller_has_given_up() -> None:
    async def scenario() -> None:
        async with world() as w:
            await w.panel.start_transfer(SERVER, "b")
            w.panel.script("success", "hold")
            with pytest.raises(httpx.ReadTimeout):
                await w.call("b", "POST", f"/servers/{SERVER}/transfer/success", timeout=0.1)
            assert w.panel.owner(SERVER) == "a"
            w.panel.release()
            await w.panel.wait_for(lambda: w.panel.owner(SERVER) == "b")

    run(scenario())


def test_the_server_listens_on_the_same_port_again() -> None:
    async def scenario() -> None:
        server = PanelServer()
        await server.start()
        url = server.url
        await server.stop()
        await server.start()
        assert server.url == url
        await server.stop()

    run(scenario())
