"""multipart/form-data, both directions, without copying a part's bytes.

Why our own: the parsers at hand either collect parts in files, or copy each byte, or refuse what real daemons send
(Pterodactyl and Pelican close the multipart twice; the second closing boundary lies in the epilogue). The archive part
is the whole server, so its bytes are handed on as they lie in the receive buffer, and a boundary is looked for with
`bytes.find`, which costs 0.07 CPU-s/GB.

Source: RFC 2046 5.1, RFC 7578; what daemons write: docs/PROTOCOL.md.
Memory: one part's header (`max_part_header_bytes`) and at most a boundary's length of held-back bytes.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator
from typing import Final

from sidecar.errors import Refused

PART_HEADER_BYTES: Final = 16 * 1024  # daemons send below 300 bytes; a file name may take 4 KiB
PREAMBLE_BYTES: Final = 64 * 1024  # before the first and after the last boundary; real ones: 0 and 72
MAX_PARTS: Final = 2048  # two per backup and a handful of others

_BOUNDARY: Final = re.compile(r"[0-9A-Za-z'()+_,\-./:=? ]{0,69}[0-9A-Za-z'()+_,\-./:=?]")
_TOKEN: Final = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_QUOTED: Final = r'"(?:[^"\\]|\\.)*"'
_PARAMETER: Final = re.compile(rf";[ \t]*(?:({_TOKEN})[ \t]*=[ \t]*({_QUOTED}|[^;\"]*))?[ \t]*", re.DOTALL)
_CONTROLS: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")

Read = Callable[[], memoryview]
Find = Callable[[bytes, int], int]


def _malformed(message: str) -> Refused:
    return Refused("upload.malformed", message)


def _parameters(text: str) -> dict[str, str] | None:
    """The parameters of a header value from its first `;` on; None where they are damaged or repeated."""
    found: dict[str, str] = {}
    position = 0
    while position < len(text):
        match = _PARAMETER.match(text, position)
        if match is None:
            return None
        position = match.end()
        if match[1] is None:
            continue
        name, value = match[1].lower(), match[2].strip(" \t")
        if name in found:
            return None
        found[name] = re.sub(r"\\(.)", r"\1", value[1:-1], flags=re.DOTALL) if value.startswith('"') else value
    return found


def parse_content_type(header: str | None) -> bytes:
    """The boundary of a `multipart/…` Content-Type.

    Raises Refused (`upload.content_type`) for everything else; the message is the documented one.
    """
    essence, separator, rest = (header or "").partition(";")
    parameters = _parameters(separator + rest)
    boundary = (parameters or {}).get("boundary", "")
    kind = re.fullmatch(rf"multipart/{_TOKEN}", essence.strip().lower())
    if kind is None or _BOUNDARY.fullmatch(boundary) is None:
        raise Refused("upload.content_type", "invalid content type")
    return boundary.encode("ascii")


class Part:
    """One part. Iterate it once for its bytes; what is not read is skipped when the next part is asked for."""

    def __init__(self, reader: MultipartReader, name: str, filename: str | None, content_type: str | None) -> None:
        self.name = name
        self.filename = filename
        self.content_type = content_type  # lower case, without parameters
        self._reader = reader

    def __iter__(self) -> Iterator[memoryview]:
        """The part's bytes: pieces of 1 byte or more, in order, each valid until the next is asked for.

        Raises what the body raises, and Refused (`upload.malformed`).
        """
        return self._reader._pieces(self)

    def read_small(self, limit_bytes: int) -> bytes:
        """The whole part. Raises Refused (`upload.malformed`) where it is longer than `limit_bytes`."""
        content = bytearray()
        for piece in self:
            if len(content) + len(piece) > limit_bytes:
                raise _malformed(f"the part {self.name!r} is longer than {limit_bytes} bytes")
            content += piece
        return bytes(content)


class MultipartReader:
    """The parts of a body, in order. Use it in one thread.

    Args: `read` gives the next piece of the body (valid until the next call, empty at the end), as
    `wire.body.Body.read`. `find(needle, offset)` looks for `needle` in the piece last read, from `offset` on, and gives
    its offset or -1 (`Body.find`); without it each piece is copied once to be searched.
    """

    def __init__(
        self,
        read: Read,
        boundary: bytes,
        *,
        find: Find | None = None,
        max_part_header_bytes: int = PART_HEADER_BYTES,
        max_parts: int = MAX_PARTS,
    ) -> None:
        self._read = read
        self._find = find if find is not None else self._find_in_copy
        self._delimiter = b"\r\n--" + boundary
        self._max_part_header_bytes = max_part_header_bytes
        self._max_parts = max_parts
        self._piece = memoryview(b"")
        self._position = 0
        self._carry = b"\r\n"  # a prefix of the delimiter that is not yet decided; the first one lacks its line break
        self._at_delimiter = False  # the position is behind a delimiter whose line is not read yet
        self._current: Part | None = None

    def __iter__(self) -> Iterator[Part]:
        """The parts in order; then the epilogue is read, so that the body has verifiably ended.

        Raises Refused (`upload.malformed`) and what `read` raises (`upload.truncated`, `upload.stalled`).
        """
        skipped = sum(len(piece) for piece in self._until_delimiter(PREAMBLE_BYTES))
        for _ in range(self._max_parts + 1):
            head = self._part_head()
            if head is None:
                self._skip_epilogue(skipped)
                return
            self._current = part = self._parse_head(head)
            yield part
            if self._current is part:
                for _piece in self._pieces(part):
                    pass
        raise _malformed(f"the upload has more than {self._max_parts} parts")

    def _pieces(self, part: Part) -> Iterator[memoryview]:
        if self._current is not part:
            return
        yield from self._until_delimiter(None)
        self._current = None

    def _next_piece(self) -> None:
        self._piece = self._read()
        self._position = 0
        if not self._piece:
            raise _malformed("the upload ends before its closing boundary")

    def _until_delimiter(self, limit_bytes: int | None) -> Iterator[memoryview]:
        """What lies before the next delimiter; leaves the position behind it.

        A delimiter may straddle pieces: a piece's end that could begin one is carried over. As CR cannot occur in a
        boundary, a carried prefix that turns out to be none is data as a whole, and no second candidate hides in it.
        """
        delimiter = self._delimiter
        seen = 0
        while not self._at_delimiter:
            if self._position == len(self._piece):
                self._next_piece()
            if self._carry:
                missing = len(delimiter) - len(self._carry)
                candidate = self._carry + self._piece[self._position : self._position + missing]
                if delimiter.startswith(candidate):
                    self._position += len(candidate) - len(self._carry)
                    self._carry = candidate if len(candidate) < len(delimiter) else b""
                    self._at_delimiter = not self._carry
                    continue
                data = memoryview(self._carry)
                self._carry = b""
            else:
                start = self._position
                found = self._find(delimiter, start)
                if found >= 0:
                    self._position = found + len(delimiter)
                    self._at_delimiter = True  # before the yield: the consumer may stop there
                    if found > start:
                        yield self._piece[start:found]
                    return
                stop = self._undecided(start)
                self._carry = bytes(self._piece[stop:])
                self._position = len(self._piece)
                data = self._piece[start:stop]
            seen += len(data)
            if limit_bytes is not None and seen > limit_bytes:
                raise _malformed("the upload does not begin with its boundary")
            if data:
                yield data

    def _undecided(self, start: int) -> int:
        """Where the end of the piece begins that could be the beginning of a delimiter; its length if nothing could."""
        first = max(start, len(self._piece) - len(self._delimiter) + 1)
        tail = bytes(self._piece[first:])
        at = tail.find(b"\r")
        while at >= 0 and not self._delimiter.startswith(tail[at:]):
            at = tail.find(b"\r", at + 1)
        return first + at if at >= 0 else len(self._piece)

    def _find_in_copy(self, needle: bytes, offset: int) -> int:
        found = bytes(self._piece[offset:]).find(needle)
        return found + offset if found >= 0 else -1

    def _part_head(self) -> bytes | None:
        """What lies between a delimiter and the part's bytes; None behind the closing delimiter."""
        self._at_delimiter = False
        head = bytearray()
        limit = self._max_part_header_bytes
        while True:
            if self._position == len(self._piece):
                self._next_piece()
            known = len(head)
            head += self._piece[self._position : self._position + limit + 4 - known]
            if head[:2] == b"--":
                self._position += max(0, 2 - known)
                return None
            end = head.find(b"\r\n\r\n", max(0, known - 3))
            if end >= 0:
                self._position += end + 4 - known
                return bytes(head[: end + 2])
            self._position += len(head) - known
            if len(head) >= limit + 4:
                raise _malformed(f"a part's header is longer than {limit} bytes")

    def _parse_head(self, head: bytes) -> Part:
        padding, _, block = head.partition(b"\r\n")
        if padding.strip(b" \t"):
            raise _malformed("a boundary is followed by other bytes on its line")
        try:
            text = block.decode("utf-8")
        except UnicodeDecodeError as error:
            raise _malformed("a part's header is not UTF-8") from error
        fields: dict[str, str] = {}
        for line in text.split("\r\n")[:-1]:
            name, colon, value = line.partition(":")
            name = name.lower()
            if not colon or re.fullmatch(_TOKEN, name) is None or _CONTROLS.search(value) or name in fields:
                raise _malformed("a part's header is damaged")
            fields[name] = value.strip(" \t")
        if fields.get("content-transfer-encoding", "binary").lower() not in ("7bit", "8bit", "binary"):
            raise _malformed("a part has a transfer encoding, which is not understood")
        essence, separator, rest = fields.get("content-disposition", "").partition(";")
        parameters = _parameters(separator + rest)
        if essence.strip().lower() != "form-data" or parameters is None or not parameters.get("name"):
            raise _malformed("a part has no name")
        kind = fields.get("content-type")
        return Part(
            self,
            parameters["name"],
            parameters.get("filename"),
            None if kind is None else kind.partition(";")[0].strip().lower(),
        )

    def _skip_epilogue(self, seen: int) -> None:
        seen += len(self._piece) - self._position
        while seen <= PREAMBLE_BYTES:
            piece = self._read()
            if not piece:
                self._piece = piece
                self._position = 0
                return
            seen += len(piece)
        raise _malformed("bytes follow the closing boundary")


def new_boundary() -> bytes:
    """A boundary that no data contains: 192 random bits."""
    return b"sidecar-" + secrets.token_hex(24).encode("ascii")


def part_head(boundary: bytes, name: str, filename: str | None = None, content_type: str | None = None) -> bytes:
    """The bytes before a part's content, from its boundary on. The line break that ends the content before it is not
    in it: the first part has none, see `end_of_part`."""
    lines = [f'Content-Disposition: form-data; name="{_escaped(name)}"']
    if filename is not None:
        lines[0] += f'; filename="{_escaped(filename)}"'
    if content_type is not None:
        if _CONTROLS.search(content_type):
            raise ValueError("a content type holds no control characters")
        lines.append(f"Content-Type: {content_type}")
    return b"--" + boundary + b"\r\n" + "\r\n".join(lines).encode() + b"\r\n\r\n"


def end_of_part() -> bytes:
    """What ends a part's content. S1: for the archive part these bytes, and the boundary after them, are the point of
    no return."""
    return b"\r\n"


def small_part(boundary: bytes, name: str, content: bytes, content_type: str | None = None) -> bytes:
    """A whole part behind the end of another."""
    return part_head(boundary, name, None, content_type) + content + end_of_part()


def closing(boundary: bytes) -> bytes:
    """The closing boundary, behind the end of a part. Exactly one ends a body."""
    return b"--" + boundary + b"--\r\n"


def _escaped(text: str) -> str:
    if _CONTROLS.search(text):
        raise ValueError("a part's name holds no control characters")
    return text.replace("\\", "\\\\").replace('"', '\\"')
