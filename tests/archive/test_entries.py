from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.archive.entries import Entry, EntryType, Notice, NoticeKind, readable


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (b"world/level.dat", "world/level.dat"),
        ("wörld/雪".encode(), "wörld/雪"),
        (b"bad\xff\xfename", r"bad\xff\xfename"),
        (b"line\nbreak\r\x1b[31m", r"line\nbreak\r\x1b[31m"),
        ("bidi\u202etxt".encode(), r"bidi\u202etxt"),
        (b"-rf", "-rf"),
    ],
)
def test_paths_for_people(path: bytes, text: str) -> None:
    assert readable(path) == text


@given(st.binary(max_size=300))
def test_a_readable_path_is_always_one_printable_line(path: bytes) -> None:
    assert readable(path).isprintable()


@pytest.mark.parametrize("kind", NoticeKind)
def test_every_notice_has_a_line(kind: NoticeKind) -> None:
    assert Notice(kind, b"a\nb", "why").text.isprintable()
    assert Notice(kind, b"", "why").text.endswith("(why)")
    assert Notice(kind, b"a").text


def test_an_entry_survives_packing_with_any_numbers_a_filesystem_keeps() -> None:
    entry = Entry(
        b"\xff/\n", EntryType.SYMLINK, 2**63 - 1, 0o7777, -(2**63), 2**64 - 1, 2**64 - 1, 2**64 - 1, b"../x", 9
    )
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(entry), type=Entry) == entry
