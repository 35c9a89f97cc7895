from __future__ import annotations

import ctypes
import gzip
import io
import os
import socket
import stat
import struct
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sidecar.archive.entries import Notice, NoticeKind
from sidecar.archive.meter import Meter
from sidecar.archive.pipe import PipeClosed
from sidecar.archive.produce import MAX_NOTICES, ArchiveProducer, Dialect
from sidecar.archive.tar_write import END_OF_ARCHIVE, PIECE_BYTES
from sidecar.errors import HostFailed
from tests.archive.producing import (
    MTIME_NS,
    Seen,
    make,
    no_residue,
    powerless,
    stamp_directories,
    tree,
    untar,
    write,
)

LONG = b"n" * 200


def awkward_volume(root: Path) -> None:
    """Everything that a volume may hold and a program can extract."""
    for name in (
        b"plain",
        b"-rf",
        b" space ",
        b"new\nline",
        b"back\\slash",
        b"\xff\xfe not utf-8",
        "wörld/雪.dat".encode(),
        b"deep/" + LONG + b"/" + LONG + b"/" + LONG,
        b"d" * 100 + b"/" + b"f" * 100,
        b"f" * 101,
        b"map/a",
        b"map2/a",
    ):
        write(root, name, b"content of " + name)
    write(root, "empty", b"")
    write(root, "whole-second", mtime_ns=17 * 10**17)
    write(root, "old", mtime_ns=-5 * 10**9)
    write(root, "far", mtime_ns=2**33 * 10**9 + 5)
    write(root, "noise", os.urandom(3 * PIECE_BYTES + 123), 0o600)
    write(root, "log", b"the same line again and again\n" * 60_000, 0o444)
    write(root, "suid", mode=0o4755)
    write(root, "sticky", mode=0o1777)
    (root / "empty directory").mkdir(mode=0o2711)
    (root / "empty directory").chmod(0o2711)
    (root / "closed").mkdir()
    (root / "closed").chmod(0o500)
    os.link(root / "noise", root / "a second name")
    os.link(root / "noise", root / "map/third name")
    for name, target in (
        (b"link", b"plain"),
        (b"dangling", b"no/such"),
        (b"absolute", b"/etc/hostname"),
        (b"outside", b"../../../outside"),
        (b"loop", b"loop"),
        (b"to-directory", b"map"),
        (b"to-raw", b"\xff\n\\"),
        (b"to-long", b"x/" * 300 + b"y"),
        (LONG, b"plain"),
    ):
        os.symlink(target, os.path.join(os.fsencode(root), name))
    stamp_directories(root)


@pytest.fixture(scope="module")
def awkward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("awkward") / "volume"
    root.mkdir()
    write(root.parent, "volume2/neighbour")
    awkward_volume(root)
    return root


@pytest.mark.parametrize("program", ["tar", "bsdtar"])
def test_other_programs_extract_the_same_tree(program: str, awkward: Path, tmp_path: Path) -> None:
    with no_residue():
        made = make(awkward)
    untar(program, made.tar, tmp_path / "out")
    if program == "bsdtar" and os.geteuid() != 0:  # sets it for nobody but the owner that the archive names
        (tmp_path / "out/suid").chmod((awkward / "suid").stat().st_mode)
    assert tree(tmp_path / "out") == tree(awkward)
    assert made.notices == []


def test_a_fraction_of_a_second_before_1970(tmp_path: Path) -> None:
    write(tmp_path, "volume/old", mtime_ns=-1_500_000_000)
    untar("tar", make(tmp_path / "volume").tar, tmp_path / "out")  # bsdtar takes such a fraction for a positive one
    assert (tmp_path / "out/old").stat().st_mtime_ns == -1_500_000_000


def test_tarfile_extracts_the_same_tree(awkward: Path, tmp_path: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(make(awkward).tar), encoding="utf-8", errors="surrogateescape") as tar:
        since_3_11_4: dict[str, Any] = {"filter": "fully_trusted"} if hasattr(tarfile, "fully_trusted_filter") else {}
        tar.extractall(tmp_path / "out", **since_3_11_4)

    def rounded(seen: dict[bytes, Seen]) -> dict[bytes, Seen]:  # tarfile's times are floats; it leaves those of links
        return {
            path: one._replace(mtime_ns=0 if one.kind == "symlink" else round(one.mtime_ns / 1e9))
            for path, one in seen.items()
        }

    assert rounded(tree(tmp_path / "out")) == rounded(tree(awkward))


@pytest.mark.parametrize("level", [0, 1, 3, 6])
def test_every_level_carries_the_same_tar(level: int, awkward: Path) -> None:
    made = make(awkward, level=level)
    assert made.tar == make(awkward, level=2).tar
    done = subprocess.run(["gzip", "-dc"], input=made.wire, capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (made.tar, b"")


@pytest.mark.parametrize("dialect", Dialect)
def test_two_archives_of_a_volume_are_the_same_bytes(dialect: Dialect, awkward: Path) -> None:
    assert make(awkward, dialect=dialect).tar == make(awkward, dialect=dialect).tar
    assert make(awkward, dialect=dialect, level=0).wire == make(awkward, dialect=dialect, level=0).wire


def test_the_archive_ends_with_two_blocks_and_no_padding(awkward: Path) -> None:
    made = make(awkward)
    assert made.tar.endswith(END_OF_ARCHIVE)
    with tarfile.open(fileobj=io.BytesIO(made.tar), errors="surrogateescape") as tar:
        tar.getmembers()
        assert tar.offset == len(made.tar) - len(END_OF_ARCHIVE)


def test_an_empty_volume(tmp_path: Path) -> None:
    with no_residue():
        made = make(tmp_path)
    assert made.tar == END_OF_ARCHIVE
    assert (made.meter.total_bytes, made.meter.total_files) == (0, 0)


def test_owners_and_our_own_directories_stay_behind(tmp_path: Path) -> None:
    write(tmp_path, "a")
    write(tmp_path, ".sidecar-staging/half")
    if os.geteuid() == 0:
        os.chown(tmp_path / "a", 1234, 5678)
    with tarfile.open(fileobj=io.BytesIO(make(tmp_path).tar)) as tar:
        (info,) = tar.getmembers()
    assert (info.name, info.uid, info.gid, info.uname, info.gname) == ("a", 0, 0, "", "")


def test_a_path_longer_than_any_system_call_takes(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    for _ in range(30):
        os.mkdir(LONG, dir_fd=fd)
        below = os.open(LONG, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open(b"file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    with no_residue():
        made = make(tmp_path)
    path = b"/".join([LONG] * 30 + [b"file"])
    assert len(path) > 6000
    with tarfile.open(fileobj=io.BytesIO(made.tar)) as tar:
        assert os.fsencode(tar.getnames()[-1]) == path
    listed = subprocess.run(["tar", "-tf", "-"], input=made.tar, capture_output=True, check=True).stdout
    assert listed.splitlines()[-1] == path


def test_hard_links_are_links_after_the_first_name(tmp_path: Path) -> None:
    write(tmp_path, "b", b"shared")
    for name in ("a", "c", "d/e"):
        (tmp_path / "d").mkdir(exist_ok=True)
        os.link(tmp_path / "b", tmp_path / name)
    made = make(tmp_path)
    with tarfile.open(fileobj=io.BytesIO(made.tar)) as tar:
        assert [(info.name, info.type, info.linkname) for info in tar if not info.isdir()] == [
            ("a", tarfile.REGTYPE, ""),
            ("b", tarfile.LNKTYPE, "a"),
            ("c", tarfile.LNKTYPE, "a"),
            ("d/e", tarfile.LNKTYPE, "a"),
        ]
    assert (made.meter.total_bytes, made.meter.total_files) == (24, 4)


@contextmanager
def opened_names(directory: Path) -> Iterator[Callable[[], set[bytes]]]:
    """The names in `directory` that anybody opened, as the kernel reports them."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert fd >= 0
    assert libc.inotify_add_watch(fd, os.fsencode(directory), 0x20) >= 0  # IN_OPEN

    def names() -> set[bytes]:
        seen: set[bytes] = set()
        data = os.read(fd, 65_536)
        while data:
            length = struct.unpack_from("iIII", data)[3]
            seen.add(data[16 : 16 + length].rstrip(b"\0"))
            data = data[16 + length :]
        return seen

    try:
        yield names
    finally:
        os.close(fd)


@pytest.mark.parametrize("dialect", Dialect)
def test_sockets_fifos_and_devices_are_named_and_never_opened(dialect: Dialect, tmp_path: Path) -> None:
    write(tmp_path, "file")
    os.mkfifo(tmp_path / "fifo")
    expected = [b"fifo", b"socket"]
    if os.geteuid() == 0:
        os.mknod(tmp_path / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        expected.insert(0, b"device")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        with opened_names(tmp_path) as opened:
            made = make(tmp_path, dialect=dialect)
            assert opened() - {b""} == {b"file"}
    assert made.kinds(NoticeKind.SKIPPED_SPECIAL) == expected
    with tarfile.open(fileobj=io.BytesIO(made.tar)) as tar:
        assert tar.getnames() == ["file"]


def test_notices_of_a_kind_are_bounded_and_the_rest_is_counted(tmp_path: Path) -> None:
    for number in range(MAX_NOTICES + 50):
        os.mkfifo(tmp_path / str(number))
    made = make(tmp_path)
    assert len(made.kinds(NoticeKind.SKIPPED_SPECIAL)) == MAX_NOTICES
    assert made.notices[-1] == Notice(NoticeKind.MORE, b"", "50 more of skipped_special")


def test_a_sparse_file_of_nine_gib_passes_in_moments(tmp_path: Path) -> None:
    size = 9 << 30
    with (tmp_path / "big").open("wb") as file:
        file.write(b"begin")
        file.seek(size - 3)
        file.write(b"end")
    meter = Meter()
    with no_residue():
        producer = ArchiveProducer(
            tmp_path, dialect=Dialect.STRANGER, gzip_level=1, max_entries=10, meter=meter, notice=lambda notice: None
        )
        known: dict[bytes, bytes] = {}
        total, first, last = 0, b"", b""
        for piece in producer.pieces():
            key = bytes(piece)
            plain = known.get(key) or gzip.decompress(key)
            known[key] = plain
            total += len(plain)
            first, last = first or plain, plain
        producer.close()
    assert len(known) < 5
    assert total == 3 * 512 + size
    assert last.rstrip(b"\0").endswith(b"end")
    with tarfile.open(fileobj=io.BytesIO(first)) as tar:
        info = tar.next()
    assert info is not None
    assert (info.name, info.size) == ("big", size)
    assert first[1536:1541] == b"begin"
    assert meter.content_bytes == meter.total_bytes == size


def test_progress_rises_and_never_passes_its_total(awkward: Path) -> None:
    meter = Meter()
    producer = ArchiveProducer(
        awkward, dialect=Dialect.SIDECAR, gzip_level=0, max_entries=1000, meter=meter, notice=lambda notice: None
    )
    producer.scan()
    seen = [0]
    for _ in producer.pieces():
        assert meter.total_bytes is not None
        seen.append(meter.content_bytes)
        assert seen[-2] <= seen[-1] <= meter.total_bytes
    producer.close()
    assert (
        meter.content_bytes
        == meter.total_bytes
        == sum(
            status.st_size for status in (os.lstat(path) for path in awkward.rglob("*")) if stat.S_ISREG(status.st_mode)
        )
    )


def test_a_file_that_may_not_be_read_fails_the_archive_and_names_it() -> None:
    with powerless() as volume:
        write(volume, "fine")
        write(volume, "d/secret", mode=0)
        with no_residue(), pytest.raises(HostFailed) as caught:
            make(volume)
    assert (caught.value.code, caught.value.facts["path"]) == ("volume.unreadable", "d/secret")


def test_a_volume_that_is_not_there(tmp_path: Path) -> None:
    with no_residue(), pytest.raises(HostFailed) as caught:
        make(tmp_path / "missing")
    assert caught.value.code == "volume.missing"


def test_a_volume_that_goes_away_after_the_scan(tmp_path: Path) -> None:
    write(tmp_path, "volume/a")
    with no_residue(), pytest.raises(HostFailed) as caught:
        make(tmp_path / "volume", between=lambda: os.rename(tmp_path / "volume", tmp_path / "elsewhere"))
    assert caught.value.code == "volume.missing"


# --- giving up


def producer_of(volume: Path, notice: Callable[[Notice], None] = lambda notice: None) -> ArchiveProducer:
    return ArchiveProducer(
        volume, dialect=Dialect.SIDECAR, gzip_level=1, max_entries=1000, meter=Meter(), notice=notice
    )


@pytest.mark.parametrize("stage", ["made", "scanned", "begun", "abandoned", "ended"])
def test_closing_leaves_nothing_at_any_stage(stage: str, awkward: Path) -> None:
    with no_residue():
        producer = producer_of(awkward)
        if stage != "made":
            producer.scan()
        if stage in ("begun", "abandoned"):
            pieces = producer.pieces()
            next(pieces)
            if stage == "abandoned":
                pieces.close()  # type: ignore[attr-defined]
        if stage == "ended":
            for _ in producer.pieces():
                pass
        producer.close()
        producer.close()
        if stage == "begun":
            with pytest.raises(PipeClosed):
                next(pieces)
        elif stage in ("made", "scanned"):
            with pytest.raises(PipeClosed):
                producer.scan() if stage == "made" else next(producer.pieces())


def test_closing_from_another_thread_ends_a_waiting_caller(awkward: Path) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def notice(one: Notice) -> None:
        reached.set()
        assert go_on.wait(10)

    ended: list[BaseException] = []

    def consume(producer: ArchiveProducer) -> None:
        try:
            for _ in producer.pieces():
                pass
        except PipeClosed as error:
            ended.append(error)

    with no_residue():
        producer = producer_of(awkward, notice)
        producer.scan()
        os.utime(awkward / "plain", ns=(MTIME_NS, MTIME_NS))  # another ctime: the rescan has something to say
        caller = threading.Thread(target=consume, args=(producer,))
        caller.start()
        assert reached.wait(10)
        closer = threading.Thread(target=producer.close)
        closer.start()
        go_on.set()
        for thread in (closer, caller):
            thread.join(10)
    assert len(ended) == 1


def test_what_the_notice_raises_ends_the_archive(tmp_path: Path) -> None:
    write(tmp_path, "a")

    def notice(one: Notice) -> None:
        raise RuntimeError("no")

    with no_residue():
        producer = producer_of(tmp_path, notice)
        producer.scan()
        write(tmp_path, "a", b"longer")
        with pytest.raises(RuntimeError, match="no"):
            list(producer.pieces())
        producer.close()


def test_closing_from_within_a_notice(tmp_path: Path) -> None:
    write(tmp_path, "a")
    with no_residue():
        producer = producer_of(tmp_path, lambda notice: producer.close())
        producer.scan()
        write(tmp_path, "a", b"longer")
        with pytest.raises(PipeClosed):
            list(producer.pieces())
        producer.close()


def test_the_pieces_are_made_once(tmp_path: Path) -> None:
    producer = producer_of(tmp_path)
    list(producer.pieces())
    with pytest.raises(RuntimeError, match="before"):
        next(producer.pieces())
    producer.close()
