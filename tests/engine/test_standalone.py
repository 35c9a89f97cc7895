"""Two nodes without a panel: the destination's journal is the arbiter. Failures, cancels and restarts at both ends."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import socket
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random

import msgspec
import pytest

from sidecar.engine.services import Sending
from sidecar.errors import HostFailed, Refused
from sidecar.lifecycle.statuses import Role
from tests.engine.rig import (
    SERVER,
    Rig,
    api,
    grow_world,
    request_to,
    running_node,
    transfer_token,
    tree_of,
)
from tests.engine.strangers import Received, stranger

OTHER = "00000000-1111-4222-8333-444444444444"


@asynccontextmanager
async def two_nodes(tmp_path: Path, *, big_bytes: int = 300_000) -> AsyncIterator[tuple[Rig, Rig]]:
    async with running_node(tmp_path / "a", "a") as a, running_node(tmp_path / "b", "b") as b:
        grow_world(a.volume(), big_bytes=big_bytes)
        a.runtime.add(SERVER, running=True)
        yield a, b


def test_a_server_moves_and_both_ends_say_so(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two_nodes(tmp_path) as (a, b):
            before = tree_of(a.volume())
            await a.node.start(request_to(b, start=True), caller=None, respond_async=False)
            left, came = await a.settled(), await b.settled()
            assert (left.status, came.status) == ("completed", "completed")
            assert left.transfer == came.transfer
            assert tree_of(b.volume()) == before
            assert SERVER not in a.runtime.running and SERVER in b.runtime.running
            assert a.statuses() == ["pending", "processing", "completed"]
            assert b.statuses() == ["pending", "processing", "completed"]
            assert tree_of(a.volume()) == before  # kept until it is deleted
            assert b.staging() == []
            assert left.progress.percent == 100.0 and left.progress.bytes_done == left.progress.bytes_total

    asyncio.run(scenario())


def test_s5_the_old_files_go_to_trash_only_when_the_server_is_deleted(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two_nodes(tmp_path) as (a, b):
            before = tree_of(a.volume())
            await a.node.start(request_to(b), caller=None, respond_async=False)
            await a.settled()
            assert (await a.node.server(SERVER)).transferred
            with pytest.raises(Refused) as caught:  # what left cannot be sent again
                await a.node.start(request_to(b), caller=None, respond_async=False)
            assert caught.value.code == "server.departed"
            assert (await api(a, "DELETE", f"/api/servers/{SERVER}")).status_code == 204
            assert not a.volume().exists()
            (item,) = a.trash()
            assert tree_of(item) == before
            assert (await api(a, "DELETE", f"/api/servers/{SERVER}")).status_code == 404

    asyncio.run(scenario())


@pytest.mark.parametrize("mistake", ["token", "port"])
def test_a_mistyped_destination_does_not_hold_the_slot(tmp_path: Path, mistake: str) -> None:
    """The destination cannot be told, and nothing of ours is there: the next attempt must be possible."""

    async def scenario() -> None:
        async with two_nodes(tmp_path) as (a, b):
            (a.volume() / "large").write_bytes(Random(3).randbytes(40_000_000))  # refused before the archive's end
            before = tree_of(a.volume())
            right = request_to(b)
            if mistake == "token":
                wrong = msgspec.structs.replace(right, token=transfer_token("another-key-0123456789abcdef0123456789"))
            else:
                with socket.socket() as taken:
                    taken.bind(("127.0.0.1", 0))
                    port = taken.getsockname()[1]
                wrong = msgspec.structs.replace(right, url=f"http://127.0.0.1:{port}/api/transfers")
            await a.node.start(wrong, caller=None, respond_async=False)
            left = await a.settled()
            assert (left.status, left.needs) == ("failed", None)
            assert left.reason in ("peer.status", "peer.reset", "peer.refused")
            assert SERVER in a.runtime.running and tree_of(a.volume()) == before
            await a.node.start(right, caller=None, respond_async=False)
            assert (await a.settled()).status == "completed" and tree_of(b.volume()) == before

    asyncio.run(scenario())


def test_a_server_comes_back_to_the_node_it_left(tmp_path: Path) -> None:
    """D3: what lies where the volume belongs goes to trash, never merged into."""

    async def scenario() -> None:
        async with two_nodes(tmp_path) as (a, b):
            await a.node.start(request_to(b), caller=None, respond_async=False)
            await a.settled()
            await b.settled()
            (b.volume() / "new-on-b").write_text("x")
            after = tree_of(b.volume())
            await b.node.start(request_to(a), caller=None, respond_async=False)
            await b.settled()
            await a.settled()
            assert tree_of(a.volume()) == after
            assert len(a.trash()) == 1

    asyncio.run(scenario())


def test_d3_a_volume_that_did_not_leave_is_never_replaced(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two_nodes(tmp_path) as (a, b):
            grow_world(b.volume())
            before = tree_of(b.volume())
            await a.node.start(request_to(b), caller=None, respond_async=False)
            left, came = await a.settled(), await b.settled()
            assert (left.status, came.status, came.reason) == ("failed", "failed", "volume.exists")
            assert tree_of(b.volume()) == before and b.trash() == []
            assert SERVER in a.runtime.running

    asyncio.run(scenario())


def test_s2_a_failure_before_the_point_starts_the_server_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two_nodes(tmp_path) as (a, b):
            a.runtime.trouble["verify_stopped"] = [HostFailed("server.started_outside", "it runs")]
            await a.node.start(request_to(b), caller=None, respond_async=False)
            left, came = await a.settled(), await b.settled()
            assert (left.status, left.reason) == ("failed", "server.started_outside")
            # The source's question may come before b has noticed the cut: it fails what is not committed.
            assert came.status != "completed" and came.reason in ("upload.truncated", "transfer.cancelled")
            assert SERVER in a.runtime.running
            assert not b.volume().exists() and b.staging() == []

    asyncio.run(scenario())


@pytest.mark.parametrize("role", [Role.SOURCE, Role.DESTINATION])
def test_a_cancel_in_the_middle_leaves_nothing_behind(tmp_path: Path, role: Role) -> None:
    async def scenario() -> None:
        async with two_nodes(tmp_path, big_bytes=100_000_000) as (a, b):
            before = tree_of(a.volume())
            await a.node.start(request_to(b), caller=None, respond_async=False)
            await b.stage("receiving")
            path = f"/api/servers/{SERVER}/transfer" if role is Role.SOURCE else f"/api/transfers/{SERVER}"
            rig = a if role is Role.SOURCE else b
            answer = await api(rig, "DELETE", path)
            assert answer.status_code == 202 and answer.content == b""
            left, came = await a.settled(), await b.settled()
            assert {left.status.value, came.status.value} <= {"cancelled", "failed"}
            assert rig.statuses() == ["pending", "processing", "cancelling", "cancelled"]
            assert (await api(rig, "DELETE", path)).status_code == 409
            assert SERVER in a.runtime.running and tree_of(a.volume()) == before
            assert not b.volume().exists() and b.staging() == []

    asyncio.run(scenario())


def test_one_slot_a_server_in_either_direction(tmp_path: Path) -> None:
    """D1: the second POST gets 409 and changes nothing of the first."""

    async def scenario() -> None:
        async with two_nodes(tmp_path) as (a, b):
            a.runtime.slow_stop = asyncio.Event()
            starting = asyncio.create_task(a.node.start(request_to(b), caller=None, respond_async=False))
            await a.stage("stopping")
            for _ in range(2):
                with pytest.raises(Refused) as caught:
                    await a.node.start(request_to(b), caller=None, respond_async=False)
                assert caught.value.code == "transfer.exists"
            a.runtime.slow_stop.set()
            await starting
            assert (await a.settled()).status == "completed"

    asyncio.run(scenario())


def test_a_caller_that_hangs_up_means_nothing_started(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two_nodes(tmp_path) as (a, b):
            a.runtime.slow_stop = asyncio.Event()
            reader, writer = await asyncio.open_connection("127.0.0.1", a.port)
            body = b'{"url":"%s/api/transfers","token":"%s"}' % (b.url.encode(), transfer_token(b.token).encode())
            head = (
                f"POST /api/servers/{SERVER}/transfer HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {a.token}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            writer.write(head.encode() + body)
            await writer.drain()
            await a.stage("stopping")
            writer.close()
            await writer.wait_closed()
            a.runtime.slow_stop.set()
            left = await a.settled()
            assert left.status == "failed"
            assert SERVER in a.runtime.running
            assert b.node.view(SERVER) is None
            assert reader.at_eof() or True

    asyncio.run(scenario())


def test_respond_async_reports_a_failed_stop_as_a_status(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two_nodes(tmp_path) as (a, b):
            a.runtime.trouble["stop"] = [HostFailed("server.stop_timeout", "it did not stop")]
            view = await a.node.start(request_to(b), caller=None, respond_async=True)
            assert view.status == "pending"
            left = await a.settled()
            assert (left.status, left.reason) == ("failed", "server.stop_timeout")
            assert SERVER in a.runtime.running

    asyncio.run(scenario())


def test_a_failed_stop_is_the_answer(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two_nodes(tmp_path) as (a, b):
            a.runtime.trouble["stop"] = [HostFailed("server.stop_timeout", "it did not stop")]
            with pytest.raises(HostFailed) as caught:
                await a.node.start(request_to(b), caller=None, respond_async=False)
            assert caught.value.code == "server.stop_timeout"
            await a.settled()
            assert SERVER in a.runtime.running and b.node.view(SERVER) is None

    asyncio.run(scenario())


def test_an_unknown_server_and_forbidden_destinations_change_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two_nodes(tmp_path) as (a, b):
            for url, code in [
                ("http://169.254.169.254/api/transfers", "destination.not_allowed"),
                ("http://192.0.2.1/api/transfers", "destination.not_allowed"),
                ("ftp://127.0.0.1/x", "request.invalid"),
            ]:
                with pytest.raises(Refused) as caught:
                    await a.node.start(
                        msgspec.structs.replace(request_to(b), url=url), caller=None, respond_async=False
                    )
                assert caught.value.code == code
            with pytest.raises(Refused) as caught:
                await a.node.start(request_to(b, OTHER), caller=None, respond_async=False)
            assert caught.value.code == "server.unknown"
            assert SERVER in a.runtime.running and a.node.views() == []

    asyncio.run(scenario())


# -- what a destination may answer, and how it may fail ----------------------------------------------------------------
async def _answer_all(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: bytes) -> None:
    try:
        request = await reader.readuntil(b"\r\n\r\n")
        if request.startswith(b"GET"):
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        else:
            await reader.readuntil(b"0\r\n\r\n")
            writer.write(answer)
        await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        ("302 Found\r\nLocation: http://127.0.0.1/", "peer.redirect"),
        ("401 Unauthorized", "peer.status"),
        ("413 Payload Too Large", "peer.proxy"),
        ("500 Internal Server Error", "peer.status"),
        ("502 Bad Gateway", "peer.proxy"),
        ("524 A Timeout Occurred", "peer.proxy"),
    ],
)
def test_s3a_a_late_refusal_leaves_the_server_stopped_until_the_outcome_is_known(
    tmp_path: Path, status: str, reason: str
) -> None:
    """Without a panel only the destination or an operator knows: the transfer stays in doubt until one has spoken."""

    async def scenario() -> None:
        async with running_node(tmp_path / "a", "a") as a:
            grow_world(a.volume())
            before = tree_of(a.volume())
            a.runtime.add(SERVER, running=True)
            answer = f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode()
            server = await asyncio.start_server(lambda r, w: _answer_all(r, w, answer), "127.0.0.1", 0, limit=8 << 20)
            port = server.sockets[0].getsockname()[1]
            request = msgspec.structs.replace(
                request_to(a), url=f"http://127.0.0.1:{port}/api/transfers", token="Bearer x"
            )
            await a.node.start(request, caller=None, respond_async=False)
            view = await a.stage("reporting_failure")
            assert view.in_doubt and view.reason == reason
            assert SERVER not in a.runtime.running
            with pytest.raises(Refused):
                await a.node.start(request, caller=None, respond_async=False)
            answered = await api(a, "POST", f"/api/servers/{SERVER}/transfer/resolve", json={"outcome": "failed"})
            assert answered.status_code < 300, answered.text
            left = await a.settled()
            assert (left.status, left.reason) == ("failed", reason)
            assert SERVER in a.runtime.running and tree_of(a.volume()) == before
            server.close()
            await server.wait_closed()

    asyncio.run(scenario())


def test_a_destination_that_refuses_connections_fails_the_transfer_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_node(tmp_path / "a", "a") as a:
            grow_world(a.volume())
            a.runtime.add(SERVER, running=True)
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            request = msgspec.structs.replace(request_to(a), url=f"http://127.0.0.1:{port}/api/transfers")
            await a.node.start(request, caller=None, respond_async=False)
            # Standalone, `failure` is owed to a destination that is not there: the status is final all the same.
            view = await a.stage("settling")
            assert (view.status, view.reason) == ("failed", "peer.refused")
            async with asyncio.timeout(5):
                while SERVER not in a.runtime.running:  # noqa: ASYNC110 - the fake has no wait
                    await asyncio.sleep(0.005)

    asyncio.run(scenario())


def test_a_destination_that_takes_no_byte_is_a_stall(tmp_path: Path) -> None:
    async def scenario() -> None:
        async def behave(upload: Received) -> None:
            await asyncio.sleep(60)

        sending = Sending(stall_timeout_s=0.3, connect_timeout_s=2, answer_timeout_s=1)
        async with running_node(tmp_path / "a", "a", sending=sending) as a, stranger(behave) as b:
            grow_world(a.volume(), big_bytes=60_000_000)
            a.runtime.add(SERVER, running=True)
            request = msgspec.structs.replace(request_to(a), url=f"{b.url}/api/transfers")
            await a.node.start(request, caller=None, respond_async=False)
            view = await a.stage("settling")
            assert (view.status, view.reason) == ("failed", "peer.stalled")

    asyncio.run(scenario())


def test_a_destination_that_never_answers_is_not_sent_anything(tmp_path: Path) -> None:
    async def scenario() -> None:
        sending = Sending(stall_timeout_s=0.3, connect_timeout_s=0.2, answer_timeout_s=1)
        with socket.create_server(("127.0.0.1", 0), backlog=8) as listener:
            async with running_node(tmp_path / "a", "a", sending=sending) as a:
                grow_world(a.volume())
                a.runtime.add(SERVER, running=True)
                port = listener.getsockname()[1]
                request = msgspec.structs.replace(request_to(a), url=f"http://127.0.0.1:{port}/api/transfers")
                await a.node.start(request, caller=None, respond_async=False)
                view = await a.stage("settling")
                assert (view.status, view.reason) == ("failed", "peer.no_answer")

    asyncio.run(scenario())


# -- restarts ----------------------------------------------------------------------------------------------------------
def test_s2_a_restart_before_the_point_fails_and_starts_the_server_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_node(tmp_path / "b", "b") as b:
            async with running_node(tmp_path / "a", "a") as a:
                grow_world(a.volume(), big_bytes=100_000_000)
                a.runtime.add(SERVER, running=True)
                await a.node.start(request_to(b), caller=None, respond_async=False)
                await b.stage("receiving")
                runtime = a.runtime
            assert SERVER not in runtime.running
            async with running_node(tmp_path / "a", "a", runtime=runtime) as a:
                left = await a.settled()
                assert (left.status, left.reason) == ("failed", "transfer.interrupted")
                assert SERVER in runtime.running
            assert (await b.settled()).reason in ("upload.truncated", "transfer.cancelled")
            assert b.staging() == [] and not b.volume().exists()

    asyncio.run(scenario())


def test_d8_a_restart_of_the_destination_before_the_commit_removes_staging(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_node(tmp_path / "a", "a") as a:
            grow_world(a.volume(), big_bytes=100_000_000)
            a.runtime.add(SERVER, running=True)
            async with running_node(tmp_path / "b", "b") as b:
                await a.node.start(request_to(b), caller=None, respond_async=False)
                await b.stage("receiving")
                assert len(b.staging()) == 1
            async with running_node(tmp_path / "b", "b") as b:
                came = await b.settled()
                assert (came.status, came.reason) == ("failed", "transfer.interrupted")
                assert b.staging() == [] and not b.volume().exists()
            async with asyncio.timeout(10):
                while SERVER not in a.runtime.running:  # noqa: ASYNC110 - the fake has no wait
                    await asyncio.sleep(0.01)
            assert a.statuses()[-1] == "failed"

    asyncio.run(scenario())


def test_s1_a_restart_past_the_point_asks_before_it_acts(tmp_path: Path) -> None:
    """The destination has it all and waits in `prepare`; the source is restarted: it asks before it starts anything."""

    async def scenario() -> None:
        async with running_node(tmp_path / "b", "b") as b:
            gate = asyncio.Event()
            held = b.runtime.prepare

            async def prepare(server: str, configuration: object) -> None:
                await gate.wait()
                await held(server, None)

            b.runtime.prepare = prepare  # type: ignore[method-assign]
            async with running_node(tmp_path / "a", "a") as a:
                grow_world(a.volume())
                before = tree_of(a.volume())
                a.runtime.add(SERVER, running=True)
                await a.node.start(request_to(b), caller=None, respond_async=False)
                await a.stage("awaiting_verdict")
                await b.stage("preparing")
                runtime = a.runtime
            async with running_node(tmp_path / "a", "a", runtime=runtime) as a:
                # The question fails what is not committed: the answer is "failed", and the server runs here again.
                left = await a.settled()
                assert left.status == "failed"
                assert SERVER in runtime.running and tree_of(a.volume()) == before
            gate.set()
            came = await b.settled()
            assert came.status in ("cancelled", "failed")
            assert not b.volume().exists()

    asyncio.run(scenario())


def test_a_committed_server_completes_whatever_the_source_noticed(tmp_path: Path) -> None:
    """The destination has committed; the source is restarted before it hears so: it asks, and it is completed."""

    async def scenario() -> None:
        async with running_node(tmp_path / "b", "b") as b:
            gate = asyncio.Event()
            held = b.runtime.activate

            async def activate(server: str, configuration: object, *, start: bool) -> None:
                await gate.wait()
                await held(server, None, start=start)

            b.runtime.activate = activate  # type: ignore[method-assign]
            async with running_node(tmp_path / "a", "a") as a:
                grow_world(a.volume())
                a.runtime.add(SERVER, running=True)
                await a.node.start(request_to(b, start=True), caller=None, respond_async=False)
                await b.stage("activating")
                runtime = a.runtime
            async with running_node(tmp_path / "a", "a", runtime=runtime) as a:
                left = await a.settled()
                assert left.status == "completed"
                assert SERVER not in runtime.running
            gate.set()
            assert (await b.settled()).status == "completed"
            assert SERVER in b.runtime.running

    asyncio.run(scenario())


def test_a_transfer_that_was_settled_before_it_arrived_cannot_arrive(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_node(tmp_path / "b", "b") as b:
            transfer = "99999999-1111-4222-8333-444444444444"
            assert await b.node.settle(SERVER, transfer) == "failed"
            archive = io.BytesIO()
            with tarfile.open(fileobj=archive, mode="w:gz"):
                pass
            answer = await _upload(
                b, archive.getvalue(), headers={"Sidecar-Transfer": transfer, "Sidecar-Protocol": "1"}
            )
            assert answer.startswith(b"HTTP/1.1 409")
            assert not b.volume().exists()

    asyncio.run(scenario())


async def _upload(rig: Rig, archive: bytes, *, headers: dict[str, str] | None = None, checksum: str = "") -> bytes:
    digest = checksum or hashlib.sha256(archive).hexdigest()
    body = b"".join(
        b'--B\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (name, content)
        for name, content in [(b"archive", archive), (b"checksum", digest.encode())]
    )
    return await _post(rig, body + b"--B--\r\n", headers or {})


async def _post(rig: Rig, body: bytes, headers: dict[str, str]) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
    fields = {
        "Host": "b",
        "Authorization": transfer_token(rig.token),
        "Content-Type": "multipart/form-data; boundary=B",
        "Content-Length": str(len(body)),
        **headers,
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    writer.write(f"POST /api/transfers HTTP/1.1\r\n{head}\r\n".encode() + body)
    try:
        return await asyncio.wait_for(reader.read(), 15)
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


def _tar(name: str = "a.txt", content: bytes = b"hello") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _parts(*parts: tuple[str, bytes]) -> bytes:
    return (
        b"".join(
            b'--B\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (name.encode(), content)
            for name, content in parts
        )
        + b"--B--\r\n"
    )


GOOD = gzip.compress(_tar(), mtime=0)
SUM = hashlib.sha256(GOOD).hexdigest().encode()


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (_parts(("archive", GOOD)), 400, "upload.missing_part"),
        (_parts(("checksum", SUM)), 400, "upload.order"),
        (_parts(("checksum", SUM), ("archive", GOOD)), 400, "upload.order"),
        (_parts(("archive", GOOD), ("archive", GOOD), ("checksum", SUM)), 400, "upload.repeated_part"),
        (_parts(("archive", GOOD), ("checksum", SUM), ("checksum", SUM)), 400, "upload.repeated_part"),
        (_parts(("archive", GOOD), ("checksum", b"0" * 64)), 400, "archive.checksum"),
        (_parts(("archive", GOOD), ("checksum", SUM), ("checksum_archive", b"0" * 64)), 400, "archive.checksum"),
        (_parts(("archive", b"\x00\x01garbage" * 100), ("checksum", SUM)), 500, "archive.format"),
        (_parts(("archive", gzip.compress(b"x" * 2000)), ("checksum", SUM)), 500, "archive.damaged"),
        (_parts(("archive", GOOD[:-9]), ("checksum", SUM)), 500, "archive.damaged"),
        (_parts(("archive", gzip.compress(_tar("../out"))), ("checksum", SUM)), 500, "archive.hostile"),
        (b"no multipart at all", 400, "upload.malformed"),
    ],
)
def test_bad_uploads_are_named_and_leave_nothing(tmp_path: Path, body: bytes, status: int, code: str) -> None:
    async def scenario() -> None:
        async with running_node(tmp_path / "b", "b") as b:
            answer = await _post(b, body, {})
            assert answer.startswith(b"HTTP/1.1 %d" % status), answer
            assert f'"code":"{code}"'.encode() in answer.replace(b'": "', b'":"'), answer
            came = await b.settled()
            assert (came.status, came.reason) == ("failed", code)
            assert not b.volume().exists() and b.staging() == [] and b.trash() == []

    asyncio.run(scenario())


def test_either_checksum_name_in_any_case_is_accepted(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_node(tmp_path / "b", "b") as b:
            body = _parts(("archive", GOOD), ("unknown", b"x" * 1000), ("checksum_archive", SUM.upper() + b"\n"))
            answer = await _post(b, body, {})
            assert answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"{}"), answer
            assert (b.volume() / "a.txt").read_bytes() == b"hello"

    asyncio.run(scenario())


def test_a_calagopus_source_never_gets_an_answer_to_a_failure(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_node(tmp_path / "b", "b") as b:
            body = _parts(("archive", GOOD), ("checksum", b"0" * 64))
            with pytest.raises(ConnectionError):
                assert await _post(b, body, {"Multiplex-Stream-Count": "0"}) == b"never"
            assert (await b.settled()).reason == "archive.checksum"

    asyncio.run(scenario())


def test_a_hundred_transfers_leave_no_descriptor(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_node(tmp_path / "b", "b") as b:
            for _ in range(3):
                await _upload(b, GOOD, checksum="0" * 64)
            await b.settled()
            before = _descriptors()
            for _ in range(100):
                await _upload(b, GOOD, checksum="0" * 64)
            await b.settled()
            assert _descriptors() <= before + 2

    asyncio.run(scenario())


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_errors_of_settle_are_refusals(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two_nodes(tmp_path) as (a, b):
            await a.node.start(request_to(b), caller=None, respond_async=False)
            left = await a.settled()
            with pytest.raises(Refused):
                await a.node.settle(SERVER, left.transfer)
            assert await b.node.settle(SERVER, left.transfer) == "completed"

    asyncio.run(scenario())
