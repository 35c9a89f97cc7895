"""Plain counters of one archive on its way: written by the threads that move it, read by anyone at any time.

There is no lock. Each counter has a single writer, and reading an int is atomic; a reader may see one counter a moment
ahead of another, which a progress line can bear.
"""

from __future__ import annotations


class Meter:
    """How far an archive has come.

    content_bytes: bytes of files, before the archive's format and compression; never above `total_bytes`
    files: regular files done; never above `total_files`
    wire_bytes: bytes of the archive as it travels
    total_bytes, total_files: what the above will reach, None while unknown. They follow what the volume turns out to
        hold: files that changed and are sent again raise them.
    """

    __slots__ = ("content_bytes", "files", "total_bytes", "total_files", "wire_bytes")

    def __init__(self) -> None:
        self.content_bytes = 0
        self.files = 0
        self.wire_bytes = 0
        self.total_bytes: int | None = None
        self.total_files: int | None = None
