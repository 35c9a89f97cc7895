"""How the unmodified daemons receive a transfer, each with its own carelessness: into the live volume, file by file.

One upload in memory at a time: a stand-in is not given gigabytes. What each family accepts, refuses and leaves behind
is what was recorded of the real ones (docs/PROTOCOL.md). Blocking where it writes.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import tarfile
import zlib
from pathlib import Path
from typing import Final

import msgspec

from sidecar.demo.panel_documents import Family

_NAME: Final = re.compile(rb'name="([^"]*)"')
_FILE_NAME: Final = re.compile(rb'filename="([^"]*)"')
_MEDIA_TYPE: Final = re.compile(rb"Content-Type: *([^\r\n]+)", re.IGNORECASE)


class ReceiptFailed(Exception):
    """Why the daemon gives the transfer up; what was extracted stays."""


class FormPart(msgspec.Struct, frozen=True):
    name: str
    file_name: str | None
    content: bytes
    media_type: str | None = None


def parts_of(body: bytes, boundary: str) -> list[FormPart]:
    """Raises ReceiptFailed where the body does not end as a form does."""
    mark = b"--" + boundary.encode()
    pieces = (b"\r\n" + body).split(b"\r\n" + mark)
    if len(pieces) < 2 or not any(piece.startswith(b"--") for piece in pieces[1:]):
        raise ReceiptFailed("unexpected end of the form")
    parts = []
    for piece in pieces[1:]:
        if piece.startswith(b"--"):
            break
        head, _, content = piece.partition(b"\r\n\r\n")
        name, file_name, media_type = _NAME.search(head), _FILE_NAME.search(head), _MEDIA_TYPE.search(head)
        parts.append(
            FormPart(
                name=name[1].decode() if name else "",
                file_name=file_name[1].decode() if file_name else None,
                content=content,
                media_type=media_type[1].decode() if media_type else None,
            )
        )
    return parts


class Shelves(msgspec.Struct, frozen=True):
    """Where a daemon files backups and installation logs: `system.backup_directory` and `system.log_directory`."""

    backups: Path
    logs: Path

    def backups_of(self, family: Family, server: str) -> Path:
        return self.backups / server if family is Family.PELICAN else self.backups

    def install_log(self, family: Family, server: str) -> Path:
        if family is Family.CALAGOPUS:
            return self.logs / server / "install.log"
        return self.logs / "install" / f"{server}.log"


def file_parts(family: Family, parts: list[FormPart], server: str, shelves: Shelves) -> list[str]:
    """File backups and an installation log as the family does. Returns the backups that its `success` lists.

    Raises ReceiptFailed where a checksum is missing or wrong; what was filed stays.
    """
    if family is Family.PTERODACTYL:
        return []
    shelf, found, digest = shelves.backups_of(family, server), [], ""
    calculated: dict[str, str] = {}
    received: dict[str, str] = {}
    for part in parts:
        if part.name == ("install_logs" if family is Family.PELICAN else "install-logs"):
            path = shelves.install_log(family, server)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(part.content)
        elif family is Family.PELICAN and part.name.startswith("backup_"):
            shelf.mkdir(parents=True, exist_ok=True)
            name = Path(part.name.removeprefix("backup_")).name
            (shelf / name).write_bytes(part.content)
            calculated[name] = hashlib.sha256(part.content).hexdigest()
        elif family is Family.PELICAN and part.name.startswith("checksum_backup_"):
            received[part.name.removeprefix("checksum_backup_")] = part.content.decode()
        elif family is Family.CALAGOPUS and part.name.startswith("backup-checksum-"):
            if not digest or digest != part.content.decode():
                raise ReceiptFailed("backup checksum does not match")
            digest = ""
        elif family is Family.CALAGOPUS and part.name.startswith("backup-"):
            if part.file_name is None or part.media_type != "backup/wings":
                continue
            (shelf / part.file_name).write_bytes(part.content)
            found.append(part.name.removeprefix("backup-"))
            digest = hashlib.sha256(part.content).hexdigest()
    if any(received.get(name) != digest for name, digest in calculated.items()):
        raise ReceiptFailed("backup checksum mismatch")
    return found


def receive(family: Family, parts: list[FormPart], volume: Path, owner: tuple[int, int] | None) -> None:
    """Extract and verify as the family does. Raises ReceiptFailed. `owner`: None: the process's own."""
    volume.mkdir(parents=True, exist_ok=True)
    checksum: str | None = None
    archive: str | None = None
    for part in parts:
        if part.name == "archive":
            archive = hashlib.sha256(part.content).hexdigest()
            _extract(family, part, volume, owner)
        elif part.name == _checksum_name(family) or (family is Family.CALAGOPUS and part.name == "checksum"):
            if archive is None and family is not Family.PELICAN:
                raise ReceiptFailed("the checksum came before the archive")
            checksum = part.content.decode("utf-8", "replace")
            if family is Family.CALAGOPUS and checksum != archive:
                raise ReceiptFailed("checksum mismatch")
    if family is Family.CALAGOPUS:
        return  # without a checksum, or without an archive, it is content
    if archive is None or checksum is None:
        raise ReceiptFailed("archive checksum missing")
    if archive != checksum:
        raise ReceiptFailed("archive checksum mismatch")


def _checksum_name(family: Family) -> str:
    return "checksum_archive" if family is Family.PELICAN else "checksum"


def _extract(family: Family, part: FormPart, volume: Path, owner: tuple[int, int] | None) -> None:
    try:
        plain = gzip.decompress(part.content)
        with tarfile.open(fileobj=io.BytesIO(plain)) as tar:
            for entry in tar:
                _write(family, tar, entry, volume, owner)
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        if family is Family.CALAGOPUS and isinstance(error, gzip.BadGzipFile | tarfile.ReadError):
            return  # random bytes are an archive without files to it
        raise ReceiptFailed(str(error)) from error


def _write(
    family: Family, tar: tarfile.TarFile, entry: tarfile.TarInfo, volume: Path, owner: tuple[int, int] | None
) -> None:
    names = [name for name in entry.name.split("/") if name not in ("", ".", "..")]
    if not names:
        return
    path = volume.joinpath(*names)
    if entry.isdir():
        if family is not Family.PTERODACTYL:
            path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if family is Family.CALAGOPUS and entry.issym():
        target = "/".join(name for name in entry.linkname.split("/") if name not in ("", ".."))
        path.unlink(missing_ok=True)
        path.symlink_to(target or ".")
        return
    if family is Family.CALAGOPUS and not entry.isreg():
        return
    content = tar.extractfile(entry) if entry.isreg() else None
    path.write_bytes(content.read() if content is not None else b"")
    path.chmod(entry.mode & 0o777)
    os.utime(path, (entry.mtime, entry.mtime))
    if owner is not None and family is not Family.CALAGOPUS:
        os.chown(path, *owner)
