"""Beside node daemons for real: two processes of ours, two Docker engines, a game that writes, and crash handlers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from integration.beside import BesideScene, set_beside
from integration.game_server import SAVED
from integration.scene import World
from sidecar.demo.compare import compare
from sidecar.demo.panel import TransferNotStarted
from sidecar.demo.panel_documents import Family

pytestmark = [pytest.mark.docker, pytest.mark.root]

BACKUP = "0b7f9e9c-52a4-4a8a-8c3a-6a3f1c1f0001"
WRITTEN = ("logs", "dumps")  # what a running server changes


def play(
    world: World,
    directory: Path,
    family: Family,
    scenario: Callable[[BesideScene], Awaitable[None]],
    *,
    is_source_beside: bool = True,
) -> None:
    async def run() -> None:
        async with set_beside(world, directory, family, is_source_beside=is_source_beside) as scene:
            await scenario(scene)

    asyncio.run(run())


@pytest.mark.parametrize("family", [Family.PELICAN, Family.CALAGOPUS])
def test_a_running_server_moves_from_daemon_to_daemon(family: Family, world: World, tmp_path: Path) -> None:
    """Whole, with its backup and its installation log, started there, kept in trash here, told once."""

    async def scenario(scene: BesideScene) -> None:
        shelves = {name: scene.daemons[name].shelves for name in scene.daemons}
        backup = shelves["node-a"].backups_of(family, scene.server) / f"{BACKUP}.tar.gz"
        log = shelves["node-a"].install_log(family, scene.server)
        for path in (backup, log):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"what came along" * 1000)
        await scene.move(backups=(BACKUP,))
        for name in ("node-a", "node-b"):
            await scene.until_shown(name, status="completed", needs=None)
        if family is Family.CALAGOPUS:  # whose panel does not say that it is to be started
            server = scene.daemons["node-b"].find(scene.server)
            assert server is not None
            answer = await scene.b.ask("POST", f"/api/servers/{scene.server}/power", json={"action": "start"})
            assert answer.status_code == 202
        await scene.until_up("node-b", 2)
        await scene.check_moved()
        (kept,) = scene.a.trash(scene.server)
        assert (kept / "logs" / "sessions.log").read_text().splitlines()[-1] == SAVED, "it was read before its end"
        found = compare(kept, scene.b.volume(scene.server))
        assert found.entries > 20
        assert [d for d in found.differences if not d.path.startswith(WRITTEN)] == []
        assert len(scene.panel.calls_of("success")) == 1 and scene.panel.calls_of("failure") == []
        assert scene.daemons["node-a"].power.crashes == [] and scene.daemons["node-b"].power.crashes == []
        assert [call.status for call in scene.daemons["node-b"].calls_of("transfer")] == [200]
        there = shelves["node-b"]
        for path in (there.backups_of(family, scene.server) / backup.name, there.install_log(family, scene.server)):
            assert path.read_bytes() == b"what came along" * 1000
        assert (await scene.b.view(scene.server))["backups"] == [BACKUP]

    play(world, tmp_path, family, scenario)


async def _is_undisturbed(scene: BesideScene) -> bool:
    """Whether the transfer got through without the source's daemon taking the stop for a crash."""
    try:
        await scene.move()
    except TransferNotStarted:
        return False
    await scene.until_shown("node-a", stage="ended")
    shown = await scene.a.view(scene.server)
    return shown["status"] == "completed" and not scene.daemons["node-a"].power.crashes


@pytest.mark.parametrize("is_source_beside", [True, False])
def test_the_crash_handler_is_noticed_where_the_stop_goes_straight_to_docker(
    is_source_beside: bool, world: World, tmp_path: Path
) -> None:
    """The same check for both: through the daemon it holds, and straight to Docker it does not."""

    async def scenario(scene: BesideScene) -> None:
        assert await _is_undisturbed(scene) is is_source_beside
        if is_source_beside:
            await scene.until_up("node-b", 2)
            await scene.check_moved()
        else:
            await scene.until(lambda: scene.daemons["node-a"].power.crashes, "the daemon to see a crash")

    play(world, tmp_path, Family.PTERODACTYL, scenario, is_source_beside=is_source_beside)


def test_a_start_from_outside_aborts_the_transfer(world: World, tmp_path: Path) -> None:
    """Somebody's console was open: seen in the engine's events, before a wrong archive is committed."""

    async def scenario(scene: BesideScene) -> None:
        scene.panel.script("configuration", "hold", node="node-b")
        await scene.move()
        await scene.until_shown("node-a", stage="sending")
        server = scene.daemons["node-a"].find(scene.server)
        assert server is not None and server.state == "offline"
        scene.daemons["node-a"].power.act(server, "start")
        await scene.until_shown("node-a", status="failed", reason="server.started_outside")
        scene.panel.release()
        await scene.until_shown("node-a", stage="ended")
        await scene.check_undone(2)
        assert scene.daemons["node-b"].calls_of("transfer") == []

    play(world, tmp_path, Family.PELICAN, scenario)


@pytest.mark.parametrize(("family", "agreed"), [(Family.PTERODACTYL, True), (Family.PELICAN, False)])
def test_sigkill_of_the_sidecar_during_the_hand_over(
    family: Family, agreed: bool, world: World, tmp_path: Path
) -> None:
    """H2: the panel's word decides when it is back, and nothing is handed over twice."""

    async def scenario(scene: BesideScene) -> None:
        daemon = scene.daemons["node-b"]
        daemon.script("transfer", "hold-after" if agreed else "hold")
        await scene.move()
        await scene.until_shown("node-b", stage="handing_over")
        await scene.until(lambda: daemon.calls_of("server"), "the daemon to be looked at")
        if agreed:
            await scene.until(lambda: scene.panel.owner(scene.server) == "node-b", "the daemon's success")
        else:
            await scene.until(lambda: len(daemon.calls_of("server")) >= 2, "the hand-over to be sent")
        await scene.b.kill()
        await scene.b.start()
        if agreed:
            await scene.until_shown("node-b", status="completed")
            daemon.release()
            await scene.until_shown("node-a", status="completed")
            await scene.until_up("node-b", 2)
            await scene.check_moved()
        else:
            await scene.until_shown("node-b", status="failed")
            daemon.release()
            await scene.until_shown("node-a", status="failed")
            await scene.check_undone(2)
            assert len(scene.b.trash(scene.server)) == 1, "the copy that arrived was deleted"
        assert len(daemon.calls_of("transfer")) <= 1

    play(world, tmp_path, family, scenario)


def test_the_daemon_dies_during_the_hand_over(world: World, tmp_path: Path) -> None:
    """With the files adopted and the panel untold; it comes back knowing nothing."""

    async def scenario(scene: BesideScene) -> None:
        daemon = scene.daemons["node-b"]
        daemon.script("transfer", "crash")
        await scene.move()
        await scene.until(lambda: daemon.calls_of("transfer"), "the daemon to die")
        await daemon.restart()
        for name in ("node-b", "node-a"):
            await scene.until_shown(name, status="failed")
        await scene.check_undone(2)
        assert len(scene.b.trash(scene.server)) == 1

    play(world, tmp_path, Family.CALAGOPUS, scenario)


def test_a_deletion_through_the_front_keeps_the_files(world: World, tmp_path: Path) -> None:
    """S5, retention: moved aside first, and then the daemon deletes what is no more there."""

    async def scenario(scene: BesideScene) -> None:
        answer = await scene.a.ask("DELETE", f"/api/servers/{scene.server}")
        assert answer.is_success
        assert scene.state("node-a") is None and not await scene.is_running("node-a")
        (kept,) = scene.a.trash(scene.server)
        assert (kept / "server.properties").exists() or any(kept.iterdir())
        await scene.until(lambda: not scene.a.volume(scene.server).exists(), "the place to be empty")

    play(world, tmp_path, Family.PTERODACTYL, scenario)
