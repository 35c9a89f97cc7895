"""The stand-in node daemon behaves as the real ones were recorded, where the sidecar depends on it."""

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from sidecar.demo.panel_documents import Family
from tests.adapters.beside_scene import TOKEN, Scene, run, scene, tar_gz, until

FAMILIES = pytest.mark.parametrize("family", list(Family))
GO = pytest.mark.parametrize("family", [Family.PTERODACTYL, Family.PELICAN])
WORLD = tar_gz(("server.properties", b"motd=hello\n"), links=(("latest", "../world"),), directories=("empty",))
DIGEST = hashlib.sha256(WORLD).hexdigest()
BOTH = (("checksum", DIGEST), ("checksum_archive", DIGEST))


async def call(at: Scene, method: str, path: str, *, token: str | None = TOKEN, **options: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with httpx.AsyncClient(trust_env=False, verify=False, timeout=10) as client:
        return await client.request(method, at.daemon.url + path, headers=headers, **options)


async def upload(at: Scene, *parts: tuple[str, str], archive: bytes = WORLD, first: bool = True) -> int | None:
    form: list[tuple[str, Any]] = [(name, (None, value)) for name, value in parts]
    form.insert(0 if first else len(form), ("archive", ("archive.tar.gz", archive)))
    try:
        token = at.panel.mint_token(at.server, "b")
        return (await call(at, "POST", "/api/transfers", token=token, files=form)).status_code
    except httpx.TransportError:
        return None


@FAMILIES
def test_refusals_have_the_familys_own_shape(family: Family, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with scene(family, tmp_path) as at:
            is_go = family is not Family.CALAGOPUS
            no_header = await call(at, "GET", "/api/system", token=None)
            assert no_header.status_code == 401 and no_header.headers["WWW-Authenticate"] == "Bearer"
            wrong = await call(at, "GET", "/api/system", token="no")
            assert wrong.status_code == (403 if is_go else 401)
            unknown = await call(at, "GET", f"/api/servers/{at.server}")
            assert unknown.status_code == 404 and "error" in unknown.json()
            nowhere = await call(at, "GET", "/nowhere", token=None)
            assert (nowhere.text == "404 page not found") is is_go and nowhere.status_code == 404
            assert ("X-Request-Id" in nowhere.headers) is is_go
            assert (await call(at, "GET", "/openapi.json", token=None)).status_code == (404 if is_go else 200)
            word = {Family.PTERODACTYL: "heads ", Family.PELICAN: "headers ", Family.CALAGOPUS: "invalid"}[family]
            assert word in (await call(at, "POST", "/api/transfers", token=None)).json()["error"]

    run(scenario)


@FAMILIES
def test_servers_come_from_the_panel_at_boot_only(family: Family, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with scene(family, tmp_path) as at:
            at.panel.add_server(at.server, "b")
            assert (await call(at, "GET", "/api/servers")).json() == []
            await at.daemon.restart()
            (shown,) = (await call(at, "GET", "/api/servers")).json()
            assert shown["state"] == "offline" and shown["configuration"]["uuid"] == at.server

    run(scenario)


@FAMILIES
def test_a_crash_is_mended_once_a_minute(family: Family, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with scene(family, tmp_path) as at:
            await at.owned()
            power = f"/api/servers/{at.server}/power"
            assert (await call(at, "POST", power, json={"action": "start"})).status_code == 202
            await at.until_state("running")
            await at.fake.crash(at.server)  # a clean exit counts
            await until(lambda: len(at.fake.starts) == 2)
            await at.until_state("running")
            await at.fake.crash(at.server)
            await at.until_state("offline")
            await asyncio.sleep(0.2)  # longer than the crash handler takes
            assert len(at.fake.starts) == 2

    run(scenario)


@pytest.mark.parametrize(
    ("parts", "first", "statuses"),
    [
        (BOTH, True, (200, 200, 200)),
        (BOTH[:1], True, (200, 500, 200)),
        (BOTH[1:], True, (500, 200, 200)),
        (BOTH, False, (500, 200, 417)),
        ((), True, (500, 500, 200)),
        ((("checksum", "0" * 64), ("checksum_archive", "0" * 64)), True, (500, 500, 417)),
    ],
)
def test_what_each_family_accepts(
    parts: tuple[tuple[str, str], ...], first: bool, statuses: tuple[int, ...], tmp_path: Path
) -> None:
    async def scenario() -> None:
        for family, status in zip(Family, statuses, strict=True):
            async with scene(family, tmp_path) as at:
                at.panel.add_server(at.server, "a")
                at.panel.assume_transfer(at.server, "b")
                assert await upload(at, *parts, first=first) == status
                assert at.panel.owner(at.server) == ("b" if status == 200 else "a")
                told = "success" if status == 200 else "failure"
                assert [made.route for made in at.panel.calls if made.route in ("success", "failure")] == [told]
                if family is Family.CALAGOPUS and told == "failure":
                    assert len(at.daemon.calls_of("delete")) == 1  # its panel has the destination delete them
                elif first:  # whatever the verdict: partial files stay
                    assert (at.volume / "server.properties").read_text() == "motd=hello\n"

    run(scenario)


@FAMILIES
def test_what_each_family_makes_of_an_archive(family: Family, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with scene(family, tmp_path) as at:
            at.panel.add_server(at.server, "a")
            at.panel.assume_transfer(at.server, "b")
            await upload(at, *BOTH)
            latest = at.volume / "latest"
            if family is Family.CALAGOPUS:
                assert str(latest.readlink()) == "world"
            else:
                assert latest.read_bytes() == b"" and not latest.is_symlink()
            assert (at.volume / "empty").exists() is (family is not Family.PTERODACTYL)

    run(scenario)


@FAMILIES
def test_random_bytes_and_a_short_archive(family: Family, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with scene(family, tmp_path) as at:
            is_go = family is not Family.CALAGOPUS
            for archive, status in ((b"x" * 600, 500 if is_go else 200), (WORLD[:-40], 500 if is_go else 417)):
                at.panel.add_server(at.server, "a")
                at.panel.assume_transfer(at.server, "b")
                digest = hashlib.sha256(archive).hexdigest()
                parts = (("checksum", digest), ("checksum_archive", digest))
                assert await upload(at, *parts, archive=archive) == status
                at.daemon.unregister(at.server)

    run(scenario)


@GO
def test_a_second_transfer_registers_the_server_twice(family: Family, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with scene(family, tmp_path) as at:
            for _ in range(2):
                at.panel.add_server(at.server, "a")
                at.panel.assume_transfer(at.server, "b")
                assert await upload(at, *BOTH) == 200
            assert len((await call(at, "GET", "/api/servers")).json()) == 2

    run(scenario)


@GO
def test_the_files_go_where_not_even_the_failure_is_accepted(family: Family, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with scene(family, tmp_path) as at:
            at.arriving()
            at.fake.cannot_create.add(at.server)
            at.panel.script("failure", "409")
            assert await upload(at, *BOTH) == 500
            await until(lambda: not at.volume.exists())

    run(scenario)


@FAMILIES
def test_a_deletion_is_answered_before_the_files_are_gone(family: Family, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with scene(family, tmp_path) as at:
            await at.owned()
            at.daemon.script("files", "hold")
            answer = await call(at, "DELETE", f"/api/servers/{at.server}")
            assert answer.status_code == (200 if family is Family.CALAGOPUS else 204)
            assert (await call(at, "GET", f"/api/servers/{at.server}")).status_code == 404 and at.volume.exists()
            at.daemon.release()
            await until(lambda: not at.volume.exists())

    run(scenario)


@FAMILIES
def test_a_daemon_that_died_answers_nobody_until_its_restart(family: Family, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with scene(family, tmp_path) as at:
            at.arriving()
            at.daemon.script("transfer", "crash")
            assert await upload(at, *BOTH) is None
            with pytest.raises(httpx.TransportError):
                await call(at, "GET", "/api/servers")
            await at.daemon.restart()
            assert (await call(at, "GET", "/api/servers")).json() == [] and at.panel.owner(at.server) == "a"

    run(scenario)


# ---- the console ----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def console(at: Scene, origin: str | None = None) -> AsyncIterator[ClientConnection]:
    address = f"ws{at.daemon.url.removeprefix('http')}/api/servers/{at.server}/ws"
    async with connect(address, origin=origin or at.panel.url, proxy=None) as socket:  # type: ignore[arg-type]
        yield socket


def console_token(at: Scene, **claims: Any) -> str:
    now = int(time.time())
    body = {
        "iss": "panel", "aud": [], "jti": "1", "iat": now, "exp": now + 600, "user_uuid": "u", "scope": "websocket",
        "server_uuid": at.server, "permissions": ["*", "admin.websocket.transfer"], **claims,
    }  # fmt: skip
    return jwt.encode(body, TOKEN, algorithm="HS256")


async def say(socket: ClientConnection, event: str, *args: str) -> None:
    await socket.send(json.dumps({"event": event, "args": args}))


async def hear(socket: ClientConnection, count: int) -> list[dict[str, Any]]:
    return [json.loads(await socket.recv()) for _ in range(count)]


@FAMILIES
def test_a_console_is_told_what_was_recorded(family: Family, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with scene(family, tmp_path) as at:
            await at.owned()
            async with console(at) as socket:
                await say(socket, "auth", console_token(at))
                heard = await hear(socket, 2 if family is Family.CALAGOPUS else 3)
                assert [message["event"] for message in heard[:2]] == ["auth success", "status"]
                assert heard[1]["args"] == ["offline"]
                if family is Family.CALAGOPUS:
                    assert heard[0]["args"] == ["*", "admin.websocket.transfer"]
                else:
                    assert "args" not in heard[0] and json.loads(heard[2]["args"][0])["state"] == "offline"
                await say(socket, "set state", "start")
                states: list[str] = []
                while len(states) < 2:
                    (message,) = await hear(socket, 1)
                    states += message["args"] if message["event"] == "status" else []
                assert states == ["starting", "running"]

    run(scenario)


@GO
def test_a_console_from_elsewhere_is_refused(family: Family, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with scene(family, tmp_path) as at:
            await at.owned()
            with pytest.raises(InvalidStatus) as refused:
                async with console(at, origin="http://evil.example"):
                    pass
            assert refused.value.response.status_code == 403

    run(scenario)


@FAMILIES
def test_a_console_of_an_unknown_server(family: Family, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with scene(family, tmp_path) as at:
            with pytest.raises(InvalidStatus) as refused:
                async with console(at):
                    pass
            assert refused.value.response.status_code == 404

    run(scenario)


@FAMILIES
def test_a_damaged_console_token(family: Family, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with scene(family, tmp_path) as at:
            await at.owned()
            async with console(at) as socket:
                await say(socket, "auth", console_token(at, server_uuid="another"))
                if family is Family.CALAGOPUS:
                    with pytest.raises(ConnectionClosed):
                        await socket.recv()
                else:
                    (message,) = await hear(socket, 1)
                    assert message == {"event": "jwt error", "args": ["jwt: server uuid mismatch"]}

    run(scenario)


def test_a_deleted_server_closes_its_consoles(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with scene(Family.PTERODACTYL, tmp_path) as at:
            await at.owned()
            async with console(at) as socket:
                await say(socket, "auth", console_token(at))
                await hear(socket, 3)
                await call(at, "DELETE", f"/api/servers/{at.server}")
                (message,) = await hear(socket, 1)
                assert message == {"event": "deleted", "args": ["null"]}
                with pytest.raises(ConnectionClosed):
                    await socket.recv()
                assert (socket.close_code, socket.close_reason) == (1001, "server deleted")

    run(scenario)
