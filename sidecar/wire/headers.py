"""The header fields that one sidecar sends another with an upload. They are believed only after the JWT.

| field | value |
|---|---|
| `Sidecar-Protocol` | a whole number; a sender without it is no sidecar |
| `Sidecar-Transfer` | the transfer's UUID, the same on both ends |
| `Sidecar-Start` | `true` or `false`: start the server when it has arrived |
| `Sidecar-Content-Bytes` | bytes of all files before compression |
| `Sidecar-Entries` | entries of the archive |

Real daemons ignore unknown header fields, so they are sent to everyone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import msgspec

from sidecar.errors import Refused

PROTOCOL_VERSION: Final = 1

TRANSFER: Final = "Sidecar-Transfer"
START: Final = "Sidecar-Start"
CONTENT_BYTES: Final = "Sidecar-Content-Bytes"
ENTRIES: Final = "Sidecar-Entries"
PROTOCOL: Final = "Sidecar-Protocol"

_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NUMBER: Final = re.compile(r"[0-9]{1,18}")  # fits a signed 64-bit number


class UploadHeaders(msgspec.Struct, frozen=True, kw_only=True):
    """What the source says of an upload. None: it did not say. `protocol` 0: the source is not a sidecar."""

    transfer: str | None = None  # UUID, lower case
    start_on_completion: bool | None = None
    content_bytes: int | None = None
    entries: int | None = None
    protocol: int = 0


def encode(headers: UploadHeaders) -> dict[str, str]:
    """The header fields to send; what is None is left out."""
    fields = {PROTOCOL: str(headers.protocol)}
    if headers.transfer is not None:
        fields[TRANSFER] = headers.transfer
    if headers.start_on_completion is not None:
        fields[START] = "true" if headers.start_on_completion else "false"
    if headers.content_bytes is not None:
        fields[CONTENT_BYTES] = str(headers.content_bytes)
    if headers.entries is not None:
        fields[ENTRIES] = str(headers.entries)
    return fields


def decode(headers: Mapping[str, str]) -> UploadHeaders:
    """Read the fields from request headers (names in any case).

    Raises Refused (`request.invalid`) for a value that none of our sources writes.
    """
    values = {name.lower(): value.strip() for name, value in headers.items()}
    transfer = values.get(TRANSFER.lower())
    if transfer is not None and _UUID.fullmatch(transfer := transfer.lower()) is None:
        raise _invalid(TRANSFER)
    start = values.get(START.lower())
    if start not in (None, "true", "false"):
        raise _invalid(START)
    return UploadHeaders(
        transfer=transfer,
        start_on_completion=None if start is None else start == "true",
        content_bytes=_number(values, CONTENT_BYTES),
        entries=_number(values, ENTRIES),
        protocol=_number(values, PROTOCOL) or 0,
    )


def _number(values: Mapping[str, str], name: str) -> int | None:
    value = values.get(name.lower())
    if value is None:
        return None
    if _NUMBER.fullmatch(value) is None:
        raise _invalid(name)
    return int(value)


def _invalid(name: str) -> Refused:
    return Refused("request.invalid", f"the header {name} has a value that makes no sense", field=name)
