"""Files that come with a server: received, filed, taken back; twice equals once, and nothing is ever overwritten."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.archive.filing import Filing, filing_layout
from sidecar.archive.staging import list_staging, remove_staging
from sidecar.archive.trash import list_trash
from sidecar.errors import HostFailed

NAME = "0b7f9e9c-52a4-4a8a-8c3a-6a3f1c1f0001.tar.gz"
CONTENT = b"a backup" * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()
TRANSFER, SERVER = "t-1", "s-1"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = tmp_path / "backups"
    path.mkdir()
    return path


@pytest.fixture
def filing(home: Path) -> Filing:
    filing = Filing(home, TRANSFER)
    assert filing.receive(NAME, [CONTENT[:10], memoryview(CONTENT)[10:]], most_bytes=1 << 20) == (DIGEST, len(CONTENT))
    filing.sync()
    return filing


def visible(home: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in home.iterdir() if not path.name.startswith(".")}


def test_nothing_is_seen_before_it_is_filed(home: Path, filing: Filing) -> None:
    assert visible(home) == {}
    assert filing.staged(NAME).stat().st_mode & 0o777 == 0o600
    for _ in range(2):
        assert filing.place(NAME, DIGEST)
        assert visible(home) == {NAME: CONTENT}
    remove_staging(filing_layout(home, TRANSFER), TRANSFER)
    assert filing.place(NAME, DIGEST), "staging is gone, the file has its name"
    assert visible(home) == {NAME: CONTENT}


def test_nothing_is_overwritten(home: Path, filing: Filing) -> None:
    (home / NAME).write_bytes(b"somebody else's")
    assert not filing.place(NAME, DIGEST)
    assert visible(home) == {NAME: b"somebody else's"}
    filing.take_back(NAME)
    assert visible(home) == {NAME: b"somebody else's"}


def test_the_same_content_is_there_already(home: Path, filing: Filing) -> None:
    (home / NAME).write_bytes(CONTENT)
    assert filing.place(NAME, DIGEST)
    filing.take_back(NAME)
    assert visible(home) == {NAME: CONTENT}, "it was not this transfer's"


def test_a_link_of_that_name_is_not_followed(home: Path, filing: Filing, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(CONTENT)
    (home / NAME).symlink_to(tmp_path / "elsewhere")
    assert not filing.place(NAME, DIGEST)
    assert (home / NAME).is_symlink()


def test_what_was_filed_is_taken_back_into_the_trash(home: Path, filing: Filing) -> None:
    filing.place(NAME, DIGEST)
    for _ in range(2):
        filing.take_back(NAME)
        filing.trash(SERVER, "disowned", 1000.0)
        assert visible(home) == {}
    layout = filing_layout(home, TRANSFER)
    (item,) = list_trash(layout.trash_root)
    assert (item.path / NAME).read_bytes() == CONTENT
    assert list_staging(layout) == []


def test_files_of_the_directory_go_to_the_trash_by_name(home: Path) -> None:
    (home / NAME).write_bytes(CONTENT)
    (home / "other.tar.gz").write_bytes(b"stays")
    filing = Filing(home, TRANSFER)
    for _ in range(2):
        filing.trash(SERVER, "moved", 1000.0, [home / NAME, home / "never-there.tar.gz"])
    assert visible(home) == {"other.tar.gz": b"stays"}
    (item,) = list_trash(home / ".sidecar-trash")
    assert (item.path / NAME).read_bytes() == CONTENT


def test_what_is_too_long_is_hashed_and_not_kept(home: Path) -> None:
    filing = Filing(home, TRANSFER)
    assert filing.receive("a.log", [CONTENT[:100], CONTENT[100:]], most_bytes=50) == (DIGEST, len(CONTENT))
    assert filing.staged("a.log").read_bytes() == CONTENT[:50]


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(HostFailed) as caught:
        Filing(tmp_path / "missing" / "backups", TRANSFER).receive(NAME, [CONTENT], most_bytes=1)
    assert caught.value.code == "disk.failed"
    assert list(tmp_path.iterdir()) == []


def test_a_directory_is_made_where_its_parent_is(tmp_path: Path) -> None:
    filing = Filing(tmp_path / "install", TRANSFER)
    filing.receive(NAME, [CONTENT], most_bytes=1 << 20)
    assert filing.place(NAME, DIGEST) and (tmp_path / "install" / NAME).read_bytes() == CONTENT


def test_in_a_folder_of_its_own(home: Path, filing: Filing) -> None:
    assert not filing.has(NAME, DIGEST, SERVER)
    for _ in range(2):
        assert filing.place(NAME, DIGEST, SERVER) and filing.has(NAME, DIGEST, SERVER)
    assert (home / SERVER / NAME).read_bytes() == CONTENT and not (home / NAME).exists()
    (home / SERVER / NAME).write_bytes(b"else")
    assert not filing.has(NAME, DIGEST, SERVER)


def test_a_source_that_breaks_leaves_no_descriptor(home: Path) -> None:
    def breaking() -> Iterator[bytes]:
        yield b"some"
        raise ValueError("broken")

    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ValueError, match="broken"):
        Filing(home, TRANSFER).receive(NAME, breaking(), most_bytes=100)
    assert len(os.listdir("/proc/self/fd")) == before
    assert visible(home) == {}
