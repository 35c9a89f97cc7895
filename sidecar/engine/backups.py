"""Backups that travel with a server: how their parts are named, and which of them a source may delete afterwards.

| | Pelican | Calagopus |
|---|---|---|
| backup | `backup_<uuid>.tar.gz` | `backup-<uuid>`, type `backup/wings`, the file's name as the part's |
| its checksum | `checksum_backup_<uuid>.tar.gz` | `backup-checksum-<uuid>` |
| install log | `install_logs` | `install-logs`, `text/plain` |

A backup without its checksum, a checksum without its backup, a mismatch and a repetition fail the transfer: Pelican
does the same, Calagopus looks less closely. A file's name must be the backup's UUID and a suffix such as `.tar.gz`:
everything else that calls itself a backup is refused, so no name of a stranger reaches the disk.

Where they lie: `<directory>/<backup>.tar.gz`, or `<directory>/<server>/<backup>.tar.gz` where Pelican keeps them;
install logs `<directory>/<server>.log`, or `<directory>/<server>/install.log` at Calagopus.

A source may delete what its destination is known to have kept: one of ours names it in its answer, Calagopus keeps all
that it answers with 200. Of others nothing is known.
"""

from __future__ import annotations

import json
import logging
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Final

from sidecar.archive.durable import disk_errors, is_directory
from sidecar.errors import HostFailed
from sidecar.wire.upload import FilePart

log = logging.getLogger(__name__)

CALAGOPUS_TYPE: Final = "backup/wings"
MAX_INSTALL_LOG_BYTES: Final = 16 << 20  # real ones: some hundred KiB; a longer one is cut
READ_BYTES: Final = 512 << 10

_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_UUID: Final = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_FILE: Final = re.compile(rf"({_UUID})((?:\.[a-z0-9]{{1,8}}){{1,3}})", re.ASCII)


class BackupForm(StrEnum):
    """Whose names the parts have."""

    PELICAN = "pelican"
    CALAGOPUS = "calagopus"


def backup_in(file: str) -> str | None:
    """The UUID in the name of a backup's file; None where it is no such name."""
    match = _FILE.fullmatch(file)
    return match[1] if match is not None else None


def find_backups(directory: Path | None, server: str, wanted: Iterable[str]) -> dict[str, Path]:
    """The files of those backups that are here, by UUID in the order of `wanted`. Raises HostFailed (`disk.failed`)."""
    if directory is None:
        return {}
    found = _backups_in(directory)
    if is_directory(directory / server):
        found |= _backups_in(directory / server)
    return {backup: found[backup] for backup in wanted if backup in found}


def _backups_in(directory: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    with disk_errors(f"cannot read {directory}"), os.scandir(directory) as entries:
        for entry in entries:
            backup = backup_in(entry.name)
            if backup is not None and entry.is_file(follow_symlinks=False) and _can_be_read(Path(entry.path)):
                found[backup] = max(found.get(backup, Path(entry.path)), Path(entry.path))
    return found


def _can_be_read(path: Path) -> bool:
    """Asked before anything is sent: behind the point of no return it would put the whole transfer in doubt."""
    try:
        os.close(os.open(path, _READ))
    except OSError as error:
        log.warning("%s is left out: %s", path, error.strerror)
        return False
    return True


def pack(directory: Path | None, server: str, wanted: Sequence[str], form: BackupForm) -> dict[str, FilePart]:
    """The parts of those of the `wanted` backups that are here, by UUID. Blocking. A directory that cannot be read
    has none: they stay where they are, and nothing of them is deleted."""
    try:
        found = find_backups(directory, server, wanted)
    except HostFailed as error:
        log.warning("%s", error.message)
        return {}
    return {backup: part_of(path, backup, form) for backup, path in found.items()}


def pack_install_log(directory: Path | None, server: str, form: BackupForm) -> FilePart | None:
    """The server's installation log as a part of an upload, at most `MAX_INSTALL_LOG_BYTES` of it; None where there is
    none that can be read. Blocking. It is opened when it is sent."""
    if directory is None:
        return None
    for path in (directory / f"{server}.log", directory / server / "install.log"):
        try:
            is_file = stat.S_ISREG(path.lstat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:  # nobody asked for it: it is not worth a transfer
            log.warning("%s is left out: %s", path, error.strerror)
            continue
        if is_file and _can_be_read(path):
            return install_log_part(path, form)
    return None


def install_log_part(path: Path, form: BackupForm) -> FilePart:
    is_pelican = form is BackupForm.PELICAN
    return FilePart(
        name="install_logs" if is_pelican else "install-logs",
        filename="install.log",
        content_type="application/octet-stream" if is_pelican else "text/plain",
        pieces=lambda: _pieces(path, MAX_INSTALL_LOG_BYTES),
    )


def part_of(path: Path, backup: str, form: BackupForm, name: str | None = None) -> FilePart:
    """A backup as a part of an upload, under its own or another file name. It is opened when it is sent."""
    name = name or path.name
    if form is BackupForm.PELICAN:
        return FilePart(
            name=f"backup_{name}",
            filename=name,
            content_type="application/octet-stream",
            pieces=lambda: _pieces(path),
            checksum_name=f"checksum_backup_{name}",
        )
    return FilePart(
        name=f"backup-{backup}",
        filename=name,
        content_type=CALAGOPUS_TYPE,
        pieces=lambda: _pieces(path),
        checksum_name=f"backup-checksum-{backup}",
        checksum_filename=f"backup-checksum-{backup}",
        checksum_type="text/plain",
    )


def _pieces(path: Path, most_bytes: int | None = None) -> Iterator[bytes]:
    """Raises HostFailed (`disk.failed`)."""
    with disk_errors(f"cannot read {path.name}"):
        descriptor = os.open(path, _READ)
        try:
            while piece := os.read(descriptor, READ_BYTES if most_bytes is None else min(READ_BYTES, most_bytes)):
                yield piece
                most_bytes = None if most_bytes is None else most_bytes - len(piece)
        finally:
            os.close(descriptor)


def kept_backups(body: bytes) -> tuple[str, ...]:
    """What a destination of ours says in its answer that it has kept."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return ()
    named = content.get("backups") if isinstance(content, dict) else None
    return tuple(name for name in named if isinstance(name, str)) if isinstance(named, list) else ()
