"""Two nodes and a panel: a server moves, whatever the panel answers, loses, or refuses, and whoever is restarted."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from sidecar.demo.panel import TransferNotStarted
from sidecar.demo.panel_documents import Family
from tests.engine.pair import PAIR, running_pair, soon
from tests.engine.relay import relay
from tests.engine.rig import SERVER, api, token_of, tree_of

PAST_POINT = ("awaiting_verdict", "confirming_departure", "reporting_failure", "asking_owner")


@pytest.mark.parametrize(("family", "checks_caller"), [*((family, True) for family in Family), ("pterodactyl", False)])
def test_a_server_moves_and_everybody_knows(tmp_path: Path, family: Family, checks_caller: bool) -> None:
    """Panel told exactly once; every family of panels, and old ones that do not check who calls."""

    async def scenario() -> None:
        async with running_pair(
            tmp_path,
            family=Family(family),
            checks_caller=checks_caller,
            timings=msgspec.structs.replace(PAIR, call_timeout_s=5.0),  # told once, however busy the machine is
        ) as pair:
            a, b, panel = pair.a, pair.b, pair.panel
            await pair.move()
            left, came = await pair.settled()
            assert (left.status, came.status, left.transfer) == ("completed", "completed", came.transfer)
            assert pair.check() == "b"
            assert [call.node for call in panel.calls_of("success")] == ["b"]
            assert panel.calls_of("failure") == []
            assert [call.status for call in panel.calls_of("delete")] == [204]
            assert a.statuses() == b.statuses() == ["pending", "processing", "completed"]
            assert len(a.trash()) == 1 and not a.volume().exists()
            assert ("remove", SERVER) in a.runtime.calls
            if family is not Family.CALAGOPUS:  # its request cannot ask for a start
                assert SERVER in b.runtime.running
            assert a.lines()[0] == "Preparing to stream server data to destination..."
            assert a.lines()[-1] == "The server has moved to the destination."
            assert b.lines()[0] == "Receiving server data from source..."
            assert b.lines()[-1] == "The server has arrived."
            assert all(event.transfer == left.transfer for event in [*a.events, *b.events])

    asyncio.run(scenario())


def test_s5_the_delete_comes_before_the_upload_has_its_answer(tmp_path: Path) -> None:
    """S5: the panel's DELETE moves the volume to trash and is answered 204 while the upload still waits for its 200."""

    async def scenario() -> None:
        async with running_pair(tmp_path) as pair:
            pair.panel.script("success", "hold-after")
            await pair.move()
            await soon(lambda: pair.panel.calls_of("success"))
            assert [call.status for call in pair.panel.calls_of("delete")] == [204]
            assert (await pair.a.settled()).status == "completed"
            assert [tree_of(item) for item in pair.a.trash()] == [pair.world]
            came = pair.b.node.view(SERVER)
            assert came is not None and came.stage == "announcing" and SERVER not in pair.b.runtime.running
            pair.panel.release()
            await pair.settled()
            assert pair.check() == "b"

    asyncio.run(scenario())


@pytest.mark.parametrize("fault", ["500", "503", "429", "drop-before", "drop-after", "delay:1", "body:<html>"])
def test_a_success_that_is_not_answered_well_ends_by_itself(tmp_path: Path, fault: str) -> None:
    """Symptom: server locked "transferring" for ever after a failed panel callback; complete data is never deleted."""

    async def scenario() -> None:
        async with running_pair(tmp_path) as pair:
            pair.panel.script("success", fault, fault)
            await pair.move()
            left, came = await pair.settled()
            owner = pair.check()
            if fault == "body:<html>":  # a 2xx that moved nothing: D6c
                assert (owner, came.status) == ("a", "failed") and len(pair.b.trash()) == 1
                assert SERVER in pair.a.runtime.running
            else:
                assert (owner, left.status, came.status) == ("b", "completed", "completed")
                assert SERVER in pair.b.runtime.running
            assert [call.status for call in pair.panel.calls_of("delete")] == [204] * (owner == "b")

    asyncio.run(scenario())


@pytest.mark.parametrize("status", ["403", "409"])
def test_a_success_that_is_refused_for_ever_fails_the_transfer_on_both_ends(tmp_path: Path, status: str) -> None:
    """Symptom: the panel rejects the final success callback (403), so the transfer never ends."""

    async def scenario() -> None:
        async with running_pair(tmp_path) as pair:
            pair.panel.script("success", *[status] * 100)
            await pair.move()
            left, came = await pair.settled()
            assert pair.check() == "a"
            assert (left.status, came.status, came.reason) == ("failed", "failed", "transfer.disowned")
            assert [tree_of(item) for item in pair.b.trash()] == [pair.world]  # complete data is never deleted
            assert SERVER in pair.a.runtime.running

    asyncio.run(scenario())


def test_a_panel_that_is_down_past_the_point_decides_when_it_is_back(tmp_path: Path) -> None:
    """D6b, S3a: no answer: nothing is started and nothing deleted on either end; it ends by itself."""

    async def scenario() -> None:
        async with running_pair(tmp_path) as pair:
            pair.b.runtime.gates["prepare"] = gate = asyncio.Event()
            await pair.move()
            await pair.b.stage("preparing")
            await pair.server.stop()
            gate.set()
            await pair.b.stage("announcing")
            await soon(lambda: pair.b.node.view(SERVER).needs, "a hint for the operator")  # type: ignore[union-attr]
            await pair.restart("a")
            await pair.restart("b")
            for _ in range(10):
                assert pair.a.node.view(SERVER).stage in PAST_POINT  # type: ignore[union-attr]
                assert pair.a.runtime.running | pair.b.runtime.running == set()
                assert tree_of(pair.a.volume()) == tree_of(pair.b.volume()) == pair.world
                assert pair.a.trash() == pair.b.trash() == []
                await asyncio.sleep(0.02)
            view = (await api(pair.a, "GET", f"/api/servers/{SERVER}/transfer")).json()
            assert view["in_doubt"] and view["stage"] == "reporting_failure"
            with pytest.raises(TransferNotStarted):
                pair.panel.end_transfer(SERVER)
                await pair.move()  # the slot is held
            pair.panel.assume_transfer(SERVER, "b")
            await pair.server.start()
            await pair.settled()
            assert pair.check() == "a" and SERVER in pair.a.runtime.running

    asyncio.run(scenario())


def test_success_accepted_but_its_answer_lost(tmp_path: Path) -> None:
    """Symptom: 409 "server is not being transferred" after a lost answer: who owns the server is asked, not guessed."""

    async def scenario() -> None:
        async with running_pair(tmp_path) as pair:
            pair.panel.script("success", "drop-after")
            await pair.move()
            await pair.settled()
            assert pair.check() == "b"
            statuses = [call.status for call in pair.panel.calls_of("success")]
            assert statuses[0] is None and set(statuses[1:]) == {409}
            assert len(pair.panel.calls_of("delete")) == 1

    asyncio.run(scenario())


def test_the_panels_delete_is_lost(tmp_path: Path) -> None:
    """Symptom: the panel deletes the source after success, and only logs if that fails: the copy stays, marked."""

    async def scenario() -> None:
        async with running_pair(tmp_path) as pair:
            pair.panel.script("delete", "drop-before")
            await pair.move()
            left, _ = await pair.settled()
            assert left.status == "completed" and pair.check() == "b"
            assert tree_of(pair.a.volume()) == pair.world and pair.a.trash() == []
            assert pair.a.lines()[-1] == "The server has moved to the destination."
            assert (await pair.a.node.server(SERVER)).transferred
            await pair.restart("a")
            assert (await pair.a.node.server(SERVER)).transferred
            assert (await api(pair.a, "DELETE", f"/api/servers/{SERVER}")).status_code == 204
            assert len(pair.a.trash()) == 1 and not pair.a.volume().exists()
            assert (await api(pair.a, "DELETE", f"/api/servers/{SERVER}")).status_code == 404

    asyncio.run(scenario())


def test_the_panel_never_heard_our_202(tmp_path: Path) -> None:
    """The panel rolled its transaction back: it knows no transfer, b is refused, the server runs again on a."""

    async def scenario() -> None:
        async with running_pair(tmp_path) as pair:
            pair.panel.script("start", "drop-after")
            with pytest.raises(TransferNotStarted):
                await pair.move()
            left, came = await pair.settled()
            assert pair.check() == "a" and SERVER in pair.a.runtime.running
            assert (left.status, came.reason) == ("failed", "panel.refused")

    asyncio.run(scenario())


@pytest.mark.parametrize("node", ["a", "b"])
@pytest.mark.parametrize("stage", ["receiving", "preparing"])
def test_a_cancel_before_the_commit_leaves_the_server_where_it_was(tmp_path: Path, node: str, stage: str) -> None:
    async def scenario() -> None:
        async with running_pair(tmp_path, big_bytes=60_000_000 if stage == "receiving" else 100_000) as pair:
            if stage == "preparing":
                pair.b.runtime.gates["prepare"] = asyncio.Event()
            await pair.move()
            await pair.b.stage(stage)
            path = f"/api/servers/{SERVER}/transfer" if node == "a" else f"/api/transfers/{SERVER}"
            assert (await api(pair.rigs[node], "DELETE", path)).status_code == 202
            for gate in pair.b.runtime.gates.values():
                gate.set()
            left, came = await pair.settled()
            assert pair.check() == "a" and SERVER in pair.a.runtime.running
            assert "cancelled" in (left.status, came.status)
            assert not pair.panel.calls_of("success")
            assert (await api(pair.rigs[node], "DELETE", path)).status_code == 409

    asyncio.run(scenario())


def test_a_cancel_in_doubt_may_end_as_completed(tmp_path: Path) -> None:
    """S3: a cancel in doubt may end as completed; that is the truth."""

    async def scenario() -> None:
        async with running_pair(tmp_path) as pair:
            pair.panel.script("success", "hold-after")
            pair.panel.script("delete", "drop-before")
            await pair.move()
            await soon(lambda: pair.panel.calls_of("success"))
            assert (await api(pair.a, "DELETE", f"/api/servers/{SERVER}/transfer")).status_code == 202
            left = await pair.a.settled()
            assert left.status == "completed" and SERVER not in pair.a.runtime.running
            assert pair.a.statuses() == ["pending", "processing", "cancelling", "completed"]
            pair.panel.release()
            await pair.settled()
            assert pair.check() == "b"

    asyncio.run(scenario())


def test_a_server_goes_and_comes_back_and_goes_again(tmp_path: Path) -> None:
    """Final states are immutable, and the next transfer of the server is another one."""

    async def scenario() -> None:
        async with running_pair(tmp_path) as pair:
            seen = set()
            for target in ("b", "a", "b"):
                await pair.panel.start_transfer(SERVER, target, start_on_completion=True)
                left, came = await pair.settled("b" if target == "a" else "a")
                assert left.transfer == came.transfer and left.status == came.status == "completed"
                seen.add(left.transfer)
                assert pair.panel.owner(SERVER) == target
                assert pair.a.runtime.running | pair.b.runtime.running == {SERVER}
                assert tree_of(pair.rigs[target].volume()) == pair.world
            assert len(seen) == 3
            assert len(pair.a.trash()) == 2 and len(pair.b.trash()) == 1

    asyncio.run(scenario())


def test_a_failed_transfer_does_not_make_a_departed_server_ours_again(tmp_path: Path) -> None:
    """The server left for b, its way back failed: what a has are still old files, before and after a restart."""

    async def scenario() -> None:
        async with running_pair(tmp_path) as pair:
            pair.panel.script("delete", "drop-before")  # the old files stay on a
            await pair.move()
            await pair.settled()
            pair.a.runtime.gates["prepare"] = asyncio.Event()
            await pair.panel.start_transfer(SERVER, "a", start_on_completion=True)
            await pair.a.stage("preparing")
            await pair.a.node.cancel(SERVER, pair.a.node.view(SERVER).role)  # type: ignore[union-attr]
            await pair.settled("b")
            assert pair.panel.owner(SERVER) == "b" and SERVER in pair.b.runtime.running
            assert (await pair.a.node.server(SERVER)).transferred
            pair.a.runtime.gates.clear()
            await pair.restart("a")
            assert (await pair.a.node.server(SERVER)).transferred
            await pair.panel.start_transfer(SERVER, "a", start_on_completion=True)
            await pair.settled("b")
            assert pair.panel.owner(SERVER) == "a" and pair.a.runtime.running == {SERVER}
            assert tree_of(pair.a.volume()) == pair.world
            assert not (await pair.a.node.server(SERVER)).transferred

    asyncio.run(scenario())


@pytest.mark.parametrize("lost", [1, 2, 99])
def test_one_of_our_own_is_never_taken_for_a_stranger_because_a_call_was_lost(tmp_path: Path, lost: int) -> None:
    """Symptom: symlinks silently lost, server won't start: strangers get copies, our own nodes get everything."""

    async def scenario() -> None:
        async with running_pair(tmp_path) as pair, relay() as link:
            link.target, link.refuses = pair.b, lost
            pair.panel.add_node("b", token_id="id-b", token=token_of("b"), url=link.url)
            await pair.move()
            left = await pair.a.settled()
            if lost < 99:
                assert left.status == "completed"
                await pair.b.settled()
                assert pair.check() == "b"
            else:
                assert (left.status, left.reason) == ("failed", "peer.reset")
                assert pair.check() == "a" and SERVER in pair.a.runtime.running

    asyncio.run(scenario())
