"""Where a body ends: equal for every way to cut the input, and strict about everything that is not RFC 9112."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import Refused
from sidecar.wire.framing import CHUNK_LINE_BYTES, ChunkedFraming, Framing, LengthFraming, framing_of


def deframe(framing: Framing, pieces: list[bytes]) -> tuple[bytes, bytes, bool]:
    """The data, what lies behind the body, and whether the body ended."""
    data, rest = bytearray(), bytearray()
    for piece in pieces:
        position = 0
        while position < len(piece) and not framing.done:
            start, stop = framing.advance(piece, position, len(piece))
            assert position <= start <= stop <= len(piece)
            data += piece[start:stop]
            position = stop
        rest += piece[position:]
    return bytes(data), bytes(rest), framing.done


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges) if b > a]


@given(
    contents=st.lists(st.binary(min_size=1, max_size=40), max_size=6),
    extension=st.sampled_from([b"", b";a", b' ; name="va lue"', b";x=y;z"]),
    trailer=st.sampled_from([b"", b"Digest: abc\r\n", b"A: 1\r\nB:\r\n"]),
    rest=st.binary(max_size=20),
    cuts=st.lists(st.integers(0, 1000), max_size=8),
)
def test_chunked_is_the_same_however_it_is_cut(
    contents: list[bytes], extension: bytes, trailer: bytes, rest: bytes, cuts: list[int]
) -> None:
    wire = b"".join(b"%X%s\r\n%s\r\n" % (len(content), extension, content) for content in contents)
    wire += b"000\r\n" + trailer + b"\r\n"
    expected = (b"".join(contents), rest, True)
    assert deframe(ChunkedFraming(), [wire + rest]) == expected
    assert deframe(ChunkedFraming(), split(wire + rest, cuts)) == expected
    assert deframe(ChunkedFraming(), [bytes([byte]) for byte in wire + rest]) == expected


def test_a_chunked_body_without_its_last_byte_has_not_ended() -> None:
    wire = b"3\r\nabc\r\n0\r\nT: x\r\n\r\n"
    for length in range(len(wire)):
        assert not deframe(ChunkedFraming(), [wire[:length]])[2]


@pytest.mark.parametrize(
    "wire",
    [
        b"\r\n",
        b"x\r\n",
        b"-1\r\n",
        b"+1\r\na\r\n",
        b" 1\r\na\r\n",
        b"0x1\r\na\r\n",
        b"1 \r\na\r\n",
        b"1\na\r\n",
        b"1\r\r\na\r\n",
        b"1;a\x00b\r\na\r\n",
        b"1\r\nab\r\n",
        b"1\r\na\n",
        b"1\r\na\r\r\n",
        b"1\r\na0\r\n\r\n",
        b"f" * 16 + b"\r\n",
        b"1;" + b"e" * CHUNK_LINE_BYTES + b"\r\na\r\n",
        b"1" * (CHUNK_LINE_BYTES + 2),
        b"0\r\nno colon\r\n\r\n",
        b"0\r\n" + b"A: b\r\n" * 2000 + b"\r\n",
    ],
)
def test_what_is_no_chunk_is_refused(wire: bytes) -> None:
    for pieces in ([wire], [bytes([byte]) for byte in wire]):
        with pytest.raises(Refused) as caught:
            deframe(ChunkedFraming(), pieces)
        assert caught.value.code == "upload.malformed"


@given(size=st.integers(0, 50), data=st.binary(max_size=80), cuts=st.lists(st.integers(0, 1000), max_size=4))
def test_length(size: int, data: bytes, cuts: list[int]) -> None:
    assert deframe(LengthFraming(size), split(data, cuts)) == (data[:size], data[size:], len(data) >= size)


@pytest.mark.parametrize(
    ("version", "headers", "kind", "declared"),
    [
        ("1.1", [(b"transfer-encoding", b"Chunked ")], ChunkedFraming, True),
        ("1.1", [(b"content-length", b"5")], LengthFraming, True),
        ("1.0", [(b"content-length", b"5")], LengthFraming, True),
        ("1.1", [], LengthFraming, False),
    ],
)
def test_framing_of(version: str, headers: list[tuple[bytes, bytes]], kind: type[Framing], declared: bool) -> None:
    framing, has_length = framing_of(version, headers)
    assert type(framing) is kind
    assert has_length is declared


@pytest.mark.parametrize(
    ("version", "headers"),
    [
        ("1.1", [(b"transfer-encoding", b"chunked"), (b"content-length", b"5")]),
        ("1.1", [(b"transfer-encoding", b"gzip, chunked")]),
        ("1.1", [(b"transfer-encoding", b"gzip")]),
        ("1.1", [(b"transfer-encoding", b"chunked"), (b"transfer-encoding", b"chunked")]),
        ("1.0", [(b"transfer-encoding", b"chunked")]),
        ("1.1", [(b"content-length", b"5"), (b"content-length", b"5")]),
        ("1.1", [(b"content-length", b"-5")]),
        ("1.1", [(b"content-length", b"0x5")]),
        ("1.1", [(b"content-length", b"5, 5")]),
        ("1.1", [(b"content-length", b"")]),
        ("1.1", [(b"content-length", b"9" * 19)]),
    ],
)
def test_framing_that_two_parsers_could_read_differently(version: str, headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(Refused):
        framing_of(version, headers)
