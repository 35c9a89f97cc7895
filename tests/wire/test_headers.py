"""What one sidecar says to another in header fields."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import Refused
from sidecar.wire.headers import UploadHeaders, decode, encode

numbers = st.none() | st.integers(0, 10**18 - 1)


@given(
    transfer=st.none() | st.uuids().map(str), start=st.none() | st.booleans(), content_bytes=numbers, entries=numbers
)
def test_round_trip(transfer: str | None, start: bool | None, content_bytes: int | None, entries: int | None) -> None:
    headers = UploadHeaders(
        transfer=transfer, start_on_completion=start, content_bytes=content_bytes, entries=entries, protocol=1
    )
    assert decode(encode(headers)) == headers
    assert decode({name.lower(): value for name, value in encode(headers).items()}) == headers


def test_a_stranger_says_nothing() -> None:
    assert decode({"host": "node"}) == UploadHeaders()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Sidecar-Transfer", "../etc"),
        ("Sidecar-Transfer", ""),
        ("Sidecar-Start", "yes"),
        ("Sidecar-Content-Bytes", "-1"),
        ("Sidecar-Content-Bytes", "1e9"),
        ("Sidecar-Entries", "9" * 19),
        ("Sidecar-Protocol", "one"),
    ],
)
def test_nonsense_is_refused(name: str, value: str) -> None:
    with pytest.raises(Refused) as caught:
        decode({name: value})
    assert (caught.value.code, caught.value.facts["field"]) == ("request.invalid", name)
