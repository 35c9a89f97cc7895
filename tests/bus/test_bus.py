"""The connection to a real broker that is away, restarts, freezes, refuses."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import time
from pathlib import Path

import nats
import pytest

from sidecar.bus.connection import BusConnection, BusDown, BusState, check_bus
from sidecar.bus.subjects import Subjects, event_filter
from sidecar.errors import HostFailed
from sidecar.lifecycle.statuses import Status
from sidecar.views import EventKind
from tests.api.fake_transfers import status_event
from tests.bus.broker import broker
from tests.bus.event_rig import patiently, settings, until


@patiently
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


@patiently
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


@patiently
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


@patiently
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


@patiently
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


@patiently
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
