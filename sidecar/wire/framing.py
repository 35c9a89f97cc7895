"""Where the body of a request ends, and where its bytes are: Content-Length and chunked, parsed in place.

One parser serves both sides of the server: the event loop frames small REST bodies with it, and the thread that reads
an upload frames gigabytes with it. It never copies body bytes: it is given a buffer and a window, and says where in it
the next run of data lies. Only framing lines, which may straddle two buffers, are collected, up to a bound.

Strict on purpose (RFC 9112 7.1): two parsers that disagree about a body's end are how requests are smuggled through a
proxy. A lone LF, a sign, a space before the size or a second length is refused, not repaired.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum, auto
from typing import Final

from sidecar.errors import Refused

CHUNK_LINE_BYTES: Final = 4096  # the size line with its extensions; nobody was seen to send any extension
TRAILER_BYTES: Final = 8192  # all trailer fields together; they are read and ignored
_CHUNK_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?\Z")
_TRAILER_LINE: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*\Z")

Headers = Sequence[tuple[bytes, bytes]]


def _malformed(message: str) -> Refused:
    return Refused("upload.malformed", message)


class Framing:
    """The end of one body. `advance` until `done`; the bytes after `done` belong to the next message."""

    done: bool = False

    def advance(self, buffer: bytes | bytearray, start: int, stop: int) -> tuple[int, int]:
        """Consume framing and at most one run of data from `buffer[start:stop]`.

        Returns (data_start, data_stop): the data is `buffer[data_start:data_stop]`, possibly empty, and everything
        before `data_stop` is consumed. With an empty run either the window is used up or the body is `done`.
        Raises Refused (`upload.malformed`).
        """
        raise NotImplementedError


class LengthFraming(Framing):
    """A body of `size_bytes` bytes; 0 is no body at all."""

    def __init__(self, size_bytes: int) -> None:
        self._left = size_bytes
        self.done = size_bytes == 0

    def advance(self, buffer: bytes | bytearray, start: int, stop: int) -> tuple[int, int]:
        end = min(stop, start + self._left)
        self._left -= end - start
        self.done = self._left == 0
        return start, end


class _At(Enum):
    SIZE = auto()
    DATA = auto()
    DATA_END = auto()
    TRAILERS = auto()


class ChunkedFraming(Framing):
    """A chunked body. Memory: one framing line, at most `CHUNK_LINE_BYTES`."""

    def __init__(self) -> None:
        self._at = _At.SIZE
        self._left = 0
        self._line = bytearray()
        self._trailer_bytes = 0

    def advance(self, buffer: bytes | bytearray, start: int, stop: int) -> tuple[int, int]:
        position = start
        while position < stop and not self.done:
            if self._at is _At.DATA:
                end = min(stop, position + self._left)
                self._left -= end - position
                if not self._left:
                    self._at = _At.DATA_END
                return position, end
            newline = buffer.find(b"\n", position, min(stop, position + CHUNK_LINE_BYTES))
            end = newline + 1 if newline >= 0 else min(stop, position + CHUNK_LINE_BYTES)
            self._line += buffer[position:end]
            position = end
            if len(self._line) > CHUNK_LINE_BYTES:
                raise _malformed("a chunk's size line is too long")
            if self._at is _At.DATA_END and not b"\r\n".startswith(self._line):
                raise _malformed("a chunk does not end where its size says")
            if newline >= 0:
                line = bytes(self._line)
                self._line.clear()
                if not line.endswith(b"\r\n"):
                    raise _malformed("a line of the chunked body does not end in CR LF")
                self._take_line(line[:-2])
        return position, position

    def _take_line(self, line: bytes) -> None:
        if self._at is _At.SIZE:
            match = _CHUNK_LINE.match(line)
            if match is None:
                raise _malformed("a chunk's size line is not a hexadecimal number")
            self._left = int(match[1], 16)
            self._at = _At.DATA if self._left else _At.TRAILERS
        elif self._at is _At.DATA_END:
            self._at = _At.SIZE
        else:
            self._trailer_bytes += len(line) + 2
            if self._trailer_bytes > TRAILER_BYTES:
                raise _malformed("the trailer of the chunked body is too long")
            if not line:
                self.done = True
            elif _TRAILER_LINE.match(line) is None:
                raise _malformed("the trailer of the chunked body is not made of header fields")


def framing_of(http_version: str, headers: Headers) -> tuple[Framing, bool]:
    """How the body of a request is framed, from its header fields (names in lower case), and whether it says so at all.

    Raises Refused (`upload.malformed`) where length and coding contradict each other or the coding is not `chunked`.
    Source: RFC 9112 6.1 to 6.3.
    """
    codings = [value.strip().lower() for name, value in headers if name == b"transfer-encoding"]
    lengths = [value.strip() for name, value in headers if name == b"content-length"]
    if codings:
        if lengths:
            raise _malformed("the request has both Content-Length and Transfer-Encoding")
        if http_version != "1.1":
            raise _malformed("Transfer-Encoding needs HTTP/1.1")
        if codings != [b"chunked"]:
            raise _malformed("the only transfer coding understood here is chunked")
        return ChunkedFraming(), True
    if not lengths:
        return LengthFraming(0), False
    if len(lengths) > 1 or re.fullmatch(rb"[0-9]{1,18}", lengths[0]) is None:
        raise _malformed("the Content-Length is not one number")
    return LengthFraming(int(lengths[0])), True
