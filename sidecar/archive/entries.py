"""What a volume holds, entry by entry, and what there is to say about entries that do not travel as they are.

Paths are bytes, because on disk they are: a name may be any bytes but NUL and the slash. They become text only for
people, with everything that could disturb a terminal or a log line escaped.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class EntryType(StrEnum):
    """What travels. Sockets, FIFOs and devices are never entries."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One file, directory or symlink as a scan saw it. Two entries are equal when nothing is known to have changed.

    path: relative to the volume, `/` between the names; never empty, never with a leading slash, no `.` and `..`
    size_bytes: of a file's content; 0 for everything else
    mode: the lower twelve bits
    link_target: a symlink's, verbatim; else empty
    links: how many names the inode has
    """

    path: bytes
    type: EntryType
    size_bytes: int
    mode: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int
    link_target: bytes = b""
    links: int = 1


class NoticeKind(StrEnum):
    """Why an entry did not travel, or not as it was."""

    SKIPPED_SPECIAL = "skipped_special"  # a socket, FIFO or device
    VANISHED = "vanished"  # gone between the scan and the read
    GREW = "grew"
    SHRANK = "shrank"
    CHANGED = "changed"  # or appeared after the first scan
    REMOVED = "removed"  # after it had been sent
    LINK_AS_COPY = "link_as_copy"  # the receiver knows no links
    LINK_DROPPED = "link_dropped"  # nor could a copy stand in for it
    EMPTY_DIRECTORY_MAYBE_LOST = "empty_directory_maybe_lost"  # some receivers do not create them
    MORE = "more"  # further notices of a kind were left out


_SENTENCES = {
    NoticeKind.SKIPPED_SPECIAL: "is not a file, directory or symlink and is left out",
    NoticeKind.VANISHED: "went away before it could be read",
    NoticeKind.GREW: "grew while it was read",
    NoticeKind.SHRANK: "shrank while it was read",
    NoticeKind.CHANGED: "changed or appeared while the volume was read, and is sent as it is now",
    NoticeKind.REMOVED: "was removed after it had been sent",
    NoticeKind.LINK_AS_COPY: "is a link and is sent as a copy of its file",
    NoticeKind.LINK_DROPPED: "is a link that the destination cannot represent and is left out",
    NoticeKind.EMPTY_DIRECTORY_MAYBE_LOST: "is an empty directory, which some destinations do not create",
    NoticeKind.MORE: "further notices were left out",
}


class Notice(msgspec.Struct, frozen=True):
    """Something that an operator should know about one entry (or, with an empty path, about the archive)."""

    kind: NoticeKind
    path: bytes
    detail: str = ""

    @property
    def text(self) -> str:
        """One line for a person."""
        sentence = f"{readable(self.path)} {_SENTENCES[self.kind]}" if self.path else _SENTENCES[self.kind]
        return f"{sentence} ({self.detail})" if self.detail else sentence


def readable(path: bytes) -> str:
    r"""The path as printable text on one line: bytes that are not UTF-8 as `\xNN`, control characters escaped."""
    text = path.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )
