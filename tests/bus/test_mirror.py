"""Events against real brokers that are away, restart, freeze, refuse, forget."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from pathlib import Path

import msgspec
import nats
import pytest
from nats.js.api import DiscardPolicy

from sidecar.bus.connection import BusState, check_bus
from sidecar.bus.event_message import headers_of
from sidecar.bus.readiness import check_events
from sidecar.bus.stream import DEFAULT_STREAM
from sidecar.bus.subjects import Subjects, event_filter
from sidecar.bus.watch import Watch
from sidecar.errors import HostFailed
from sidecar.lifecycle.statuses import Status
from tests.api.fake_transfers import SERVER, TRANSFER, log_event, progress_event, status_event
from tests.bus.broker import broker
from tests.bus.event_rig import (
    Mirrored,
    ids,
    looking,
    make_stream,
    mirroring,
    numbered,
    numbers,
    outbox,
    patiently,
    replace_stream,
    settings,
    show_damage,
    stored,
    until,
)
from tests.bus.wire import wire_to


async def code_of(m: Mirrored) -> str | None:
    try:
        await check_events(m.outbox, m.mirror)
    except HostFailed as failed:
        return failed.code
    return None


@patiently
async def test_events_arrive_in_order_with_their_headers(tmp_path: Path) -> None:
    with broker(tmp_path, has_jetstream=True) as server:
        await server.wait_listening()
        async with (
            Watch(settings(server.url), event_filter()) as watch,
            mirroring(settings(server.url), tmp_path) as m,
        ):
            await watch.wait_connected()
            sent = [
                status_event(1, Status.PENDING),
                status_event(2, Status.PROCESSING),
                *(log_event(f"line {number}\r\nNats-Msg-Id: forged") for number in range(300)),
                progress_event(40),
                progress_event(50),
                status_event(3, Status.COMPLETED),
            ]
            m.take(*sent)
            got = [await watch.next_with_headers() for _ in sent]
            assert [event.event for event, _ in got] == [f"transfer.{event.kind.value}" for event in sent]
            assert [event.seq for event, _ in got] == [*range(1, 303), 302, 302, 303]
            first, headers = got[0]
            assert (first.args, first.server, first.transfer, first.node) == (["pending"], SERVER, TRANSFER, "node-a")
            assert (first.direction, first.role.value, first.status) == ("outgoing", "source", Status.PENDING)
            assert headers["ce-specversion"] == "1.0"
            assert headers["ce-type"] == "transfer.v1.status"
            assert headers["ce-source"] == "/transfer-sidecar/node-a"
            assert headers["ce-time"] == "2026-03-04T22:30:15.250000Z"
            assert headers["ce-datacontenttype"] == "application/json"
            assert headers["ce-id"] == headers["nats-msg-id"] == "node-a-e1-1"
            assert [headers["ce-id"] for _, headers in got] == [f"node-a-e1-{n}" for n in range(1, len(sent) + 1)]
            assert got[2][0].args == ["documented: line 0\r\nNats-Msg-Id: forged"]
            progress = got[-3][0]
            assert progress.args == []
            assert progress.progress is not None
            assert progress.progress.percent == 40.0
            assert await m.mirror.flush(5.0)
            facts = await check_events(m.outbox, m.mirror)
            assert facts == {
                "waiting": 0,
                "dropped_progress": 0,
                "dropped_logs": 0,
                "undeliverable": 0,
                "guarantee": "at least once",
            }


@patiently
async def test_a_broker_that_comes_later_gets_everything(tmp_path: Path) -> None:
    with broker(tmp_path, is_up=False, has_jetstream=True) as server:
        async with mirroring(settings(server.url), tmp_path) as m:
            m.take(*(numbered(n) for n in range(1000)))
            await until(lambda: bool(m.connection.last_error))
            with pytest.raises(HostFailed) as down:
                await check_bus(m.connection)
            assert down.value.code == "bus.down"
            assert not await m.mirror.flush(0.5)
            server.start()
            await m.until_sent()
            async with looking(server) as client:
                assert numbers(await stored(client)) == list(range(1, 1001))
            assert (await check_bus(m.connection))["state"] == "connected"


@patiently
async def test_a_broker_that_is_killed_again_and_again(tmp_path: Path) -> None:
    with broker(tmp_path, has_jetstream=True) as server:
        await server.wait_listening()
        async with mirroring(settings(server.url), tmp_path) as m:
            for round_ in range(5):
                m.take(*(numbered(n) for n in range(500)))
                await until(lambda count=500 * round_ + 60: m.acked >= count)  # type: ignore[misc]
                server.stop()
                server.start()
            await m.until_sent()
            async with looking(server) as client:
                found = await stored(client)
            assert len(found) == 2500  # not one repeat: the stream was asked where to begin
            assert numbers(found) == list(range(1, 2501))


@patiently
async def test_an_outage_longer_than_the_duplicate_window(tmp_path: Path) -> None:
    """What was stored but never acknowledged is not sent again, though the broker has forgotten its id."""
    with broker(tmp_path, has_jetstream=True) as server:
        await server.wait_listening()
        async with looking(server) as client:
            await make_stream(client, duplicate_window=0.1)
        async with mirroring(settings(server.url), tmp_path) as m:
            m.take(*(numbered(n) for n in range(40)))
            await m.until_sent()
        async with looking(server) as client:
            assert len(await stored(client)) == 40
        # as if the process had been killed before it had heard of the acknowledgements
        async with mirroring(settings("nats://127.0.0.1:9"), tmp_path, epoch="e2") as m:
            await m.outbox.ask(lambda file: file.set_acked(0))
        await asyncio.sleep(0.3)  # the window passes at the broker
        async with mirroring(settings(server.url), tmp_path, epoch="e3") as m:
            m.take(numbered(7))
            await m.until_sent()
            assert await code_of(m) == "bus.stream_differs"
        async with looking(server) as client:
            found = await stored(client)
        assert ids(found) == [*(f"node-a-e1-{n}" for n in range(1, 41)), "node-a-e3-41"]


@patiently
async def test_a_broker_that_lost_what_it_had_acknowledged(tmp_path: Path) -> None:
    """An acknowledgement is no fsync: here the broker comes back without its last messages."""
    with broker(tmp_path, has_jetstream=True) as server:
        await server.wait_listening()
        async with mirroring(settings(server.url), tmp_path) as m:
            m.take(*(numbered(n) for n in range(100)))
            await m.until_sent()
            async with looking(server) as client:
                for seq in range(61, 101):
                    await client.jsm().delete_msg(DEFAULT_STREAM, seq)
            server.stop()
            server.start()
            m.take(numbered(1))
            await until(lambda: m.connection.connections == 2)
            await m.until_sent()
            async with looking(server) as client:
                found = [await client.jsm().get_last_msg(DEFAULT_STREAM, "transfer.v1.event.node-a.>")]
                assert ids(found) == ["node-a-e1-101"]
                info = await client.jsm().stream_info(DEFAULT_STREAM)
                # 60 are left, 41 came again and new, whatever the broker remembers of the ids that it has lost
                assert info.state.messages in (61, 101)


@patiently
async def test_a_stream_that_is_deleted_while_it_is_used(tmp_path: Path) -> None:
    with broker(tmp_path, has_jetstream=True) as server:
        await server.wait_listening()
        async with (
            looking(server) as client,
            mirroring(settings(server.url), tmp_path, may_create=False, look_s=0.2) as m,
        ):
            m.take(*(numbered(n) for n in range(10)))
            await until(lambda: m.mirror.facts().code == "bus.stream_missing")
            assert await code_of(m) == "bus.stream_missing"
            await make_stream(client)
            await m.until_sent()
            await until(lambda: m.mirror.facts().code is None)
            await client.jsm().delete_stream(DEFAULT_STREAM)
            await until(lambda: m.mirror.facts().code == "bus.stream_missing")  # an idle node sees it too
            m.take(*(numbered(n) for n in range(10)))
            await make_stream(client)
            await until(lambda: m.mirror.facts().code is None)
            await m.until_sent()
            assert numbers(await stored(client)) == list(range(1, 21))  # what the old one had is sent to the new one


@patiently
async def test_a_stream_that_is_replaced_at_once(tmp_path: Path) -> None:
    with broker(tmp_path, has_jetstream=True) as server:
        await server.wait_listening()
        async with looking(server) as client, mirroring(settings(server.url), tmp_path) as m:
            m.take(*(numbered(n) for n in range(10)))
            await m.until_sent()
            await replace_stream(client)
            m.take(numbered(1))
            await until(lambda: m.acked == 11)
            # One came before it was known that the stream lacks the others. Then all came in their order, it too.
            found = ids(await stored(client))
            assert [int(name.rpartition("-")[2]) for name in found] == [11, *range(1, 12)]
            assert found[0] == found[-1]  # by its id a consumer drops the repeat


@patiently
async def test_the_newest_status_is_the_last_of_a_stream_that_was_replaced(tmp_path: Path) -> None:
    """Symptom: who comes late is shown a transfer as running that has ended."""
    with broker(tmp_path, has_jetstream=True) as server:
        await server.wait_listening()
        async with looking(server) as client, mirroring(settings(server.url), tmp_path) as m:
            m.take(status_event(1, Status.PENDING), status_event(2, Status.PROCESSING))
            await m.until_sent()
            await replace_stream(client)
            m.take(status_event(3, Status.COMPLETED))
            await until(lambda: m.acked == 3)
            found = await stored(client)
            assert found[0].subject is not None
            last = await client.jetstream().get_last_msg(DEFAULT_STREAM, found[0].subject)
            assert json.loads(last.data or b"{}")["status"] == "completed"


@patiently
async def test_a_stream_that_was_replaced_and_a_crash(tmp_path: Path) -> None:
    """Symptom: the stream has the newest event, so all before it are taken for stored, and nobody ever sees them."""
    with broker(tmp_path, has_jetstream=True) as server:
        await server.wait_listening()
        async with looking(server) as client:
            async with mirroring(settings(server.url), tmp_path) as m:
                m.take(*(numbered(n) for n in range(10)))
                await m.until_sent()
            await replace_stream(client)
            async with outbox(tmp_path) as box:  # what is left of a run that was killed before it knew
                box.take(numbered(1))
                await box.wait_written()
                [*_, row] = await box.ask(lambda file: file.read(0, 100))
                subject = Subjects("node-a").event_of(row.direction, row.kind, row.server, row.transfer)
                await client.jetstream().publish(subject, row.body, headers=headers_of("node-a", row))
            async with mirroring(settings(server.url), tmp_path, epoch="e2") as m:
                await until(lambda: m.acked == 11)
                assert sorted(numbers(await stored(client))) == list(range(1, 12))


@patiently
async def test_a_stream_that_was_replaced_and_lost_its_newest_events(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is left with the event that came too early, which says nothing about those before it."""
    with broker(tmp_path, has_jetstream=True) as server:
        await server.wait_listening()
        async with looking(server) as client:
            async with mirroring(settings(server.url), tmp_path) as m:
                m.take(*(numbered(n) for n in range(10)))
                await m.until_sent()
                await replace_stream(client)
                m.take(numbered(1))
                await until(lambda: m.acked == 11)
            for lost in range(2, 13):
                await client.jsm().delete_msg(DEFAULT_STREAM, lost)
            async with mirroring(settings(server.url), tmp_path, epoch="e2") as m:
                m.take(numbered(2))
                await m.until_sent()
            # Whether the broker takes them again depends on what it remembers of the ids that it has lost.
            assert "lacks events after 0 that it had acknowledged" in caplog.text


@patiently
async def test_a_stream_that_is_replaced_after_the_outbox_was(tmp_path: Path) -> None:
    """An outbox that was put aside as damaged while it was in use: its follower knows the stream at the next look."""
    with broker(tmp_path, has_jetstream=True) as server:
        await server.wait_listening()
        async with looking(server) as client, mirroring(settings(server.url), tmp_path, look_s=0.05) as m:
            m.take(numbered(1))
            await m.until_sent()
            await show_damage(m.outbox)
            m.take(*(numbered(n) for n in range(10)))
            await m.until_sent()
            file = m.outbox._file
            assert file is not None
            await until(lambda: file.made > 0)
            await replace_stream(client)
            async with asyncio.timeout(20):
                while len(await stored(client)) < 10:  # noqa: ASYNC110 - the broker has no event for it
                    await asyncio.sleep(0.05)


@patiently
async def test_an_idle_node_sees_that_the_stream_was_replaced(tmp_path: Path) -> None:
    with broker(tmp_path, has_jetstream=True) as server:
        await server.wait_listening()
        async with looking(server) as client, mirroring(settings(server.url), tmp_path, look_s=0.05) as m:
            m.take(*(numbered(n) for n in range(10)))
            await m.until_sent()
            await replace_stream(client)
            async with asyncio.timeout(20):
                while len(await stored(client)) < 10:  # noqa: ASYNC110 - the broker has no event for it
                    await asyncio.sleep(0.05)
            m.take(numbered(1))
            await until(lambda: m.acked == 11)
            assert numbers(await stored(client)) == list(range(1, 12))


@patiently
async def test_a_full_stream(tmp_path: Path) -> None:
    with broker(tmp_path, has_jetstream=True) as server:
        await server.wait_listening()
        async with looking(server) as client:
            await make_stream(client, max_msgs=25, discard=DiscardPolicy.NEW)
            async with mirroring(settings(server.url), tmp_path) as m:
                m.take(*(numbered(n) for n in range(100)))
                await until(lambda: m.mirror.facts().code == "bus.stream_refuses")
                assert m.outbox.facts().waiting == 75
                await client.jsm().purge_stream(DEFAULT_STREAM, keep=1)
                await until(lambda: m.outbox.facts().waiting < 75)
                assert numbers(await stored(client)) == list(range(25, 50))


@patiently
async def test_without_jetstream_events_come_at_most_once(tmp_path: Path) -> None:
    with broker(tmp_path) as server:
        await server.wait_listening()
        async with (
            Watch(settings(server.url), event_filter()) as watch,
            mirroring(settings(server.url), tmp_path) as m,
        ):
            await watch.wait_connected()
            m.take(*(numbered(n) for n in range(300)))
            assert [(await anext(watch)).seq for _ in range(300)] == [1] * 300
            await m.until_sent()
            assert (await check_events(m.outbox, m.mirror))["guarantee"] == "at most once"


@patiently
async def test_jetstream_may_be_declined(tmp_path: Path) -> None:
    with broker(tmp_path, has_jetstream=True) as server:
        await server.wait_listening()
        async with mirroring(settings(server.url), tmp_path, is_wanted=False) as m:
            m.take(numbered(1))
            await m.until_sent()
            assert (await check_events(m.outbox, m.mirror))["guarantee"] == "at most once"


@patiently
async def test_jetstream_that_is_gone_is_not_taken_for_none(tmp_path: Path) -> None:
    """A broker without JetStream where there was one: events are held, not thrown at whoever listens."""
    with broker(tmp_path, has_jetstream=True) as server:
        await server.wait_listening()
        async with mirroring(settings(server.url), tmp_path) as m:
            m.take(numbered(1))
            await m.until_sent()
            server.stop()
            server._has_jetstream = False
            server.start()
            m.take(numbered(2))
            await until(lambda: m.mirror.facts().code == "bus.stream_missing")
            assert m.outbox.facts().waiting == 1
            server.stop()
            server._has_jetstream = True
            server.start()
            await m.until_sent()
            async with looking(server) as client:
                assert numbers(await stored(client)) == [1, 2]


@patiently
async def test_events_that_no_broker_takes_stop_nothing(tmp_path: Path) -> None:
    with broker(tmp_path, "max_payload: 1000", has_jetstream=True) as server:
        await server.wait_listening()
        async with mirroring(settings(server.url), tmp_path) as m:
            m.take(
                log_event("x" * 5000),  # its text is cut
                msgspec.structs.replace(status_event(1, Status.FAILED), message="y" * 2000),
                msgspec.structs.replace(
                    status_event(1, Status.FAILED), reason="z" * 2000
                ),  # no text of ours is so long
                status_event(4, Status.COMPLETED),
            )
            await m.until_sent()
            assert m.connection.connections == 1
            async with looking(server) as client:
                found = await stored(client)
                assert numbers(found) == [1, 2, 4]
                assert m.mirror.facts().undeliverable == 1
                await replace_stream(client)
                m.take(status_event(5, Status.COMPLETED))
                await until(lambda: m.acked == 5)
                assert sorted(numbers(await stored(client))) == [1, 2, 4, 5]
            assert m.mirror.facts().undeliverable == 1  # it was met again, and is still one


@patiently
async def test_a_stream_with_a_bound_of_its_own(tmp_path: Path) -> None:
    with broker(tmp_path, has_jetstream=True) as server:
        await server.wait_listening()
        async with looking(server) as client:
            await make_stream(client, max_msg_size=1200)
            async with mirroring(settings(server.url), tmp_path) as m:
                m.take(log_event("x" * 5000), status_event(4, Status.COMPLETED))
                await m.until_sent()
                assert numbers(await stored(client)) == [1, 2]
                assert m.mirror.facts().undeliverable == 0


@pytest.mark.parametrize("has_unsent_bytes", [False, True])
def test_a_frozen_broker_delays_nobody(tmp_path: Path, has_unsent_bytes: bool) -> None:
    async def main() -> None:
        with broker(tmp_path, has_jetstream=True) as server:
            await server.wait_listening()
            quick = settings(server.url, ping_s=0.3)
            async with mirroring(quick, tmp_path, budget_bytes=1 << 26) as m:
                m.take(numbered(0))
                await m.until_sent()
                server.freeze()
                if has_unsent_bytes:
                    m.take(*(log_event("x" * 25_000) for _ in range(500)))
                else:
                    m.take(numbered(1))
                async with asyncio.timeout(1):
                    await asyncio.sleep(0)
                await until(lambda: not m.connection.is_connected)
                server.thaw()
                await m.until_sent()
                async with looking(server) as client:
                    found = await stored(client)
                assert numbers(found) == list(range(1, 502 if has_unsent_bytes else 3))

    asyncio.run(main())


@patiently
async def test_a_revoked_permission_is_told_and_loses_nothing(tmp_path: Path) -> None:
    api = '"$JS.API.STREAM.INFO.*", "$JS.API.DIRECT.GET.*.transfer.v1.event.node-a.>"'
    users = """authorization {{ users: [
        {{ user: "a", password: "p", permissions: {{ publish: [{events} {api}], subscribe: ["_INBOX.>"] }} }},
        {{ user: "admin", password: "p" }} ] }}"""
    granted = users.format(events='"transfer.v1.event.node-a.>",', api=api)
    with broker(tmp_path, granted, has_jetstream=True) as server:
        await server.wait_listening()
        server_url = server.url.replace("//", "//admin:p@")
        admin = await nats.connect(server_url)
        await make_stream(admin)
        async with mirroring(settings(server.url, user="a", password="p"), tmp_path, may_create=False) as m:
            m.take(*(numbered(n) for n in range(10)))
            await m.until_sent()
            assert await code_of(m) is None
            server.reload(users.format(events="", api=api))
            count = 10
            while not m.connection.facts()["denied"]:
                m.take(numbered(count))
                count += 1
                await asyncio.sleep(0.02)  # the broker does not tell when it works with another configuration
            with pytest.raises(HostFailed) as denied:
                await check_bus(m.connection)
            assert denied.value.code == "bus.denied"
            assert m.outbox.facts().waiting > 0
            await until(lambda: m.mirror.facts().code == "bus.denied")
            server.reload(granted)
            await m.until_sent()
            assert numbers(await stored(admin)) == list(range(1, count + 1))
        await admin.close()


@patiently
async def test_a_password_that_is_changed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The client library closes for good; the supervisor goes on, and readiness says what is wrong."""
    caplog.set_level(logging.DEBUG, "sidecar")
    right = 'authorization { user: "node-a", password: "first-secret" }'
    with broker(tmp_path, right, has_jetstream=True) as server:
        await server.wait_listening()
        async with mirroring(settings(server.url, user="node-a", password="first-secret"), tmp_path) as m:
            m.take(numbered(1))
            await m.until_sent()
            server.reload('authorization { user: "node-a", password: "second-secret" }')
            await until(lambda: "uthorization" in m.connection.last_error)
            assert m.connection.state is BusState.CONNECTING
            m.take(numbered(2))
            server.reload(right)
            await m.until_sent()
    assert "secret" not in caplog.text
    assert sum("uthorization" in record.getMessage() for record in caplog.records) <= 3  # not one per attempt


@patiently
async def test_a_node_that_may_not_look_at_the_stream(tmp_path: Path) -> None:
    users = """authorization { users: [ { user: "a", password: "p", permissions: {
        publish: ["transfer.v1.event.node-a.>"], subscribe: ["_INBOX.>"] } }, { user: "admin", password: "p" } ] }"""
    with broker(tmp_path, users, has_jetstream=True) as server:
        await server.wait_listening()
        admin = await nats.connect(server.url.replace("//", "//admin:p@"))
        await make_stream(admin)
        async with mirroring(settings(server.url, user="a", password="p"), tmp_path, may_create=False) as m:
            m.take(*(numbered(n) for n in range(10)))
            await m.until_sent()
            assert numbers(await stored(admin)) == list(range(1, 11))
            assert await code_of(m) == "bus.stream_differs"
        await admin.close()


@patiently
async def test_an_acknowledgement_that_is_lost(tmp_path: Path) -> None:
    """The event is sent again, known by its id, and its place in the window is free."""
    with broker(tmp_path, has_jetstream=True) as server:
        await server.wait_listening()
        lost = iter([True])

        def loses(frame: bytes) -> bool:
            return b'"seq":7' in frame and next(lost, False)

        async with wire_to(server.port, loses) as wire, mirroring(settings(wire.url), tmp_path) as m:
            m.take(*(numbered(n) for n in range(20)))
            await m.until_sent()
            assert wire.lost == 1
            assert m.connection.connections == 1
            async with looking(server) as client:
                found = await stored(client)
            assert len(found) == 20
            assert numbers(found) == list(range(1, 21))


@patiently
async def test_a_broker_that_is_to_end_asks_its_clients_to_leave(tmp_path: Path) -> None:
    """Lame duck: until it has ended it takes events, and the next one gets the others."""
    quick_end = "lame_duck_grace_period: 1s\nlame_duck_duration: 30s"
    with broker(tmp_path, quick_end, has_jetstream=True) as server:
        await server.wait_listening()
        async with mirroring(settings(server.url), tmp_path) as m:
            m.take(*(numbered(n) for n in range(10)))
            await m.until_sent()
            server.lame_duck()
            count = 10
            while not server.has_ended:
                m.take(numbered(count))
                count += 1
                await asyncio.sleep(0.05)
            server.start()
            await m.until_sent()
            async with looking(server) as client:
                assert numbers(await stored(client)) == list(range(1, count + 1))


@patiently
async def test_a_consumer_that_takes_nothing_delays_nobody(tmp_path: Path) -> None:
    bounds = "write_deadline: 500ms\nmax_pending: 262144\nmax_payload: 65536"
    with broker(tmp_path, bounds, has_jetstream=True) as server:
        await server.wait_listening()
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await reader.readline()
        writer.write(b'CONNECT {"verbose":false}\r\nSUB transfer.v1.event.> 1\r\nPING\r\n')
        while await reader.readline() != b"PONG\r\n":
            pass
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        async with mirroring(settings(server.url), tmp_path, budget_bytes=1 << 26) as m:
            m.take(*(log_event("x" * 10_000) for _ in range(1000)))
            async with asyncio.timeout(10):
                await m.until_sent()
            assert m.connection.connections == 1
        writer.transport.abort()


@patiently
async def test_the_end_of_the_program_waits_for_no_broker(tmp_path: Path) -> None:
    with broker(tmp_path, has_jetstream=True) as server:
        await server.wait_listening()
        async with mirroring(settings(server.url), tmp_path) as m:
            m.take(numbered(1))
            await m.until_sent()
            server.stop()
            await until(lambda: not m.connection.is_connected)
            m.take(*(numbered(n) for n in range(100)))
            async with asyncio.timeout(5):
                assert not await m.mirror.flush(60.0)
        server.start()
        async with mirroring(settings(server.url), tmp_path, epoch="e2") as m:
            await m.until_sent()
            async with looking(server) as client:
                assert numbers(await stored(client)) == list(range(1, 102))


@pytest.mark.parametrize("what", ["in the way", "damaged"])
def test_readiness_tells_of_an_outbox_that_cannot_be_used(tmp_path: Path, what: str) -> None:
    directory = tmp_path / "state"
    if what == "in the way":
        directory.write_text("no directory")
    else:
        directory.mkdir()
        (directory / "outbox.sqlite").write_bytes(b"no database" * 1000)

    async def main() -> None:
        with broker(tmp_path, has_jetstream=True) as server:
            await server.wait_listening()
            async with mirroring(settings(server.url), directory) as m:
                if what == "damaged":
                    m.take(numbered(1))
                    await m.until_sent()
                wanted = "bus.outbox_failed" if what == "in the way" else "bus.outbox_damaged"
                async with asyncio.timeout(20):
                    while await code_of(m) != wanted:  # noqa: ASYNC110 - a probe
                        await asyncio.sleep(0.01)
                with pytest.raises(HostFailed) as failed:
                    await check_events(m.outbox, m.mirror)
                if what == "damaged":
                    assert (directory / str(failed.value.facts["put_aside"])).read_bytes().startswith(b"no database")
                    async with looking(server) as client:
                        assert numbers(await stored(client)) == [1]

    asyncio.run(main())
