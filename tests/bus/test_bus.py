"""The mirror against a real broker that is away, restarts, freezes, refuses."""

from __future__ import annotations

import asyncio
import logging
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import nats
import pytest

from sidecar.bus.connection import BusConnection, BusDown, BusState, check_bus
from sidecar.bus.mirror import Mirror
from sidecar.bus.settings import BusSettings
from sidecar.bus.subjects import Subjects, event_filter
from sidecar.bus.watch import Watch
from sidecar.errors import HostFailed
from sidecar.lifecycle.statuses import Status
from sidecar.views import EventKind
from tests.api.fake_transfers import SERVER, TRANSFER, FakeTransfers, log_event, progress_event, status_event
from tests.api.node import in_loop
from tests.bus.broker import broker


def settings(url: str, **changes: object) -> BusSettings:
    quick: dict[str, object] = {
        "urls": (url,),
        "retry_min_s": 0.02,
        "retry_max_s": 0.1,
        "connect_s": 2.0,
        "drain_s": 1.0,
    }
    return msgspec.convert({**quick, **changes}, BusSettings)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what another process does to a connection of ours."""
    while not condition():  # noqa: ASYNC110 - it has no event
        await asyncio.sleep(0.001)


@asynccontextmanager
async def mirroring(settings: BusSettings, transfers: FakeTransfers) -> AsyncIterator[tuple[BusConnection, Mirror]]:
    async with BusConnection(settings) as connection:
        mirror = Mirror(
            events=lambda: transfers.events(None), connection=connection, subjects=Subjects("node-a"), epoch="e1"
        )
        run = asyncio.create_task(mirror.run())
        await transfers.wait_consumers(1)
        try:
            yield connection, mirror
        finally:
            run.cancel()
            await asyncio.gather(run, return_exceptions=True)


@in_loop
async def test_events_arrive_in_order_with_their_headers(tmp_path: Path) -> None:
    transfers = FakeTransfers()
    with broker(tmp_path) as server:
        await server.wait_listening()
        async with (
            Watch(settings(server.url), event_filter()) as watch,
            mirroring(settings(server.url), transfers) as (
                connection,
                mirror,
            ),
        ):
            await watch.wait_connected()
            await connection.wait_connected()
            sent = [
                status_event(1, Status.PENDING),
                status_event(2, Status.PROCESSING),
                *(log_event(seq, f"line {seq}\r\nNats-Msg-Id: forged") for seq in range(3, 303)),
                progress_event(302, 40),
                progress_event(302, 50),
                status_event(303, Status.COMPLETED),
            ]
            await transfers.publish(*sent)
            got = [await watch.next_with_headers() for _ in sent]
            assert [(event.event, event.seq) for event, _ in got] == [
                (f"transfer.{event.kind.value}", event.seq) for event in sent
            ]
            first, headers = got[0]
            assert (first.args, first.server, first.transfer, first.node) == (["pending"], SERVER, TRANSFER, "node-a")
            assert (first.direction, first.role.value, first.status) == ("outgoing", "source", Status.PENDING)
            assert headers["ce-specversion"] == "1.0"
            assert headers["ce-type"] == "transfer.v1.status"
            assert headers["ce-source"] == "/transfer-sidecar/node-a"
            assert headers["ce-time"] == "2026-03-04T22:30:15.250000Z"
            assert headers["ce-datacontenttype"] == "application/json"
            assert headers["ce-id"] == headers["nats-msg-id"] == f"node-a-{TRANSFER}-source-1"
            assert len({headers["ce-id"] for _, headers in got}) == len(sent)
            logs = got[2][0]
            assert logs.args == ["documented: line 3\r\nNats-Msg-Id: forged"]
            progress = got[-3][0]
            assert progress.args == []
            assert progress.progress is not None
            assert progress.progress.percent == 40.0
            assert await mirror.flush(2.0)


@in_loop
async def test_a_broker_that_comes_later(tmp_path: Path) -> None:
    transfers = FakeTransfers()
    with broker(tmp_path, is_up=False) as server:
        slower = settings(server.url, retry_min_s=0.5, retry_max_s=0.5)
        async with (
            Watch(settings(server.url), event_filter()) as watch,
            mirroring(slower, transfers) as (connection, _),
        ):
            await transfers.publish(
                status_event(1, Status.PENDING), log_event(2, "lost"), status_event(3, Status.PROCESSING)
            )
            await until(lambda: bool(connection.last_error))
            with pytest.raises(HostFailed) as down:
                await check_bus(connection)
            assert down.value.facts["guarantee"] == "at most once"
            server.start()
            assert (await anext(watch)).seq == 3
            assert (await check_bus(connection))["state"] == "connected"


@in_loop
async def test_the_newest_status_survives_a_restart_of_the_broker(tmp_path: Path) -> None:
    transfers = FakeTransfers()
    # The watcher comes back earlier than the mirror, so that the republished status finds it.
    with broker(tmp_path) as server:
        await server.wait_listening()
        slower = settings(server.url, retry_min_s=0.5, retry_max_s=0.5)
        async with (
            Watch(settings(server.url), event_filter()) as watch,
            mirroring(slower, transfers) as (connection, _),
        ):
            await watch.wait_connected()
            await connection.wait_connected()
            await transfers.publish(status_event(1, Status.PENDING))
            assert (await anext(watch)).seq == 1
            server.stop()
            await until(lambda: not connection.is_connected)
            await transfers.publish(
                log_event(2, "lost"), status_event(3, Status.PROCESSING), status_event(4, Status.COMPLETED)
            )
            server.start()
            got = await anext(watch)
            while got.seq == 1:  # a repeat is allowed: its arrival was never confirmed to the mirror
                got = await anext(watch)
            assert (got.seq, got.status) == (4, Status.COMPLETED)
            await transfers.publish(log_event(5, "live again"))
            assert (await anext(watch)).seq == 5
            assert connection.connections == 2


@in_loop
async def test_a_frozen_broker_is_noticed_and_delays_nobody(tmp_path: Path) -> None:
    with broker(tmp_path) as server:
        await server.wait_listening()
        async with BusConnection(settings(server.url)) as connection:
            await connection.wait_connected()
            server.freeze()
            await connection.publish("transfer.v1.event.x", b"{}", {})
            with pytest.raises(BusDown):
                await connection.settle(0.1)
            with pytest.raises(BusDown):
                await connection.publish("transfer.v1.event.x", b"{}", {})
            started = time.monotonic()
        assert time.monotonic() - started < 5  # leaving does not wait for it


@in_loop
async def test_a_wrong_password_never_blocks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "sidecar")
    transfers = FakeTransfers()
    with broker(tmp_path, 'authorization { user: "node-a", password: "right" }') as server:
        await server.wait_listening()
        wrong = settings(server.url, user="node-a", password="wrong-secret")
        async with mirroring(wrong, transfers) as (connection, _):
            await transfers.publish(status_event(1, Status.PENDING))
            await until(lambda: bool(connection.last_error))
            assert "uthorization" in connection.last_error
            assert connection.state is BusState.CONNECTING
        right = settings(server.url, user="node-a", password="right")
        async with BusConnection(right) as connection:
            await connection.wait_connected()
    assert "wrong-secret" not in caplog.text
    assert sum("uthorization" in record.getMessage() for record in caplog.records) <= 2  # not one per attempt


@in_loop
async def test_permissions_of_the_node(tmp_path: Path) -> None:
    permissions = """authorization { users: [ { user: "a", password: "p", permissions: {
        publish: ["transfer.v1.event.node-b.>"], subscribe: ["_INBOX.>"] } } ] }"""
    with broker(tmp_path, permissions) as server:
        await server.wait_listening()
        async with BusConnection(settings(server.url, user="a", password="p")) as connection:
            await connection.wait_connected()
            assert (await check_bus(connection))["denied"] == 0
            await connection.publish(Subjects("node-a").event(status_event(1, Status.PENDING)), b"{}", {})
            await connection.settle(2.0)
            with pytest.raises(HostFailed) as denied:
                await check_bus(connection)
            assert denied.value.code == "bus.denied"


@in_loop
async def test_events_that_cannot_be_published_stop_nothing(tmp_path: Path) -> None:
    transfers = FakeTransfers()
    with broker(tmp_path, "max_payload: 4096") as server:
        await server.wait_listening()
        async with (
            Watch(settings(server.url), event_filter()) as watch,
            mirroring(settings(server.url), transfers) as (
                connection,
                _,
            ),
        ):
            await watch.wait_connected()
            await connection.wait_connected()
            good = status_event(4, Status.COMPLETED)
            await transfers.publish(
                msgspec.structs.replace(good, server="*", seq=1),
                msgspec.structs.replace(good, transfer=">", seq=2),
                log_event(3, "x" * 5000),
                log_event(3, "x" * 100_000),
                log_event(3, "\udcff"),
                good,
            )
            assert (await anext(watch)).seq == 4
            assert connection.connections == 1


def certificate(directory: Path) -> tuple[Path, Path]:
    cert, key = directory / "cert.pem", directory / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-days", "2", "-subj", "/CN=broker", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(cert)),
        ],
        check=True,
        capture_output=True,
    )
    return cert, key


@in_loop
async def test_tls(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    with broker(tmp_path, f'tls {{ cert_file: "{cert}", key_file: "{key}", handshake_first: true }}') as server:
        await server.wait_listening()
        url = f"tls://127.0.0.1:{server.port}"
        async with BusConnection(settings(url, tls_ca=cert)) as connection:
            await connection.wait_connected()
        async with BusConnection(settings(url)) as connection:  # a stranger's certificate
            await until(lambda: bool(connection.last_error))
            assert "CERTIFICATE_VERIFY_FAILED" in connection.last_error
            assert not connection.is_connected


@in_loop
async def test_a_plaintext_broker_is_refused_where_tls_is_asked_for(tmp_path: Path) -> None:
    heard = bytearray()

    async def overhear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"x","version":"2.15.0","max_payload":1048576,"headers":true}\r\n')
        heard.extend(await reader.read(1 << 16))
        writer.close()

    listener = await asyncio.start_server(overhear, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    async with BusConnection(settings(f"tls://127.0.0.1:{port}", user="u", password="secret")) as connection:
        await until(lambda: bool(connection.last_error))
        assert not connection.is_connected
    listener.close()
    await listener.wait_closed()
    assert b"secret" not in heard
    assert b"CONNECT" not in heard


@in_loop
async def test_closing_sends_what_is_unsent(tmp_path: Path) -> None:
    with broker(tmp_path) as server:
        await server.wait_listening()
        listener = await nats.connect(server.url)
        subscription = await listener.subscribe("x")
        await listener.flush()
        async with BusConnection(settings(server.url)) as connection:
            await connection.wait_connected()
            await connection.publish("x", b"1", {})
        assert connection.state is BusState.CLOSED
        assert (await subscription.next_msg()).data == b"1"
        with pytest.raises(BusDown):
            await connection.wait_connected()
        await listener.close()


@in_loop
async def test_the_consumer_of_events_never_waits_for_the_broker(tmp_path: Path) -> None:
    transfers = FakeTransfers()
    with broker(tmp_path) as server:
        await server.wait_listening()
        async with mirroring(settings(server.url), transfers) as (connection, mirror):
            await connection.wait_connected()
            server.freeze()
            for seq in range(20_000):
                await transfers.publish(log_event(seq, "x"))
            async with asyncio.timeout(1):
                await asyncio.sleep(0)
            assert len(mirror._store) <= 2 * 4096


@pytest.mark.parametrize(
    "changes",
    [
        {"urls": ()},
        {"urls": ("http://127.0.0.1",)},
        {"urls": ("nats://",)},
        {"urls": ("nats://127.0.0.1:99999",)},
        {"urls": ("nats://a", "tls://b")},
        {"tls_ca": Path("/nowhere")},
    ],
)
def test_settings_that_cannot_work(changes: dict[str, object]) -> None:
    with pytest.raises(HostFailed) as invalid:
        settings("nats://127.0.0.1", **changes)
    assert invalid.value.code == "settings.invalid"


def test_tls_files_that_cannot_be_read() -> None:
    with pytest.raises(HostFailed, match="TLS file"):
        settings("tls://127.0.0.1", tls_ca=Path("/nowhere")).connect_options()
    assert ssl.TLSVersion.TLSv1_2 <= settings("tls://127.0.0.1").connect_options()["tls"].minimum_version


def test_secrets_are_not_shown() -> None:
    shown = settings("nats://user:secret1@127.0.0.1:4222", password="secret2", token="secret3")
    assert "secret" not in repr(shown)
    assert shown.shown_urls == "nats://127.0.0.1:4222"


def test_filters_by_kind() -> None:
    assert event_filter(kind=EventKind.STATUS).split(".")[5] == "status"


@in_loop
async def test_several_may_use_each_connection(tmp_path: Path) -> None:
    told: list[str] = []
    with broker(tmp_path) as server:
        await server.wait_listening()
        connection = BusConnection(settings(server.url), on_connected=lambda _: remember(told, "first"))
        connection.each_connection(lambda _: remember(told, "second"))
        async with connection:
            await connection.wait_connected()
            assert told == ["first", "second"]
            server.stop()
            await until(lambda: not connection.is_connected)
            server.start()
            await connection.wait_connected()
            assert told == ["first", "second"] * 2


async def remember(told: list[str], word: str) -> None:
    told.append(word)
