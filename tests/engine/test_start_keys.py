"""A start with a key: one transfer, however often and whenever it comes; and a node that may begin nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import msgspec
import pytest

from sidecar.engine import roster
from sidecar.engine.contract import StartTransfer
from sidecar.errors import HostFailed, Refused
from sidecar.lifecycle.statuses import Status
from sidecar.views import TransferView
from tests.api.fake_transfers import OTHER, SERVER
from tests.api.node import in_loop
from tests.engine.rig import Rig, api, grow_world, request_to, running_node, token_of, transfer_token


async def start(rig: Rig, request: StartTransfer) -> TransferView:
    return await rig.node.start(request, caller=None, respond_async=True)


def keyed(destination: Rig, key: str = "key-1", server: str = SERVER) -> StartTransfer:
    return msgspec.structs.replace(request_to(destination, server), key=key)


@in_loop
async def test_the_same_key_begins_one_transfer(tmp_path: Path) -> None:
    async with running_node(tmp_path / "b", "b") as b:
        async with running_node(tmp_path / "a", "a") as a:
            grow_world(a.volume())
            request = keyed(b)
            answers = await asyncio.gather(*(start(a, request) for _ in range(20)))
            assert len({view.transfer for view in answers}) == 1
            assert (await a.settled()).status is Status.COMPLETED
            assert (await start(a, request)).transfer == answers[0].transfer
            with pytest.raises(Refused) as reused:
                await start(a, msgspec.structs.replace(request, start_on_completion=True))
            assert reused.value.code == "request.key_reused"
            with pytest.raises(Refused) as departed:  # another key is another request
                await start(a, keyed(b, "key-2"))
            assert departed.value.code == "server.departed"
        async with running_node(tmp_path / "a", "a") as again:  # and so after a restart
            assert (await start(again, request)).transfer == answers[0].transfer
            with pytest.raises(Refused) as reused:
                await start(again, msgspec.structs.replace(request, token=transfer_token(token_of("other"))))
            assert reused.value.code == "request.key_reused"
            assert len(again.node.views()) == 1


@in_loop
async def test_an_expired_start_begins_nothing_and_a_known_key_is_answered_all_the_same(tmp_path: Path) -> None:
    async with running_node(tmp_path / "b", "b") as b, running_node(tmp_path / "a", "a") as a:
        grow_world(a.volume())
        with pytest.raises(Refused) as expired:
            await start(a, msgspec.structs.replace(keyed(b), expires_at=1.0))
        assert expired.value.code == "request.expired" and a.node.views() == []
        begun = await start(a, msgspec.structs.replace(keyed(b), expires_at=a.services.now() + 60))
        await a.settled()
        assert (await start(a, msgspec.structs.replace(keyed(b), expires_at=1.0))).transfer == begun.transfer


@in_loop
async def test_a_refused_start_leaves_its_key_free(tmp_path: Path) -> None:
    async with running_node(tmp_path / "b", "b") as b, running_node(tmp_path / "a", "a") as a:
        request = keyed(b)
        refusals = await asyncio.gather(*(start(a, request) for _ in range(3)), return_exceptions=True)
        assert [getattr(refusal, "code", refusal) for refusal in refusals] == ["server.unknown"] * 3
        grow_world(a.volume())
        await start(a, request)
        assert (await a.settled()).status is Status.COMPLETED


@in_loop
async def test_a_start_that_is_cut_short_does_not_cancel_those_who_wait_for_it(tmp_path: Path) -> None:
    async with running_node(tmp_path / "b", "b") as b, running_node(tmp_path / "a", "a") as a:
        grow_world(a.volume())
        first = asyncio.create_task(start(a, keyed(b)))
        await asyncio.sleep(0)
        second = asyncio.create_task(start(a, keyed(b)))
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        with pytest.raises(Exception, match="cut short"):
            await second


@in_loop
async def test_a_key_is_forgotten_with_its_transfer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roster, "HISTORY", 1)
    async with running_node(tmp_path / "b", "b") as b, running_node(tmp_path / "a", "a") as a:
        for server in (SERVER, OTHER):
            grow_world(a.volume(server))
            a.runtime.trouble["stop"] = [HostFailed("server.stop_failed", "It does not stop.")]
            await start(a, keyed(b, f"key of {server}", server))
            assert (await a.settled(server)).status is Status.FAILED
        assert [view.server for view in a.node.views()] == [OTHER]
        again = msgspec.structs.replace(keyed(b, f"key of {SERVER}"), start_on_completion=True)
        assert (await start(a, again)).server == SERVER  # another request, yet not refused
        assert (await a.settled()).status is Status.COMPLETED


@in_loop
async def test_a_barred_node_begins_nothing_and_ends_what_runs(tmp_path: Path) -> None:
    reason = Refused("node.fenced", "Another sidecar has this node's id.")
    async with running_node(tmp_path / "b", "b") as b, running_node(tmp_path / "a", "a") as a:
        for server in (SERVER, OTHER):
            grow_world(a.volume(server), big_bytes=2_000_000)
        view = await start(a, keyed(b))
        await b.stage("receiving", "verifying", "committing", "activating", "ended")
        a.node.bar(reason)
        b.node.bar(reason)
        refused = await api(a, "POST", f"/api/servers/{OTHER}/transfer", json={"url": f"{b.url}/x", "token": "x"})
        assert (refused.status_code, refused.json()["code"]) == (503, "node.fenced")
        upload = {"Authorization": transfer_token(b.token, OTHER), "Content-Type": "multipart/form-data; boundary=x"}
        async with httpx.AsyncClient(base_url=b.url) as client:
            refused = await client.post("/api/transfers", content=b"--x--", headers=upload)
        assert (refused.status_code, refused.json()["code"]) == (503, "node.fenced")
        a.node.bar(None)
        b.node.bar(None)
        assert view.transfer == (await a.settled()).transfer
        await start(a, keyed(b, "key-3", OTHER))
        assert (await a.settled(OTHER)).status is Status.COMPLETED
