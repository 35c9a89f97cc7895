from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.archive.descent import MAX_PATH_BYTES
from sidecar.archive.entries import EntryType, NoticeKind
from sidecar.archive.pipe import PipeClosed
from sidecar.archive.scan import Changes, Scan, changes, scan
from sidecar.errors import HostFailed
from tests.archive.producing import no_residue, powerless, write


@contextmanager
def scanned(volume: Path, max_entries: int = 10_000) -> Iterator[Scan]:
    result = scan(volume, max_entries=max_entries)
    try:
        yield result
    finally:
        result.close()


def paths(result: Scan) -> list[bytes]:
    return [entry.path for entry in result]


@contextmanager
def compared(before: Scan, after: Scan, also: frozenset[bytes] = frozenset()) -> Iterator[Changes]:
    found = changes(before, after, also=also)
    try:
        yield found
    finally:
        found.close()


def test_archive_order_is_the_order_of_bytes_and_a_directory_comes_first(tmp_path: Path) -> None:
    for name in (b"a/z", b"a/b/c", b"a-b", b"a.b/x", b"\xff", b"B", "ä".encode(), b"a\nb"):
        write(tmp_path, name)
    with no_residue(), scanned(tmp_path) as result:
        assert paths(result) == [
            b"B",
            b"a",
            b"a/b",
            b"a/b/c",
            b"a/z",
            b"a\nb",
            b"a-b",
            b"a.b",
            b"a.b/x",
            "ä".encode(),
            b"\xff",
        ]
        assert (result.files, result.directories, result.symlinks, result.size_bytes) == (8, 3, 0, 8)
        assert result.count == 11


def test_what_an_entry_says(tmp_path: Path) -> None:
    write(tmp_path, "file", b"hello", 0o4751, -1)
    os.link(tmp_path / "file", tmp_path / "second")
    (tmp_path / "link").symlink_to("no/such\nthing")
    with scanned(tmp_path) as result:
        file, link, second = result
    status = os.stat(tmp_path / "file")
    assert (file.path, file.type, file.size_bytes, file.mode, file.mtime_ns) == (b"file", "file", 5, 0o4751, -1)
    assert (file.inode, file.device, file.ctime_ns, file.links) == (
        status.st_ino,
        status.st_dev,
        status.st_ctime_ns,
        2,
    )
    assert (link.type, link.link_target, link.size_bytes) == (EntryType.SYMLINK, b"no/such\nthing", 0)
    assert second.inode == file.inode


def test_specials_and_our_own_directories_are_left_out(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        write(tmp_path, ".sidecar-staging/x")
        write(tmp_path, "below/.sidecar-staging/x")
        with scanned(tmp_path) as result:
            assert paths(result) == [b"below", b"below/.sidecar-staging", b"below/.sidecar-staging/x"]
            assert [(one.kind, one.path, one.detail) for one in result.skipped] == [
                (NoticeKind.SKIPPED_SPECIAL, b"fifo", "FIFO"),
                (NoticeKind.SKIPPED_SPECIAL, b"socket", "socket"),
            ]


def test_skipped_entries_are_all_counted_but_not_all_named(tmp_path: Path) -> None:
    for number in range(150):
        os.mkfifo(tmp_path / str(number))
    with scanned(tmp_path) as result:
        assert (len(result.skipped), result.skipped_count) == (100, 150)


def test_a_volume_does_not_pull_its_neighbour_in(tmp_path: Path) -> None:
    write(tmp_path, "map/a")
    write(tmp_path, "map2/b")
    with scanned(tmp_path / "map") as result:
        assert paths(result) == [b"a"]


def test_the_number_of_entries_is_bounded(tmp_path: Path) -> None:
    for number in range(5):
        write(tmp_path, f"d{number % 2}/{number}")
    with scanned(tmp_path, max_entries=7) as result:
        assert result.count == 7
    with no_residue(), pytest.raises(HostFailed) as caught:
        scan(tmp_path, max_entries=6)
    assert caught.value.code == "archive.limit"


def test_paths_longer_than_the_kernel_takes_at_once_and_their_bound(tmp_path: Path) -> None:
    name = "n" * 250
    fd = os.open(tmp_path, os.O_RDONLY)
    for _ in range(MAX_PATH_BYTES // 251):
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    with no_residue(), scanned(tmp_path) as result:
        assert max(len(path) for path in paths(result)) > 4 * 4000
    os.mkdir(name, dir_fd=fd)
    os.close(fd)
    with no_residue(), pytest.raises(HostFailed) as caught:
        scan(tmp_path, max_entries=1000)
    assert caught.value.code == "archive.limit"


def test_a_missing_volume_and_one_that_is_a_file(tmp_path: Path) -> None:
    write(tmp_path, "file")
    for name in ("missing", "file"):
        with pytest.raises(HostFailed) as caught:
            scan(tmp_path / name, max_entries=10)
        assert caught.value.code == "volume.missing"


def test_a_directory_that_may_not_be_read_is_an_error() -> None:
    with powerless() as volume:
        (volume / "secret").mkdir(mode=0)
        with no_residue(), pytest.raises(HostFailed) as caught:
            scan(volume, max_entries=10)
    assert (caught.value.code, caught.value.facts["path"]) == ("volume.unreadable", "secret")


def test_a_scan_can_be_stopped(tmp_path: Path) -> None:
    write(tmp_path, "a/b")
    with no_residue(), pytest.raises(PipeClosed):
        scan(tmp_path, max_entries=10, is_stopped=lambda: True)


def test_nothing_has_changed_in_a_volume_at_rest(tmp_path: Path) -> None:
    for number in range(1200):
        write(tmp_path, f"{number % 7}/{number}")
    with scanned(tmp_path) as before, scanned(tmp_path) as after, compared(before, after) as found:
        assert found.is_empty
        with compared(before, after, frozenset({b"3/3", b"gone"})) as found_also:
            assert [entry.path for entry in found_also.changed] == [b"3/3"]


def test_every_kind_of_change_is_found_and_nothing_else(tmp_path: Path) -> None:
    for number in range(600):  # the last of them lie in another block of the packed list
        write(tmp_path, f"many/{number:03}")
    for name in ("map/a", "map2/a", "size", "touched", "mode", "replaced", "same", "kind", "dir/x/y", "zz"):
        write(tmp_path, name)
    (tmp_path / "link").symlink_to("a")
    with scanned(tmp_path) as before:
        write(tmp_path, "size", b"longer")
        os.utime(tmp_path / "touched", ns=(1, 1))
        os.chmod(tmp_path / "mode", 0o600)
        write(tmp_path, "new")
        os.replace(tmp_path / "new", tmp_path / "replaced")
        os.unlink(tmp_path / "kind")
        (tmp_path / "kind").mkdir()
        os.unlink(tmp_path / "link")
        (tmp_path / "link").symlink_to("b")
        os.unlink(tmp_path / "map/a")
        os.rmdir(tmp_path / "map")
        os.rename(tmp_path / "dir", tmp_path / "moved")
        write(tmp_path, "many/0000")
        os.unlink(tmp_path / "zz")
        with scanned(tmp_path) as after, compared(before, after) as found:
            assert {entry.path for entry in found.changed} - {b"moved/x", b"moved/x/y"} == {
                b"size",
                b"touched",
                b"mode",
                b"replaced",
                b"kind",
                b"link",
                b"moved",
                b"many",
                b"many/0000",
            }
            assert {b"moved/x", b"moved/x/y"} <= {entry.path for entry in found.changed}
            removed = list(found.removed)
            assert removed == [b"dir", b"dir/x", b"dir/x/y", b"kind", b"map", b"map/a", b"zz"]
            assert list(reversed(found.removed)) == removed[::-1]


NAMES = st.sampled_from([b"a", b"b", b"a-", b"a0", b"ab", b"\xff", b"a\n"])


@given(
    st.sets(st.lists(NAMES, min_size=1, max_size=3).map(b"/".join)),
    st.sets(st.lists(NAMES, min_size=1, max_size=3).map(b"/".join)),
)
def test_the_merge_agrees_with_sets(tmp_path_factory: pytest.TempPathFactory, old: set[bytes], new: set[bytes]) -> None:
    roots = [tmp_path_factory.mktemp("tree") for _ in range(2)]
    for root, names in zip(roots, (old, new), strict=True):
        for name in names:
            os.makedirs(os.path.join(os.fsencode(root), name), exist_ok=True)
    with scanned(roots[0]) as before, scanned(roots[1]) as after, compared(before, after) as found:
        assert list(found.removed) == [path for path in paths(before) if path not in set(paths(after))]
        assert [entry.path for entry in found.changed] == paths(after)  # other inodes
