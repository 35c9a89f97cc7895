"""Parts are the same however the body is cut, and what is damaged is refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import Refused
from sidecar.wire import multipart
from sidecar.wire.multipart import MultipartReader, parse_content_type

BOUNDARY = b"frontier"


def reading(pieces: Iterable[bytes]) -> Callable[[], memoryview]:
    """A body in one buffer that is overwritten by each read, as the ring's is."""
    buffer = bytearray(1 << 16)
    iterator = iter(pieces)

    def read() -> memoryview:
        buffer[:] = b"\xee" * len(buffer)
        piece = next(iterator, b"")
        buffer[: len(piece)] = piece
        return memoryview(buffer)[: len(piece)]

    return read


def parts_of(pieces: Iterable[bytes], max_parts: int = 100) -> list[tuple[str, str | None, str | None, bytes]]:
    return [
        (part.name, part.filename, part.content_type, b"".join(bytes(piece) for piece in part))
        for part in MultipartReader(reading(pieces), BOUNDARY, max_parts=max_parts)
    ]


def singly(data: bytes) -> list[bytes]:
    return [bytes([byte]) for byte in data]


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges) if b > a]


near_boundary = st.lists(
    st.sampled_from([b"\r", b"\n", b"-", b"--", b"\r\n", b"\r\n--", b"\r\n--front", b"\r\n--frontie", b"x", b"\0"]),
    max_size=12,
).map(b"".join)


@given(
    contents=st.lists(st.one_of(near_boundary, st.binary(max_size=30)), max_size=4),
    padding=st.sampled_from([b"", b" ", b"\t  "]),
    preamble=st.sampled_from([b"", b"\r\n", b"read me\r\n", b"--front\r\n"]),
    epilogue=st.sampled_from([b"", b"\r\n", b"\r\n\r\n--frontier--\r\n", b"anything"]),
    cuts=st.lists(st.integers(0, 2000), max_size=12),
)
def test_parts_are_the_same_however_the_body_is_cut(
    contents: list[bytes], padding: bytes, preamble: bytes, epilogue: bytes, cuts: list[int]
) -> None:
    body = preamble
    for index, content in enumerate(contents):
        head = b'--frontier%s\r\nContent-Disposition: form-data; name="p%d"\r\n\r\n' % (padding, index)
        body += head + content + b"\r\n"
    body += b"--frontier--" + epilogue
    expected = [(f"p{index}", None, None, content) for index, content in enumerate(contents)]
    assert parts_of([body]) == expected
    assert parts_of(singly(body)) == expected
    assert parts_of(split(body, cuts)) == expected


def test_a_body_cut_short_anywhere_is_noticed() -> None:
    body = multipart.part_head(BOUNDARY, "archive", "a.tar.gz") + b"bytes\r\n" + multipart.closing(BOUNDARY)
    whole = len(body) - 2  # the line break behind the closing boundary is epilogue
    for length in range(whole):
        for pieces in ([body[:length]] if length else [], singly(body[:length])):
            with pytest.raises(Refused) as caught:
                parts_of(pieces)
            assert caught.value.code == "upload.malformed"
    assert parts_of([body[:whole]]) == [("archive", "a.tar.gz", None, b"bytes")]


def head(disposition: bytes, *more: bytes) -> bytes:
    lines = [b"Content-Disposition: " + disposition, *more, b"", b"content"]
    return b"--frontier\r\n" + b"\r\n".join(lines) + b"\r\n--frontier--"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (head(b'form-data; name="a b"'), ("a b", None, None)),
        (head(b"form-data; name=plain; filename=x.tar"), ("plain", "x.tar", None)),
        (head(b'FORM-DATA;NAME="a";filename="C:\\\\d\\"q\\".gz"'), ("a", 'C:\\d"q".gz', None)),
        (head(b'form-data; name="a"; filename*=UTF-8\'\'evil; filename="kept"'), ("a", "kept", None)),
        (head('form-data; name="a"; filename="région ☃"'.encode()), ("a", "région ☃", None)),
        (head(b'form-data ; name = "a" ;'), ("a", None, None)),
        (head(b'form-data; name="a;b=c"'), ("a;b=c", None, None)),
        (head(b'form-data; name="a"', b"cOnTeNt-TyPe: Backup/Wings; x=y"), ("a", None, "backup/wings")),
        (head(b'form-data; name="a"', b"Content-Transfer-Encoding: binary"), ("a", None, None)),
    ],
)
def test_part_headers(body: bytes, expected: tuple[str, str | None, str | None]) -> None:
    assert parts_of([body]) == [(*expected, b"content")]
    assert parts_of(singly(body)) == [(*expected, b"content")]


@pytest.mark.parametrize(
    "body",
    [
        head(b"form-data"),
        head(b'form-data; name=""'),
        head(b'attachment; name="a"'),
        head(b'form-data; name="a"; name="b"'),
        head(b'form-data; name="a'),
        head(b'form-data; name="a" b'),
        head(b'form-data; name="a\x00b"'),
        head(b'form-data; name="a\rb"'),
        head(b'form-data; name="a\nb"'),
        head(b'form-data; name="a";\r\n filename="folded"'),
        head(b'form-data; name="\xff"'),
        head(b'form-data; name="a"', b'Content-Disposition: form-data; name="b"'),
        head(b'form-data; name="a"', b"no colon"),
        head(b'form-data; name="a"', b"Content-Transfer-Encoding: base64"),
        b"--frontier\r\n\r\nno header at all\r\n--frontier--",
        b"--frontierX\r\n" + head(b'form-data; name="a"'),
        b"--frontier-\r\n" + head(b'form-data; name="a"'),
        b"no boundary",
        b"x" * 70_000 + b"\r\n" + head(b'form-data; name="a"'),
        head(b'form-data; name="a"') + b"x" * 70_000,
        head(b'form-data; name="a"', b"X: " + b"y" * 20_000),
        b"",
    ],
)
def test_what_is_damaged_is_refused(body: bytes) -> None:
    for pieces in (split(body, list(range(0, 90_000, 30_000))), singly(body)):
        with pytest.raises(Refused) as caught:
            parts_of(pieces)
        assert caught.value.code == "upload.malformed"


def test_parts_are_counted() -> None:
    body = b"".join(multipart.small_part(BOUNDARY, str(n), b"x") for n in range(5)) + multipart.closing(BOUNDARY)
    assert len(parts_of([body], max_parts=5)) == 5
    with pytest.raises(Refused):
        parts_of([body], max_parts=4)


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_what_is_not_read_is_skipped(size: int) -> None:
    body = b"".join(multipart.small_part(BOUNDARY, str(n), b"12345") for n in range(3)) + multipart.closing(BOUNDARY)
    names, first = [], []
    for part in MultipartReader(reading([body[at : at + size] for at in range(0, len(body), size)]), BOUNDARY):
        names.append(part.name)
        if part.name == "1":
            first.append(bytes(next(iter(part))))
    assert names == ["0", "1", "2"]
    assert b"12345".startswith(first[0])


def test_small_parts_are_bounded() -> None:
    body = multipart.small_part(BOUNDARY, "checksum", b"12345") + multipart.closing(BOUNDARY)
    assert next(iter(MultipartReader(reading([body]), BOUNDARY))).read_small(5) == b"12345"
    with pytest.raises(Refused):
        next(iter(MultipartReader(reading([body]), BOUNDARY))).read_small(4)


@pytest.mark.parametrize(
    ("header", "boundary"),
    [
        ("multipart/form-data; boundary=abc", b"abc"),
        ('Multipart/Form-Data; charset=utf-8; BOUNDARY="a b?=:/"', b"a b?=:/"),
        ("multipart/mixed;boundary=" + "x" * 70, b"x" * 70),
    ],
)
def test_content_type(header: str, boundary: bytes) -> None:
    assert parse_content_type(header) == boundary


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "application/json",
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=" + "x" * 71,
        'multipart/form-data; boundary="ends in a space "',
        "multipart/form-data; boundary=a; boundary=b",
        "multipart/form-data; boundary=a\r\nb",
        'multipart/form-data; boundary="a',
        "multipart/; boundary=a",
        "xmultipart/form-data; boundary=a",
        "multipart/form-data; boundary=é",
    ],
)
def test_no_content_type_for_an_upload(header: str | None) -> None:
    with pytest.raises(Refused) as caught:
        parse_content_type(header)
    assert (caught.value.code, caught.value.message) == ("upload.content_type", "invalid content type")


@given(name=st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=20))
def test_any_name_survives_the_writer(name: str) -> None:
    body = multipart.part_head(BOUNDARY, name, name) + b"\r\n" + multipart.closing(BOUNDARY)
    assert parts_of([body]) == [(name, name, None, b"")]


@pytest.mark.parametrize("name", ["a\r\nb", "a\0", "\n"])
def test_the_writer_refuses_control_characters(name: str) -> None:
    with pytest.raises(ValueError, match="control"):
        multipart.part_head(BOUNDARY, name)
