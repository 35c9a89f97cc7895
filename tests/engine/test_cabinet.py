"""Files behind an archive where a node daemon keeps a folder of its own for each server, and may delete it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sidecar.engine.cabinet import Cabinet
from sidecar.engine.daemon_folder import DaemonFolder, put_back_leftovers
from sidecar.ports import ArrivedFile, FilePlace
from tests.engine.rig import SERVER

TRANSFER = "aaaaaaaa-1111-4222-8333-444444444444"
BACKUP = "22222222-2222-4222-8222-222222222222.tar.gz"
OTHER = "33333333-2222-4222-8222-222222222222.tar.gz"


def files(directory: Path) -> dict[str, str]:
    """What anybody can see there: everything but staging and trash."""
    return {
        str(path.relative_to(directory)): path.read_text()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not {".sidecar-staging", ".sidecar-trash"} & set(path.parts)
    }


def arrived(tmp_path: Path, content: str) -> tuple[Cabinet, ArrivedFile]:
    cabinet = Cabinet({FilePlace.BACKUPS: tmp_path}, TRANSFER, carrying=tmp_path / "carrying")
    filing = cabinet._filings[FilePlace.BACKUPS]
    digest, _ = filing.receive(BACKUP, [content.encode()], most_bytes=1 << 20)
    file = ArrivedFile(
        place=FilePlace.BACKUPS, name=BACKUP, sha256_hex=digest, backup=BACKUP[:36], is_carried=True, folder=SERVER
    )
    return cabinet, file


def test_a_backup_that_the_daemon_has_already_leaves_nothing_aside(tmp_path: Path) -> None:
    folder = tmp_path / SERVER
    folder.mkdir()
    (folder / BACKUP).write_text("same")
    (folder / OTHER).write_text("unrelated")
    cabinet, file = arrived(tmp_path, "same")
    assert [one.file for one in cabinet.carried([file], SERVER)] == [file]
    assert not folder.exists()  # out of the daemon's reach
    folder.mkdir()
    (folder / BACKUP).write_text("same")  # the daemon files it
    settled = cabinet.finish([file], SERVER, 0.0, taken=True)
    assert settled.lines == () and [one.is_kept for one in settled.files] == [True]
    assert files(tmp_path) == {f"{SERVER}/{BACKUP}": "same", f"{SERVER}/{OTHER}": "unrelated"}
    assert [path.name for path in tmp_path.iterdir() if "aside" in path.name] == []


def test_a_file_of_the_same_name_and_other_content_stays_and_the_new_one_is_left_out(tmp_path: Path) -> None:
    folder = tmp_path / SERVER
    folder.mkdir()
    (folder / BACKUP).write_text("old")
    cabinet, file = arrived(tmp_path, "new")
    assert cabinet.carried([file], SERVER) == []
    settled = cabinet.finish([file], SERVER, 0.0, taken=True)
    assert settled.lines == (f"Left out, for this node has another file of that name: {folder / BACKUP}.",)
    assert files(tmp_path) == {f"{SERVER}/{BACKUP}": "old"}


def test_what_is_aside_already_does_not_leave_the_folder_to_the_daemon(tmp_path: Path) -> None:
    """Twice in a row, with what a crash left: all of it is out of reach, and all of it comes back."""
    folder, aside = tmp_path / SERVER, tmp_path / f".sidecar-aside-{SERVER}"
    for directory, content in ((folder, "here"), (aside, "from before")):
        directory.mkdir()
        (directory / BACKUP).write_text(content)
    (folder / OTHER).write_text("only copy")
    DaemonFolder(tmp_path, SERVER).set_aside()
    assert not folder.exists()
    shutil.rmtree(folder, ignore_errors=True)  # the daemon forgets the server
    DaemonFolder(tmp_path, SERVER).put_back()
    assert files(tmp_path) == {
        f"{SERVER}/{BACKUP}": "from before",
        f"{SERVER}/{BACKUP}.sidecar-kept-1": "here",
        f"{SERVER}/{OTHER}": "only copy",
    }


def test_what_a_crash_left_aside_comes_back_at_the_next_start(tmp_path: Path) -> None:
    busy = "44444444-2222-4222-8222-222222222222"
    for server in (SERVER, busy):
        (tmp_path / server).mkdir()
        (tmp_path / server / BACKUP).write_text(server)
        DaemonFolder(tmp_path, server).set_aside()
    put_back_leftovers(tmp_path, {busy})
    assert files(tmp_path) == {f"{SERVER}/{BACKUP}": SERVER, f".sidecar-aside-{busy}/{BACKUP}": busy}
    put_back_leftovers(tmp_path / "missing", set())


def test_a_directory_that_is_no_longer_configured_holds_nothing_up(tmp_path: Path) -> None:
    _, file = arrived(tmp_path, "x")
    without = Cabinet({FilePlace.INSTALL_LOGS: tmp_path / "logs"}, TRANSFER)
    settled = without.finish([file], SERVER, 0.0, taken=False)
    assert len(settled.lines) == 1 and "servers.backups" in settled.lines[0]
    without.discard([file], SERVER, "disowned", 0.0)
    assert (tmp_path / ".sidecar-staging" / TRANSFER / BACKUP).read_text() == "x"


READER = """
import os, sys
from pathlib import Path
from sidecar.engine.backups import BackupForm, pack, pack_install_log
home, server, backup = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
if os.geteuid() == 0:
    os.setgroups([]); os.setegid(65534); os.seteuid(65534)
for name in ("closed", "open"):
    print(name, pack_install_log(home / name, server, BackupForm.PELICAN) is None)
print("backups", sorted(pack(home / "backups", server, [backup[:36], sys.argv[4][:36]], BackupForm.PELICAN)))
"""


def test_what_cannot_be_read_is_left_out_before_anything_is_sent(tmp_path: Path) -> None:
    """Symptom: an installation log that only root may read fails every transfer, some of them behind the point."""
    home = Path("/tmp") / f"sidecar-unreadable-{os.getpid()}"  # the reader is another user, who must get there
    home.mkdir(0o755)
    home.chmod(0o755)
    try:
        for name in ("closed", "open", "backups"):
            (home / name).mkdir()
            (home / name).chmod(0o755)
        (home / "closed" / f"{SERVER}.log").write_text("x")
        (home / "closed").chmod(0)
        for path in (home / "open" / f"{SERVER}.log", home / "backups" / BACKUP):
            path.write_text("x")
            path.chmod(0)
        (home / "backups" / OTHER).write_text("x")
        (home / "backups" / OTHER).chmod(0o644)
        done = subprocess.run(
            [sys.executable, "-c", READER, str(home), SERVER, BACKUP, OTHER],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.splitlines() == ["closed True", "open True", f"backups ['{OTHER[:36]}']"]
    finally:
        (home / "closed").chmod(0o755)
        shutil.rmtree(home)


@pytest.mark.parametrize("is_other", [False, True])
def test_a_folder_is_only_merged_where_nothing_is_lost(tmp_path: Path, is_other: bool) -> None:
    folder = DaemonFolder(tmp_path, SERVER)
    (tmp_path / SERVER / "sub").mkdir(parents=True)
    (tmp_path / SERVER / "sub" / "file").write_text("one")
    folder.set_aside()
    (tmp_path / SERVER / "sub").mkdir(parents=True)
    (tmp_path / SERVER / "sub" / "file").write_text("two" if is_other else "one")
    folder.put_back()  # directories are never compared: both stay
    found = files(tmp_path)
    assert found[f"{SERVER}/sub.sidecar-kept-1/file"] == "one" and len(found) == 2
