from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import random
import subprocess
import zlib
from collections.abc import Callable
from itertools import pairwise

import lz4.frame
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from sidecar.archive.codecs import PIECE_BYTES, Codec, decompressor, detect
from sidecar.errors import DataCorrupt
from tests.archive.extracting import member, tar_of

CONTENT = random.Random(1).randbytes(300_000) + bytes(400_000) + b"text and text\n" * 9000


def _zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=3, write_checksum=True).compress(data)


COMPRESS: dict[Codec, Callable[[bytes], bytes]] = {
    Codec.TAR: bytes,
    Codec.GZIP: lambda data: gzip.compress(data, 1, mtime=0),
    Codec.ZSTD: _zstd,
    Codec.LZ4: lambda data: lz4.frame.compress(data, content_checksum=True),
    Codec.XZ: lambda data: lzma.compress(data, preset=0),
    Codec.BZIP2: lambda data: bz2.compress(data, 1),
}
COMPRESSED = {codec: compress(CONTENT) for codec, compress in COMPRESS.items()}
SMALL = {codec: compress(CONTENT[:3000] + bytes(2000)) for codec, compress in COMPRESS.items()}
WITH_END = [codec for codec in Codec if codec is not Codec.TAR]


def run(codec: Codec, *pieces: bytes) -> bytes:
    stream = decompressor(codec)
    out = bytearray()
    for piece in pieces:
        for part in stream.feed(piece):
            assert 0 < len(part) <= PIECE_BYTES
            out += part
    stream.finish()
    return bytes(out)


@pytest.mark.parametrize("codec", Codec)
def test_whole_and_in_pieces(codec: Codec) -> None:
    data = COMPRESSED[codec]
    assert run(codec, data) == CONTENT
    assert run(codec, *(data[i : i + 777] for i in range(0, len(data), 777))) == CONTENT


@pytest.mark.parametrize("codec", Codec)
def test_byte_by_byte(codec: Codec) -> None:
    data = SMALL[codec]
    assert run(codec, *(data[i : i + 1] for i in range(len(data)))) == CONTENT[:3000] + bytes(2000)


@pytest.mark.parametrize("codec", WITH_END)
@given(cuts=st.lists(st.integers(0, 6000), max_size=8))
def test_members_in_any_split(codec: Codec, cuts: list[int]) -> None:
    data = SMALL[codec] * 3
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    pieces = [data[a:b] for a, b in pairwise(edges)]
    assert run(codec, *pieces) == (CONTENT[:3000] + bytes(2000)) * 3


@pytest.mark.parametrize("codec", WITH_END)
def test_truncated_at_every_byte(codec: Codec) -> None:
    data = SMALL[codec]
    for length in range(len(data)):
        with pytest.raises(DataCorrupt) as caught:
            run(codec, data[:length])
        assert caught.value.code == "archive.damaged"


@pytest.mark.parametrize("codec", WITH_END)
def test_flipped_at_every_byte(codec: Codec) -> None:
    data = COMPRESS[codec](CONTENT[:500] + bytes(300))
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 0xFF
        try:
            run(codec, bytes(damaged))  # flips that change nothing are found by the archive's checksum
        except DataCorrupt as error:
            assert error.code == "archive.damaged"


@pytest.mark.parametrize("codec", WITH_END)
def test_garbage_after_the_last_member(codec: Codec) -> None:
    for garbage in (b"x", b"PK", b"garbage behind", b"\x1f"):
        with pytest.raises(DataCorrupt):
            run(codec, SMALL[codec] + garbage)
        with pytest.raises(DataCorrupt):
            run(codec, SMALL[codec], garbage[:1], garbage[1:] + b"y")


@pytest.mark.parametrize("codec", WITH_END)
def test_zero_padding_is_fine_but_nothing_behind_it(codec: Codec) -> None:
    data = SMALL[codec]
    assert run(codec, data + bytes(1000), bytes(10)) == run(codec, data, bytes(1)) == CONTENT[:3000] + bytes(2000)
    with pytest.raises(DataCorrupt):
        run(codec, data + bytes(10) + data[:2])
    with pytest.raises(DataCorrupt):
        run(codec, data + bytes(10), data)
    with pytest.raises(DataCorrupt):
        run(codec, data, data[:1], b"\0\0")


def test_xz_padding_comes_in_fours() -> None:
    once = CONTENT[:3000] + bytes(2000)
    assert run(Codec.XZ, SMALL[Codec.XZ] + bytes(8) + SMALL[Codec.XZ] + bytes(4)) == once * 2
    with pytest.raises(DataCorrupt):
        run(Codec.XZ, SMALL[Codec.XZ] + bytes(3) + SMALL[Codec.XZ])


def test_stored_gzip_members() -> None:
    data = os.urandom(700_000)
    stored = b"".join(gzip.compress(data[i : i + 200_000], 0) for i in range(0, len(data), 200_000))
    assert run(Codec.GZIP, stored) == data
    assert run(Codec.GZIP, *(stored[i : i + 65_537] for i in range(0, len(stored), 65_537))) == data


@pytest.mark.parametrize("codec", WITH_END)
def test_a_bomb_comes_out_in_bounded_pieces(codec: Codec) -> None:
    bomb = COMPRESS[codec](bytes(24 << 20))
    total = 0
    stream = decompressor(codec)
    for part in stream.feed(bomb):
        assert len(part) <= PIECE_BYTES
        total += len(part)
    stream.finish()
    assert total == 24 << 20


def test_zstd_shapes() -> None:
    skippable = (0x184D2A53).to_bytes(4, "little") + (5).to_bytes(4, "little") + b"hello"
    empty = zstandard.ZstdCompressor().compress(b"")
    out = io.BytesIO()
    with zstandard.ZstdCompressor(level=1).stream_writer(out, closefd=False) as writer:
        for start in range(0, len(CONTENT), 50_000):
            writer.write(CONTENT[start : start + 50_000])
            writer.flush(zstandard.FLUSH_BLOCK)
    streamed = out.getvalue()
    assert run(Codec.ZSTD, skippable + streamed + empty + skippable) == CONTENT
    tail = skippable + streamed[-2000:]
    assert run(Codec.ZSTD, *(bytes([byte]) for byte in skippable + _zstd(b"x" * 5000) + skippable)) == b"x" * 5000
    with pytest.raises(DataCorrupt):
        run(Codec.ZSTD, tail)


@pytest.mark.parametrize(
    ("command", "codec"),
    [
        (["gzip", "-1"], Codec.GZIP),
        (["zstd", "-q", "-19"], Codec.ZSTD),
        (["lz4", "-q", "-9"], Codec.LZ4),
        (["xz", "-2"], Codec.XZ),
        (["bzip2"], Codec.BZIP2),
    ],
)
def test_what_the_ordinary_tools_write(command: list[str], codec: Codec) -> None:
    try:
        made = subprocess.run([*command, "-c"], input=CONTENT, stdout=subprocess.PIPE, check=True).stdout
    except FileNotFoundError:
        pytest.skip(f"{command[0]} is not installed")
    assert detect(made[:512], "archive.tar.gz") is codec  # the name is a habit, the bytes decide
    assert run(codec, made) == CONTENT


def test_detect_tar_in_its_forms() -> None:
    for form in (0, 1, 2):
        assert detect(tar_of(member("a", b"b"), form=form)[:512]) is Codec.TAR
    v7 = bytearray(tar_of(member("a", b"b"), form=0)[:512])
    v7[257:512] = bytes(255)
    v7[148:156] = b" " * 8
    v7[148:156] = b"%06o\0 " % sum(v7)
    assert detect(bytes(v7)) is Codec.TAR
    assert detect(bytes(512)) is Codec.TAR


@pytest.mark.parametrize(
    ("first", "seen"),
    [
        (b"LZIP\x01", "lzip"),
        (b"itaf...", "itaf"),
        (b"PK\x03\x04", "zip"),
        (b"Rar!", "rar"),
        (b"<html>", "HTML"),
        (b"\x07\x9e\xc1" + b"\xff" * 600, "unknown"),
        (b"\x1f", "unknown"),
        (b"\x1f\x8b\x07", "gzip"),
    ],
)
def test_detect_names_what_it_refuses(first: bytes, seen: str) -> None:
    with pytest.raises(DataCorrupt) as caught:
        detect(first, "archive.tar.gz")
    assert caught.value.code == "archive.format"
    assert seen in caught.value.message


def test_detect_nothing() -> None:
    with pytest.raises(DataCorrupt) as caught:
        detect(b"", "archive.tar")
    assert caught.value.code == "archive.damaged"


def test_a_skippable_frame_belongs_to_whom_the_name_says() -> None:
    skippable = (0x184D2A50).to_bytes(4, "little") + bytes(508)
    assert detect(skippable, None) is Codec.ZSTD
    assert detect(skippable, "archive.tar.LZ4") is Codec.LZ4


def test_gzip_crc_and_length_are_verified() -> None:
    data = bytearray(SMALL[Codec.GZIP])
    assert zlib.crc32(run(Codec.GZIP, bytes(data))) == int.from_bytes(data[-8:-4], "little")
    for at in range(-8, 0):
        broken = bytearray(data)
        broken[at] ^= 1
        with pytest.raises(DataCorrupt):
            run(Codec.GZIP, bytes(broken))
