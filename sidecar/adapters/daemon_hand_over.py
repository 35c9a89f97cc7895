"""The request by which a node daemon adopts files that are already in its place: a transfer whose archive is empty.

The archive is a valid tar.gz without entries. It ends in exactly two zero blocks from one compressor: two families hash
only what their tar reader pulls and would otherwise find another checksum (docs/PROTOCOL.md). Both names of the
checksum are sent, because each of those two wants its own. Pure.
"""

from __future__ import annotations

import gzip
import hashlib
import secrets
import uuid
from typing import Any, Final

import jwt

ISSUER: Final = "transfer-sidecar"
_TAR_END: Final = bytes(2 * 512)
_ARCHIVE: Final = gzip.compress(_TAR_END, mtime=0)
_CHECKSUM: Final = hashlib.sha256(_ARCHIVE).hexdigest()
_SKEW_S: Final = 60
_MIN_VALID_S: Final = 60

Part = tuple[str | None, bytes | str] | tuple[str | None, bytes | str, str]


def hand_over_form(*, types_tar: bool) -> list[tuple[str, Part]]:
    """The parts in their order, as httpx takes them. `types_tar`: Calagopus marks its archives so."""
    media_type = "application/x-tar" if types_tar else "application/octet-stream"
    return [
        ("archive", ("archive.tar.gz", _ARCHIVE, media_type)),
        ("checksum", (None, _CHECKSUM)),
        ("checksum_archive", (None, _CHECKSUM)),
    ]


def mint_token(server: str, *, key: str, audience: str, now_s: int, valid_s: float) -> str:
    """What a panel would issue for a transfer to this node; every claim that any family asks for, in whole seconds."""
    return _signed(key, audience, now_s, max(_MIN_VALID_S, int(valid_s)), sub=server, scope="transfer")


def mint_socket_token(server: str, *, key: str, audience: str, now_s: int) -> str:
    """For a console that may see the server's state and nothing else."""
    nobody = str(uuid.UUID(int=0))
    claims = {"user_uuid": nobody, "server_uuid": server, "permissions": ["websocket.connect"], "scope": "websocket"}
    return _signed(key, audience, now_s, _MIN_VALID_S, **claims)


def _signed(key: str, audience: str, now_s: int, valid_s: int, **claims: Any) -> str:
    base = {
        "iss": ISSUER,
        "aud": [audience],
        "jti": uuid.uuid4().hex,
        "iat": now_s,
        "nbf": now_s - _SKEW_S,
        "exp": now_s + valid_s,
        "unique_id": secrets.token_hex(8),
    }
    return jwt.encode({**base, **claims}, key, algorithm="HS256")
