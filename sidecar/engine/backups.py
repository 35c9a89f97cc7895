"""Backups that travel with a server: how their parts are named, and which of them a source may delete afterwards.

| | Pelican | Calagopus |
|---|---|---|
| backup | `backup_<uuid>.tar.gz` | `backup-<uuid>`, type `backup/wings`, the file's name as the part's |
| its checksum | `checksum_backup_<uuid>.tar.gz` | `backup-checksum-<uuid>` |
| install log | `install_logs` | `install-logs` |

A backup without its checksum, a checksum without its backup, a mismatch and a repetition fail the transfer: Pelican
does the same, Calagopus looks less closely. A file's name must be the backup's UUID and a suffix such as `.tar.gz`:
everything else that calls itself a backup is refused, so no name of a stranger reaches the disk.

A source may delete what its destination is known to have kept: one of ours names it in its answer, Calagopus keeps all
that it answers with 200. Of others nothing is known.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Final

from sidecar.archive.durable import disk_errors
from sidecar.errors import HostFailed
from sidecar.wire.upload import FilePart

log = logging.getLogger(__name__)

CALAGOPUS_TYPE: Final = "backup/wings"
READ_BYTES: Final = 512 << 10

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


def find_backups(directory: Path | None, wanted: Iterable[str]) -> dict[str, Path]:
    """The files of those backups that are here, by UUID in the order of `wanted`. Raises HostFailed (`disk.failed`)."""
    if directory is None:
        return {}
    found: dict[str, Path] = {}
    with disk_errors(f"cannot read {directory}"), os.scandir(directory) as entries:
        for entry in entries:
            backup = backup_in(entry.name)
            if backup is not None and entry.is_file(follow_symlinks=False):
                found[backup] = max(found.get(backup, Path(entry.path)), Path(entry.path))
    return {backup: found[backup] for backup in wanted if backup in found}


def pack(directory: Path | None, wanted: Sequence[str], form: BackupForm) -> dict[str, FilePart]:
    """The parts of those of the `wanted` backups that are here, by UUID. Blocking. A directory that cannot be read
    has none: they stay where they are, and nothing of them is deleted."""
    try:
        found = find_backups(directory, wanted)
    except HostFailed as error:
        log.warning("%s", error.message)
        return {}
    return {backup: part_of(path, backup, form) for backup, path in found.items()}


def part_of(path: Path, backup: str, form: BackupForm) -> FilePart:
    """A backup as a part of an upload. It is opened when it is sent."""
    if form is BackupForm.PELICAN:
        return FilePart(
            name=f"backup_{path.name}",
            filename=path.name,
            content_type="application/octet-stream",
            pieces=lambda: _pieces(path),
            checksum_name=f"checksum_backup_{path.name}",
        )
    return FilePart(
        name=f"backup-{backup}",
        filename=path.name,
        content_type=CALAGOPUS_TYPE,
        pieces=lambda: _pieces(path),
        checksum_name=f"backup-checksum-{backup}",
        checksum_filename=f"backup-checksum-{backup}",
        checksum_type="text/plain",
    )


def _pieces(path: Path) -> Iterator[bytes]:
    """Raises HostFailed (`disk.failed`)."""
    with disk_errors(f"cannot read the backup {path.name}"):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            while piece := os.read(descriptor, READ_BYTES):
                yield piece
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
