"""What is written down: one record a decision, each with the whole state, so that the last good record is enough.

A line is `<crc32 of the JSON, 8 hex digits> <JSON>\\n`. A line without its newline or with a wrong checksum is not a
record. Readable with `less` on purpose; the files are 0600, for a token may be in them.

`VERSION` is 1. A reader takes its own version and older ones; a newer one is refused, and nothing of it is touched.
"""

from __future__ import annotations

import zlib

import msgspec

from sidecar.lifecycle.state import State
from sidecar.ports import ArrivedFile, Observed, StopHow

VERSION = 1


class OutgoingFacts(msgspec.Struct, frozen=True, kw_only=True, tag="outgoing"):
    """What the source must know again after a restart."""

    transfer: str
    server: str
    url: str
    token: str  # empty where a panel is the arbiter: it is needed only to ask the destination
    accepted_at: float  # seconds since 1970
    observed: Observed
    stop: StopHow = StopHow()
    start_on_completion: bool = False
    peer_kind: str = "unknown"  # a value of `engine.peer.PeerKind`
    backups: tuple[str, ...] = ()  # asked to travel with the server
    backup_form: str = "pelican"  # a value of `engine.backups.BackupForm`
    delete_backups: bool = False
    kept_backups: tuple[str, ...] = ()  # known to be kept by the destination: these alone may be deleted here
    key: str | None = None  # the caller's own name for the request that began it
    key_digest: str = ""  # of that request: a hexadecimal SHA-256
    finished_at: float | None = None


class IncomingFacts(msgspec.Struct, frozen=True, kw_only=True, tag="incoming"):
    """What the destination must know again after a restart."""

    transfer: str
    server: str
    peer: str
    accepted_at: float
    start_on_completion: bool = False
    content_bytes: int | None = None
    entries: int | None = None
    is_sidecar: bool = False
    is_calagopus: bool = False
    staging: tuple[int, int] | None = None  # device and inode of the staging directory (D5)
    is_place_free: bool = False  # what was at the volume's place is in the trash (D3)
    files: tuple[ArrivedFile, ...] = ()  # backups and install log that came with it, in staging or filed
    has_taken_files: bool = False  # the node daemon answered 200 to the hand-over that carried `files`
    is_aside: bool = False  # the committed volume may be back in its staging place (H3)
    finished_at: float | None = None


Facts = OutgoingFacts | IncomingFacts


class Record(msgspec.Struct, frozen=True, kw_only=True):
    version: int = VERSION
    seq: int  # counts the records of one transfer from 1
    time: float  # when it was decided, for people; never a ground to decide
    event: str  # what the transfer was told
    state: State
    facts: Facts


class Unreadable(Exception):
    """A line that is not a record."""


class NewerVersion(Unreadable):
    """A record of a later program than this."""


def encode(record: Record) -> bytes:
    """One line, newline included."""
    body = msgspec.json.encode(record)
    return b"%08x %s\n" % (zlib.crc32(body), body)


def decode(line: bytes) -> Record:
    """The record of one line without its newline.

    Raises Unreadable: torn, damaged, or of a newer version.
    """
    checksum, _, body = line.partition(b" ")
    if len(checksum) != 8 or not body or checksum != b"%08x" % zlib.crc32(body):
        raise Unreadable("torn or damaged")
    try:
        version = msgspec.json.decode(body).get("version")
        if not isinstance(version, int) or version > VERSION:
            raise NewerVersion(f"version {version!r}; this program reads up to {VERSION}")
        return msgspec.json.decode(body, type=Record)
    except (msgspec.MsgspecError, AttributeError) as error:
        raise Unreadable(str(error)) from error
