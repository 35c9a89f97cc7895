"""What a stranger's archive must not be able to do."""

from __future__ import annotations

import gzip
import os
import resource
import signal
import stat
import tarfile
from pathlib import Path

import pytest
import zstandard

from sidecar.archive.entries import Notice, NoticeKind
from sidecar.archive.extract import Extraction, ExtractLimits
from sidecar.archive.meter import Meter
from sidecar.archive.tree_writer import RESERVED_PREFIX
from sidecar.errors import DataCorrupt, HostFailed
from tests.archive.extracting import (
    MTIME,
    directory,
    extract,
    hard_link,
    member,
    removed,
    symlink,
    tar_of,
    tree_of,
)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory beside the staging directory which nothing may touch."""
    top = tmp_path / "outside"
    top.mkdir(mode=0o750)
    (top / "secret").write_bytes(b"secret")
    (top / "secret").chmod(0o600)
    os.utime(top / "secret", (1, 1))
    os.utime(top, (1, 1))
    return top


def refused(tmp_path: Path, *members: tuple[tarfile.TarInfo, bytes], code: str = "archive.hostile") -> DataCorrupt:
    with pytest.raises(DataCorrupt) as caught:
        extract(tar_of(*members), tmp_path / "out")
    assert caught.value.code == code
    return caught.value


@pytest.mark.parametrize("name", ["../x", "a/../../x", "..", "a/..", "/../x", "./../x", "a/b/../c"])
def test_dot_dot_is_refused(tmp_path: Path, name: str) -> None:
    refused(tmp_path, member(name, b"x"))
    refused(tmp_path, directory(name))
    refused(tmp_path, symlink(name, "x"))
    assert not (tmp_path / "x").exists()


def test_absolute_names_are_made_relative(tmp_path: Path) -> None:
    extract(tar_of(member("/etc/passwd", b"x"), member("//a//./b", b"y"), member("./c", b"z")), tmp_path / "out")
    assert {name for name, entry in tree_of(tmp_path / "out").items() if entry[0] == "file"} == {
        b"etc/passwd",
        b"a/b",
        b"c",
    }


def test_writing_through_a_symlink_is_refused(tmp_path: Path, outside: Path) -> None:
    before = tree_of(outside)
    for target in (str(outside), "../outside", "."):
        for then in (member("d/new", b"x"), directory("d/new"), symlink("d/new", "x"), member("d/secret", b"x")):
            error = refused(tmp_path, symlink("d", target), then)
            assert "symbolic link" in error.message
    refused(tmp_path, directory("a"), symlink("a/b", str(outside)), member("a/b/c/d", b"x"))
    assert tree_of(outside) == before


def test_a_file_over_a_symlink_replaces_the_link(tmp_path: Path, outside: Path) -> None:
    before = tree_of(outside)
    extract(tar_of(symlink("s", str(outside / "secret")), member("s", b"mine")), tmp_path / "out")
    assert (tmp_path / "out/s").read_bytes() == b"mine"
    assert not (tmp_path / "out/s").is_symlink()
    extract(tar_of(symlink("d", str(outside)), directory("d", mode=0o700)), tmp_path / "out2")
    assert (tmp_path / "out2/d").is_dir()
    assert not (tmp_path / "out2/d").is_symlink()
    assert tree_of(outside) == before


def test_mode_and_mtime_do_not_follow_a_symlink(tmp_path: Path, outside: Path) -> None:
    info = outside.stat(), (outside / "secret").stat()
    link = symlink("s", str(outside / "secret"))
    extract(tar_of(link, symlink("t", str(outside)), symlink("s2", "../outside/secret")), tmp_path / "out")
    assert (outside.stat(), (outside / "secret").stat()) == info
    assert (tmp_path / "out/s").lstat().st_mtime == MTIME


def test_hard_links_only_to_files_in_the_archive(tmp_path: Path, outside: Path) -> None:
    secret = outside / "secret"
    for target in (str(secret), "../outside/secret", "missing", "missing/file", "", "."):
        refused(tmp_path, hard_link("h", target))
    refused(tmp_path, symlink("s", str(secret)), hard_link("h", "s"))
    refused(tmp_path, symlink("d", str(outside)), hard_link("h", "d/secret"))
    refused(tmp_path, directory("dir"), hard_link("h", "dir"))
    refused(tmp_path, member("a/b", b"x"), hard_link("a", "a/b"))
    assert secret.stat().st_nlink == 1


def test_hard_links_that_are_fine(tmp_path: Path) -> None:
    members = [member("a/b", b"x"), hard_link("c/d", "./a/b"), hard_link("c/d", "a/b"), hard_link("a/b", "a/b")]
    extract(tar_of(*members, member("e", b"y"), hard_link("e", "a/b")), tmp_path / "out")
    assert (tmp_path / "out/a/b").stat().st_nlink == 3


def test_devices_and_fifos_are_left_out(tmp_path: Path) -> None:
    notices: list[Notice] = []
    types = (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
    extract(tar_of(*(member(f"x{n}", type=t) for n, t in enumerate(types))), tmp_path / "out", notices=notices)
    assert [notice.kind for notice in notices] == [NoticeKind.SKIPPED_SPECIAL] * 3
    assert tree_of(tmp_path / "out") == {}


def test_notices_are_bounded(tmp_path: Path) -> None:
    notices: list[Notice] = []
    extract(tar_of(*(member(f"x{n}", type=tarfile.FIFOTYPE) for n in range(1200))), tmp_path / "out", notices=notices)
    assert len(notices) == 1001
    assert notices[-1].kind is NoticeKind.MORE


def test_setuid_setgid_and_sticky_are_dropped(tmp_path: Path) -> None:
    extract(tar_of(member("f", b"x", mode=0o7755), directory("d", mode=0o7777)), tmp_path / "out")
    assert stat.S_IMODE((tmp_path / "out/f").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "out/d").stat().st_mode) == 0o777


def test_directories_get_mode_and_mtime_at_the_end(tmp_path: Path) -> None:
    members = [directory("d", mode=0o555), member("d/f", b"x"), directory("d/e", mode=0), member("d/e/g", b"y")]
    extract(tar_of(directory(".", mode=0o711), *members, member("i/j", b"z")), tmp_path / "out")
    top = tmp_path / "out"
    assert [stat.S_IMODE(path.stat().st_mode) for path in (top, top / "d", top / "d/e", top / "i")] == [
        0o711,
        0o555,
        0,
        0o755,
    ]
    assert [path.stat().st_mtime for path in (top, top / "d", top / "d/e")] == [MTIME] * 3
    extract(tar_of(member("x", b"y")), tmp_path / "plain")
    assert stat.S_IMODE((tmp_path / "plain").stat().st_mode) == 0o755


def test_later_members_replace_earlier_ones(tmp_path: Path) -> None:
    extract(
        tar_of(
            member("f", b"one" * 1000),
            member("f", b"two"),
            directory("dir", mode=0o700),
            member("dir/kept", b"x"),
            directory("dir", mode=0o750),
            member("was-file", b"x"),
            directory("was-file"),
            member("was-file/in", b"y"),
            directory("was-dir"),
            member("was-dir/deep/er", b"x"),
            member("was-dir", b"now a file"),
            symlink("s", "a"),
            symlink("s", "b"),
            member("l", b"x"),
            symlink("l", "b"),
            directory("dd"),
            member("dd/x", b"1"),
            symlink("dd", "b"),
            directory("again"),
            member("again/x", b"1"),
            member("again", b"2"),
            directory("again"),
            member("again/y", b"3"),
        ),
        tmp_path / "out",
    )
    tree = tree_of(tmp_path / "out")
    assert {name: entry[0] for name, entry in tree.items()} == {
        b"f": "file",
        b"dir": "directory",
        b"dir/kept": "file",
        b"was-file": "directory",
        b"was-file/in": "file",
        b"was-dir": "file",
        b"s": "symlink",
        b"l": "symlink",
        b"dd": "symlink",
        b"again": "directory",
        b"again/y": "file",
    }
    assert tree[b"f"][3] == 3
    assert tree[b"dir"][1] == 0o750
    assert tree[b"s"][1] == b"b"


def test_removed_records(tmp_path: Path) -> None:
    members = [member("d/e/f", b"x"), member("d/g", b"y"), symlink("s", "d"), member("keep", b"z")]
    gone = [removed("d/e"), removed("s"), removed("never/was"), removed("keep/not")]
    refused(tmp_path, *members, gone[3])
    extracted = extract(tar_of(*members, *gone[:3]), tmp_path / "out2")
    assert set(tree_of(tmp_path / "out2")) == {b"d", b"d/g", b"keep"}
    assert extracted.removed == 3
    refused(tmp_path, member("x", b"content", pax_headers={"SIDECAR.removed": "1"}))
    refused(tmp_path, removed("."))


def test_names_that_are_ours_or_none(tmp_path: Path) -> None:
    own = RESERVED_PREFIX.decode() + "staging"
    refused(tmp_path, member(own, b"x"))
    refused(tmp_path, member(f"./{own}/x", b"x"))
    refused(tmp_path, member(".", b"x"))
    refused(tmp_path, symlink("./", "x"))
    refused(tmp_path, member("x", b"y", pax_headers={"path": "a\0b"}))
    refused(tmp_path, symlink("s", ""))
    extract(tar_of(member(f"deeper/{own}", b"x")), tmp_path / "fine")


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    assert "through a file" in refused(tmp_path, member("f", b"x"), member("f/g", b"y")).message


@pytest.mark.parametrize(
    ("limits", "limit"),
    [
        (ExtractLimits(max_entries=10), "max_entries"),
        (ExtractLimits(max_bytes=100), "max_bytes"),
        (ExtractLimits(max_path_bytes=20), "max_path_bytes"),
        (ExtractLimits(max_depth=3), "max_depth"),
        (ExtractLimits(max_directories=3), "max_directories"),
    ],
)
def test_limits(tmp_path: Path, limits: ExtractLimits, limit: str) -> None:
    members = [member(f"a/b/{n}/{n}", b"1234567890") for n in range(20)]
    members.append(member("x" * 30, b""))
    if limit == "max_path_bytes":
        members = members[-1:]
    with pytest.raises(DataCorrupt) as caught:
        extract(tar_of(*members), tmp_path / "out", limits=limits)
    assert caught.value.code == "archive.limit"
    assert caught.value.facts["limit"] == limit


def test_an_announced_size_is_refused_before_it_is_written(tmp_path: Path) -> None:
    info, _ = member("f")
    info.size = 1 << 60
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with pytest.raises(DataCorrupt) as caught:
            extract(info.tobuf(form) + bytes(4096), tmp_path / "out")
        assert caught.value.code == "archive.limit"


def test_a_sparse_size_counts_too(tmp_path: Path) -> None:
    headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": str(1 << 50), "GNU.sparse.name": "s"}
    refused(tmp_path, member("s", b"x", pax_headers=headers), code="archive.limit")


def test_a_bomb_is_stopped(tmp_path: Path) -> None:
    limits = ExtractLimits(max_expansion=100, expansion_free_bytes=1 << 20)
    for bomb in (
        gzip.compress(tar_of(member("f", bytes(50 << 20))), 1),
        zstandard.ZstdCompressor().compress(tar_of(member("f", bytes(50 << 20)))),
    ):
        with pytest.raises(DataCorrupt) as caught:
            extract(bomb, tmp_path / str(len(bomb)), limits=limits)
        assert caught.value.facts["limit"] == "max_expansion"
        written = tmp_path / str(len(bomb)) / "f"  # the writer may not even have begun
        assert not written.exists() or written.stat().st_size < 20 << 20


def test_a_name_that_the_filesystem_does_not_take(tmp_path: Path) -> None:
    error = refused(tmp_path, member("n" * 256, b"x"), code="archive.limit")
    assert error.facts["limit"] == "name_bytes"
    extract(tar_of(member("n" * 255, b"x")), tmp_path / "fine")


def test_paths_longer_than_path_max(tmp_path: Path) -> None:
    name = "/".join(["d" * 200] * 60) + "/file"
    extracted = extract(
        tar_of(member(name, b"deep"), member(name + "2", b"deep"), hard_link("h", name)), tmp_path / "out"
    )
    assert (extracted.files, extracted.directories) == (3, 60)
    assert (tmp_path / "out/h").read_bytes() == b"deep"


def test_any_bytes_in_a_name(tmp_path: Path) -> None:
    name = bytes(range(1, 47)) + bytes(range(48, 256))
    extract(tar_of(member(name, b"x"), form=tarfile.GNU_FORMAT), tmp_path / "out")
    assert set(tree_of(tmp_path / "out")) == {name}
    error = refused(tmp_path, member(b"\x1b[31m\xff/../x"))
    assert error.message.isprintable()


def test_a_disk_that_refuses_to_write(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(HostFailed) as caught:
            extract(tar_of(member("f", os.urandom(3 << 20))), tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.code == "disk.failed"
    assert caught.value.facts["errno"] == "EFBIG"


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_everything_gets_its_owner(tmp_path: Path, outside: Path) -> None:
    staging = tmp_path / "out"
    staging.mkdir()
    extraction = Extraction(staging, limits=ExtractLimits(), owner=(998, 997), meter=Meter(), notice=lambda _: None)
    extraction.feed(
        tar_of(member("a/b/c", b"x"), directory("d"), symlink("s", str(outside / "secret")), hard_link("h", "a/b/c"))
    )
    extraction.finish()
    for path in [staging, *staging.rglob("*")]:
        assert (path.lstat().st_uid, path.lstat().st_gid) == (998, 997)
    assert (outside / "secret").stat().st_uid == 0
