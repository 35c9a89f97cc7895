"""What comes behind a server's archive: received into staging and verified. Where it goes then: `cabinet`."""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Callable, Iterator
from typing import Final

from sidecar.archive.filing import Filing
from sidecar.archive.meter import Meter
from sidecar.engine.backups import CALAGOPUS_TYPE, MAX_INSTALL_LOG_BYTES, backup_in
from sidecar.engine.log_lines import printable
from sidecar.engine.progress import size
from sidecar.errors import DataCorrupt, HostFailed, Refused
from sidecar.ports import ArrivedFile, Carries, FilePlace
from sidecar.wire.multipart import Part

log = logging.getLogger(__name__)

INSTALL_LOG_PARTS: Final = ("install_logs", "install-logs")
MAX_CHECKSUM_BYTES: Final = 256  # 64 digits and some white space


class Attachments:
    """What comes behind the archive of one incoming transfer. `take`, `complete` and `sync` in threads."""

    def __init__(
        self,
        places: dict[FilePlace, Filing],
        *,
        server: str,
        most_bytes: int,
        say: Callable[[str], None],
        carries: Carries,
    ) -> None:
        """`places`: where each kind waits; what has no place is verified, left out, and named by `say`. `carries`: what
        goes on to a node daemon."""
        self._places = places
        self._carries = carries
        self._server = server
        self._left_bytes = self._most_bytes = most_bytes
        self._say = say
        self._backups: dict[str, tuple[str, str]] = {}  # UUID -> name of the file, computed digest
        self._checksums: dict[str, str] = {}
        self._install_log: ArrivedFile | None = None
        self._has_install_log = False
        self._meter = Meter()  # of the stream that it came on

    def take(self, part: Part, meter: Meter) -> bool:
        """Receive the part if it is one of ours. Raises Refused (`upload.*`), DataCorrupt (`archive.limit`), HostFailed
        (`disk.*`) and what reading raises."""
        self._meter = meter
        if part.name in INSTALL_LOG_PARTS:
            self._take_install_log(part)
        elif (file := _rest(part, "checksum_backup_")) is not None:
            self._take_checksum(part, _backup_of(part, file))
        elif (backup := _rest(part, "backup-checksum-")) is not None:
            self._take_checksum(part, _backup_of(part, f"{backup}.tar"))
        elif (file := _rest(part, "backup_")) is not None:
            self._take_backup(part, _backup_of(part, file), file)
        elif (backup := _rest(part, "backup-")) is not None:
            if part.content_type != CALAGOPUS_TYPE or part.filename is None:
                raise Refused("upload.malformed", "A backup of the upload has no file name or another type.")
            if _backup_of(part, part.filename) != backup:
                raise Refused("upload.malformed", "The file of a backup has the name of another.")
            self._take_backup(part, backup, part.filename)
        else:
            return False
        return True

    def complete(self) -> tuple[ArrivedFile, ...]:
        """Every part was there: compare checksums. Returns what is in staging.

        Raises Refused (`upload.missing_part`), DataCorrupt (`archive.checksum`).
        """
        for backup in self._backups.keys() ^ self._checksums.keys():
            missing = "checksum" if backup in self._backups else "file"
            raise Refused("upload.missing_part", f"{missing} missing for backup {backup}", backup=backup)
        arrived = [self._install_log] if self._install_log is not None else []
        for backup, (file, digest) in self._backups.items():
            if not hmac.compare_digest(digest.encode(), self._checksums[backup].encode()):
                raise DataCorrupt("archive.checksum", f"backup {backup} checksum mismatch", backup=backup)
            if FilePlace.BACKUPS in self._places:
                arrived.append(self._arrived(FilePlace.BACKUPS, file, digest, backup))
        if self._backups and FilePlace.BACKUPS not in self._places:
            self._say(f"Left out, for this node keeps no backups: {', '.join(sorted(self._backups))}.")
        return tuple(arrived)

    def _arrived(self, place: FilePlace, name: str, sha256_hex: str, backup: str | None = None) -> ArrivedFile:
        return ArrivedFile(
            place=place,
            name=name,
            sha256_hex=sha256_hex,
            backup=backup,
            is_carried=place in self._carries.places,
            folder=self._server if place in self._carries.folders else None,
        )

    def sync(self) -> None:
        """Make the names in staging durable. Raises HostFailed."""
        for place in self._places.values():
            place.sync()

    def _take_backup(self, part: Part, backup: str, file: str) -> None:
        if backup in self._backups:
            raise Refused("upload.repeated_part", f"The upload has backup {backup} twice.", backup=backup)
        self._backups[backup] = (file, self._file(self._counted(part), FilePlace.BACKUPS, file)[0])

    def _take_checksum(self, part: Part, backup: str) -> None:
        if backup in self._checksums:
            raise Refused("upload.repeated_part", f"The upload has two checksums of backup {backup}.", backup=backup)
        digest = part.read_small(MAX_CHECKSUM_BYTES).decode("ascii", "replace").strip().lower()
        self._checksums[backup] = digest

    def _take_install_log(self, part: Part) -> None:
        if self._has_install_log:
            raise Refused("upload.repeated_part", "The upload has two install logs.")
        self._has_install_log = True
        name, pieces = f"{self._server}.log", self._counted(part)
        try:
            digest, length = self._file(pieces, FilePlace.INSTALL_LOGS, name)
        except HostFailed as error:  # it is not worth a transfer
            self._say(f"Left out: the install log. {error.message}")
            for _ in pieces:
                pass
            return
        if FilePlace.INSTALL_LOGS not in self._places:
            self._say(f"Left out, for this node keeps none: the install log ({size(length)}).")
        elif length > MAX_INSTALL_LOG_BYTES:
            self._say(f"The install log ({size(length)}) was cut to {size(MAX_INSTALL_LOG_BYTES)}.")
        if FilePlace.INSTALL_LOGS in self._places:
            self._install_log = self._arrived(FilePlace.INSTALL_LOGS, name, digest)

    def _file(self, pieces: Iterator[memoryview], kind: FilePlace, name: str) -> tuple[str, int]:
        """Write the part into staging, or only hash it where its kind is not kept."""
        most = MAX_INSTALL_LOG_BYTES if kind is FilePlace.INSTALL_LOGS else self._most_bytes
        if kind in self._places:
            return self._places[kind].receive(name, pieces, most_bytes=most)
        sha, length = hashlib.sha256(), 0
        for piece in pieces:
            sha.update(piece)
            length += len(piece)
        return sha.hexdigest(), length

    def _counted(self, part: Part) -> Iterator[memoryview]:
        for piece in part:
            self._left_bytes -= len(piece)
            if self._left_bytes < 0:
                raise DataCorrupt(
                    "archive.limit", "The backups of the upload are larger than one server may be.", limit="max_bytes"
                )
            self._meter.wire_bytes += len(piece)
            yield piece


def _rest(part: Part, prefix: str) -> str | None:
    return part.name.removeprefix(prefix) if part.name.startswith(prefix) else None


def _backup_of(part: Part, file: str) -> str:
    """The UUID in a backup's file name. Raises Refused (`upload.malformed`) for every other name."""
    backup = backup_in(file)
    if backup is None:
        name = printable(part.name[:128])
        raise Refused("upload.malformed", f"The part {name!r} does not have the name of a backup.")
    return backup
