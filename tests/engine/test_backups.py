"""Backups and install logs that travel with a server: received, filed, named to the panel, sent, and never lost."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import msgspec
import pytest

from sidecar.engine.backups import MAX_INSTALL_LOG_BYTES
from sidecar.engine.contract import StartTransfer
from sidecar.ports import Configuration, FilePlace, Verdict
from tests.engine.pair import Pair, running_pair
from tests.engine.replays import BACKUP
from tests.engine.rig import SERVER, Rig, grow_world, request_to, running_node, token_of, transfer_token
from tests.engine.strangers import ARCHIVE, Received, raw_upload, stranger

OTHER_BACKUP = "0b7f9e9c-52a4-4a8a-8c3a-6a3f1c1f0002"
CONTENT = b"a backup" * 20_000
CALAGOPUS_PROBE = b'{"error":"route not found"}'

Parts = list[tuple[str, bytes] | tuple[str, bytes, str]]


def sha(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


def body_of(extra: Parts) -> bytes:
    parts: Parts = [("archive", ARCHIVE), ("checksum", sha(ARCHIVE)), *extra]
    pieces = []
    for name, content, *more in parts:
        pieces.append(f'--B\r\nContent-Disposition: form-data; name="{name}"{more[0] if more else ""}\r\n\r\n'.encode())
        pieces.append(content + b"\r\n")
    return b"".join(pieces) + b"--B--\r\n"


def pelican(backup: str = BACKUP, content: bytes = CONTENT) -> Parts:
    return [(f"backup_{backup}.tar.gz", content), (f"checksum_backup_{backup}.tar.gz", sha(content))]


def calagopus(file: str = f"{BACKUP}.tar.gz", kind: str = "backup/wings") -> Parts:
    more = f'; filename="{file}"\r\nContent-Type: {kind}'
    return [(f"backup-{BACKUP}", CONTENT, more), (f"backup-checksum-{BACKUP}", sha(CONTENT))]


class OwnPanel:
    """Gives the server to this node at `success`, as long as `gives`; remembers what it was told."""

    def __init__(self, *, gives: bool = True) -> None:
        self.backups: tuple[str, ...] | None = None
        self._gives = gives
        self._is_ours = False

    async def configuration(self, server: str) -> Configuration:
        return Configuration(settings={"uuid": server}, process_configuration={})

    async def report_success(self, server: str, backups: Sequence[str] = ()) -> Verdict:
        self.backups = tuple(backups)
        self._is_ours = self._gives
        return Verdict.ACCEPTED if self._gives else Verdict.REFUSED

    async def report_failure(self, server: str) -> Verdict:
        return Verdict.ACCEPTED

    async def is_ours(self, server: str) -> bool | None:
        return self._is_ours


# -- received ----------------------------------------------------------------------------------------------------------
def test_the_panel_is_told_what_was_kept(tmp_path: Path) -> None:
    async def scenario() -> None:
        panel = OwnPanel()
        async with running_node(tmp_path, "b", panel=panel, keeps_files=True) as rig:
            parts = [*reversed(pelican()), *pelican(OTHER_BACKUP, b""), ("install-logs", b"installed\n")]
            async with raw_upload(rig, body_of(parts)) as upload:
                assert await upload.status() == 200
            assert panel.backups == (OTHER_BACKUP, BACKUP) or panel.backups == (BACKUP, OTHER_BACKUP)
            view = await rig.settled()
            assert set(view.backups) == {BACKUP, OTHER_BACKUP}
            backups = rig.home / "backups"
            assert (backups / f"{BACKUP}.tar.gz").read_bytes() == CONTENT
            assert (backups / f"{OTHER_BACKUP}.tar.gz").read_bytes() == b""
            assert (rig.home / "install_logs" / f"{SERVER}.log").read_bytes() == b"installed\n"
            assert rig.staging() == []

    asyncio.run(scenario())


def test_what_has_no_place_is_left_out_by_name(tmp_path: Path) -> None:
    async def scenario() -> None:
        panel = OwnPanel()
        async with running_node(tmp_path, "b", panel=panel) as rig:
            async with raw_upload(rig, body_of([*pelican(), ("install_logs", b"log")])) as upload:
                assert await upload.status() == 200
            assert panel.backups == () and (await rig.settled()).backups == ()
            lines = "\n".join(rig.lines())
            assert BACKUP in lines and "install log" in lines

    asyncio.run(scenario())


@pytest.mark.parametrize("keeps_files", [True, False])
@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        (pelican()[:1], "upload.missing_part"),
        (pelican()[1:], "upload.missing_part"),
        (calagopus()[:1], "upload.missing_part"),
        ([pelican()[0], (pelican()[1][0], sha(b"else"))], "archive.checksum"),
        ([calagopus()[0], (calagopus()[1][0], sha(b"else"))], "archive.checksum"),
        ([*pelican(), pelican()[0]], "upload.repeated_part"),
        ([*pelican(), pelican()[1]], "upload.repeated_part"),
        ([*pelican(), *calagopus()], "upload.repeated_part"),
        ([("install_logs", b"1"), ("install-logs", b"2")], "upload.repeated_part"),
        ([(f"backup_../{BACKUP}.tar.gz", CONTENT)], "upload.malformed"),
        ([("backup_../../../etc/cron.d/x", CONTENT)], "upload.malformed"),
        ([("backup_.tar.gz", CONTENT)], "upload.malformed"),
        ([(f"backup_{BACKUP}.tar.gz/..", CONTENT)], "upload.malformed"),
        ([(f"backup_{BACKUP}", CONTENT)], "upload.malformed"),
        (calagopus(f"../{BACKUP}.tar.gz"), "upload.malformed"),
        (calagopus(f"{OTHER_BACKUP}.tar.gz"), "upload.malformed"),
        (calagopus(".bashrc"), "upload.malformed"),
        (calagopus(kind="application/x-tar"), "upload.malformed"),
        ([(f"backup-{BACKUP}", CONTENT)], "upload.malformed"),
    ],
)
def test_a_backup_that_is_not_as_it_should_be(tmp_path: Path, parts: Parts, reason: str, keeps_files: bool) -> None:
    """It fails the transfer, and nothing stays."""

    async def scenario() -> None:
        async with running_node(tmp_path, "b", keeps_files=keeps_files) as rig:
            async with raw_upload(rig, body_of(parts)) as upload:
                assert await upload.status() == 400
            view = await rig.settled()
            assert (view.status, view.reason) == ("failed", reason)
            assert not rig.volume().exists() and rig.staging() == [] and rig.trash() == []
            assert not keeps_files or rig.filed() == rig.filed(FilePlace.INSTALL_LOGS) == []

    asyncio.run(scenario())


def test_a_backup_of_that_name_stays_as_it_is(tmp_path: Path) -> None:
    async def scenario() -> None:
        panel = OwnPanel()
        async with running_node(tmp_path, "b", panel=panel, keeps_files=True) as rig:
            old = rig.keep(BACKUP, b"older")
            async with raw_upload(rig, body_of([*pelican(), *pelican(OTHER_BACKUP)])) as upload:
                assert await upload.status() == 200
            assert old.read_bytes() == b"older"
            assert panel.backups == (OTHER_BACKUP,)
            assert any(BACKUP in line for line in rig.lines())
            await rig.settled()
            assert rig.staging() == []

    asyncio.run(scenario())


def test_a_disowned_transfer_takes_its_backups_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_node(tmp_path, "b", panel=OwnPanel(gives=False), keeps_files=True) as rig:
            old = rig.keep(OTHER_BACKUP, b"older")
            async with raw_upload(rig, body_of([*pelican(), *pelican(OTHER_BACKUP)])) as upload:
                assert await upload.status() == 500
            assert (await rig.settled()).reason == "transfer.disowned"
            assert rig.filed() == [old.name] and old.read_bytes() == b"older"
            (item,) = (rig.home / "backups/.sidecar-trash").glob("*/volume")
            assert (item / f"{BACKUP}.tar.gz").read_bytes() == CONTENT
            assert rig.staging() == []

    asyncio.run(scenario())


def test_a_restart_after_the_commit_keeps_them(tmp_path: Path) -> None:
    async def scenario() -> None:
        panel = OwnPanel()
        async with running_node(tmp_path, "b", panel=panel, keeps_files=True) as rig:
            rig.runtime.gates["activate"] = asyncio.Event()
            async with raw_upload(rig, body_of(pelican())):
                await rig.stage("activating")
        async with running_node(tmp_path, "b", panel=panel, keeps_files=True) as rig:
            view = await rig.settled()
            assert (view.status, view.backups) == ("completed", (BACKUP,))
            assert rig.filed() == [f"{BACKUP}.tar.gz"] and rig.staging() == []

    asyncio.run(scenario())


def test_a_restart_before_the_commit_leaves_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_node(tmp_path, "b", keeps_files=True) as rig:
            rig.runtime.gates["prepare"] = asyncio.Event()
            async with raw_upload(rig, body_of(pelican())):
                await rig.stage("preparing")
                assert len(rig.staging()) == 2
        async with running_node(tmp_path, "b", keeps_files=True) as rig:
            assert (await rig.settled()).status == "failed"
            assert rig.filed() == [] and rig.staging() == []

    asyncio.run(scenario())


# -- sent --------------------------------------------------------------------------------------------------------------
def request(url: str, token: str, form: str = "pelican", *, delete: bool = False) -> StartTransfer:
    return StartTransfer(
        server=SERVER,
        url=url,
        token=token,
        backups=(BACKUP, OTHER_BACKUP),
        backup_form=form,  # type: ignore[arg-type]
        delete_backups=delete,
    )


@asynccontextmanager
async def source(tmp_path: Path) -> AsyncIterator[Rig]:
    async with running_node(tmp_path / "a", "a", keeps_files=True) as rig:
        grow_world(rig.volume())
        rig.runtime.add(SERVER, running=False)
        rig.keep(BACKUP, CONTENT)
        yield rig


@pytest.mark.parametrize("form", ["pelican", "calagopus"])
def test_from_one_of_ours_to_another(tmp_path: Path, form: str) -> None:
    async def scenario() -> None:
        async with source(tmp_path) as a, running_node(tmp_path / "b", "b", keeps_files=True) as b:
            plain = request_to(b)
            await a.node.start(request(plain.url, plain.token, form), caller=None, respond_async=False)
            left, came = await a.settled(), await b.settled()
            assert (left.status, came.status) == ("completed", "completed")
            assert left.backups == came.backups == (BACKUP,)
            assert (b.home / "backups" / f"{BACKUP}.tar.gz").read_bytes() == CONTENT
            assert any(OTHER_BACKUP in line for line in a.lines()), "the missing one is named"
            assert a.filed() == [f"{BACKUP}.tar.gz"]

    asyncio.run(scenario())


@pytest.mark.parametrize("form", ["pelican", "calagopus"])
@pytest.mark.parametrize("probe", [b"", CALAGOPUS_PROBE])
def test_in_the_form_of_the_destinations_family(tmp_path: Path, form: str, probe: bytes) -> None:
    async def scenario() -> None:
        async def behave(upload: Received) -> None:
            await upload.read_all()
            await upload.answer("200 OK")

        async with source(tmp_path) as a, stranger(behave, probe=probe) as other:
            url = f"{other.url}/api/transfers"
            await a.node.start(request(url, transfer_token("x" * 32), form), caller=None, respond_async=False)
            await a.stage("reporting_failure", "asking_owner", "settling", "ended", "confirming_departure")
            sent = bytes(other.uploads[0].body)
            order = [b'name="archive"', b'name="checksum"', b'name="checksum_archive"']
            if form == "pelican":
                order += [b'name="backup_%s.tar.gz"; filename="%s.tar.gz"' % ((BACKUP.encode(),) * 2)]
                order += [b"application/octet-stream", b'name="checksum_backup_%s.tar.gz"' % BACKUP.encode()]
            else:
                order += [b'name="backup-%s"; filename="%s.tar.gz"' % ((BACKUP.encode(),) * 2)]
                order += [b"Content-Type: backup/wings", b'name="backup-checksum-%s"' % BACKUP.encode()]
            order += [sha(CONTENT)]
            places = [
                sent.find(needle, sent.find(order[3]) if number > 3 else 0) for number, needle in enumerate(order)
            ]
            assert -1 not in places and places == sorted(places)

    asyncio.run(scenario())


@pytest.mark.parametrize("form", ["pelican", "calagopus"])
@pytest.mark.parametrize("place", [f"{SERVER}.log", f"{SERVER}/install.log"])
def test_the_install_log_goes_along_in_the_form_of_the_destinations_family(
    tmp_path: Path, form: str, place: str
) -> None:
    """Behind the checksums, at most 16 MiB of it."""

    async def scenario() -> None:
        async def behave(upload: Received) -> None:
            await upload.read_all()
            await upload.answer("200 OK")

        async with source(tmp_path) as a, stranger(behave) as other:
            path = a.home / "install_logs" / place
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"installed\n" + b"." * MAX_INSTALL_LOG_BYTES)
            url = f"{other.url}/api/transfers"
            await a.node.start(request(url, transfer_token("x" * 32), form), caller=None, respond_async=False)
            await a.stage("reporting_failure", "asking_owner", "settling", "ended", "confirming_departure")
            sent = bytes(other.uploads[0].body)
            head = {
                "pelican": b'name="install_logs"; filename="install.log"\r\nContent-Type: application/octet-stream',
                "calagopus": b'name="install-logs"; filename="install.log"\r\nContent-Type: text/plain',
            }[form]
            assert sent.count(b'; name="install') == 1
            begin = sent.index(b"installed\n", sent.index(head + b"\r\n\r\n"))  # chunks lie between them
            assert sent.index(b'name="checksum_archive"') < begin < sent.index(b'name="backup')
            assert sent.rindex(b"....") - begin < MAX_INSTALL_LOG_BYTES + 4096

    asyncio.run(scenario())


def test_backups_and_log_between_two_of_ours_where_each_server_has_a_folder(tmp_path: Path) -> None:
    """As Pelican keeps its backups, and Calagopus its logs."""

    async def scenario() -> None:
        async with source(tmp_path) as a, running_node(tmp_path / "b", "b", keeps_files=True) as b:
            folder = a.home / "backups" / SERVER
            folder.mkdir()
            (a.home / "backups" / f"{BACKUP}.tar.gz").rename(folder / f"{BACKUP}.tar.gz")
            (a.home / "install_logs" / SERVER).mkdir()
            (a.home / "install_logs" / SERVER / "install.log").write_bytes(b"installed\n")
            plain = request_to(b)
            await a.node.start(request(plain.url, plain.token), caller=None, respond_async=False)
            left, came = await a.settled(), await b.settled()
            assert left.backups == came.backups == (BACKUP,)
            assert (b.home / "backups" / f"{BACKUP}.tar.gz").read_bytes() == CONTENT
            assert (b.home / "install_logs" / f"{SERVER}.log").read_bytes() == b"installed\n"

    asyncio.run(scenario())


@asynccontextmanager
async def moving(tmp_path: Path) -> AsyncIterator[Pair]:
    """A pair with a panel that wants backups to travel and to be deleted behind them."""
    async with running_pair(tmp_path, keeps_files=True) as pair:
        pair.a.keep(BACKUP, CONTENT)
        pair.a.keep(OTHER_BACKUP, b"not asked for")
        yield pair


async def start_deleting(pair: Pair) -> None:
    pair.panel.assume_transfer(SERVER, "b")
    plain = request_to(pair.b)
    asked = msgspec.structs.replace(plain, backups=(BACKUP,), backup_form="calagopus", delete_backups=True)
    await pair.a.node.start(asked, caller=None, respond_async=False)


def trashed_backups(rig: Rig) -> list[bytes]:
    return [path.read_bytes() for path in (rig.home / "backups").glob(".sidecar-trash/*/volume/*")]


def test_deleted_only_when_they_have_arrived(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with moving(tmp_path) as pair:
            await start_deleting(pair)
            await pair.settled()
            assert pair.check() == "b"
            assert pair.b.filed() == [f"{BACKUP}.tar.gz"]
            assert pair.a.filed() == [f"{OTHER_BACKUP}.tar.gz"]
            assert trashed_backups(pair.a) == [CONTENT], "kept as long as the volume"

    asyncio.run(scenario())


def test_not_deleted_where_the_destination_did_not_keep_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with moving(tmp_path) as pair:
            pair.b.keep(BACKUP, b"another of that name")
            before = pair.a.filed()
            await start_deleting(pair)
            await pair.settled()
            assert pair.check() == "b"
            assert pair.a.filed() == before and trashed_backups(pair.a) == []
            assert any("Not deleted" in line and BACKUP in line for line in pair.a.lines())

    asyncio.run(scenario())


def test_not_deleted_after_a_failed_transfer(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with moving(tmp_path) as pair:
            before = pair.a.filed()
            pair.panel.script("success", "409", "409", "409")
            await start_deleting(pair)
            await pair.settled()
            assert pair.check() == "a"
            assert pair.a.filed() == before and trashed_backups(pair.a) == []
            assert pair.b.filed() == []

    asyncio.run(scenario())


def test_a_stranger_that_says_nothing_of_them_deletes_nothing(tmp_path: Path) -> None:
    """A Pterodactyl node takes the server, skips the backups, and answers 200."""

    async def scenario() -> None:
        async with moving(tmp_path) as pair:

            async def behave(upload: Received) -> None:
                await upload.read_all()
                async with httpx.AsyncClient(headers={"Authorization": f"Bearer id-b.{token_of('b')}"}) as panel:
                    path = f"/api/remote/servers/{SERVER}/transfer/success"
                    assert (await panel.post(pair.server.url + path)).status_code == 204
                await upload.answer("200 OK")

            async with stranger(behave) as other:
                url = f"{other.url}/api/transfers"
                asked = request(url, transfer_token("x" * 32), delete=True)
                pair.panel.assume_transfer(SERVER, "b")
                await pair.a.node.start(asked, caller=None, respond_async=False)
                assert (await pair.a.settled()).status == "completed"
            assert len(pair.a.trash()) == 1
            assert BACKUP in "".join(pair.a.filed()) and trashed_backups(pair.a) == []

    asyncio.run(scenario())
