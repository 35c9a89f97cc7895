"""Beside a node daemon, at both ends: the daemon stops and starts, adopts what arrived, and gets stuck (H1 to H3)."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from sidecar.demo.panel_documents import Family
from tests.engine.beside_rig import handed_over, has_arrived, run, running_beside, soon
from tests.engine.rig import SERVER, api, differences

FAMILIES = pytest.mark.parametrize("family", list(Family))
GO = pytest.mark.parametrize("family", [Family.PTERODACTYL, Family.PELICAN])


# ---- a whole transfer ------------------------------------------------------------------------------------------------
@FAMILIES
@pytest.mark.parametrize("start", [True, False])
def test_a_whole_transfer(family: Family, start: bool, tmp_path: Path) -> None:
    """The daemon knows the server afterwards, tells the panel, once, and leaves every file as it was."""

    async def scenario() -> None:
        async with running_beside(tmp_path, family) as pair:
            await pair.move(start=start)
            await has_arrived(pair, start=start)
            assert pair.hand_overs() == [200]
            assert len(pair.told("success")) == 1 and pair.told("failure") == []
            assert not pair.panel.calls_of("success", "a") and not pair.panel.calls_of("failure", "a")
            assert len(pair.daemon.calls_of("power")) == (1 if start and family is not Family.CALAGOPUS else 0)
            stops = pair.daemons["a"].calls_of("power")
            assert len(stops) == 1 and pair.fake("a").lines == [(SERVER, "stop")]  # through the daemon, once
            assert len(pair.fake("a").starts) == 1  # which did not take it for a crash
            assert pair.daemons["a"].find(SERVER) is None  # the panel's deletion was passed on
            assert (await pair.b.node.server(SERVER)).state == (
                "running" if start and family is not Family.CALAGOPUS else "offline"
            )

    run(scenario)


def test_a_daemon_that_is_away_fails_the_start_of_a_transfer_and_nothing_else(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_beside(tmp_path) as pair:
            await pair.daemons["a"].stop()
            answer = await api(pair.a, "POST", f"/api/servers/{SERVER}/transfer", json={
                "url": f"{pair.b.url}/api/transfers",
                "token": f"Bearer {pair.panel.mint_token(SERVER, 'b')}",
            })  # fmt: skip
            assert answer.status_code >= 500 and "daemon.unreachable" in answer.text, answer.text
            assert pair.a.node.view(SERVER) is None and await pair.is_running("a")
            assert not differences(pair.a.volume(), pair.world)
            await pair.daemons["a"].start()

    run(scenario)


@FAMILIES
def test_a_destination_whose_daemon_is_away_fails_before_the_commit_and_the_server_starts_again(
    family: Family, tmp_path: Path
) -> None:
    """Prepare: the daemon must answer. The source's daemon starts its server again."""

    async def scenario() -> None:
        async with running_beside(tmp_path, family) as pair:
            await pair.daemon.stop()
            await pair.move()
            await pair.settled()
            await pair.is_back("daemon.unreachable", trash=0)
            assert len(pair.daemons["a"].calls_of("power")) == 2 and len(pair.fake("a").starts) == 2

    run(scenario)


def test_a_daemon_that_knows_the_server_already_is_not_asked(tmp_path: Path) -> None:
    """Two families register a second one of the same name: look first."""

    async def scenario() -> None:
        async with running_beside(tmp_path) as pair:
            pair.daemon.servers.append(pair.daemons["a"].servers[0])
            await pair.move()
            await pair.settled()
            assert pair.hand_overs() == []
            pair.daemon.unregister(SERVER)
            await pair.is_back("daemon.refused", trash=0)

    run(scenario)


@FAMILIES
def test_a_cancelled_server_starts_again_through_its_daemon(family: Family, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_beside(tmp_path, family) as pair:
            pair.panel.script("configuration", "hold", node="b")
            await pair.move()
            await pair.b.stage("admitting")
            answer = await api(pair.a, "DELETE", f"/api/servers/{SERVER}/transfer")
            assert answer.status_code in (200, 202, 204)
            pair.panel.release()
            left = await pair.a.settled()
            await pair.b.settled()
            assert left.status == "cancelled"
            await soon(lambda: pair.daemons["a"].servers[0].state == "running")
            assert await pair.check() == "a"
            assert pair.hand_overs() == [] and len(pair.fake("a").starts) == 2

    run(scenario)


@GO
def test_a_server_that_does_not_stop_stays_where_it_is(family: Family, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_beside(tmp_path, family) as pair:
            pair.fake("a").ignores_stop.add(SERVER)
            with pytest.raises(Exception, match="stop"):
                await pair.move()
            await pair.a.settled()
            assert await pair.check() == "a" and await pair.is_running("a")

    run(scenario)


def test_a_start_from_outside_aborts_before_a_wrong_archive_is_committed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_beside(tmp_path, big_bytes=60_000_000) as pair:
            await pair.move()
            await pair.b.stage("receiving")
            server = pair.daemons["a"].servers[0]
            pair.daemons["a"].power.act(server, "start")
            left, _ = await pair.settled()
            assert left.reason == "server.started_outside"
            await soon(lambda: server.state == "running")
            assert await pair.check() == "a" and await pair.is_running("a")

    run(scenario)


@FAMILIES
def test_s3_a_daemon_that_starts_the_server_in_doubt_is_made_to_stop_it(family: Family, tmp_path: Path) -> None:
    """As one does that was restarted: it brings back what ran when it last wrote that down."""

    async def scenario() -> None:
        async with running_beside(tmp_path, family) as pair:
            pair.panel.script("success", "hold", "hold", "hold", "hold")  # a daemon asks anew after a while
            await pair.move()
            await pair.b.stage("handing_over")
            server = pair.daemons["a"].servers[0]
            pair.daemons["a"].power.act(server, "start")
            await soon(lambda: len(pair.fake("a").starts) == 2, "the start")
            await soon(lambda: any("stopped again" in line for line in pair.a.lines()), "the guard's line")
            await soon(lambda: server.state == "offline")
            assert not await pair.is_running("a") and pair.panel.transfer(SERVER) is not None
            while pair.panel.transfer(SERVER) is not None:
                pair.panel.release()
                await asyncio.sleep(0.01)
            left, arrived = await pair.settled()
            assert (left.status, arrived.status) == ("completed", "completed")
            assert await pair.check() == "b" and not await pair.is_running("a")

    run(scenario)


# ---- H1: no answer of the daemon proves anything: the oracle decides -------------------------------------------------
@FAMILIES
def test_h1_the_answer_is_lost_and_the_panel_agreed(family: Family, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_beside(tmp_path, family) as pair:
            pair.daemon.script("transfer", "drop-after")
            await pair.move()
            await has_arrived(pair)
            assert pair.hand_overs() == [None] and len(pair.told("success")) == 1

    run(scenario)


@FAMILIES
def test_h1_the_answer_is_lost_and_the_panel_never_heard(family: Family, tmp_path: Path) -> None:
    """H2: no second hand-over where the first may still be at work: oracle, failure, oracle, and then trash."""

    async def scenario() -> None:
        async with running_beside(tmp_path, family) as pair:
            pair.daemon.script("transfer", "drop-before")
            await pair.move()
            await pair.settled()
            await pair.is_back("transfer.disowned")
            assert pair.hand_overs() == [None] and pair.told("success") == []

    run(scenario)


@FAMILIES
@pytest.mark.parametrize("answer", ["409", "500", "502", "body:{}", "body:<html>"])
def test_h1_an_answer_without_the_work(family: Family, answer: str, tmp_path: Path) -> None:
    """A daemon that does not hold the server has tried and failed: not asked again. 200 proves nothing either."""

    async def scenario() -> None:
        async with running_beside(tmp_path, family) as pair:
            pair.daemon.script("transfer", answer)
            await pair.move()
            await pair.settled()
            await pair.is_back("transfer.disowned")
            assert len(pair.hand_overs()) == 1

    run(scenario)


@FAMILIES
def test_h1_the_daemon_dies_after_the_panel_agreed(family: Family, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_beside(tmp_path, family) as pair:
            pair.daemon.script("transfer", "hold-after")
            await pair.move()
            await handed_over(pair)
            await soon(lambda: pair.panel.owner(SERVER) == "b")
            await pair.daemon.restart()  # its answer will be lost; what it did stands at the panel
            pair.daemon.die()
            pair.daemon.release()
            await pair.b.stage("checking_owner", "activating", "settling", "cooling", "ended")
            await pair.daemon.restart()
            await has_arrived(pair)

    run(scenario)


# ---- H3: a daemon that holds what the panel did not give it ----------------------------------------------------------
@GO
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("how", ["409", "403", "500", "drop-before"])
def test_h3_mended_and_handed_over_again(family: Family, times: int, how: str, tmp_path: Path) -> None:
    """200, though the panel refused or never heard: the volume aside, DELETE, back, and once more."""

    async def scenario() -> None:
        async with running_beside(tmp_path, family) as pair:
            pair.panel.script("success", *[how] * times)
            await pair.move()
            await has_arrived(pair)
            assert pair.hand_overs() == [200] * (times + 1)
            assert [call.status for call in pair.daemon.calls_of("delete")] == [204] * times
            assert pair.b.trash() == [] and pair.told("failure") == []

    run(scenario)


@GO
@pytest.mark.parametrize("how", ["409", "drop-before"])
def test_h3_not_a_third_time(family: Family, how: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_beside(tmp_path, family) as pair:
            pair.panel.script("success", *[how] * 3)
            await pair.move()
            await pair.settled()
            await pair.is_back("transfer.disowned")
            assert pair.hand_overs() == [200] * 3

    run(scenario)


def test_h3_calagopus_says_that_it_failed_and_is_not_asked_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_beside(tmp_path, Family.CALAGOPUS) as pair:
            pair.panel.script("success", "409")
            await pair.move()
            await pair.settled()
            await pair.is_back("transfer.disowned")
            assert pair.hand_overs() == [500]

    run(scenario)


@FAMILIES
def test_h3_not_where_the_source_is_gone(family: Family, tmp_path: Path) -> None:
    """A late `success` could hit a newer transfer: then D6 e, f."""

    async def scenario() -> None:
        async with running_beside(tmp_path, family) as pair:
            pair.panel.script("success", "409")
            pair.daemon.script("transfer", "hold-after")
            await pair.move()
            await handed_over(pair)
            await soon(lambda: pair.panel.calls_of("success", "b"))
            await pair.restart("a")
            pair.daemon.release()
            await pair.settled()
            await pair.is_back("transfer.disowned")
            assert len(pair.hand_overs()) == 1

    run(scenario)


@GO
def test_listed_but_held_as_transferring_needs_a_restart_of_the_daemon(family: Family, tmp_path: Path) -> None:
    """The answer to the daemon's `success` was lost: ours, the data safe, and a person must restart the daemon."""

    async def scenario() -> None:
        async with running_beside(tmp_path, family) as pair:
            pair.panel.script("success", "drop-after")
            await pair.move()
            await has_arrived(pair, needs=True)
            await pair.daemon.restart()
            server = pair.daemon.find(SERVER)
            assert server is not None and not server.is_transferring
            answer = await api(pair.b, "POST", f"/api/servers/{SERVER}/power", json={"action": "start"})
            assert answer.status_code == 202
            await soon(lambda: server.state == "running")
            assert await pair.check() == "b"

    run(scenario)


def test_listed_but_held_calagopus_lets_go_when_asked(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_beside(tmp_path, Family.CALAGOPUS) as pair:
            pair.panel.script("success", "drop-after")
            await pair.move()
            await has_arrived(pair)
            assert pair.hand_overs() == [500]

    run(scenario)


# ---- the daemon restarted, slow --------------------------------------------------------------------------------------
@FAMILIES
def test_the_daemon_dies_before_it_told_the_panel(family: Family, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_beside(tmp_path, family) as pair:
            pair.daemon.script("transfer", "crash")
            await pair.move()
            await pair.b.stage("discarding", "settling", "cooling", "ended")
            await pair.daemon.restart()
            await pair.settled()
            await pair.is_back("transfer.disowned")

    run(scenario)


@FAMILIES
def test_a_slow_daemon_is_waited_for(family: Family, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_beside(tmp_path, family) as pair:
            pair.daemon.script("transfer", "delay:1.2")  # longer than a call to the panel may take
            await pair.move()
            await has_arrived(pair)
            assert pair.hand_overs() == [200] and len(pair.told("success")) == 1

    run(scenario)


# ---- the sidecar restarted -------------------------------------------------------------------------------------------
@FAMILIES
@pytest.mark.parametrize("agreed", [True, False])
def test_restarted_while_handing_over(family: Family, agreed: bool, tmp_path: Path) -> None:
    """H2: after our restart the oracle, `failure` and the oracle decide; nothing is handed over again."""

    async def scenario() -> None:
        async with running_beside(tmp_path, family) as pair:
            pair.daemon.script("transfer", "hold-after" if agreed else "hold")
            await pair.move()
            await handed_over(pair)
            if agreed:
                await soon(lambda: pair.panel.owner(SERVER) == "b")
            await pair.restart("b")
            if agreed:
                await has_arrived(pair)
            else:
                await pair.settled()
                await pair.is_back("transfer.disowned")
            pair.daemon.release()
            await soon(lambda: len(pair.hand_overs()) == 1)
            assert await pair.check() == ("b" if agreed else "a")

    run(scenario)


@FAMILIES
@pytest.mark.parametrize("agreed", [True, False])
def test_restarted_while_confirming(family: Family, agreed: bool, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_beside(tmp_path, family) as pair:
            if not agreed:
                pair.panel.script("success", "409")
            pair.panel.script("list", "ok", "hold", node="b")
            await pair.move()
            await pair.b.stage("confirming_handover")
            await pair.restart("b")
            pair.panel.release()
            if agreed:
                await has_arrived(pair)
            else:
                await pair.settled()
                await pair.is_back("transfer.disowned")
            assert len(pair.hand_overs()) == 1

    run(scenario)


@GO
def test_restarted_while_mending_with_the_volume_aside(family: Family, tmp_path: Path) -> None:
    """The daemon's removal of files is still under way when the sidecar comes back: the volume waits for its end."""

    async def scenario() -> None:
        async with running_beside(tmp_path, family) as pair:
            pair.panel.script("success", "409")
            pair.daemon.script("files", "hold")
            await pair.move()
            await pair.b.stage("mending")
            await soon(lambda: pair.daemon.calls_of("delete"))
            assert len(pair.b.staging()) == 1  # the world is aside
            await pair.kill("b")
            await pair.up("b")
            await asyncio.sleep(0.1)  # it must not come back while the daemon may still delete
            assert not differences(pair.b.staging()[0], pair.world)
            pair.daemon.release()
            await pair.settled()
            await pair.is_back("transfer.disowned")

    run(scenario)


@GO
def test_restarted_before_the_deletion_was_asked_for(family: Family, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_beside(tmp_path, family) as pair:
            pair.panel.script("success", "409")
            pair.daemon.script("delete", "hold")
            await pair.move()
            await soon(lambda: pair.b.staging() and pair.b.volume().is_dir())  # aside, and the place is marked
            await pair.kill("b")
            pair.daemon.release()
            await pair.up("b")
            await pair.settled()
            await pair.is_back("transfer.disowned")

    run(scenario)


# ---- the source hung up ----------------------------------------------------------------------------------------------
@FAMILIES
def test_the_source_is_gone_before_the_hand_over(family: Family, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_beside(tmp_path, family) as pair:
            pair.panel.script("list", "hold", node="b")  # the look before the hand-over
            await pair.move()
            await pair.b.stage("handing_over")
            await soon(lambda: not pair.a.node.view(SERVER) or pair.a.node.view(SERVER).stage == "awaiting_verdict")  # type: ignore[union-attr]
            await pair.kill("a")
            pair.panel.release()
            await pair.up("a")
            await pair.settled()
            await pair.is_back()
            assert pair.hand_overs() == [] and pair.told("success") == []

    run(scenario)


@FAMILIES
def test_the_source_is_gone_during_the_hand_over(family: Family, tmp_path: Path) -> None:
    """Sent is sent: the panel's word decides at both ends."""

    async def scenario() -> None:
        async with running_beside(tmp_path, family) as pair:
            pair.daemon.script("transfer", "hold")
            await pair.move()
            await handed_over(pair)
            await pair.kill("a")
            await asyncio.sleep(0.05)
            pair.daemon.release()
            await pair.b.stage("settling", "cooling", "ended")
            await pair.up("a")
            left, came = await pair.settled()
            assert (left.status, came.status) == ("completed", "completed")
            assert pair.panel.owner(SERVER) == "b" and not differences(pair.b.volume(), pair.world)
            assert not await pair.is_running("a")

    run(scenario)


# ---- resolve, delete -------------------------------------------------------------------------------------------------
@GO
@pytest.mark.parametrize("outcome", ["completed", "failed"])
def test_an_operator_decides_while_the_panel_is_away(family: Family, outcome: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_beside(tmp_path, family) as pair:
            pair.daemon.script("transfer", "hold-after" if outcome == "completed" else "hold")
            await pair.move()
            await handed_over(pair)
            if outcome == "completed":
                await soon(lambda: pair.panel.owner(SERVER) == "b")
            await asyncio.sleep(0.05)
            await pair.server.stop()
            pair.daemon.release()
            await pair.b.stage("confirming_handover")
            await pair.b.node.resolve(SERVER, "completed" if outcome == "completed" else "failed")
            if outcome == "failed":
                await pair.b.stage("settling", "cooling", "ended")
            await pair.server.start()
            if outcome == "completed":
                await has_arrived(pair)
            else:
                await pair.settled()
                await pair.is_back()

    run(scenario)


@FAMILIES
def test_a_deletion_through_the_front_keeps_the_files_and_reaches_the_daemon(family: Family, tmp_path: Path) -> None:
    """An ordinary server, no transfer: the volume to trash first, then the daemon deletes what is no more there."""

    async def scenario() -> None:
        async with running_beside(tmp_path, family) as pair:
            answer = await api(pair.a, "DELETE", f"/api/servers/{SERVER}")
            assert answer.is_success
            assert pair.daemons["a"].find(SERVER) is None and not await pair.is_running("a")
            (kept,) = pair.a.trash()
            assert not differences(kept, pair.world) and not pair.a.volume().exists()

    run(scenario)


@FAMILIES
def test_a_deletion_in_doubt_is_not_passed_on_before_the_files_are_aside(family: Family, tmp_path: Path) -> None:
    """S3d: the panel's DELETE is confirmed by the oracle, and only then may the daemon delete what it finds."""

    async def scenario() -> None:
        async with running_beside(tmp_path, family) as pair:
            pair.daemon.script("transfer", "hold")
            await pair.move()
            await handed_over(pair)
            await api(pair.a, "DELETE", f"/api/servers/{SERVER}")  # from whom ever: the panel lists it at a
            assert not differences(pair.a.volume(), pair.world)
            pair.daemon.release()
            await pair.settled()
            assert not differences(pair.a.volume(), pair.world) or pair.panel.owner(SERVER) == "b"
            await pair.check()

    run(scenario)


@FAMILIES
def test_a_deletion_at_the_destination_in_doubt_takes_nothing(family: Family, tmp_path: Path) -> None:
    """Calagopus' panel deletes at the destination when it is told of a failure; others by an administrator's hand."""

    async def scenario() -> None:
        async with running_beside(tmp_path, family) as pair:
            pair.daemon.script("transfer", "hold-after")
            await pair.move()
            await handed_over(pair)
            await soon(lambda: pair.panel.owner(SERVER) == "b")
            await asyncio.sleep(0.1)
            await api(pair.b, "DELETE", f"/api/servers/{SERVER}")
            assert not differences(pair.b.volume(), pair.world)
            pair.daemon.release()
            await has_arrived(pair)

    run(scenario)
