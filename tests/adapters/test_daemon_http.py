"""The node daemon's API, against a stand-in of each family with every fault that the hand-over has to survive."""

import asyncio
import gzip
import hashlib
import socket
import time
import uuid
from pathlib import Path

import httpx
import jwt
import pytest

from sidecar.adapters.daemon_hand_over import hand_over_pieces, mint_token
from sidecar.adapters.daemon_http import DaemonKind, DaemonState, HttpDaemon, PowerAction, kind_of
from sidecar.demo.daemon_console import Console
from sidecar.demo.daemon_receipt import parts_of
from sidecar.demo.loopback import LoopbackServer
from sidecar.demo.panel_documents import Family
from sidecar.engine.backups import BackupForm
from sidecar.errors import HostFailed
from sidecar.ports import ArrivedFile, CarriedFile, Carries, Delivery, FilePlace
from tests.adapters.beside_scene import TOKEN, run, scene, until

FAMILIES = pytest.mark.parametrize("family", list(Family))
GO = pytest.mark.parametrize("family", [Family.PTERODACTYL, Family.PELICAN])
REFUSED_PORT = 1
BACKUP = "0b7f9e9c-52a4-4a8a-8c3a-6a3f1c1f0001"


def closed_url() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


# ---- what it is -----------------------------------------------------------------------------------------------------


@FAMILIES
def test_the_kind_is_found_out_with_one_call_that_changes_nothing(family: Family, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with scene(family, tmp_path) as at:
            for _ in range(2):
                assert await at.http.kind() is DaemonKind(family.value)
            await at.http.check()
            assert [(call.route, call.status) for call in at.daemon.calls] == [("system", 401), ("system", 200)]

    run(scenario)


@FAMILIES
def test_the_kind_is_asked_again_after_trouble(family: Family, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with scene(family, tmp_path) as at:
            await at.http.kind()
            at.daemon.script("server", "drop-before")
            assert await at.http.knows(at.server) is None
            await at.http.kind()
            assert len(at.daemon.calls_of("system")) == 2

    run(scenario)


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        (200, {}, b"{}"),
        (401, {}, b"Unauthorized"),
        (401, {}, b"[" * 100_000),
        (401, {}, b'{"error": "The required authorization heads were not present in the request."}'),  # no request id
        (401, {"X-Request-Id": "1"}, b'{"error": "no"}'),
        (  # a sidecar's
            401,
            {"X-Request-Id": "1"},
            b'{"error": "The required authorization heads were not present in the request.", "code": "auth.missing"}',
        ),
        (404, {"X-Request-Id": "1"}, b"404 page not found"),
    ],
)
def test_nothing_else_is_taken_for_a_daemon(status: int, headers: dict[str, str], body: bytes) -> None:
    assert kind_of(status, httpx.Headers(headers), body) is DaemonKind.UNKNOWN


def test_a_stranger_at_the_daemons_address(tmp_path: Path) -> None:
    from starlette.responses import PlainTextResponse

    async def scenario() -> None:
        stranger = LoopbackServer(PlainTextResponse("It works!"))
        url = await stranger.start()
        try:
            async with HttpDaemon(url, token=TOKEN, volume_path=lambda server: tmp_path / server) as http:
                assert await http.kind() is DaemonKind.UNKNOWN
                calls = (http.check(), http.state("x"), http.forget("x"))
                for call in calls:
                    with pytest.raises(HostFailed) as failed:
                        await call
                    assert failed.value.code == "daemon.strange"
                assert await http.knows("x") is None and await http.is_stuck("x") is None
                assert await http.hand_over("x") is Delivery.UNSENT
        finally:
            await stranger.stop()

    run(scenario)


def test_a_daemon_that_is_not_there(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with HttpDaemon(closed_url(), token=TOKEN, volume_path=lambda server: tmp_path / server) as http:
            calls = (http.kind(), http.check(), http.state("x"), http.power("x", PowerAction.STOP), http.forget("x"))
            for call in calls:
                with pytest.raises(HostFailed) as failed:
                    await call
                assert failed.value.code == "daemon.unreachable"
            assert await http.knows("x") is None and await http.is_stuck("x") is None
            assert await http.hand_over("x") is Delivery.UNSENT

    run(scenario)


@FAMILIES
def test_another_nodes_token_is_refused(family: Family, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with scene(family, tmp_path, token="x" * 32) as at:
            for call in (at.http.check(), at.http.state(at.server), at.http.power(at.server, PowerAction.START)):
                with pytest.raises(HostFailed) as failed:
                    await call
                assert failed.value.code == "daemon.refused"

    run(scenario)


@FAMILIES
def test_a_daemon_that_hangs_is_unreachable(family: Family, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with scene(family, tmp_path, call_timeout_s=0.2) as at:
            at.daemon.script("server", "hold")
            with pytest.raises(HostFailed) as failed:
                await at.http.state(at.server)
            assert failed.value.code == "daemon.unreachable"

    run(scenario)


# ---- one server -----------------------------------------------------------------------------------------------------


@FAMILIES
def test_state_and_power(family: Family, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with scene(family, tmp_path) as at:
            assert await at.http.state(at.server) is None and await at.http.knows(at.server) is False
            await at.owned()
            assert await at.http.state(at.server) is DaemonState.OFFLINE and await at.http.knows(at.server) is True
            await at.http.power(at.server, PowerAction.START)
            await at.until_state("running")
            assert await at.http.state(at.server) is DaemonState.RUNNING
            await at.http.power(at.server, PowerAction.STOP)
            await at.until_state("offline")
            await at.http.power(at.server, PowerAction.START)
            await at.until_state("running")
            await at.http.power(at.server, PowerAction.KILL)
            await at.until_state("offline")
            assert at.fake.starts == [at.server] * 2

    run(scenario)


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("404", "daemon.refused"),  # somebody's 404: not the daemon's words for an unknown server
        ("500", "daemon.refused"),
        ('body:{"state": "exploding"}', "daemon.strange"),
        ("body:[]", "daemon.strange"),
        ("body:" + "[" * 50_000, "daemon.strange"),
        ("body:" + " " * (5 * 1024 * 1024), "daemon.strange"),
        ("drop-before", "daemon.unreachable"),
    ],
)
def test_an_answer_that_is_not_understood_is_never_an_unknown_server(fault: str, code: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with scene(Family.PELICAN, tmp_path) as at:
            at.daemon.script("server", fault, fault)
            with pytest.raises(HostFailed) as failed:
                await at.http.state(at.server)
            assert failed.value.code == code
            assert await at.http.knows(at.server) is None

    run(scenario)


# ---- the hand-over --------------------------------------------------------------------------------------------------


@FAMILIES
def test_the_daemon_adopts_the_files_that_are_there(family: Family, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with scene(family, tmp_path) as at:
            at.arriving()
            link = at.volume / "latest"
            link.symlink_to("level.dat")
            (at.volume / "empty").mkdir()
            before = sorted((path.name, path.lstat()) for path in at.volume.iterdir())
            assert await at.http.hand_over(at.server) is Delivery.ACCEPTED
            assert at.daemon.calls_of("transfer")[0].status == 200
            assert at.panel.owner(at.server) == "b"
            assert await at.http.state(at.server) is DaemonState.OFFLINE
            assert await at.http.is_stuck(at.server) is False
            after = sorted((path.name, path.lstat()) for path in at.volume.iterdir())
            assert [(name, was.st_ino, was.st_mtime_ns) for name, was in before] == [
                (name, now.st_ino, now.st_mtime_ns) for name, now in after
            ]
            await at.http.power(at.server, PowerAction.START)
            await at.until_state("running")

    run(scenario)


@FAMILIES
def test_it_is_not_sent_where_the_daemon_knows_the_server(family: Family, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with scene(family, tmp_path) as at:
            at.arriving()
            await at.http.hand_over(at.server)
            assert await at.http.hand_over(at.server) is Delivery.UNSENT
            assert len(at.daemon.calls_of("transfer")) == 1 and len(at.daemon.servers) == 1

    run(scenario)


@FAMILIES
@pytest.mark.parametrize(
    ("fault", "delivery"),
    [
        ("drop-before", Delivery.UNANSWERED),
        ("drop-after", Delivery.UNANSWERED),
        ("crash", Delivery.UNANSWERED),
        ("hold", Delivery.UNANSWERED),
        ("500", Delivery.ANSWERED),
        ("409", Delivery.ANSWERED),
        ("delay:0.2", Delivery.ACCEPTED),  # slow is no fault: only `hand_over_s` bounds it
    ],
)
def test_what_became_of_it_is_said_as_far_as_the_connection_proves_it(
    family: Family, fault: str, delivery: Delivery, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with scene(family, tmp_path, call_timeout_s=0.15 if "delay" in fault else 5, hand_over_s=0.6) as at:
            at.arriving()
            at.daemon.script("transfer", fault)
            assert await at.http.hand_over(at.server) is delivery
            assert (at.volume / "level.dat").read_text() == "world"

    run(scenario)


def test_a_hand_over_that_could_not_look_is_not_sent(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with scene(Family.PELICAN, tmp_path) as at:
            at.arriving()
            at.daemon.script("server", "500")
            assert await at.http.hand_over(at.server) is Delivery.UNSENT
            assert at.daemon.calls_of("transfer") == []

    run(scenario)


@GO
@pytest.mark.parametrize("fault", ["409", "drop-before"])
def test_a_200_proves_nothing_and_a_stuck_server_is_seen(family: Family, fault: str, tmp_path: Path) -> None:
    """H1: the panel refused, or was never reached; the daemon answers 200 and holds the server."""

    async def scenario() -> None:
        async with scene(family, tmp_path) as at:
            at.arriving()
            at.panel.script("success", *[fault] * 50)
            assert await at.http.hand_over(at.server) is Delivery.ACCEPTED
            assert at.daemon.calls_of("transfer")[0].status == 200 and at.panel.owner(at.server) == "a"
            assert await at.http.is_stuck(at.server) is True
            await at.http.power(at.server, PowerAction.START)
            assert await at.http.state(at.server) is DaemonState.OFFLINE
            blind = HttpDaemon(at.daemon.url, token=TOKEN)
            async with blind:
                assert await blind.is_stuck(at.server) is None  # without the panel's address nobody is let in

    run(scenario)


@GO
def test_a_restart_of_the_daemon_mends_a_stuck_server_that_is_ours(family: Family, tmp_path: Path) -> None:
    """The answer to `success` was lost."""

    async def scenario() -> None:
        async with scene(family, tmp_path) as at:
            at.arriving()
            at.panel.script("success", "drop-after")
            await at.http.hand_over(at.server)
            assert at.panel.owner(at.server) == "b" and await at.http.is_stuck(at.server) is True
            await at.daemon.restart()
            assert await at.http.is_stuck(at.server) is False
            await at.http.power(at.server, PowerAction.START)
            await at.until_state("running")

    run(scenario)


def test_calagopus_lets_go_when_it_is_asked(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with scene(Family.CALAGOPUS, tmp_path) as at:
            at.arriving()
            at.panel.script("success", "drop-after")
            await at.http.hand_over(at.server)
            assert at.daemon.calls_of("transfer")[0].status == 500 and at.panel.owner(at.server) == "b"
            await at.http.power(at.server, PowerAction.START)
            assert await at.http.is_stuck(at.server) is False
            await at.http.power(at.server, PowerAction.START)
            await at.until_state("running")
            assert len(at.fake.starts) == 1

    run(scenario)


def test_a_server_that_runs_is_not_stuck(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with scene(Family.PTERODACTYL, tmp_path) as at:
            assert await at.http.is_stuck(at.server) is False
            await at.owned()
            await at.http.power(at.server, PowerAction.START)
            await at.until_state("running")
            assert await at.http.is_stuck(at.server) is False

    run(scenario)


def test_the_token_has_every_claim_that_a_family_asks_for() -> None:
    token = mint_token("uuid", key="k" * 32, audience="http://127.0.0.1:8080", now_s=1_700_000_000, valid_s=900.5)
    claims = jwt.decode(token, "k" * 32, algorithms=["HS256"], options={"verify_exp": False, "verify_aud": False})
    assert jwt.get_unverified_header(token)["alg"] == "HS256"
    assert claims["scope"] == "transfer" and claims["sub"] == "uuid" and claims["aud"] == ["http://127.0.0.1:8080"]
    assert {name: type(claims[name]) for name in ("iat", "nbf", "exp")} == dict.fromkeys(("iat", "nbf", "exp"), int)
    assert claims["nbf"] <= claims["iat"] == 1_700_000_000 and claims["exp"] == 1_700_000_900
    assert claims["iss"] and claims["jti"] and claims["unique_id"]


def test_the_archive_is_valid_and_empty() -> None:
    for form, types_tar in ((BackupForm.PELICAN, False), (BackupForm.CALAGOPUS, True)):
        body = b"".join(hand_over_pieces(b"edge", form=form, types_tar=types_tar))
        archive, *checksums = parts_of(body, "edge")
        assert gzip.decompress(archive.content) == bytes(1024)
        assert (archive.name, archive.file_name) == ("archive", "archive.tar.gz")
        assert (archive.media_type == "application/x-tar") is types_tar
        digest = hashlib.sha256(archive.content).hexdigest().encode()
        assert [(part.name, part.content) for part in checksums] == [
            ("checksum", digest),
            ("checksum_archive", digest),
        ]


@pytest.mark.parametrize("family", [Family.PELICAN, Family.CALAGOPUS])
def test_files_go_along_and_are_filed_by_the_daemon(family: Family, tmp_path: Path) -> None:
    """In pieces: more of them than one piece, and the daemon compares the checksums."""
    content = bytes(range(256)) * 5000
    path = tmp_path / "staged"
    path.write_bytes(content)
    name = f"{BACKUP}.tar.gz"
    digest = hashlib.sha256(content).hexdigest()

    async def scenario() -> None:
        async with scene(family, tmp_path) as at:
            carries = await at.http.carries()
            assert carries.places == frozenset(FilePlace)
            folder = at.server if FilePlace.BACKUPS in carries.folders else None
            backup = ArrivedFile(FilePlace.BACKUPS, name, digest, BACKUP, is_carried=True, folder=folder)
            log = ArrivedFile(FilePlace.INSTALL_LOGS, f"{at.server}.log", digest, is_carried=True)
            at.arriving()
            files = [CarriedFile(backup, path), CarriedFile(log, path)]
            assert await at.http.hand_over(at.server, files) is Delivery.ACCEPTED
            shelves = at.daemon.shelves
            assert (shelves.backups / (folder or "") / name).read_bytes() == content
            assert shelves.install_log(family, at.server).read_bytes() == content
            assert at.panel.backups(at.server) == ([BACKUP] if family is Family.CALAGOPUS else [])

    run(scenario)


def test_pterodactyl_takes_none(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with scene(Family.PTERODACTYL, tmp_path) as at:
            assert await at.http.carries() == Carries()

    run(scenario)


@pytest.mark.parametrize("family", [Family.PELICAN, Family.CALAGOPUS])
@pytest.mark.parametrize("damage", ["other content", "gone"])
def test_a_file_that_is_not_what_it_was_fails_the_hand_over(family: Family, damage: str, tmp_path: Path) -> None:
    """The daemon proves the whole way; one that cannot be read cuts the connection, and nothing is known then."""

    async def scenario() -> None:
        async with scene(family, tmp_path) as at:
            path = tmp_path / "staged"
            if damage == "other content":
                path.write_bytes(b"damaged")
            digest = hashlib.sha256(b"a backup").hexdigest()
            file = ArrivedFile(FilePlace.BACKUPS, f"{BACKUP}.tar.gz", digest, BACKUP, is_carried=True)
            at.arriving()
            expected = Delivery.ANSWERED if damage == "other content" else Delivery.UNANSWERED
            assert await at.http.hand_over(at.server, [CarriedFile(file, path)]) is expected
            assert at.panel.owner(at.server) == "a"
            if family is Family.PELICAN:  # the other panel deletes at the destination when it is told of a failure
                assert (at.volume / "level.dat").read_text() == "world"

    run(scenario)


# ---- deletion, and the mending of H3 --------------------------------------------------------------------------------


@FAMILIES
def test_a_server_is_forgotten_and_handed_over_again(family: Family, tmp_path: Path) -> None:
    """H3: move aside, DELETE, wait, move back, hand over again."""

    async def scenario() -> None:
        async with scene(family, tmp_path) as at:
            at.arriving()
            at.panel.script("success", "403")
            await at.http.hand_over(at.server)
            assert at.panel.owner(at.server) == "a"
            aside = tmp_path / "aside"
            at.volume.rename(aside)
            at.daemon.script("files", "hold")
            forgetting = asyncio.create_task(at.http.forget(at.server))
            await until(lambda: len(at.daemon.calls_of("delete")) == 1)
            await asyncio.wait([forgetting], timeout=0.1)
            assert at.daemon.find(at.server) is None and not forgetting.done()  # unknown, and still deleting
            at.daemon.release()
            await forgetting
            assert not at.volume.exists()
            aside.rename(at.volume)
            assert await at.http.hand_over(at.server) is Delivery.ACCEPTED
            assert at.panel.owner(at.server) == "b" and (at.volume / "level.dat").read_text() == "world"
            assert len(at.daemon.servers) == 1 and await at.http.is_stuck(at.server) is False

    run(scenario)


@FAMILIES
def test_nothing_is_deleted_while_the_files_are_in_their_place(family: Family, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with scene(family, tmp_path) as at:
            at.arriving()
            await at.http.hand_over(at.server)
            with pytest.raises(HostFailed) as failed:
                await at.http.forget(at.server)
            assert failed.value.code == "daemon.refused" and at.daemon.calls_of("delete") == []
            assert (at.volume / "level.dat").read_text() == "world"

    run(scenario)


def test_a_deletion_that_does_not_end_is_said_and_taken_up_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with scene(Family.CALAGOPUS, tmp_path, forget_s=0.2) as at:
            at.arriving()
            await at.http.hand_over(at.server)
            at.volume.rename(tmp_path / "aside")
            at.daemon.script("files", "hold")
            for _ in range(2):
                with pytest.raises(HostFailed) as failed:
                    await at.http.forget(at.server)
                assert failed.value.code == "daemon.refused" and at.volume.is_dir()
            at.daemon.release()
            await at.http.forget(at.server)
            assert not at.volume.exists() and len(at.daemon.calls_of("delete")) == 1

    run(scenario)


async def forgets(http: HttpDaemon, server: str) -> None:
    """Asked again, as mending does, while the daemon is away."""
    while True:
        try:
            await http.forget(server)
            return
        except HostFailed as error:
            if error.code != "daemon.unreachable":
                raise
        await asyncio.sleep(0.01)


@FAMILIES
def test_a_daemon_restarted_in_the_middle_of_a_deletion_is_seen(family: Family, tmp_path: Path) -> None:
    """It never takes it up again. The volume can come back, and nothing touches it."""

    async def scenario() -> None:
        async with scene(family, tmp_path, idle_s=0.2) as at:
            at.arriving()
            at.panel.script("success", "409")
            await at.http.hand_over(at.server)
            aside = tmp_path / "aside"
            at.volume.rename(aside)
            at.daemon.script("files", "hold")
            forgetting = asyncio.create_task(forgets(at.http, at.server))
            await until(lambda: len(at.daemon.calls_of("delete")) == 1)
            await at.daemon.die_with_its_work()
            await until(lambda: at.http.absences > 0)
            assert at.volume.is_dir() and not forgetting.done()
            await at.daemon.start()
            await forgetting
            assert not at.volume.exists()
            aside.rename(at.volume)
            assert await at.http.hand_over(at.server) is Delivery.ACCEPTED
            assert at.panel.owner(at.server) == "b" and (at.volume / "level.dat").read_text() == "world"

    run(scenario)


@FAMILIES
@pytest.mark.parametrize("knows_another", [True, False])
def test_daemon_and_sidecar_restarted_in_the_middle_of_a_deletion(
    family: Family, knows_another: bool, tmp_path: Path
) -> None:
    """The death was not seen. Another server's console tells that the daemon is younger than the deletion; without one
    a person has to say so."""
    other = str(uuid.uuid4())

    async def scenario() -> None:
        async with scene(family, tmp_path, idle_s=0.1, forget_s=0.6) as at:
            if knows_another:
                at.panel.add_server(other, "b")
            at.arriving()
            at.panel.script("success", "409")
            await at.http.hand_over(at.server)
            at.volume.rename(tmp_path / "aside")
            at.daemon.script("files", "hold")
            forgetting = asyncio.create_task(at.http.forget(at.server))
            await until(lambda: len(at.daemon.calls_of("delete")) == 1)
            forgetting.cancel()
            await asyncio.wait([forgetting])
            begun = at.volume.stat().st_ctime
            await until(lambda: time.time() > int(begun) + 2)  # tokens count in seconds
            async with HttpDaemon(
                at.daemon.url,
                token=TOKEN,
                origin=at.panel_url,
                volume_path=lambda name: at.volumes / name,
                idle_s=0.1,
                forget_s=0.6,
                poll_s=0.01,
            ) as later:
                with pytest.raises(HostFailed):  # the same process may still delete
                    await later.forget(at.server)
                assert at.volume.is_dir()
                await at.daemon.restart()
                if knows_another:
                    await later.forget(at.server)
                    assert not at.volume.exists()
                else:
                    with pytest.raises(HostFailed, match="remove the empty directory"):
                        await later.forget(at.server)
                    assert at.volume.is_dir()

    run(scenario)


@FAMILIES
@pytest.mark.parametrize("lost", range(2))
def test_a_lost_connection_is_no_restart_of_the_daemon(
    family: Family, lost: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Symptom: a console that breaks once lets us take a deletion for dead that is under way."""

    async def scenario() -> None:
        async with scene(family, tmp_path) as at:
            sockets = 0
            run_console = Console.run

            async def run(console: Console) -> None:
                nonlocal sockets
                sockets += 1
                if sockets == lost + 1:
                    await console._socket.accept()
                    await console._socket.close(1011)
                else:
                    await run_console(console)

            monkeypatch.setattr(Console, "run", run)
            at.panel.add_server(str(uuid.uuid4()), "b")
            await at.daemon.restart()
            await until(lambda: time.time() > int(at.daemon.booted) + 2)
            assert not await at.http.was_started_after(at.daemon.booted)
            await at.daemon.restart()
            assert await at.http.was_started_after(at.daemon.booted - 3)

    run(scenario)


def test_only_an_empty_directory_is_taken_away(tmp_path: Path) -> None:
    """Somebody has put files there since: they are nobody's to remove."""

    async def scenario() -> None:
        async with scene(Family.PELICAN, tmp_path, idle_s=0.05, forget_s=0.4) as at:
            at.arriving()
            at.panel.script("success", "409")
            await at.http.hand_over(at.server)
            at.volume.rename(tmp_path / "aside")
            at.daemon.script("files", "hold")
            forgetting = asyncio.create_task(forgets(at.http, at.server))
            await until(lambda: len(at.daemon.calls_of("delete")) == 1)
            await at.daemon.die_with_its_work()
            (at.volume / "mine").write_text("x")
            await until(lambda: at.http.absences > 0)
            await at.daemon.start()
            with pytest.raises(HostFailed):
                await forgetting
            assert (at.volume / "mine").read_text() == "x"

    run(scenario)


@FAMILIES
def test_an_unknown_server_is_forgotten_already(family: Family, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with scene(family, tmp_path) as at:
            at.volume.mkdir()
            (at.volume / "level.dat").write_text("world")
            await at.http.forget(at.server)
            assert (at.volume / "level.dat").exists() and at.daemon.calls_of("delete") == []

    run(scenario)


def test_a_refused_deletion_leaves_nothing_behind(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with scene(Family.PTERODACTYL, tmp_path) as at:
            at.panel.add_server(at.server, "b")
            await at.daemon.restart()
            at.daemon.script("delete", "500")
            with pytest.raises(HostFailed) as failed:
                await at.http.forget(at.server)
            assert failed.value.code == "daemon.refused" and not at.volume.exists()

    run(scenario)
