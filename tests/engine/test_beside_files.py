"""Backups and installation logs beside a node daemon: they reach it with the hand-over, and nothing loses them."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.demo.panel_documents import Family
from tests.engine.beside_rig import BesidePair, handed_over, has_arrived, run, running_beside, soon
from tests.engine.rig import SERVER

BACKUP = "0b7f9e9c-52a4-4a8a-8c3a-6a3f1c1f0001"
OTHER = "0b7f9e9c-52a4-4a8a-8c3a-6a3f1c1f0002"
CONTENT = b"a backup" * 100_000
LOG = b"installed\n"
TAKING = pytest.mark.parametrize("family", [Family.PELICAN, Family.CALAGOPUS])


def shelf(pair: BesidePair, name: str) -> Path:
    """Where that node's daemon looks for backups of the server."""
    return pair.daemons[name].shelves.backups_of(pair.panel.family, SERVER)


def stock(pair: BesidePair) -> None:
    """The source's daemon has a backup and an installation log."""
    shelf(pair, "a").mkdir(parents=True, exist_ok=True)
    (shelf(pair, "a") / f"{BACKUP}.tar.gz").write_bytes(CONTENT)
    log = pair.daemons["a"].shelves.install_log(pair.panel.family, SERVER)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(LOG)


def check_filed(pair: BesidePair, *, is_named: bool = True) -> None:
    """At the daemon of the destination; `is_named`: as kept, to the source."""
    assert (shelf(pair, "b") / f"{BACKUP}.tar.gz").read_bytes() == CONTENT
    left, came = pair.a.node.view(SERVER), pair.b.node.view(SERVER)
    assert left is not None and came is not None
    assert came.backups == ((BACKUP,) if is_named else ())
    assert pair.b.staging() == []


def in_trash(pair: BesidePair) -> list[bytes]:
    return [path.read_bytes() for path in (pair.home / "b").rglob(f".sidecar-trash/*/volume/{BACKUP}.tar.gz")]


@TAKING
@pytest.mark.parametrize("keeps_files", [True, False])
def test_they_reach_the_daemon_with_the_hand_over(family: Family, keeps_files: bool, tmp_path: Path) -> None:
    """Where this node knows no directory of its own too; Calagopus lists them in its `success`."""

    async def scenario() -> None:
        async with running_beside(tmp_path, family) as pair:
            stock(pair)
            pair.keeps_files = keeps_files
            await pair.restart("b")
            await pair.move(backups=[BACKUP])
            await has_arrived(pair)
            check_filed(pair)
            left = pair.a.node.view(SERVER)
            assert left is not None and left.backups == (BACKUP,)
            assert pair.daemon.shelves.install_log(family, SERVER).read_bytes() == LOG
            assert pair.panel.backups(SERVER) == ([BACKUP] if family is Family.CALAGOPUS else [])
            assert pair.hand_overs() == [200] and in_trash(pair) == []

    run(scenario)


@pytest.mark.parametrize("keeps_files", [True, False])
def test_pterodactyl_takes_none_and_they_are_filed_for_it_or_named(keeps_files: bool, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_beside(tmp_path, Family.PTERODACTYL) as pair:
            stock(pair)
            pair.keeps_files = keeps_files
            await pair.restart("b")
            # Its own panel names none; another of the same API may.
            pair.panel.family = Family.PELICAN
            await pair.move(backups=[BACKUP])
            pair.panel.family = Family.PTERODACTYL
            await has_arrived(pair)
            if keeps_files:
                check_filed(pair, is_named=False)
            else:
                assert not (shelf(pair, "b") / f"{BACKUP}.tar.gz").exists()
                assert any("Left out" in line and BACKUP in line for line in pair.b.lines())
            assert pair.b.staging() == []

    run(scenario)


@pytest.mark.parametrize("keeps_files", [True, False])
@pytest.mark.parametrize("times", [1, 2])
def test_mending_loses_none(times: int, keeps_files: bool, tmp_path: Path) -> None:
    """Pelican deletes a server's backups with the server: those that travel and those that it had before."""

    async def scenario() -> None:
        async with running_beside(tmp_path, Family.PELICAN, keeps_files=keeps_files) as pair:
            pair.keeps_files = True
            await pair.restart("a")
            stock(pair)
            if keeps_files:
                shelf(pair, "b").mkdir()
                (shelf(pair, "b") / f"{OTHER}.tar.gz").write_bytes(b"older")
            pair.panel.script("success", *["409"] * times)
            await pair.move(backups=[BACKUP])
            await has_arrived(pair)
            assert pair.hand_overs() == [200] * (times + 1)
            check_filed(pair)
            if keeps_files:
                assert (shelf(pair, "b") / f"{OTHER}.tar.gz").read_bytes() == b"older"

    run(scenario)


@TAKING
@pytest.mark.parametrize("keeps_files", [True, False])
def test_a_transfer_that_ends_elsewhere_keeps_a_copy_in_trash(
    family: Family, keeps_files: bool, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with running_beside(tmp_path, family, keeps_files=keeps_files) as pair:
            pair.keeps_files = True
            await pair.restart("a")
            stock(pair)
            shelf(pair, "b").mkdir(exist_ok=True)
            (shelf(pair, "b") / f"{OTHER}.tar.gz").write_bytes(b"older")
            pair.panel.script("success", *["409"] * 3)
            await pair.move(backups=[BACKUP])
            await pair.settled()
            await pair.is_back("transfer.disowned")
            assert in_trash(pair) == [CONTENT]
            assert (shelf(pair, "a") / f"{BACKUP}.tar.gz").read_bytes() == CONTENT
            if keeps_files or family is Family.CALAGOPUS:
                assert (shelf(pair, "b") / f"{OTHER}.tar.gz").read_bytes() == b"older"

    run(scenario)


@TAKING
@pytest.mark.parametrize("keeps_files", [True, False])
def test_an_answer_that_is_lost_calls_none_kept(family: Family, keeps_files: bool, tmp_path: Path) -> None:
    """The server is ours, so they are here, but the source must not give its own up."""

    async def scenario() -> None:
        async with running_beside(tmp_path, family, keeps_files=keeps_files) as pair:
            pair.keeps_files = True
            await pair.restart("a")
            stock(pair)
            pair.daemon.script("transfer", "drop-after")
            await pair.move(backups=[BACKUP], delete_backups=True)
            await has_arrived(pair)
            check_filed(pair, is_named=False)
            assert in_trash(pair) == ([] if keeps_files else [CONTENT])
            left = shelf(pair, "a") / f"{BACKUP}.tar.gz"  # Pelican deletes a server's backups with the server
            await soon(lambda: left.exists() and pair.daemons["a"].find(SERVER) is None)
            assert left.read_bytes() == CONTENT

    run(scenario)


@TAKING
@pytest.mark.parametrize("keeps_files", [True, False])
@pytest.mark.parametrize("agreed", [True, False])
def test_restarted_while_handing_over(agreed: bool, keeps_files: bool, family: Family, tmp_path: Path) -> None:
    """H2: nothing is sent twice; what came is at the daemon, or in the trash."""

    async def scenario() -> None:
        async with running_beside(tmp_path, family, keeps_files=keeps_files) as pair:
            pair.keeps_files = True
            await pair.restart("a")
            pair.keeps_files = keeps_files
            stock(pair)
            pair.daemon.script("transfer", "hold-after" if agreed else "hold")
            await pair.move(backups=[BACKUP])
            await handed_over(pair)
            if agreed:
                await soon(lambda: pair.panel.owner(SERVER) == "b")
            await pair.restart("b")
            if agreed:
                await has_arrived(pair)
                check_filed(pair, is_named=False)
                assert in_trash(pair) == ([] if keeps_files else [CONTENT])
            else:
                await pair.settled()
                await pair.is_back("transfer.disowned")
                assert in_trash(pair) == [CONTENT]
            pair.daemon.release()
            await soon(lambda: len(pair.hand_overs()) == 1)

    run(scenario)


@TAKING
def test_what_the_daemon_says_it_has_and_has_not_is_filed_for_it(family: Family, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_beside(tmp_path, family) as pair:
            stock(pair)
            pair.daemon.script("transfer", "hold-after")
            await pair.move(backups=[BACKUP])
            await handed_over(pair)
            await soon(lambda: pair.panel.owner(SERVER) == "b")
            (shelf(pair, "b") / f"{BACKUP}.tar.gz").write_bytes(CONTENT[:-1])
            (shelf(pair, "b") / f"{BACKUP}.tar.gz").unlink()
            pair.daemon.release()
            await has_arrived(pair)
            check_filed(pair, is_named=False)
            assert any("has not filed" in line for line in pair.b.lines())

    run(scenario)


def test_a_backup_of_that_name_with_other_content_is_not_overwritten(tmp_path: Path) -> None:
    """Calagopus would."""

    async def scenario() -> None:
        async with running_beside(tmp_path, Family.CALAGOPUS) as pair:
            stock(pair)
            old = shelf(pair, "b") / f"{BACKUP}.tar.gz"
            old.write_bytes(b"older")
            await pair.move(backups=[BACKUP], delete_backups=True)
            await has_arrived(pair)
            assert old.read_bytes() == b"older"
            assert (shelf(pair, "a") / f"{BACKUP}.tar.gz").read_bytes() == CONTENT
            assert pair.panel.backups(SERVER) == []
            assert any("Left out" in line and BACKUP in line for line in pair.b.lines())

    run(scenario)


def test_calagopus_panel_deletes_only_what_its_daemon_has(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_beside(tmp_path, Family.CALAGOPUS) as pair:
            stock(pair)
            await pair.move(backups=[BACKUP], delete_backups=True)
            await has_arrived(pair)
            check_filed(pair)
            assert not (shelf(pair, "a") / f"{BACKUP}.tar.gz").exists()
            (kept,) = (pair.home / "a").rglob(f".sidecar-trash/*/volume/{BACKUP}.tar.gz")
            assert kept.read_bytes() == CONTENT

    run(scenario)
