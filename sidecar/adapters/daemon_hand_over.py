"""The request by which a node daemon adopts files that are already in its place: a transfer whose archive is empty.

The archive is a valid tar.gz without entries. It ends in exactly two zero blocks from one compressor: two families hash
only what their tar reader pulls and would otherwise find another checksum (docs/PROTOCOL.md). Both names of the
checksum are sent, because each of those two wants its own. Files that came with the server follow in the names of the
daemon's family. Blocking where the files are read.
"""

from __future__ import annotations

import gzip
import hashlib
import secrets
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, Final

import jwt

from sidecar.engine.backups import BackupForm, install_log_part, part_of
from sidecar.ports import CarriedFile
from sidecar.wire import multipart

ISSUER: Final = "transfer-sidecar"
_TAR_END: Final = bytes(2 * 512)
_ARCHIVE: Final = gzip.compress(_TAR_END, mtime=0)
_CHECKSUM: Final = hashlib.sha256(_ARCHIVE).hexdigest()
_SKEW_S: Final = 60
_MIN_VALID_S: Final = 60


def hand_over_pieces(
    boundary: bytes, *, form: BackupForm, files: Sequence[CarriedFile] = (), types_tar: bool = False
) -> Iterator[bytes]:
    """The body, its parts in their order. `types_tar`: Calagopus marks its archives so; `form`: whose names the files'
    parts have. Raises HostFailed (`disk.failed`) where a file cannot be read. Memory: a piece of 512 KiB."""
    media_type = "application/x-tar" if types_tar else "application/octet-stream"
    head = multipart.part_head(boundary, "archive", "archive.tar.gz", media_type) + _ARCHIVE + multipart.end_of_part()
    for name in ("checksum", "checksum_archive"):
        head += multipart.small_part(boundary, name, _CHECKSUM.encode())
    yield head
    for each in files:
        yield from _file_pieces(boundary, form, each)
    yield multipart.closing(boundary)


def _file_pieces(boundary: bytes, form: BackupForm, carried: CarriedFile) -> Iterator[bytes]:
    """The checksum is that of the file as it came, so that the daemon proves the whole way."""
    backup = carried.file.backup
    if backup is None:
        part = install_log_part(carried.path, form)
    else:
        part = part_of(carried.path, backup, form, carried.file.name)
    yield multipart.part_head(boundary, part.name, part.filename, part.content_type)
    yield from part.pieces()
    ending = multipart.end_of_part()
    if part.checksum_name is not None:
        ending += multipart.part_head(boundary, part.checksum_name, part.checksum_filename, part.checksum_type)
        ending += carried.file.sha256_hex.encode() + multipart.end_of_part()
    yield ending


def mint_token(server: str, *, key: str, audience: str, now_s: int, valid_s: float) -> str:
    """What a panel would issue for a transfer to this node; every claim that any family asks for, in whole seconds."""
    return _signed(key, audience, now_s, max(_MIN_VALID_S, int(valid_s)), sub=server, scope="transfer")


def mint_socket_token(server: str, *, key: str, audience: str, now_s: int, valid_s: int = _MIN_VALID_S) -> str:
    """For a console that may see the server's state and nothing else; issued at `now_s`."""
    nobody = str(uuid.UUID(int=0))
    claims = {"user_uuid": nobody, "server_uuid": server, "permissions": ["websocket.connect"], "scope": "websocket"}
    return _signed(key, audience, now_s, valid_s, **claims)


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
