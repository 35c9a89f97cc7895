from __future__ import annotations

import gzip
import os
import subprocess
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from isal import isal_zlib
from zlib_ng import zlib_ng

from sidecar.archive.gzip_write import MemberWriter, ending_member, member_capacity

LOG = b"".join(b"[12:%02d:%02d] [Server thread/INFO]: Player%d joined\n" % (i % 60, i % 7, i) for i in range(12_000))
RANDOM = os.urandom(300_000)
LEVELS = range(10)


def member(piece: bytes, level: int) -> bytes:
    buffer = memoryview(bytearray(b"\xaa" * member_capacity(len(piece))))
    return bytes(MemberWriter(level).member(memoryview(piece), buffer))


def is_stored(data: bytes) -> bool:
    return (data[10] >> 1) & 3 == 0


@pytest.mark.parametrize("level", LEVELS)
def test_text_shrinks_and_noise_is_stored(level: int) -> None:
    text, noise = member(LOG[:500_000], level), member(RANDOM, level)
    assert gzip.decompress(text) == LOG[:500_000]
    assert gzip.decompress(noise) == RANDOM
    assert is_stored(noise)
    assert len(noise) == member_capacity(len(RANDOM))
    assert is_stored(text) == (level == 0)
    if level:
        assert len(text) < 200_000


@pytest.mark.parametrize("level", [0, 1, 6])
@pytest.mark.parametrize("size", [1, 511, 65_534, 65_535, 65_536, 131_070, 131_071, 262_144])
def test_every_size_of_noise_fits_its_buffer(size: int, level: int) -> None:
    data = member(RANDOM[:size], level)
    assert gzip.decompress(data) == RANDOM[:size]
    assert len(data) <= member_capacity(size)


@given(
    st.lists(st.tuples(st.sampled_from([LOG, RANDOM]), st.integers(1, 100_000)), max_size=6), st.sampled_from(LEVELS)
)
def test_members_in_a_row_are_one_gzip_stream(parts: list[tuple[bytes, int]], level: int) -> None:
    plain = b"".join(source[:size] for source, size in parts)
    wire = b"".join(member(source[:size], level) for source, size in parts) + ending_member(bytes(1024))
    assert gzip.decompress(wire) == plain + bytes(1024)


def test_all_decompressors_read_it() -> None:
    wire = b"".join(member(piece, 1) for piece in (LOG, RANDOM, LOG[:5], bytes(600_000))) + ending_member(bytes(1024))
    plain = LOG + RANDOM + LOG[:5] + bytes(600_000) + bytes(1024)
    done = subprocess.run(["gzip", "-dc"], input=wire, capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (plain, b"")
    for library in (zlib, isal_zlib, zlib_ng):
        left, out = wire, []
        while left:
            decompressor = library.decompressobj(wbits=31)
            out.append(decompressor.decompress(left))
            assert decompressor.eof
            left = decompressor.unused_data
        assert b"".join(out) == plain


@pytest.mark.parametrize("level", LEVELS)
def test_zeros_are_made_once_and_mean_zeros(level: int) -> None:
    writer = MemberWriter(level)
    assert gzip.decompress(writer.zeros(524_288)) == bytes(524_288)
    assert writer.zeros(524_288) is writer.zeros(524_288)


def test_the_ending_is_one_member_of_one_block_with_nothing_behind() -> None:
    ending = ending_member(bytes(1024))
    decompressor = zlib.decompressobj(wbits=31)
    assert decompressor.decompress(ending) == bytes(1024)
    assert decompressor.eof
    assert decompressor.unused_data == b""
    assert ending[10] & 1  # the first deflate block is the last: nothing was flushed in between
    assert b"\x00\x00\xff\xff" not in ending


def test_no_time_stands_in_a_member() -> None:
    for level in LEVELS:
        assert member(LOG, level)[4:8] == bytes(4)
    assert member(LOG, 0) == member(LOG, 0)


@pytest.mark.parametrize("level", [-1, 10])
def test_other_levels_are_refused(level: int) -> None:
    with pytest.raises(ValueError, match="0 to 9"):
        MemberWriter(level)
