from __future__ import annotations

import random
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.archive.tar_header import Kind, checksum_matches, number, parse_pax, pax_mtime_ns
from sidecar.archive.tar_read import MAX_EXTENSION_BYTES, Member, TarReader
from sidecar.errors import DataCorrupt
from tests.archive.extracting import MTIME, directory, hard_link, member, removed, symlink, tar_of
from tests.programs import needed


class Collector:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.members: list[tuple[Member, bytes]] = []
        self._open: Member | None = None
        self._content = bytearray()

    def begin(self, member: Member) -> None:
        assert self._open is None
        self._open = member
        self._content = bytearray()

    def data(self, piece: bytes, start: int, end: int) -> None:
        assert end > start
        self._content += piece[start:end]

    def hole(self, size: int) -> None:
        assert 0 < size < 1 << 27
        self._content += bytes(size)

    def end(self) -> None:
        assert self._open is not None
        assert len(self._content) == (self._open.size if self._open.kind is Kind.FILE else 0)
        self.members.append((self._open, bytes(self._content)))
        self._open = None


def read(*pieces: bytes) -> list[tuple[Member, bytes]]:
    sink = Collector()
    reader = TarReader(sink)
    for piece in pieces:
        reader.feed(piece)
    reader.finish()
    return sink.members


def patched(archive: bytes, at: int, field: bytes) -> bytes:
    """The first header with other bytes and a right checksum."""
    block = bytearray(archive[:512])
    block[at : at + len(field)] = field
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + archive[512:]


SAMPLE = tar_of(
    directory("d"),
    member("d/" + "n" * 150, b"content" * 200, mtime=MTIME + 0.5),
    member("d/\u2603", b"snow"),
    symlink("d/link", "t" * 180),
    hard_link("d/hard", "d/\u2603"),
    removed("d/gone"),
    member("d/empty"),
)


def test_every_form_and_field() -> None:
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        long = "a" * 90 + "/" + "b" * 95
        archive = tar_of(directory("x"), member(long, b"12345", mode=0o4751), symlink("s", "target"), form=form)
        (x, _), (file, content), (link, _) = read(archive)
        assert (x.kind, x.name) == (Kind.DIRECTORY, b"x/")
        assert (file.kind, file.name, file.mode, content) == (Kind.FILE, long.encode(), 0o4751, b"12345")
        assert file.mtime_ns == MTIME * 10**9
        assert (link.kind, link.link) == (Kind.SYMLINK, b"target")


def test_pax_records_win() -> None:
    members = read(SAMPLE)
    assert [m.name for m, _ in members][1:3] == [b"d/" + b"n" * 150, "d/\u2603".encode()]
    assert members[1][0].mtime_ns == MTIME * 10**9 + 500_000_000
    assert members[3][0].link == b"t" * 180
    assert [m.removed for m, _ in members] == [False] * 5 + [True, False]


def test_byte_by_byte() -> None:
    assert read(*(SAMPLE[i : i + 1] for i in range(len(SAMPLE)))) == read(SAMPLE)


@given(seed=st.integers(0, 2**32))
def test_random_splits(seed: int) -> None:
    rng, pieces, at = random.Random(seed), [], 0
    while at < len(SAMPLE):
        size = rng.choice((1, 100, 511, 512, 513, 1500, 5000))
        pieces.append(SAMPLE[at : at + size])
        at += size
    assert read(*pieces) == read(SAMPLE)


def test_the_ends_that_are_allowed() -> None:
    body = SAMPLE.rstrip(b"\0")
    body += bytes(-len(body) % 512)
    for tail in (b"", bytes(512), bytes(1024), bytes(10240), bytes(1024) + b"anything"):
        assert read(body + tail) == read(SAMPLE)


@pytest.mark.parametrize("tail", [bytes(100), b"x", bytes(512) + b"x" * 512, bytes(512) + b"x"])
def test_the_ends_that_are_not(tail: bytes) -> None:
    body = SAMPLE.rstrip(b"\0")
    body += bytes(-len(body) % 512)
    with pytest.raises(DataCorrupt) as caught:
        read(body + tail)
    assert caught.value.code == "archive.damaged"
    assert "byte" in caught.value.message


def test_nothing_at_all_is_no_archive() -> None:
    with pytest.raises(DataCorrupt):
        read(b"")
    assert read(bytes(512)) == read(bytes(1024)) == []


def test_truncation_is_found_everywhere_but_between_members() -> None:
    boundaries = set()
    for length in range(len(SAMPLE) - 9000):
        try:
            read(SAMPLE[:length])
        except DataCorrupt as error:
            assert error.code == "archive.damaged"
        else:
            assert length % 512 == 0
            boundaries.add(length)
    assert len(boundaries) <= 10


def test_a_flip_in_a_header_is_found() -> None:
    archive = tar_of(member("name", b"x" * 100), form=tarfile.GNU_FORMAT)
    for at in range(512):
        for bit in range(8):
            damaged = bytearray(archive)
            damaged[at] ^= 1 << bit
            if 148 <= at < 156:
                with_luck = checksum_matches(bytes(damaged[:512]))
                if with_luck:
                    continue  # another way to write the same number
            with pytest.raises(DataCorrupt) as caught:
                read(bytes(damaged))
            assert caught.value.code == "archive.damaged"


def test_numbers() -> None:
    assert number(b"0000644\0", "mode", 0) == 0o644
    assert number(b"   644 \0", "mode", 0) == 0o644
    assert number(b"\0" * 8, "mode", 0) == 0
    assert number(b"\x80" + bytes(10) + b"\x07", "size", 0) == 7
    assert number(b"\xff" * 12, "mtime", 0) == -1
    assert number(b"644\0garb", "mode", 0) == 0o644
    for field in (
        b"0o644\0\0\0",
        b"6_44\0\0\0\0",
        b"-644\0\0\0\0",
        b"+644\0\0\0\0",
        b"648\0\0\0\0\0",
        b"abc",
        b"\x90" + bytes(11),
    ):
        with pytest.raises(DataCorrupt):
            number(field, "size", 0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"12", 12 * 10**9),
        (b"12.5", 12_500_000_000),
        (b"12.1234567899", 12_123_456_789),
        (b"-1.5", -1_500_000_000),
        (b"-1.0000000001", -1_000_000_001),
        (b"9" * 30, (1 << 40) * 10**9),
    ],
)
def test_pax_times(text: bytes, expected: int) -> None:
    assert pax_mtime_ns(text, 0) == expected


def test_pax_records_that_are_none() -> None:
    assert list(parse_pax(b"8 a=b\x00c\n" + bytes(4), 0)) == [(b"a", b"b\0c")]
    for records in (
        b"x",
        b"5 a=b",
        b"99 a=b\n",
        b"6 a=bb",
        b"0 \n",
        b"2 \n",
        b"6 abc\n",
        b"5 =b\n",
        b"12345678901234567890123 a\n",
    ):
        with pytest.raises(DataCorrupt):
            list(parse_pax(records, 0))


def test_a_negative_size() -> None:
    archive = tar_of(member("a"), form=tarfile.GNU_FORMAT)
    with pytest.raises(DataCorrupt):
        read(patched(archive, 124, b"\xff" * 12))


def test_a_negative_mtime() -> None:
    archive = tar_of(member("a"), form=tarfile.GNU_FORMAT)
    assert read(patched(archive, 136, b"\xff" * 12))[0][0].mtime_ns == -(10**9)


def test_an_extension_that_is_too_large() -> None:
    archive = tar_of(member("a", b"b"), form=tarfile.GNU_FORMAT)
    for flag in (b"x", b"L", b"K"):
        header = patched(patched(archive, 156, flag), 124, b"%011o\0" % (MAX_EXTENSION_BYTES + 1))
        with pytest.raises(DataCorrupt) as caught:
            read(header[:512])
        assert caught.value.code == "archive.limit"


def test_a_global_header_is_passed_over_whatever_its_size() -> None:
    archive = tar_of(member("a", b"b"), form=tarfile.GNU_FORMAT)
    size = 3 << 20
    header = patched(patched(archive, 156, b"g"), 124, b"%011o\0" % size)[:512]
    assert [m.name for m, _ in read(header, bytes(size), archive)] == [b"a"]


def test_an_unknown_type_is_refused() -> None:
    for flag in (b"M", b"N", b"Z", b"\xff"):
        with pytest.raises(DataCorrupt) as caught:
            read(patched(tar_of(member("a")), 156, flag))
        assert caught.value.code == "archive.hostile"


def test_an_old_directory_ends_in_a_slash() -> None:
    archive = patched(tar_of(member("olddir/"), form=tarfile.GNU_FORMAT), 156, b"\0")
    assert read(archive)[0][0].kind is Kind.DIRECTORY


def test_a_file_over_8_gib_is_understood() -> None:
    info, _ = member("big")
    info.size = 9 << 30
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        sizes: list[int] = []

        class Sizes(Collector):
            def begin(self, member: Member, sizes: list[int] = sizes) -> None:
                sizes.append(member.size)

        TarReader(Sizes()).feed(info.tobuf(form))
        assert sizes == [9 << 30]


@pytest.mark.parametrize("form", ["oldgnu", "gnu", "posix-0.0", "posix-0.1", "posix-1.0"])
@pytest.mark.parametrize("segments", [1, 3, 90])
def test_sparse_members_of_gnu_tar(tmp_path: Path, form: str, segments: int) -> None:
    content = bytearray((segments + 1) * 65_536)
    with open(tmp_path / "sparse", "wb") as file:
        for number_ in range(segments):
            file.seek(number_ * 65_536 + 20_000)
            file.write(b"data %d" % number_)
            content[number_ * 65_536 + 20_000 :][:0] = b""
            content[number_ * 65_536 + 20_000 : number_ * 65_536 + 20_000 + len(b"data %d" % number_)] = (
                b"data %d" % number_
            )
        file.truncate(len(content))
    (tmp_path / "after").write_bytes(b"after")
    name, _, version = form.partition("-")
    command = [needed("tar"), "--sparse", f"--format={name}", "-cf", "-", "sparse", "after"]
    if version:
        command.insert(1, f"--sparse-version={version}")
    archive = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, check=True).stdout
    assert len(archive) < len(content) or segments == 90
    members = read(archive)
    assert [(m.name, m.size) for m, _ in members] == [(b"sparse", len(content)), (b"after", 5)]
    assert members[0][1] == bytes(content)
    assert read(*(archive[i : i + 100] for i in range(0, len(archive), 100))) == members


def test_a_sparse_map_that_cannot_be(tmp_path: Path) -> None:
    base = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "s", "GNU.sparse.realsize": "1000"}
    for text in (b"x\n", b"1\n0\n2000\n", b"2\n10\n5\n0\n5\n", b"1\n0\n-5\n", b"9" * 40, b"1\n0\n"):
        content = text.ljust(512, b"\0") + bytes(512)
        with pytest.raises(DataCorrupt):
            read(tar_of(member("s", content, pax_headers=base)))
    with pytest.raises(DataCorrupt):
        read(tar_of(member("s", b"x", pax_headers={**base, "GNU.sparse.major": "2"})))
    with pytest.raises(DataCorrupt):
        read(tar_of(member("s", b"x", pax_headers={"GNU.sparse.major": "1"})))
