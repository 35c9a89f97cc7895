"""The documented routes over real connections: every status, every text, every kind of bad input."""

from __future__ import annotations

import asyncio
import logging
from typing import Any
from uuid import UUID

import pytest

from sidecar.api.health import Check, Readiness
from sidecar.api.reading import ApiLimits
from sidecar.engine.contract import Caller, ServerView
from sidecar.errors import CODES, HostFailed, Refused
from sidecar.lifecycle.statuses import Role, Status
from tests.api.fake_transfers import OTHER, SERVER, TRANSFER, FakeTransfers, view
from tests.api.node import in_loop, node
from tests.api.tokens import NODE_TOKEN, NOW, bearer, signed, upload_claims

START = f"/api/servers/{SERVER}/transfer"
BODY: dict[str, Any] = {
    "url": "https://destination.test/api/transfers",
    "token": "Bearer DESTINATION_JWT",
    "server": {"uuid": SERVER, "start_on_completion": False},
}


@in_loop
async def test_a_start_is_answered_202_and_nothing_else() -> None:
    async with node() as n:
        answer = await n.ask("POST", START, json=BODY)
        assert (answer.status_code, answer.content) == (202, b"")
        assert UUID(answer.headers["x-request-id"])
        assert answer.headers["sidecar-transfer"] == TRANSFER
        ((request, caller, respond_async),) = n.transfers.started
        assert (request.server, request.url, request.token) == (SERVER, BODY["url"], BODY["token"])
        assert not request.start_on_completion
        assert not respond_async
        assert caller is not None


@pytest.mark.parametrize(
    "changes",
    [
        {"server": None},
        {"server": {}},
        {"server": {"uuid": SERVER.upper(), "start_on_completion": True, "more": [1]}},
        {"server_id": "x", "archive_format": "tar_zstd", "multiplex_streams": 2, "delete_backups": True},
        {"backups": None},
        {"backups": []},
        {"backups": [OTHER.upper(), OTHER]},
    ],
)
@in_loop
async def test_bodies_of_all_panels_are_taken(changes: dict[str, Any]) -> None:
    async with node() as n:
        path = f"/api/servers/{SERVER.upper()}/transfer"
        assert (await n.ask("POST", path, json={**BODY, **changes})).status_code == 202
        request = n.transfers.started[0][0]
        assert request.server == SERVER
        assert request.backups == ((OTHER,) if changes.get("backups") else ())
        assert request.start_on_completion is bool((changes.get("server") or {}).get("start_on_completion"))
        is_calagopus = "multiplex_streams" in changes
        assert (request.backup_form, request.delete_backups) == (
            ("calagopus", True) if is_calagopus else ("pelican", False)
        )


@in_loop
async def test_a_body_without_server_is_taken() -> None:
    async with node() as n:
        body = {name: BODY[name] for name in ("url", "token")}
        assert (await n.ask("POST", START, json=body)).status_code == 202


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (b"", "request.malformed", ""),
        (b"{", "request.malformed", ""),
        (b"\xff\xfe", "request.malformed", ""),
        (b'{"a":' * 10_000, "request.malformed", ""),
        (b"[]", "request.invalid", "Expected `object`"),
        (b"{}", "request.invalid", "`url`"),
        (b'{"url": 7, "token": "x"}', "request.invalid", "$.url"),
        (b'{"url": "", "token": "x"}', "request.invalid", "$.url"),
        (b'{"url": "http://x"}', "request.invalid", "`token`"),
        (b'{"url": "http://x", "token": null}', "request.invalid", "$.token"),
        (b'{"url": "http://x", "token": "x", "server": 7}', "request.invalid", "$.server"),
        (b'{"url": "http://x", "token": "x", "server": {"uuid": 7}}', "request.invalid", "$.server.uuid"),
        (
            b'{"url": "http://x", "token": "x", "server": {"start_on_completion": "yes"}}',
            "request.invalid",
            "$.server.start_on_completion",
        ),
        (b'{"url": "http://x", "token": "x", "server": {"uuid": "%s"}}' % OTHER.encode(), "request.invalid", "uuid"),
        (b'{"url": "ftp://x", "token": "x"}', "request.invalid", "url"),
        (b'{"url": "http://", "token": "x"}', "request.invalid", "url"),
        (b'{"url": "http://x:99999/", "token": "x"}', "request.invalid", "url"),
        (b'{"url": "http://x/\\r\\nHost: y", "token": "x"}', "request.invalid", "url"),
        (b'{"url": "http://x", "token": "x\\r\\nHost: y"}', "request.invalid", "token"),
        (b'{"url": "http://x", "token": "%s"}' % (b"x" * 9000), "request.invalid", "$.token"),
        (b'{"url": "http://x", "token": "x", "backups": "all"}', "request.invalid", "$.backups"),
        (b'{"url": "http://x", "token": "x", "backups": ["../../etc"]}', "request.invalid", "backups"),
        (b'{"a": "%s"}' % (b"x" * 70_000), "request.too_large", ""),
    ],
)
@in_loop
async def test_bad_bodies(content: bytes, code: str, words: str) -> None:
    async with node() as n:
        answer = await n.ask("POST", START, content=content)
        body = answer.json()
        assert (answer.status_code, body["code"]) == (CODES[code][0], code)
        assert body["request_id"] == answer.headers["x-request-id"]
        assert words in body["error"] + body.get("detail", "")
        assert n.transfers.started == []
        if code == "request.malformed":
            assert body["error"] == "The data passed in the request was not in a parsable format. Please try again."


@in_loop
async def test_a_body_without_an_announced_end_is_bounded() -> None:
    async with node() as n:
        head = f"POST {START} HTTP/1.1\nHost: x\nAuthorization: Bearer {NODE_TOKEN}\nTransfer-Encoding: chunked"
        answer = await n.raw(head, b"10000\r\n" + b" " * 0x10000 + b"\r\n" + b"1\r\n{\r\n")
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"request.too_large" in answer


@in_loop
async def test_a_body_that_never_comes() -> None:
    async with node(limits=ApiLimits(json_body_s=0.05)) as n:
        head = f"POST {START} HTTP/1.1\nHost: x\nAuthorization: Bearer {NODE_TOKEN}\nContent-Length: 9"
        answer = await n.raw(head, b"{")
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"request.timeout" in answer


@pytest.mark.parametrize(
    ("headers", "status", "error"),
    [
        ({}, 401, "The required authorization heads were not present in the request."),
        ({"Authorization": "Bearer"}, 401, "The required authorization heads were not present in the request."),
        (
            {"Authorization": f"Basic {NODE_TOKEN}"},
            401,
            "The required authorization heads were not present in the request.",
        ),
        ({"Authorization": "Bearer wrong"}, 403, "You are not authorized to access this endpoint."),
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", START),
        ("DELETE", START),
        ("GET", START),
        ("POST", START + "/resolve"),
        ("GET", "/api/servers"),
        ("GET", f"/api/servers/{SERVER}"),
        ("DELETE", f"/api/servers/{SERVER}"),
        ("GET", "/api/system"),
        ("GET", "/api/transfers"),
        ("DELETE", f"/api/transfers/{SERVER}"),
        ("DELETE", "/api/transfers/not-a-uuid"),
    ],
)
@in_loop
async def test_strangers(method: str, path: str, headers: dict[str, str], status: int, error: str) -> None:
    async with node() as n:
        answer = await n.ask(method, path, headers=headers)
        assert (answer.status_code, answer.json()["error"]) == (status, error)
        assert answer.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)
        assert NODE_TOKEN not in answer.text


@pytest.mark.parametrize(
    ("code", "status", "error"),
    [
        ("transfer.exists", 409, "A transfer is already in progress for this server."),
        ("server.unknown", 404, "The requested resource does not exist on this instance."),
        ("server.stop_timeout", 500, "Failed to stop the server before initiating transfer"),
        ("destination.not_allowed", 400, "A sentence."),
        ("transfer.quarantine", 409, "A sentence."),
        ("transfer.too_many", 503, "A sentence."),
    ],
)
@in_loop
async def test_refusals_of_the_engine(code: str, status: int, error: str) -> None:
    transfers = FakeTransfers()
    transfers.failures["start"] = Refused(code, "A sentence.", waited_s=15)
    async with node(transfers) as n:
        answer = await n.ask("POST", START, json=BODY)
        assert (answer.status_code, answer.json()["error"], answer.json()["waited_s"]) == (status, error, 15)


@in_loop
async def test_a_bug_shows_nothing_of_its_inside(caplog: pytest.LogCaptureFixture) -> None:
    transfers = FakeTransfers()
    transfers.failures["start"] = KeyError("secret")
    async with node(transfers) as n:
        answer = await n.ask("POST", START, json=BODY)
        assert answer.status_code == 500
        assert answer.json() == {
            "error": "An unexpected error was encountered while processing this request",
            "code": "transfer.internal",
            "request_id": answer.headers["x-request-id"],
        }
    assert any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize(
    ("prefer", "is_async"),
    [
        ("respond-async", True),
        ("wait=10, Respond-Async; x=1", True),
        ("return=minimal", False),
        ("respond-asynchronously", False),
    ],
)
@in_loop
async def test_prefer(prefer: str, is_async: bool) -> None:
    async with node() as n:
        answer = await n.ask("POST", START, json=BODY, headers={**bearer(), "Prefer": prefer})
        assert answer.headers.get("preference-applied") == ("respond-async" if is_async else None)
        assert n.transfers.started[0][2] is is_async


@in_loop
async def test_respond_async_by_setting() -> None:
    async with node(respond_async=True) as n:
        answer = await n.ask("POST", START, json=BODY)
        assert n.transfers.started[0][2]
        assert "preference-applied" not in answer.headers


@in_loop
async def test_the_engine_notices_a_caller_that_hangs_up() -> None:
    transfers = FakeTransfers()
    asked, gone = asyncio.Event(), asyncio.Event()

    async def stop_slowly(caller: Caller | None) -> None:
        assert caller is not None
        assert caller.is_open
        asked.set()
        await caller.wait_closed()
        gone.set()
        raise HostFailed("transfer.cancelled", "The caller hung up.")

    transfers.starter = stop_slowly
    async with node(transfers) as n:
        call = asyncio.create_task(n.ask("POST", START, json=BODY))
        await asked.wait()
        call.cancel()
        await gone.wait()
        with pytest.raises(asyncio.CancelledError):
            await call


@pytest.mark.parametrize(
    "server", ["x", SERVER[:-1], SERVER.replace("-", ""), "%2e%2e", SERVER + "%0a", "{" + SERVER + "}"]
)
@pytest.mark.parametrize(("method", "rest"), [("POST", "/transfer"), ("GET", ""), ("DELETE", ""), ("GET", "/transfer")])
@in_loop
async def test_bad_uuids_are_unknown_servers(server: str, method: str, rest: str) -> None:
    async with node() as n:
        answer = await n.ask(method, f"/api/servers/{server}{rest}")
        assert answer.status_code == 404
        assert answer.json()["error"] == "The requested resource does not exist on this instance."


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "request.unknown_route"),
        ("GET", "/api/servers/", 404, "request.unknown_route"),
        ("POST", "/api/transfers/", 404, "request.unknown_route"),
        ("POST", f"/api/servers/{SERVER}/power", 404, "request.unknown_route"),
        ("PUT", START, 405, "request.method"),
        ("POST", "/api/system", 405, "request.method"),
    ],
)
@in_loop
async def test_unknown_routes_and_methods(method: str, path: str, status: int, code: str) -> None:
    async with node() as n:
        answer = await n.ask(method, path)
        assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert answer.json()["request_id"] == answer.headers["x-request-id"]
        assert ("allow" in answer.headers) is (status == 405)


@in_loop
async def test_cancel_on_either_side() -> None:
    async with node() as n:
        for path in (START, f"/api/transfers/{SERVER}"):
            answer = await n.ask("DELETE", path)
            assert answer.status_code == 409
            assert answer.json()["error"] == "Server is not currently being transferred."
        for path, role in ((START, Role.SOURCE), (f"/api/transfers/{SERVER}", Role.DESTINATION)):
            n.transfers.current[SERVER] = view(role=role)
            answer = await n.ask("DELETE", path)
            assert (answer.status_code, answer.content) == (202, b"")
        assert n.transfers.cancelled == [(SERVER, Role.SOURCE), (SERVER, Role.DESTINATION)]


@in_loop
async def test_showing_transfers() -> None:
    async with node() as n:
        assert (await n.ask("GET", START)).json()["code"] == "transfer.unknown"
        assert (await n.ask("GET", "/api/transfers")).json() == []
        n.transfers.current[SERVER] = view()
        shown = (await n.ask("GET", START)).json()
        assert (shown["transfer"], shown["status"], shown["direction"]) == (TRANSFER, "processing", "outgoing")
        assert shown["progress"]["percent"] == 25.0
        assert (await n.ask("GET", "/api/transfers")).json() == [shown]


@in_loop
async def test_resolve() -> None:
    async with node() as n:
        answer = await n.ask("POST", START + "/resolve", json={"outcome": "failed"})
        assert (answer.status_code, answer.json()["status"]) == (200, "failed")
        assert n.transfers.resolved == [(SERVER, "failed")]
        for body in ({"outcome": "maybe"}, {}, {"outcome": None}):
            assert (await n.ask("POST", START + "/resolve", json=body)).json()["code"] == "request.invalid"


@in_loop
async def test_servers() -> None:
    async with node() as n:
        (listed,) = (await n.ask("GET", "/api/servers")).json()
        assert listed["configuration"]["uuid"] == SERVER
        assert listed["utilization"]["state"] == listed["state"] == "running"
        assert (await n.ask("GET", f"/api/servers/{SERVER}")).json() == listed
        assert (await n.ask("GET", f"/api/servers/{OTHER}")).status_code == 404
        assert (await n.ask("DELETE", f"/api/servers/{OTHER}")).status_code == 404
        answer = await n.ask("DELETE", f"/api/servers/{SERVER}")
        assert (answer.status_code, answer.content, n.transfers.deleted) == (204, b"", [SERVER])
        n.transfers.failures["delete_server"] = Refused("server.deletion_refused", "No.")
        assert (await n.ask("DELETE", f"/api/servers/{SERVER}")).status_code == 409


@in_loop
async def test_system() -> None:
    async def info() -> dict[str, Any]:
        return {"ServerVersion": "28.0", "Containers": 3, "DriverStatus": [["Backing Filesystem", "extfs"]]}

    async def down() -> dict[str, Any]:
        raise HostFailed("engine.unreachable", "x")

    async with node(engine_info=info) as n:
        plain = (await n.ask("GET", "/api/system")).json()
        assert set(plain) == {"architecture", "cpu_count", "kernel_version", "os", "version"}
        detailed = (await n.ask("GET", "/api/system?v=2")).json()
        assert detailed["docker"]["version"] == "28.0"
        assert detailed["docker"]["containers"]["total"] == 3
        assert detailed["docker"]["storage"]["filesystem"] == "extfs"
        assert detailed["system"]["memory_bytes"] > 0
    async with node(engine_info=down) as n:
        assert (await n.ask("GET", "/api/system?v=2")).json()["docker"]["version"] == ""


@in_loop
async def test_readiness() -> None:
    asked = 0
    clock = 0.0
    broken: set[str] = set()

    def probe(name: str) -> Any:
        async def run() -> dict[str, Any]:
            nonlocal asked
            asked += 1
            if name in broken:
                raise HostFailed("engine.unreachable", "secret path", guarantee="at most once")
            return {"guarantee": "at most once"} if name == "bus" else {}

        return run

    checks = [Check("docker", probe("docker")), Check("bus", probe("bus"), is_required=False)]
    async with node(readiness=Readiness(checks, clock=lambda: clock)) as n:
        assert (await n.ask("GET", "/healthz", headers={})).status_code == 200
        answer = await n.ask("GET", "/readyz", headers={})
        assert answer.status_code == 200
        assert answer.json() == {
            "status": "ready",
            "checks": {"docker": {"status": "ok"}, "bus": {"status": "ok", "guarantee": "at most once"}},
        }
        broken.add("bus")
        assert (await n.ask("GET", "/readyz", headers={})).json()["status"] == "ready"  # asked a moment ago
        assert asked == 2
        clock = 1.0
        answer = await n.ask("GET", "/readyz", headers={})
        assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
        assert answer.json()["checks"]["bus"]["guarantee"] == "at most once"
        broken.add("docker")
        clock = 2.0
        answer = await n.ask("GET", "/readyz", headers={})
        assert (answer.status_code, answer.json()["status"]) == (503, "not_ready")
        assert answer.json()["checks"]["docker"]["code"] == "engine.unreachable"
        assert "secret" not in answer.text


@in_loop
async def test_settle() -> None:
    path = "/api/transfers/sidecar/settle"
    body = {"server": SERVER, "transfer": TRANSFER}
    expired = bearer(signed(upload_claims(exp=NOW - 3600)))
    async with node() as n:
        answer = await n.ask("POST", path, json=body, headers=expired)
        assert (answer.status_code, answer.json()) == (200, {"outcome": "completed"})
        assert n.transfers.settled == [(SERVER, TRANSFER)]
        too_old = bearer(signed(upload_claims(exp=NOW - 25 * 3600)))
        assert (await n.ask("POST", path, json=body, headers=too_old)).json()["code"] == "auth.jwt_expired"
        other = bearer(signed(upload_claims(sub=OTHER)))
        assert (await n.ask("POST", path, json=body, headers=other)).status_code == 403
        bad = {**body, "transfer": "x"}
        assert (await n.ask("POST", path, json=bad, headers=expired)).json()["code"] == "request.invalid"
        assert (await n.ask("POST", path, json=body)).json()["code"] == "auth.jwt"  # the node token is none
        n.transfers.failures["settle"] = Refused("transfer.none", "This node uses a panel.")
        assert (await n.ask("POST", path, json=body, headers=expired)).status_code == 409


@in_loop
async def test_what_a_sidecar_tells_everyone() -> None:
    async with node() as n:
        answer = await n.ask("GET", "/api/transfers/sidecar", headers={})
        assert answer.status_code == 200
        assert answer.json()["protocol"] == [1]
        assert answer.json()["codecs"] == ["gzip", "zstd"]
        assert set(answer.json()) == {"sidecar", "protocol", "codecs", "beside"}


@in_loop
async def test_logs_name_requests_and_transfers_and_no_token(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with node() as n:
        answer = await n.ask("POST", START + "?token=QUERYSECRET", json={**BODY, "token": "Bearer BODYSECRET"})
        await n.raw("GET /a%1b%5b31m%0aforged HTTP/1.1\nHost: x\nConnection: close")
    ours = [record for record in caplog.records if record.name.startswith("sidecar.")]
    assert any(getattr(record, "transfer", None) == TRANSFER for record in ours)
    assert any(getattr(record, "request_id", None) == answer.headers["x-request-id"] for record in ours)
    text = "\n".join(record.getMessage() for record in ours)
    assert not any(secret in text for secret in (NODE_TOKEN, "QUERYSECRET", "BODYSECRET", "\x1b", "\nforged"))


@in_loop
async def test_a_transferred_server_says_so() -> None:
    transfers = FakeTransfers()
    transfers.known[SERVER] = ServerView(
        uuid=SERVER, state="offline", is_transferring=False, transferred=True, volume="/v"
    )
    async with node(transfers) as n:
        assert (await n.ask("GET", f"/api/servers/{SERVER}")).json()["is_transferred"] is True
        assert Status.COMPLETED.is_final
