"""What the roster does at its edges: other programs on the files, other versions' journals, hang-ups, deletions."""

from __future__ import annotations

import asyncio
import zlib
from pathlib import Path

import pytest

from sidecar.errors import IllegalTransition, Refused
from sidecar.lifecycle.statuses import Status
from sidecar.ports import Configuration, Observed, RunState
from tests.engine.pair import soon
from tests.engine.rig import SERVER, api, grow_world, request_to, running_node, tree_of
from tests.engine.runtime import FakeRuntime


class Busy(FakeRuntime):
    """An installation runs on the volume: something runs, and it is not the server's container."""

    async def observe(self, server: str) -> Observed:
        return Observed(RunState.RUNNING, None)


def test_a_server_that_is_installed_or_restored_is_not_transferred(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_node(tmp_path / "a", "a", runtime=Busy()) as a, running_node(tmp_path / "b", "b") as b:
            grow_world(a.volume())
            with pytest.raises(Refused) as caught:
                await a.node.start(request_to(b), caller=None, respond_async=False)
            assert (caught.value.code, caught.value.status) == ("server.busy", 409)
            assert a.node.views() == []

    asyncio.run(scenario())


class Slow(FakeRuntime):
    """Its engine says what runs when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.may_answer = asyncio.Event(), asyncio.Event()

    async def observe(self, server: str) -> Observed:
        self.asked.set()
        await self.may_answer.wait()
        return await super().observe(server)


def test_a_node_that_is_stopped_waits_for_a_transfer_that_is_just_beginning(tmp_path: Path) -> None:
    async def scenario() -> None:
        runtime = Slow()
        runtime.add(SERVER, running=False)
        async with running_node(tmp_path / "a", "a", runtime=runtime) as a, running_node(tmp_path / "b", "b") as b:
            grow_world(a.volume())
            starting = asyncio.create_task(a.node.start(request_to(b), caller=None, respond_async=False))
            await runtime.asked.wait()
            draining = asyncio.create_task(a.node.drain(60))
            done, _ = await asyncio.wait({draining}, timeout=0.1)
            assert not done
            runtime.may_answer.set()
            await starting
            await draining
            view = a.node.view(SERVER)
            assert view is not None and view.status is Status.COMPLETED

    asyncio.run(scenario())


def test_a_transfer_that_a_bug_has_stopped_delays_no_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def decide(*_: object) -> None:
        raise IllegalTransition("a bug")

    async def scenario() -> None:
        async with running_node(tmp_path / "a", "a") as a, running_node(tmp_path / "b", "b") as b:
            a.runtime.add(SERVER, running=True)
            a.runtime.slow_stop = asyncio.Event()
            grow_world(a.volume())
            await a.node.start(request_to(b), caller=None, respond_async=True)
            monkeypatch.setattr("sidecar.engine.transfer.decide", decide)
            a.runtime.slow_stop.set()
            await soon(lambda: (view := a.node.view(SERVER)) is not None and view.needs)
            async with asyncio.timeout(60):
                await a.node.drain(3600)
            view = a.node.view(SERVER)
            assert view is not None and view.stage == "stopping" and tree_of(a.volume())

    asyncio.run(scenario())


def test_what_this_node_did_not_stage_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        transfer = "99999999-1111-4222-8333-444444444444"
        staged = tmp_path / "b" / "volumes" / ".sidecar-staging" / transfer
        staged.mkdir(parents=True, mode=0o700)
        (staged / "world").write_text("a newer version's")
        other = staged.with_name("88888888-1111-4222-8333-444444444444")
        other.mkdir()
        (other / "world").write_text("of a state directory that was lost")
        journal = tmp_path / "b" / "state" / "transfers"
        journal.mkdir(parents=True)
        body = b'{"version":99}'
        (journal / f"{transfer}.journal").write_bytes(b"%08x %s\n" % (zlib.crc32(body), body))
        async with running_node(tmp_path / "b", "b"):
            assert (staged / "world").exists() and (other / "world").exists()
            said = [record.getMessage() for record in caplog.records if "knows nothing of" in record.getMessage()]
            assert said == [f"{other} is of a transfer that this node knows nothing of; left where it is"]

    asyncio.run(scenario())


def test_what_this_node_staged_for_a_transfer_that_is_over_goes(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_node(tmp_path / "a", "a") as a:
            async with running_node(tmp_path / "b", "b") as b:
                grow_world(a.volume())
                await a.node.start(request_to(b), caller=None, respond_async=False)
                transfer = (await b.settled()).transfer
            staged = tmp_path / "b" / "volumes" / ".sidecar-staging" / transfer
            staged.mkdir(parents=True, exist_ok=True)
            async with running_node(tmp_path / "b", "b") as b:
                assert b.staging() == []

    asyncio.run(scenario())


def test_a_source_that_hangs_up_while_an_image_is_pulled_ends_the_transfer(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_node(tmp_path / "b", "b") as b:
            pulling = asyncio.Event()

            async def prepare(server: str, configuration: Configuration | None) -> None:
                pulling.set()
                await asyncio.get_running_loop().create_future()  # for ever

            b.runtime.prepare = prepare  # type: ignore[method-assign]
            async with running_node(tmp_path / "a", "a") as a:
                grow_world(a.volume())
                await a.node.start(request_to(b), caller=None, respond_async=False)
                await asyncio.wait_for(pulling.wait(), 10)
            came = await b.settled()
            assert came.reason in ("upload.truncated", "transfer.cancelled")
            assert not b.volume().exists() and b.staging() == []

    asyncio.run(scenario())


def test_a_server_that_is_deleted_while_its_container_is_made_goes_to_trash(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_node(tmp_path / "a", "a") as a, running_node(tmp_path / "b", "b") as b:
            grow_world(a.volume())
            before = tree_of(a.volume())
            making, made = asyncio.Event(), asyncio.Event()
            held = b.runtime.activate

            async def activate(server: str, configuration: Configuration | None, *, start: bool) -> None:
                making.set()
                await made.wait()
                await held(server, configuration, start=start)

            b.runtime.activate = activate  # type: ignore[method-assign]
            await a.node.start(request_to(b, start=True), caller=None, respond_async=False)
            await asyncio.wait_for(making.wait(), 10)
            deleting = asyncio.create_task(api(b, "DELETE", f"/api/servers/{SERVER}"))
            await asyncio.sleep(0)
            made.set()
            assert (await deleting).status_code == 204
            assert not b.volume().exists() and SERVER not in b.runtime.running
            (item,) = b.trash()
            assert tree_of(item) == before

    asyncio.run(scenario())


def test_nothing_arrives_while_a_server_is_deleted(tmp_path: Path) -> None:
    """A stray volume is deleted; an upload of that server meanwhile gets 409 and is not what is deleted."""

    async def scenario() -> None:
        async with running_node(tmp_path / "a", "a") as a, running_node(tmp_path / "b", "b") as b:
            grow_world(a.volume())
            a.runtime.add(SERVER, running=True)
            grow_world(b.volume())
            looking, looked = asyncio.Event(), asyncio.Event()
            held = b.runtime.observe

            async def observe(server: str) -> Observed:
                looking.set()
                await looked.wait()
                return await held(server)

            b.runtime.observe = observe  # type: ignore[method-assign]
            deleting = asyncio.create_task(api(b, "DELETE", f"/api/servers/{SERVER}"))
            await asyncio.wait_for(looking.wait(), 10)
            await a.node.start(request_to(b), caller=None, respond_async=False)
            async with asyncio.timeout(20):
                while (left := a.node.views()[0]).stage in ("stopping", "sending", "awaiting_verdict"):  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
            assert left.reason == "peer.status" and b.node.views() == []
            looked.set()
            assert (await deleting).status_code == 204
            assert len(b.trash()) == 1 and not b.volume().exists()
            # Standalone, past the point, the source asks b how it ended; b can say so once the deletion is over.
            assert (await a.settled()).status == "failed" and SERVER in a.runtime.running

    asyncio.run(scenario())


def test_a_cancel_at_the_source_is_no_bug(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with running_node(tmp_path / "a", "a") as a, running_node(tmp_path / "b", "b") as b:
            grow_world(a.volume(), big_bytes=60_000_000)
            await a.node.start(request_to(b), caller=None, respond_async=False)
            await b.stage("receiving")
            await api(a, "DELETE", f"/api/servers/{SERVER}/transfer")
            assert (await a.settled()).status == "cancelled"

    asyncio.run(scenario())
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
