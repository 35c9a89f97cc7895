"""What a producer does when the volume moves under it: every test changes real files at a known moment."""

from __future__ import annotations

import io
import os
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from sidecar.archive.entries import Notice, NoticeKind
from sidecar.archive.meter import Meter
from sidecar.archive.pack import MAX_UNSENT_BYTES, Packer
from sidecar.archive.produce import Dialect
from sidecar.archive.scan import changes, scan
from sidecar.archive.tar_write import PIECE_BYTES, Piece, TarWriter
from sidecar.errors import HostFailed
from tests.archive.producing import Made, make, no_residue, stamp_directories, tree, untar, write


def members(made: Made) -> list[tuple[str, bytes]]:
    """Names and contents of files in the order of the archive; a removal is a name with a minus sign before it."""
    found = []
    with tarfile.open(fileobj=io.BytesIO(made.tar)) as tar:
        for info in tar:
            if info.pax_headers.get("SIDECAR.removed"):
                found.append(("-" + info.name, b""))
            elif info.isreg():
                file = tar.extractfile(info)
                assert file is not None
                found.append((info.name, file.read()))
    return found


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    root = tmp_path / "volume"
    for name in ("a", "d/b", "d/c", "z"):
        write(root, name, name.encode())
    return root


ALL = [("a", b"a"), ("d/b", b"d/b"), ("d/c", b"d/c"), ("z", b"z")]


@pytest.mark.parametrize("dialect", Dialect)
@pytest.mark.parametrize(("content", "kind"), [(b"longer than it was", NoticeKind.GREW), (b"", NoticeKind.SHRANK)])
def test_a_file_of_another_size_than_scanned(volume: Path, dialect: Dialect, content: bytes, kind: NoticeKind) -> None:
    with no_residue():
        made = make(volume, dialect=dialect, between=lambda: write(volume, "d/b", content))
    assert members(made) == [ALL[0], ("d/b", content), *ALL[2:], ("d/b", content)]
    assert made.kinds(kind) == [b"d/b"]
    assert made.kinds(NoticeKind.CHANGED) == [b"d/b"]


def test_a_file_that_changes_without_changing_size_or_mtime_is_sent_again(volume: Path) -> None:
    made = make(volume, between=lambda: write(volume, "d/b", b"D/B"))
    assert members(made) == [ALL[0], ("d/b", b"D/B"), *ALL[2:], ("d/b", b"D/B")]


@pytest.mark.parametrize("dialect", Dialect)
def test_a_file_that_vanishes(volume: Path, dialect: Dialect) -> None:
    made = make(volume, dialect=dialect, between=lambda: os.unlink(volume / "d/b"))
    removal = [("-d/b", b"")] if dialect is Dialect.SIDECAR else []
    assert members(made) == [ALL[0], *ALL[2:], *removal]
    assert made.kinds(NoticeKind.VANISHED) == [b"d/b"]
    assert made.kinds(NoticeKind.REMOVED) == ([] if dialect is Dialect.SIDECAR else [b"d/b"])


def test_a_directory_that_vanishes_is_announced_after_its_content(volume: Path) -> None:
    made = make(volume, between=lambda: os.rename(volume / "d", volume / "moved"))
    assert members(made) == [
        ALL[0],
        ALL[3],
        ("-d/c", b""),
        ("-d/b", b""),
        ("-d", b""),
        ("moved/b", b"d/b"),
        ("moved/c", b"d/c"),
    ]


def test_a_file_that_appears(volume: Path) -> None:
    made = make(volume, between=lambda: write(volume, "new/file", b"new"))
    assert members(made) == [*ALL, ("new/file", b"new")]


def test_a_file_that_comes_back_between_read_and_rescan_is_not_forgotten(volume: Path) -> None:
    """On a filesystem where a rename leaves no trace, the scans would agree on a file that was never read."""
    hidden = volume.parent / "hidden"

    def on_notice(notice: Notice) -> None:
        if notice.kind is NoticeKind.VANISHED:
            os.rename(hidden, volume / "z")

    made = make(volume, between=lambda: os.rename(volume / "z", hidden), on_notice=on_notice)
    assert members(made)[-1] == ALL[3]


@pytest.mark.parametrize("what", ["file", "link", "fifo", "directory"])
def test_a_file_whose_name_is_something_else_by_then(volume: Path, what: str) -> None:
    write(volume.parent, "secret", b"outside")

    def replace() -> None:
        write(volume.parent, "other", b"other")
        os.unlink(volume / "d/b")
        if what == "file":
            os.rename(volume.parent / "other", volume / "d/b")
        elif what == "link":
            os.symlink(volume.parent / "secret", volume / "d/b")
        elif what == "fifo":
            os.mkfifo(volume / "d/b")
        else:
            os.mkdir(volume / "d/b")

    made = make(volume, between=replace)
    again = {
        "file": [("d/b", b"other")],
        "link": [("-d/b", b"")],
        "fifo": [("-d/b", b"")],
        "directory": [("-d/b", b"")],
    }
    assert members(made) == [ALL[0], *ALL[2:], *again[what]]


def test_a_directory_replaced_by_a_link_is_not_entered(volume: Path) -> None:
    write(volume.parent, "elsewhere/b", b"outside")

    def replace() -> None:
        os.rename(volume / "d", volume.parent / "away")
        os.symlink(volume.parent / "elsewhere", volume / "d")

    made = make(volume, between=replace)
    assert members(made) == [ALL[0], ALL[3], ("-d/c", b""), ("-d/b", b""), ("-d", b"")]


def test_a_change_in_each_round_ends_when_the_volume_comes_to_rest(volume: Path) -> None:
    rounds: list[int] = []

    def on_notice(notice: Notice) -> None:
        if notice.kind is NoticeKind.CHANGED and len(rounds) < 2:
            rounds.append(len(rounds))
            write(volume, "z", b"z" * (len(rounds) + 5))

    made = make(volume, between=lambda: write(volume, "a", b"A"), on_notice=on_notice)
    assert members(made)[-1] == ("z", b"z" * 7)
    assert made.meter.total_bytes == made.meter.content_bytes


@pytest.mark.parametrize("max_rounds", [0, 1, 3])
def test_a_volume_that_never_rests_is_an_error(volume: Path, max_rounds: int) -> None:
    count = [0]

    def change(notice: Notice | None = None) -> None:
        if notice is None or notice.kind is NoticeKind.CHANGED:
            count[0] += 1
            write(volume, "d/b", b"x" * count[0])

    with no_residue(), pytest.raises(HostFailed) as caught:
        make(volume, between=change, on_notice=change, max_rounds=max_rounds)
    assert caught.value.code == "volume.changed"
    assert (caught.value.facts["path"], caught.value.facts["rounds"]) == ("d/b", max_rounds)
    assert count[0] == max_rounds + 1


def test_a_volume_at_rest_needs_no_round(volume: Path) -> None:
    assert members(make(volume, max_rounds=0)) == ALL


def test_hard_links_stay_links_when_their_file_changes(volume: Path) -> None:
    os.link(volume / "d/b", volume / "second")
    made = make(volume, between=lambda: write(volume, "second", b"new content"))
    with tarfile.open(fileobj=io.BytesIO(made.tar)) as tar:
        last = tar.getmembers()[-2:]
    assert [(info.name, info.type, info.linkname) for info in last] == [
        ("d/b", tarfile.REGTYPE, ""),
        ("second", tarfile.LNKTYPE, "d/b"),
    ]


def test_a_hard_link_never_points_at_a_name_that_was_not_sent(volume: Path) -> None:
    for name in ("first", "second", "third"):
        os.link(volume / "a", volume / name)
    made = make(volume, between=lambda: os.unlink(volume / "a"))
    sent: set[str] = set()
    with tarfile.open(fileobj=io.BytesIO(made.tar)) as tar:
        for info in tar:
            assert not info.islnk() or info.linkname in sent
            sent.add(info.name)


def test_an_archive_of_a_volume_that_moved_extracts_to_what_it_is_now(volume: Path, tmp_path: Path) -> None:
    def change() -> None:
        write(volume, "a", b"another")
        write(volume, "d/new/file", b"new")
        os.chmod(volume / "z", 0o600)
        stamp_directories(volume)

    made = make(volume, between=change)
    untar("tar", made.tar, tmp_path / "out")
    stamp_directories(tmp_path / "out")  # GNU tar gives a directory the mtime of its first appearance
    assert tree(tmp_path / "out") == tree(volume)


# --- the packer by itself


def packer_of(volume: Path, wait: Callable[[float], object]) -> Packer:
    tar = TarWriter(lambda: memoryview(bytearray(PIECE_BYTES)), lambda piece: None)
    return Packer(
        volume,
        tar,
        dialect=Dialect.SIDECAR,
        meter=Meter(),
        notice=lambda notice: None,
        wait=wait,
    )


def test_a_write_right_after_the_read_is_never_missed(tmp_path: Path) -> None:
    """Of the same size, the mtime put back: only the ctime tells.

    Kernels before 6.13 stamp it from a clock of some milliseconds; this would fail there without the wait.
    """
    for number in range(10):
        volume = tmp_path / str(number)
        write(volume, "level.dat", b"read")
        before = scan(volume, max_entries=10)
        packer = packer_of(volume, wait=threading.Event().wait)
        packer.pack(before)
        write(volume, "level.dat", b"lost")
        after = scan(volume, max_entries=10)
        found = changes(before, after)
        assert [entry.path for entry in found.changed] == [b"level.dat"]
        for one in (before, after, found):
            one.close()


def test_only_a_file_that_changed_a_moment_ago_is_waited_for(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    write(volume, "fresh")
    waited: list[float] = []
    found = scan(volume, max_entries=10)
    packer = packer_of(volume, waited.append)
    packer.pack(found)
    assert len(waited) == 1
    assert 0 < waited[0] <= 2
    threading.Event().wait(waited[0])
    packer.pack(found)
    assert len(waited) == 1
    found.close()


def test_what_could_not_be_read_is_remembered_within_bounds(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    write(volume, "x" * 255)
    found = scan(volume, max_entries=10)
    (entry,) = found
    found.close()
    os.unlink(volume / ("x" * 255))
    packer = packer_of(volume, lambda seconds: None)
    packer.pack([entry])
    assert packer.unsent == {entry.path}
    with pytest.raises(HostFailed) as caught:
        packer.pack(entry for _ in range(MAX_UNSENT_BYTES // 300))
    assert caught.value.code == "volume.changed"


def test_pieces_are_flushed_before_each_rescan(volume: Path) -> None:
    """A member per round: the receiver is not kept waiting for what is read already while the volume is scanned."""
    pieces: list[Piece] = []
    tar = TarWriter(lambda: memoryview(bytearray(PIECE_BYTES)), pieces.append)
    tar.write(bytes(512))
    tar.flush()
    tar.flush()
    assert [piece.size for piece in pieces] == [512]
