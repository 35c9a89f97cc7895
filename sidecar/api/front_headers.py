"""Header fields on their way through: what belongs to one connection only stays behind, the rest passes as it is.

`Connection` and what it names, and the fields that only ever concern one hop, are dropped (RFC 9110 7.6.1). Fields that
every recipient needs are not dropped even if a sender names them in `Connection`: that is how strangers make a proxy
lose its own marks. `Host` is kept, because a daemon checks and uses the name that its users know it by.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

Fields = list[tuple[bytes, bytes]]  # names in lower case, in the order in which they came

_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",  # trailers are not passed on: nobody who is passed on to sends or reads any
        b"transfer-encoding",  # the body is framed anew on each side
        b"upgrade",
    }
)
_ESSENTIAL: Final = frozenset({b"host", b"content-length", b"authorization", b"x-forwarded-for", b"x-forwarded-proto"})

# What each of the two handshakes of a socket that is passed through says for itself.
_HANDSHAKE: Final = re.compile(rb"host|sec-websocket-(?:key|version|extensions|protocol|accept)|content-length")


def end_to_end(fields: Iterable[tuple[bytes, bytes]]) -> Fields:
    """The fields that concern the other end."""
    fields = [(name.lower(), value) for name, value in fields]
    named = {option.strip().lower() for name, value in fields if name == b"connection" for option in value.split(b",")}
    dropped = _HOP | (named - _ESSENTIAL)
    return [(name, value) for name, value in fields if name not in dropped]


def forwarded(fields: Iterable[tuple[bytes, bytes]], *, peer: str, scheme: str) -> Fields:
    """`fields`, end to end, with where the request came from.

    Args: peer, the caller's address, added at the end of `X-Forwarded-For`, so that what a caller writes there itself
    stands before it and is believed only by those who trust that caller; scheme, `http` or `https`, said in
    `X-Forwarded-Proto` where no proxy before us has said it.
    """
    kept = end_to_end(fields)
    before = [value for name, value in kept if name == b"x-forwarded-for"]
    passed = [(name, value) for name, value in kept if name != b"x-forwarded-for"]
    addresses = b", ".join([*before, *([peer.encode("latin-1", "replace")] if peer else [])])
    if addresses:
        passed.append((b"x-forwarded-for", addresses))
    if not any(name == b"x-forwarded-proto" for name, _ in passed):
        passed.append((b"x-forwarded-proto", scheme.encode()))
    return passed


def for_handshake(fields: Iterable[tuple[bytes, bytes]]) -> Fields:
    """The fields of one WebSocket handshake that belong into the other one too."""
    return [pair for pair in end_to_end(fields) if _HANDSHAKE.fullmatch(pair[0]) is None]


def first(fields: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    """The first value of a field, or None."""
    return next((value for key, value in fields if key == name), None)
