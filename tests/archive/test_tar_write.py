from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.archive.tar_write import (
    BLOCK_BYTES,
    DIRECTORY,
    END_OF_ARCHIVE,
    FILE,
    HARD_LINK,
    PIECE_BYTES,
    SYMLINK,
    Content,
    Piece,
    TarWriter,
    header,
)
from tests.programs import needed

GIB = 1 << 30
NAMES = st.lists(
    st.one_of(
        st.binary(min_size=1, max_size=255),
        st.text("abcXYZ019-_. ~äö雪", min_size=1, max_size=120).map(str.encode),
    ).filter(lambda name: not {0, 0x2F} & set(name) and name not in (b".", b"..")),
    min_size=1,
    max_size=20,
).map(b"/".join)


def parsed(block: bytes) -> tarfile.TarInfo:
    with tarfile.open(fileobj=io.BytesIO(block + END_OF_ARCHIVE), encoding="utf-8", errors="surrogateescape") as tar:
        (info,) = tar.getmembers()
        return info


@given(
    path=NAMES,
    typeflag=st.sampled_from([FILE, DIRECTORY, SYMLINK, HARD_LINK]),
    mode=st.integers(0, 0o7777),
    mtime_ns=st.integers(-(2**63), 2**64 - 1),
    link=NAMES,
    has_fractions=st.booleans(),
)
def test_headers_mean_the_same_to_tarfile(
    path: bytes, typeflag: bytes, mode: int, mtime_ns: int, link: bytes, has_fractions: bool
) -> None:
    if typeflag in (FILE, DIRECTORY):
        link = b""
    block = header(path, typeflag, mode=mode, mtime_ns=mtime_ns, link=link, has_fractions=has_fractions)
    assert len(block) % BLOCK_BYTES == 0
    info = parsed(block)
    assert os.fsencode(info.name) == path
    assert os.fsencode(info.linkname) == link
    assert (info.type, info.mode, info.size) == (typeflag, mode, 0)
    assert (info.uid, info.gid, info.uname, info.gname) == (0, 0, "", "")
    if has_fractions:
        assert info.mtime == pytest.approx(mtime_ns / 1e9, abs=1e-6, rel=1e-12)
    else:
        assert info.mtime == mtime_ns // 10**9


@pytest.mark.parametrize(
    ("path", "blocks"),
    [
        (b"short", 1),
        (b"n" * 100, 1),
        (b"n" * 101, 3),
        (b"d" * 100 + b"/" + b"n" * 100, 1),
        (b"d" * 155 + b"/" + b"n" * 100, 1),
        (b"d" * 155 + b"/" + b"n" * 101, 3),
        (b"d" * 156 + b"/" + b"n", 3),
        (b"d/" + b"n" * 101, 3),
        ("ä".encode(), 3),
        (b"\xff", 3),
        (b"x/" * 200 + b"y", 3),
    ],
)
def test_an_extended_header_stands_only_where_it_is_needed(path: bytes, blocks: int) -> None:
    block = header(path, FILE, mode=0o644, mtime_ns=10**18)
    assert len(block) == blocks * BLOCK_BYTES
    assert os.fsencode(parsed(block).name) == path


@pytest.mark.parametrize(("length", "blocks"), [(99, 1), (100, 3), (255, 1), (256, 3)])
def test_a_directory_s_slash_counts(length: int, blocks: int) -> None:
    path = (b"d" * 154 + b"/" + b"n" * 200)[-length:] if length > 200 else b"d" * length
    block = header(path, DIRECTORY, mode=0o755, mtime_ns=10**18)
    info = parsed(block)
    assert (os.fsencode(info.name), info.isdir()) == (path, True)
    assert len(block) >= blocks * BLOCK_BYTES or length == 255


def test_no_record_for_a_whole_second_or_for_receivers_of_whole_seconds() -> None:
    assert len(header(b"a", FILE, mode=0, mtime_ns=17 * 10**17, has_fractions=True)) == BLOCK_BYTES
    assert len(header(b"a", FILE, mode=0, mtime_ns=17 * 10**17 + 1, has_fractions=False)) == BLOCK_BYTES
    exact = header(b"a", FILE, mode=0, mtime_ns=17 * 10**17 + 1, has_fractions=True)
    assert parsed(exact).pax_headers == {"mtime": "1700000000.000000001"}


@pytest.mark.parametrize(
    ("mtime_ns", "record"),
    [
        (-1, "-0.000000001"),
        (-1_500_000_000, "-1.500000000"),
        (-(10**9), "-1"),
        (2**33 * 10**9, "8589934592"),
        (2**33 * 10**9 + 5, "8589934592.000000005"),
        (999_999_999_500_000_000, "999999999.500000000"),
    ],
)
def test_unusual_times_are_exact(mtime_ns: int, record: str) -> None:
    assert parsed(header(b"a", FILE, mode=0, mtime_ns=mtime_ns, has_fractions=True)).pax_headers["mtime"] == record


def test_a_removed_entry_is_an_empty_file_with_a_record() -> None:
    info = parsed(header(b"gone", FILE, mode=0, mtime_ns=0, is_removed=True))
    assert (info.name, info.size, info.pax_headers) == ("gone", 0, {"SIDECAR.removed": "1"})


@pytest.mark.parametrize("size", [8 * GIB - 1, 8 * GIB, 9 * GIB + 1, (1 << 62) + 1])
def test_sizes_that_octal_digits_cannot_hold(size: int) -> None:
    block = header(b"big", FILE, mode=0o644, mtime_ns=10**18, size=size)
    with tarfile.open(fileobj=io.BytesIO(block)) as tar:
        info = tar.next()
    assert info is not None
    assert info.size == size
    if size >= 8 * GIB:  # one reader takes the record only where the header says 0
        assert block[-BLOCK_BYTES:][124:136] == b"00000000000\0"


@pytest.mark.parametrize("program", ["tar", "bsdtar"])
def test_other_programs_step_over_a_file_of_nine_gib(program: str, tmp_path: Path) -> None:
    size = 9 * GIB + 700
    archive = tmp_path / "big.tar"
    with archive.open("wb") as file:
        file.write(header(b"big", FILE, mode=0o644, mtime_ns=10**18, size=size))
        file.seek(size + -size % BLOCK_BYTES, os.SEEK_CUR)  # a hole
        file.write(header(b"after", FILE, mode=0o644, mtime_ns=10**18) + END_OF_ARCHIVE)
    command = [needed(program), "-tvf", str(archive)]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")
    assert str(size) in listed[0]
    assert listed[1].endswith("after")


# --- content


class Collected:
    """Takes pieces and keeps their bytes; can do something whenever a buffer is asked for."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.zero_pieces = 0
        self.before_buffer: list[tuple[int, object]] = []
        self.taken = 0
        self.progress = 0
        self.writer = TarWriter(self._take, self._give)

    def _take(self) -> memoryview:
        self.taken += 1
        for number, action in self.before_buffer:
            if number == self.taken:
                action()  # type: ignore[operator]
        return memoryview(bytearray(b"\xaa" * PIECE_BYTES))

    def _give(self, piece: Piece) -> None:
        self.zero_pieces += piece.is_zero
        self.pieces.append(bytes(piece.size) if piece.is_zero else bytes(piece.buffer[: piece.size]))

    def _count(self, size: int) -> None:
        self.progress += size

    def content(self, path: Path, size: int, is_sparse: bool = False) -> Content:
        fd = os.open(path, os.O_RDONLY)
        try:
            return self.writer.content(fd, size, is_sparse, self._count)
        finally:
            os.close(fd)

    @property
    def bytes(self) -> bytes:
        self.writer.flush()
        return b"".join(self.pieces)


SIZES = [0, 1, 511, 512, 513, PIECE_BYTES - 513, PIECE_BYTES - 512, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1]


@pytest.mark.parametrize("size", [*SIZES, 3 * PIECE_BYTES + 77])
@pytest.mark.parametrize("start", [0, 512, PIECE_BYTES - 512])
def test_content_of_any_size_from_any_place_in_a_buffer(size: int, start: int, tmp_path: Path) -> None:
    content = os.urandom(size)
    (tmp_path / "file").write_bytes(content)
    collected = Collected()
    collected.writer.write(b"h" * start)
    assert collected.content(tmp_path / "file", size) == Content(size)
    assert collected.progress == size
    assert collected.bytes == b"h" * start + content + bytes(-size % BLOCK_BYTES)
    assert {len(piece) for piece in collected.pieces[:-1]} <= {PIECE_BYTES}


@pytest.mark.parametrize("size", [0, 1, 600, PIECE_BYTES - 512, PIECE_BYTES, 2 * PIECE_BYTES + 5])
def test_a_file_that_is_shorter_than_announced_is_filled_up(size: int, tmp_path: Path) -> None:
    content = os.urandom(size)
    (tmp_path / "file").write_bytes(content)
    announced = size + PIECE_BYTES + 3
    collected = Collected()
    collected.writer.write(b"h" * 512)
    assert collected.content(tmp_path / "file", announced) == Content(size)
    assert collected.progress == size
    assert collected.bytes == (b"h" * 512 + content).ljust(512 + announced + -announced % BLOCK_BYTES, b"\0")


@pytest.mark.parametrize("size", [0, 1, 600, PIECE_BYTES - 1000, 2 * PIECE_BYTES + 5])
def test_a_file_that_is_longer_than_announced_is_cut(size: int, tmp_path: Path) -> None:
    content = os.urandom(size + 1000)
    (tmp_path / "file").write_bytes(content)
    collected = Collected()
    collected.writer.write(b"h" * 512)
    assert collected.content(tmp_path / "file", size) == Content(size, has_more=True)
    assert collected.progress == size
    assert collected.bytes == b"h" * 512 + content[:size] + bytes(-size % BLOCK_BYTES)


@pytest.mark.parametrize("is_sparse", [False, True])
def test_a_file_that_shrinks_in_the_middle_of_a_read(is_sparse: bool, tmp_path: Path) -> None:
    path = tmp_path / "file"
    content = os.urandom(3 * PIECE_BYTES)
    path.write_bytes(content)
    collected = Collected()
    collected.before_buffer.append((2, lambda: os.truncate(path, PIECE_BYTES + 100)))
    result = collected.content(path, len(content), is_sparse)
    assert result == Content(PIECE_BYTES + 100)
    assert collected.bytes == content[: PIECE_BYTES + 100].ljust(len(content), b"\0")


def sparse_file(path: Path, size: int, data: dict[int, bytes]) -> bytes:
    """A file with holes; what it holds."""
    with path.open("wb") as file:
        file.truncate(size)
        for offset, content in data.items():
            file.seek(offset)
            file.write(content)
    return path.read_bytes()


@pytest.mark.parametrize(
    "data",
    [
        {},
        {0: b"begin"},
        {(8 << 20) - 3: b"end"},
        {0: b"begin", 3 << 20: os.urandom(70_000), (8 << 20) - 1: b"e"},
        {PIECE_BYTES - 2: b"over the edge"},
    ],
)
@pytest.mark.parametrize("size", [8 << 20, (8 << 20) + 17])
def test_holes_become_zeros_without_being_read(data: dict[int, bytes], size: int, tmp_path: Path) -> None:
    content = sparse_file(tmp_path / "sparse", size, data)
    collected = Collected()
    collected.writer.write(b"h" * 512)
    assert collected.content(tmp_path / "sparse", size, is_sparse=True) == Content(size)
    assert collected.progress == size
    assert collected.bytes == b"h" * 512 + content + bytes(-size % BLOCK_BYTES)
    assert collected.zero_pieces >= 8


def test_a_hole_at_the_end_of_a_file_that_shrinks_is_not_longer_than_the_file(tmp_path: Path) -> None:
    sparse_file(tmp_path / "sparse", 4 << 20, {0: b"x"})
    collected = Collected()
    result = collected.content(tmp_path / "sparse", 8 << 20, is_sparse=True)
    assert result == Content(4 << 20)
    assert len(collected.bytes) == 8 << 20


def test_headers_cross_the_edge_of_a_buffer() -> None:
    collected = Collected()
    blocks = b"".join(bytes([number % 251]) * 1536 for number in range(2 * PIECE_BYTES // 1536 + 1))
    for start in range(0, len(blocks), 1536):
        collected.writer.write(blocks[start : start + 1536])
    assert collected.bytes == blocks
