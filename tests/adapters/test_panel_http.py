"""The panel's remote API: every kind of answer, every fault, and an oracle that never says no by mistake."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import httpx
import msgspec
import pytest

from sidecar.adapters.panel_http import HttpPanel
from sidecar.demo.panel import PanelServer, StandInPanel
from sidecar.demo.panel_documents import Allocation, Family
from sidecar.errors import PeerFailed
from sidecar.ports import Verdict

SERVER = "6f1c3f0e-2b1d-4c55-9c7e-0d6b1a2c3d4e"
KEY = "k" * 32
FAMILIES = pytest.mark.parametrize("family", list(Family))


def other(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012}"


def run(scenario: Callable[[StandInPanel, HttpPanel], Coroutine[Any, Any, None]], **options: Any) -> None:
    """The scenario as node `b`, which owns nothing; `SERVER` is on `a`, being transferred to `b`."""

    async def bounded() -> None:
        async with asyncio.timeout(20), PanelServer(StandInPanel(**options)) as server:
            panel = server.panel
            for node in ("a", "b"):
                panel.add_node(node, token_id=node, token=KEY, url="http://127.0.0.1:1")
            panel.add_server(SERVER, "a", allocations={"a": Allocation("10.0.0.1", 25565)})
            panel.assume_transfer(SERVER, "b")
            async with client(server.url) as http:
                await scenario(panel, http)

    asyncio.run(bounded())


def client(url: str, node: str = "b", **options: Any) -> HttpPanel:
    return HttpPanel(url, token_id=node, token=KEY, **options)


def against(handler: Callable[[httpx.Request], httpx.Response]) -> HttpPanel:
    def stream(request: httpx.Request) -> httpx.Response:
        answer = handler(request)
        if not answer.is_stream_consumed:
            return answer
        return httpx.Response(answer.status_code, headers=answer.headers, stream=httpx.ByteStream(answer.content))

    return client("http://panel.test", transport=httpx.MockTransport(stream))


def ask(panel: HttpPanel, question: Callable[[HttpPanel], Coroutine[Any, Any, Any]]) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(20), panel:
            return await question(panel)

    return asyncio.run(bounded())


def code_of(panel: HttpPanel) -> str:
    with pytest.raises(PeerFailed) as failed:
        ask(panel, lambda http: http.configuration(SERVER))
    return failed.value.code


@FAMILIES
def test_success_and_the_oracle_before_and_after(family: Family) -> None:
    async def scenario(panel: StandInPanel, http: HttpPanel) -> None:
        assert await http.is_ours(SERVER) is False
        assert await http.report_success(SERVER) is Verdict.ACCEPTED
        assert await http.is_ours(SERVER) is True
        assert await http.report_success(SERVER) is Verdict.REFUSED
        assert await http.report_failure(SERVER) is Verdict.REFUSED

    run(scenario, family=family)


@FAMILIES
def test_failure_ends_the_transfer(family: Family) -> None:
    async def scenario(panel: StandInPanel, http: HttpPanel) -> None:
        assert await http.report_failure(SERVER) is Verdict.ACCEPTED
        assert panel.transfer(SERVER) is None and panel.owner(SERVER) == "a"

    run(scenario, family=family)


@FAMILIES
def test_the_configuration_comes_as_it_is(family: Family) -> None:
    async def scenario(panel: StandInPanel, http: HttpPanel) -> None:
        configuration = await http.configuration(SERVER)
        assert configuration.settings["uuid"] == SERVER
        assert configuration.settings["allocations"]["mappings"] == {"10.0.0.1": [25565]}
        assert configuration.process_configuration["stop"] == {"type": "command", "value": "stop"}

    run(scenario, family=family)


def test_what_is_sent_is_what_the_daemons_send() -> None:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(204)

    assert ask(against(handler), lambda http: http.report_success(SERVER)) is Verdict.ACCEPTED
    (request,) = seen
    assert request.headers["Authorization"] == f"Bearer b.{KEY}"
    assert request.headers["Accept"] == "application/vnd.pterodactyl.v1+json"
    assert request.headers["User-Agent"].startswith("transfer-sidecar/")
    assert request.headers["User-Agent"].endswith(" (id:b)")
    assert request.url.path == f"/api/remote/servers/{SERVER}/transfer/success"
    assert request.content == b'{"backups":[]}' and request.headers["Content-Type"] == "application/json"


def test_success_names_the_backups_that_were_kept_and_failure_none() -> None:
    seen: list[bytes] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request.content)
        return httpx.Response(200, json={})

    backup = "0b7f9e9c-52a4-4a8a-8c3a-6a3f1c1f0001"
    assert ask(against(handler), lambda http: http.report_success(SERVER, (backup,))) is Verdict.ACCEPTED
    assert ask(against(handler), lambda http: http.report_failure(SERVER)) is Verdict.ACCEPTED
    assert seen == [b'{"backups":["%s"]}' % backup.encode(), b'{"backups":[]}']


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        (200, Verdict.ACCEPTED),
        (204, Verdict.ACCEPTED),
        (302, Verdict.UNANSWERED),
        (400, Verdict.REFUSED),
        (403, Verdict.REFUSED),
        (404, Verdict.REFUSED),
        (408, Verdict.UNANSWERED),
        (409, Verdict.REFUSED),
        (417, Verdict.REFUSED),
        (429, Verdict.UNANSWERED),
        (500, Verdict.UNANSWERED),
        (502, Verdict.UNANSWERED),
        (524, Verdict.UNANSWERED),
    ],
)
def test_every_status_is_a_verdict(status: int, verdict: Verdict) -> None:
    answer = against(lambda request: httpx.Response(status, headers={"Location": "http://elsewhere.test/"}))
    assert ask(answer, lambda http: http.report_failure(SERVER)) is verdict


@pytest.mark.parametrize(
    ("fault", "is_active"), [("500", True), ("302", True), ("drop-before", True), ("drop-after", False)]
)
def test_a_lost_call_or_answer_is_no_verdict(fault: str, is_active: bool) -> None:
    async def scenario(panel: StandInPanel, http: HttpPanel) -> None:
        panel.script("failure", fault)
        assert await http.report_failure(SERVER) is Verdict.UNANSWERED
        assert (panel.transfer(SERVER) is not None) is is_active
        assert len(panel.calls_of("failure")) == 1

    run(scenario)


def test_a_slow_panel_is_given_up_after_one_calls_timeout_and_may_still_act() -> None:
    async def scenario(panel: StandInPanel, http: HttpPanel) -> None:
        panel.script("success", "hold")
        panel.script("list", "hold-after")
        panel.script("configuration", "hold")
        async with client(panel.url, call_timeout_s=0.1) as hasty:
            assert hasty.call_timeout_s == 0.1
            assert await hasty.report_success(SERVER) is Verdict.UNANSWERED
            assert await hasty.is_ours(SERVER) is None
            with pytest.raises(PeerFailed, match=r"within 0\.1 s"):
                await hasty.configuration(SERVER)
        panel.release()
        await panel.wait_for(lambda: panel.owner(SERVER) == "b")
        assert await http.is_ours(SERVER) is True

    run(scenario)


def test_a_body_that_drips_ends_at_the_deadline_too() -> None:
    async def scenario() -> None:
        async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            try:
                while not reader.at_eof():
                    writer.write(b" ")
                    await writer.drain()
                    await asyncio.wait([asyncio.ensure_future(reader.read(1))], timeout=0.02)
            except (ConnectionError, RuntimeError):
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(drip, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            async with client(f"http://127.0.0.1:{port}", call_timeout_s=0.2) as http:
                assert await http.is_ours(SERVER) is None

    asyncio.run(scenario())


def test_a_panel_that_is_not_there() -> None:
    panel = client("http://127.0.0.1:1")
    assert ask(panel, lambda http: http.report_success(SERVER)) is Verdict.UNANSWERED
    assert ask(client("http://127.0.0.1:1"), lambda http: http.is_ours(SERVER)) is None
    assert code_of(client("http://127.0.0.1:1")) == "panel.unreachable"
    assert code_of(client("http://panel.invalid:99999")) == "panel.unreachable"


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("403", "panel.refused"),
        ("404", "panel.refused"),
        ("401", "panel.refused"),
        ("500", "panel.unreachable"),
        ("429", "panel.unreachable"),
        ("302", "panel.unreachable"),
        ("drop-before", "panel.unreachable"),
        ("body:", "panel.malformed"),
        ("body:null", "panel.malformed"),
        ("body:[]", "panel.malformed"),
        ("body:{}", "panel.malformed"),
        ("body:<html>", "panel.malformed"),
        ('body:{"settings":{"uuid":1}', "panel.malformed"),
        ('body:{"settings":[],"process_configuration":{}}', "panel.malformed"),
        ('body:{"settings":[1],"process_configuration":{}}', "panel.malformed"),
        ('body:{"settings":"x","process_configuration":{}}', "panel.malformed"),
        ('body:{"settings":{"a":1},"process_configuration":[1]}', "panel.malformed"),
        (
            'body:{"settings":{"uuid":"00000000-0000-4000-8000-000000000000"},"process_configuration":{}}',
            "panel.malformed",
        ),
        ("body:" + "[" * 100_000, "panel.malformed"),
        ('body:{"settings":{"a":' + "[" * 50_000 + "]" * 50_000 + '},"process_configuration":{}}', "panel.malformed"),
    ],
)
def test_every_way_a_configuration_fails(fault: str, code: str) -> None:
    async def scenario(panel: StandInPanel, http: HttpPanel) -> None:
        panel.script("configuration", fault)
        with pytest.raises(PeerFailed) as failed:
            await http.configuration(SERVER)
        assert failed.value.code == code
        assert KEY not in failed.value.message
        if fault.isdigit():
            assert failed.value.facts["status"] == int(fault)

    run(scenario)


def test_php_writes_an_empty_object_as_a_list() -> None:
    body = b'{"settings":{"uuid":"%s","x":[]},"process_configuration":[]}' % SERVER.encode()
    answer = against(lambda request: httpx.Response(200, content=body))
    configuration = ask(answer, lambda http: http.configuration(SERVER))
    assert configuration.process_configuration == {} and configuration.settings["x"] == []


def test_an_endless_answer_and_a_compressed_one_are_refused() -> None:
    async def endless() -> Any:
        while True:
            yield b" " * 1024 * 1024

    assert code_of(against(lambda request: httpx.Response(200, content=endless()))) == "panel.malformed"
    packed = {"Content-Encoding": "gzip"}
    assert (
        code_of(against(lambda request: httpx.Response(200, content=b"\x1f\x8b", headers=packed))) == "panel.malformed"
    )


# ---- the oracle ------------------------------------------------------------------------------------------------------


@FAMILIES
@pytest.mark.parametrize("count", [0, 1, 50, 51, 120])
def test_the_oracle_reads_every_page(family: Family, count: int) -> None:
    async def scenario(panel: StandInPanel, http: HttpPanel) -> None:
        for number in range(count):
            panel.add_server(other(number), "b")
        assert await http.is_ours(SERVER) is False
        panel.add_server(SERVER, "b")
        assert await http.is_ours(SERVER) is True

    run(scenario, family=family)


@FAMILIES
def test_a_server_that_slips_between_two_pages_is_not_missed(family: Family) -> None:
    """One leaves the first page when it has been read, one comes at the end: the total stays, ours is on no page."""

    async def scenario(panel: StandInPanel, http: HttpPanel) -> None:
        panel.remove_server(SERVER)
        for number in range(50):
            panel.add_server(other(number), "b")
        panel.add_server(SERVER, "b")  # the 51st: on the second page
        pages = 0

        def shift(route: str) -> None:
            nonlocal pages
            pages += 1
            if pages == 2:
                panel.remove_server(other(7))
                panel.add_server(other(99), "b")

        panel.before_call = shift
        assert await http.is_ours(SERVER) is True
        assert pages > 2

    run(scenario, family=family)


def test_a_list_that_never_reads_the_same_twice_is_no_answer() -> None:
    async def scenario(panel: StandInPanel, http: HttpPanel) -> None:
        for number in range(60):
            panel.add_server(other(number), "b")
        number = 100

        def grow(route: str) -> None:
            nonlocal number
            panel.add_server(other(number), "b")
            number += 1

        panel.before_call = grow
        assert await http.is_ours(SERVER) is None
        assert len(panel.calls) < 50

    run(scenario)


def test_a_list_that_changed_once_is_read_again() -> None:
    async def scenario(panel: StandInPanel, http: HttpPanel) -> None:
        for number in range(60):
            panel.add_server(other(number), "b")
        calls = 0

        def grow_once(route: str) -> None:
            nonlocal calls
            calls += 1
            if calls == 2:
                panel.add_server(other(99), "b")

        panel.before_call = grow_once
        assert await http.is_ours(SERVER) is False

    run(scenario)


@pytest.mark.parametrize("fault", ["500", "403", "302", "drop-before", "drop-after", "body:{}", "body:", "body:[]"])
@pytest.mark.parametrize("on_page", [1, 2, 3])
def test_a_fault_on_any_page_is_no_answer(fault: str, on_page: int) -> None:
    async def scenario(panel: StandInPanel, http: HttpPanel) -> None:
        for number in range(120):
            panel.add_server(other(number), "b")
        panel.script("list", *["ok"] * (on_page - 1), fault)
        assert await http.is_ours(SERVER) is None
        assert await http.is_ours(SERVER) is False

    run(scenario)


def listing(*pages: object) -> HttpPanel:
    """A panel that answers the pages in turn, the last one for ever."""
    queue = list(pages)

    def handler(request: httpx.Request) -> httpx.Response:
        page = queue.pop(0) if len(queue) > 1 else queue[0]
        return httpx.Response(200, content=msgspec.json.encode(page))

    return against(handler)


def meta(total: object, last_page: object = 1, page: object = 1) -> dict[str, object]:
    return {"current_page": page, "last_page": last_page, "total": total}


@pytest.mark.parametrize(
    "page",
    [
        {"data": []},
        {"data": [], "meta": {}},
        {"data": [], "meta": meta(1)},
        {"data": [], "meta": meta(-1)},
        {"data": [], "meta": meta(0, -1)},
        {"data": [], "meta": meta(0, 10**9)},
        {"data": [], "meta": meta("many")},
        {"data": [], "meta": meta(None)},
        {"data": [], "meta": meta(0, 1, 2)},
        {"data": [{}], "meta": meta(1)},
        {"data": [{"uuid": None, "settings": {}}], "meta": meta(1)},
        {"data": [{"uuid": 7}], "meta": meta(1)},
        {"data": [{"uuid": other(1)}], "meta": meta(2)},
        {"data": [{"uuid": other(1)}, {"uuid": other(1)}], "meta": meta(2)},
        {"data": {"uuid": other(1)}, "meta": meta(1)},
        {"meta": meta(0)},
        None,
    ],
)
def test_no_list_that_is_not_whole_says_no(page: object) -> None:
    assert ask(listing(page), lambda http: http.is_ours(SERVER)) is None


@pytest.mark.parametrize(
    "page",
    [
        {"data": [], "meta": meta(0)},
        {"data": [], "meta": meta(0, 0)},
        {"data": [], "total": 0, "last_page": 1},
        {"data": [], "meta": meta("0", "1", "1")},
        {"data": [{"settings": {"uuid": other(1)}}], "total": 1, "last_page": 1, "current_page": 1},
        {"data": [{"uuid": other(1), "settings": {"uuid": other(1)}}], "meta": meta(1)},
    ],
)
def test_whole_lists_of_every_shape_say_no(page: object) -> None:
    assert ask(listing(page), lambda http: http.is_ours(SERVER)) is False


def test_a_uuid_in_capitals_is_the_same_server() -> None:
    assert (
        ask(listing({"data": [{"uuid": SERVER.upper()}], "meta": meta(1)}), lambda http: http.is_ours(SERVER)) is True
    )


def test_a_total_that_changes_between_pages_is_read_again() -> None:
    full = [{"uuid": other(number)} for number in range(50)]
    first = {"data": full, "meta": meta(51, 2)}
    emptied = {"data": [], "meta": meta(0, 0, 2)}  # what a page past the end says
    last = {"data": [{"uuid": other(50)}], "meta": meta(51, 2, 2)}
    answers = listing(first, emptied, first, last, first, last)
    assert ask(answers, lambda http: http.is_ours(SERVER)) is False
