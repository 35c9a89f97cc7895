"""The body of one upload into staging: parts by name, the archive extracted while it arrives, the checksums compared.

Blocking; one thread. The bytes flow: socket ring -> framing -> multipart -> SHA-256 and decompression (this thread) ->
tar and files (the extraction's thread).
"""

from __future__ import annotations

import hmac
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from sidecar.archive.entries import Notice
from sidecar.archive.extract import Extracted, Extraction, ExtractLimits, TreeState
from sidecar.archive.meter import Meter
from sidecar.archive.pipe import PipeClosed
from sidecar.engine.attachments import MAX_CHECKSUM_BYTES, Attachments
from sidecar.errors import DataCorrupt, PeerFailed, Refused, SidecarError
from sidecar.ports import ArrivedFile
from sidecar.wire.body import Body
from sidecar.wire.multipart import MultipartReader, Part

CHECKSUM_PARTS = ("checksum", "checksum_archive")  # Pterodactyl and Calagopus; Pelican
CALAGOPUS_ARCHIVE_TYPE = "application/x-tar"


class Received(msgspec.Struct, frozen=True):
    """A body that is whole and verified, or all bodies of a transfer."""

    extracted: Extracted
    files: tuple[ArrivedFile, ...] = ()  # what else is in staging
    other_parts: tuple[str, ...] = ()
    streams: int = 1


class Receipt:
    """Receive one body. `run` in a thread; `give_up` from anywhere, which makes `run` raise soon."""

    def __init__(
        self,
        body: Body,
        boundary: bytes,
        staging: Path,
        *,
        limits: ExtractLimits,
        owner: tuple[int, int] | None,
        meter: Meter,
        notice: Callable[[Notice], None],
        max_parts: int,
        max_part_header_bytes: int,
        tree: TreeState | None = None,
        attachments: Attachments | None = None,
    ) -> None:
        """`tree`: shared with the other streams of the same transfer, see `Extraction`; `attachments`: takes what
        follows the archive; without it that is skipped."""
        self._body = body
        self._reader = MultipartReader(
            body.read, boundary, find=body.find, max_parts=max_parts, max_part_header_bytes=max_part_header_bytes
        )
        self._staging = staging
        self._limits = limits
        self._owner = owner
        self._meter = meter
        self._notice = notice
        self._tree = tree
        self._attachments = attachments
        self._given_up = threading.Event()
        self._extraction: Extraction | None = None
        self.is_calagopus = False  # its archive part says so: it takes any answer for success

    def give_up(self) -> None:
        self._given_up.set()
        if self._extraction is not None:
            self._extraction.abort()
        self._body.abandon()

    def run(self) -> Received:
        """Raises Refused (`upload.*`), PeerFailed (`upload.truncated`, `upload.stalled`), DataCorrupt (`archive.*`),
        HostFailed (`disk.*`). What reached staging is left there."""
        try:
            return self._run()
        except (SidecarError, PipeClosed) as error:
            if self._given_up.is_set():
                raise PeerFailed("transfer.cancelled", "The transfer was cancelled.") from error
            raise
        finally:
            if self._extraction is not None:
                self._extraction.abort()
            self._body.close()

    def _run(self) -> Received:
        extracted: Extracted | None = None
        checksums: dict[str, str] = {}
        others: list[str] = []
        for part in self._reader:
            if part.name == "archive":
                if extracted is not None:
                    raise Refused("upload.repeated_part", "the upload has two archives", part=part.name)
                extracted = self._extract(part)
            elif part.name in CHECKSUM_PARTS:
                if extracted is None:
                    raise Refused("upload.order", "archive must be sent before the checksum")
                if part.name in checksums:
                    raise Refused("upload.repeated_part", f"the upload has two parts named {part.name}", part=part.name)
                checksums[part.name] = part.read_small(MAX_CHECKSUM_BYTES).decode("ascii", "replace").strip().lower()
            elif self._attachments is None or not self._attachments.take(part, self._meter):
                others.append(part.name)
        if extracted is None or not checksums:
            raise Refused("upload.missing_part", "missing archive or checksum")
        for name, value in checksums.items():
            if not hmac.compare_digest(value.encode(), extracted.sha256_hex.encode()):
                raise DataCorrupt("archive.checksum", "checksums don't match", part=name, computed=extracted.sha256_hex)
        files = self._attachments.complete() if self._attachments is not None else ()
        return Received(extracted, files, tuple(others))

    def _extract(self, part: Part) -> Extracted:
        self.is_calagopus = part.content_type == CALAGOPUS_ARCHIVE_TYPE
        self._extraction = extraction = Extraction(
            self._staging,
            limits=self._limits,
            owner=self._owner,
            meter=self._meter,
            notice=self._notice,
            filename=part.filename,
            tree=self._tree,
        )
        if self._given_up.is_set():
            extraction.abort()
        for piece in part:
            extraction.feed(piece)
        return extraction.finish()
