"""The dialect for other programs' daemons: files and directories only, nothing that any of them gets wrong."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from sidecar.archive.entries import Notice, NoticeKind
from sidecar.archive.produce import Dialect
from tests.archive.producing import MTIME_NS, Made, make, no_residue, stamp_directories, tree, untar, write


def stranger(volume: Path, **more: object) -> Made:
    with no_residue():
        return make(volume, dialect=Dialect.STRANGER, **more)  # type: ignore[arg-type]


def contents(made: Made) -> list[tuple[str, bytes | None]]:
    found: list[tuple[str, bytes | None]] = []
    with tarfile.open(fileobj=io.BytesIO(made.tar)) as tar:
        for info in tar:
            assert info.isreg() or info.isdir()
            file = tar.extractfile(info)
            found.append((info.name, file.read() if file is not None else None))
    return found


def details(made: Made, kind: NoticeKind) -> dict[bytes, str]:
    return {notice.path: notice.detail for notice in made.notices if notice.kind is kind}


@pytest.mark.parametrize("program", ["tar", "bsdtar"])
def test_files_and_directories_arrive_in_whole_seconds(program: str, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    for name in (b"a", b"d/b", b"\xff", b"n" * 150, b"new\nline"):
        write(volume, name, name, 0o640)
    stamp_directories(volume)
    made = stranger(volume)
    untar(program, made.tar, tmp_path / "out")
    assert tree(tmp_path / "out") == tree(volume, seconds=True)
    assert b"mtime=" not in made.tar
    assert made.notices == []


def test_hard_links_are_full_copies_and_say_so(tmp_path: Path) -> None:
    write(tmp_path, "a", b"shared")
    os.link(tmp_path / "a", tmp_path / "b")
    made = stranger(tmp_path)
    assert contents(made) == [("a", b"shared"), ("b", b"shared")]
    assert set(details(made, NoticeKind.LINK_AS_COPY)) == {b"a", b"b"}


def test_a_link_to_a_file_is_a_copy_and_every_other_link_is_named(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    write(tmp_path, "outside", b"secret")
    write(volume, "d/file", b"content", 0o600)
    for name, target in (
        ("chain", "link"),
        ("link", "d/file"),
        ("absolute", "/etc/hostname"),
        ("absolute-inside", str(volume / "d/file")),
        ("dangling", "nothing"),
        ("directory", "d"),
        ("loop", "loop"),
        ("out", "../outside"),
        ("out-and-in", "../volume/d/file"),
    ):
        (volume / name).symlink_to(target)
    made = stranger(volume)
    assert contents(made) == [("chain", b"content"), ("d", None), ("d/file", b"content"), ("link", b"content")]
    assert details(made, NoticeKind.LINK_AS_COPY) == {b"chain": "symlink", b"link": "symlink"}
    assert details(made, NoticeKind.LINK_DROPPED) == {
        b"absolute": "absolute target",
        b"absolute-inside": "absolute target",
        b"dangling": "dangling",
        b"directory": "target is a directory",
        b"loop": "loop",
        b"out": "target outside the volume",
        b"out-and-in": "target outside the volume",
    }
    assert (made.meter.total_bytes, made.meter.total_files) == (21, 3)
    with tarfile.open(fileobj=io.BytesIO(made.tar)) as tar:
        link = tar.getmember("link")
    assert (link.mode, link.mtime) == (0o600, MTIME_NS // 10**9)


def test_copies_may_not_blow_the_archive_up(tmp_path: Path) -> None:
    write(tmp_path, "big", os.urandom(1 << 20))
    for number in range(10):
        (tmp_path / f"link{number}").symlink_to("big")
    made = stranger(tmp_path)
    assert len(made.kinds(NoticeKind.LINK_AS_COPY)) == 1
    assert set(details(made, NoticeKind.LINK_DROPPED).values()) == {"copies would more than double the archive"}


def test_empty_directories_are_sent_and_mentioned_once(tmp_path: Path) -> None:
    for name in ("a", "b/c", "b/d", "full"):
        (tmp_path / name).mkdir(parents=True)
    write(tmp_path, "full/file")
    (tmp_path / "z").mkdir()
    (tmp_path / "z/link").symlink_to("nowhere")
    made = stranger(tmp_path)
    assert [name for name, content in contents(made) if content is None] == ["a", "b", "b/c", "b/d", "full", "z"]
    assert details(made, NoticeKind.EMPTY_DIRECTORY_MAYBE_LOST) == {b"a": "4 in all"}


def test_a_copy_follows_its_file_when_that_changes(tmp_path: Path) -> None:
    write(tmp_path, "file", b"old")
    write(tmp_path, "other", b"same")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "still").symlink_to("other")
    done: list[Notice] = []

    def on_notice(notice: Notice) -> None:
        if notice.kind is NoticeKind.LINK_AS_COPY and notice.path == b"still" and not done:
            done.append(notice)
            write(tmp_path, "file", b"new content")

    made = stranger(tmp_path, on_notice=on_notice)
    assert contents(made) == [
        ("file", b"old"),
        ("link", b"old"),
        ("other", b"same"),
        ("still", b"same"),
        ("file", b"new content"),
        ("link", b"new content"),
    ]


def test_a_link_that_is_turned_elsewhere(tmp_path: Path) -> None:
    write(tmp_path, "a", b"A")
    write(tmp_path, "b", b"B")
    (tmp_path / "link").symlink_to("a")

    def turn() -> None:
        (tmp_path / "link").unlink()
        (tmp_path / "link").symlink_to("b")

    made = stranger(tmp_path, between=turn)
    assert contents(made)[-1] == ("link", b"B")


def test_what_was_removed_is_only_named(tmp_path: Path) -> None:
    write(tmp_path, "a")
    write(tmp_path, "b")

    def on_notice(notice: Notice) -> None:
        if notice.kind is NoticeKind.VANISHED:
            (tmp_path / "b").unlink(missing_ok=True)

    made = stranger(tmp_path, between=lambda: os.unlink(tmp_path / "a"), on_notice=on_notice)
    assert details(made, NoticeKind.REMOVED) == {b"a": "", b"b": ""}
    assert contents(made) == []
