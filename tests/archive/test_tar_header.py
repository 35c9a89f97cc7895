"""The quick way through a header says what the slow way says, or nothing."""

from __future__ import annotations

import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.archive import tar_header
from sidecar.archive.tar_header import Header, parse_header
from sidecar.errors import DataCorrupt


def block_of(name: str, typeflag: bytes, size: int, mode: int, mtime: int, link: str = "") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mode, info.mtime, info.linkname = typeflag, size, mode, mtime, link
    return info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "surrogateescape")[:512]


def with_checksum(block: bytearray) -> bytes:
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def slowly(block: bytes) -> Header | str:
    try:
        return tar_header._any_header(block, 0)
    except DataCorrupt as error:
        return error.code


blocks = st.builds(
    block_of,
    st.text(st.characters(min_codepoint=1, max_codepoint=0x2FF), min_size=1, max_size=40),
    st.sampled_from([b"0", b"\0", b"1", b"2", b"5", b"7", b"x", b"g", b"D", b"Q"]),
    st.integers(0, 8**11 - 1),
    st.integers(0, 0o7777),
    st.integers(0, 8**11 - 1),
    st.text(st.characters(min_codepoint=1, max_codepoint=0x7E), max_size=20),
)


@given(blocks, st.lists(st.tuples(st.integers(0, 511), st.integers(0, 255)), max_size=3), st.booleans())
def test_quickly_as_slowly(block: bytes, changes: list[tuple[int, int]], is_summed_anew: bool) -> None:
    changed = bytearray(block)
    for at, value in changes:
        changed[at] = value
    one = with_checksum(changed) if is_summed_anew else bytes(changed)
    quick = tar_header._usual_header(one)
    assert quick is None or quick == slowly(one)


@pytest.mark.parametrize("typeflag", [b"0", b"5", b"x"])
def test_what_is_usual_is_read_quickly(typeflag: bytes) -> None:
    block = block_of("world/region/r.0.0.mca", typeflag, 1234, 0o644, 1_700_000_000)
    quick = tar_header._usual_header(block)
    assert quick is not None
    assert quick == parse_header(block, 0) == tar_header._any_header(block, 0)


def test_no_bit_may_be_flipped() -> None:
    whole = block_of("world/level.dat", b"0", 77, 0o644, 1_700_000_000)
    for at in (*range(154), *range(156, 512)):  # 154, 155: the checksum's own terminators, where readers are lenient
        block = bytearray(whole)
        block[at] ^= 0x01
        with pytest.raises(DataCorrupt):
            parse_header(bytes(block), 0)
