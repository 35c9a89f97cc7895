"""The source's upload: one fresh connection, one request, bytes from the caller's buffers to the socket.

Blocking, in the one thread that makes the archive's bytes: a library's connection pool has broken streams elsewhere,
its body generator costs twice the CPU, and none of them reads the answer while sending. A destination that refuses
early says why on the same connection; a source that does not look there sends on until the reset, and the reason is
lost. What is sent, byte by byte: docs/PROTOCOL.md.

S1: the boundary that ends the archive part is sent by `finish`, and nothing of it before. To give up before, `cut`.

Memory: none of its own; the pieces belong to the caller and are not used after `send` has returned.
"""

from __future__ import annotations

import hashlib
import json
import re
import ssl
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import msgspec

from sidecar import __version__
from sidecar.errors import PeerFailed, Refused
from sidecar.wire import multipart
from sidecar.wire.answer import Answer, AnswerReader, failure_of
from sidecar.wire.destination import Target
from sidecar.wire.dial import Line

__all__ = ["Answer", "ExtraPart", "FilePart", "Upload", "failure_of", "fetch_json"]

USER_AGENT: Final = f"transfer-sidecar/{__version__}"
EXCERPT_S: Final = 2.0  # for the body of an answer whose head is there
ANSWER_BYTES: Final = 64 << 10  # one of our own names the backups that it has kept: a thousand
HEAD_S: Final = 30.0  # for the rest of a head whose first byte is there: a trickled answer is none
_FIELD_VALUE: Final = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")
_FIELD_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")

Bytes = bytes | bytearray | memoryview


class ExtraPart(msgspec.Struct, frozen=True, kw_only=True):
    """A small part behind the checksums, such as an install log."""

    name: str
    content: bytes
    filename: str | None = None
    content_type: str | None = None


class FilePart(msgspec.Struct, frozen=True, kw_only=True):
    """A file behind the checksums, such as a backup, and the part with its SHA-256 that may follow it."""

    name: str
    filename: str
    content_type: str
    pieces: Callable[[], Iterable[bytes]]  # called when its turn has come
    checksum_name: str | None = None  # None: its family sends none
    checksum_filename: str | None = None
    checksum_type: str | None = None


class Upload:
    """One upload. `open`, `send` …, `finish`, `answer`, in this order and in one thread; then `cut` or `close`."""

    def __init__(
        self,
        target: Target,
        *,
        token: str,
        headers: Mapping[str, str],
        stall_timeout_s: float,
        connect_timeout_s: float,
        answer_timeout_s: float,
        ssl_context: ssl.SSLContext | None = None,
        filename: str = "archive.tar.gz",
    ) -> None:
        """Args: `token` is the Authorization value, verbatim. Raises Refused (`request.invalid`) where it or a header
        could not stand in a request."""
        self._target = target
        self._boundary = multipart.new_boundary()
        fields = {
            "Host": target.authority,
            "User-Agent": USER_AGENT,
            "Authorization": token,
            "Content-Type": f"multipart/form-data; boundary={self._boundary.decode('ascii')}",
            "Transfer-Encoding": "chunked",
            **headers,
        }
        self._head = request_head("POST", target.path, fields)
        self._part_head = multipart.part_head(self._boundary, "archive", filename, "application/octet-stream")
        self._stall_timeout_s = stall_timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._answer_timeout_s = answer_timeout_s
        self._ssl_context = ssl_context
        self._line = Line(target)
        self._reader = AnswerReader(ANSWER_BYTES)
        self._is_finishing = False
        self.bytes_sent = 0  # of the archive part, taken by this host's kernel

    def open(self) -> None:
        """Connect and send the request's head and that of the archive part.

        Raises PeerFailed (`peer.refused`, `peer.unreachable`, `peer.tls`, or as `send`).
        """
        self._line.open(self._connect_timeout_s, self._ssl_context)
        self._send_all([self._head, b"%x\r\n" % len(self._part_head), self._part_head, b"\r\n"])

    def send(self, piece: Bytes) -> None:
        """Send bytes of the archive, as one chunk. Returns when the kernel has taken them.

        Raises PeerFailed: what the destination answered early (`peer.status`, `peer.proxy`, `peer.redirect`),
        `peer.stalled` (no byte taken for the stall time), `peer.reset` (broken, or cut), `peer.protocol`.
        """
        self._send_chunk(piece)
        self.bytes_sent += len(piece)

    def finish(self, sha256_hex: str, extra_parts: Sequence[ExtraPart] = (), files: Sequence[FilePart] = ()) -> None:
        """End the archive part and the body. From here on the outcome is the destination's (S1).

        Args: `sha256_hex` of all bytes given to `send`, 64 lower-case digits; `files` follow all small parts, in order.
        Raises PeerFailed as `send`, and what the files' pieces raise: then `cut`.
        """
        if re.fullmatch(r"[0-9a-f]{64}", sha256_hex) is None:
            raise ValueError("a SHA-256 is 64 lower-case hexadecimal digits")
        boundary, digest = self._boundary, sha256_hex.encode("ascii")
        content = bytearray(multipart.end_of_part())
        content += multipart.small_part(boundary, "checksum", digest)
        content += multipart.small_part(boundary, "checksum_archive", digest)
        for part in extra_parts:
            content += multipart.part_head(boundary, part.name, part.filename, part.content_type)
            content += part.content + multipart.end_of_part()
        for file in files:
            content += multipart.part_head(boundary, file.name, file.filename, file.content_type)
            self._send_chunk(content)
            content = self._send_file(file)
        content += multipart.closing(boundary)
        self._look()
        self._is_finishing = True
        self._send_all([b"%x\r\n" % len(content), content, b"\r\n0\r\n\r\n"])

    def _send_file(self, file: FilePart) -> bytearray:
        """The file's bytes; returns what is to follow them."""
        sha = hashlib.sha256()
        for piece in file.pieces():
            sha.update(piece)
            self._send_chunk(piece)
        content = bytearray(multipart.end_of_part())
        if file.checksum_name is None:
            return content
        content += multipart.part_head(self._boundary, file.checksum_name, file.checksum_filename, file.checksum_type)
        return content + sha.hexdigest().encode("ascii") + multipart.end_of_part()

    def _send_chunk(self, content: Bytes) -> None:
        if len(content):  # an empty chunk would end the body
            self._look()
            self._send_all([b"%x\r\n" % len(content), content, b"\r\n"])

    def answer(self) -> Answer:
        """Wait for the destination's answer: a complete head, and the beginning of its body.

        Raises PeerFailed (`peer.reset`: closed or broken without an answer, `peer.no_answer`, `peer.protocol`).
        """
        return read_answer(self._line, self._reader, self._answer_timeout_s)

    def cut(self) -> None:
        """Break the connection with RST. From any thread, at any time; a call that waits raises `peer.reset`."""
        self._line.cut()

    def close(self) -> None:
        """Close the connection after its answer."""
        self._line.close()

    def _look(self) -> None:
        """Raise what the destination has answered although the upload is not over."""
        data = self._line.receive_some()
        if data is None:
            return
        self._take(data)

    def _take(self, data: bytes) -> None:
        if data:
            self._reader.feed(data)
        else:
            self._reader.end()
        if self._reader.has_head and not (self._is_finishing and self._reader.answer().status == 200):
            raise failure_of(read_answer(self._line, self._reader, EXCERPT_S))

    def _send_all(self, buffers: Sequence[Bytes]) -> None:
        left = [memoryview(buffer).cast("B") for buffer in buffers]
        deadline = time.monotonic() + self._stall_timeout_s
        while left:
            try:
                taken = self._line.send_some(left)
            except PeerFailed:
                self._read_what_came()
                if self._reader.has_head:
                    return  # only a 200 to a body whose end was being sent gets here
                raise
            if taken:
                deadline = time.monotonic() + self._stall_timeout_s
                while left and taken >= len(left[0]):
                    taken -= len(left.pop(0))
                if taken:
                    left[0] = left[0][taken:]
                continue
            if not self._line.wait(deadline - time.monotonic(), to_send=True):
                self.cut()
                raise PeerFailed(
                    "peer.stalled",
                    f"{self._target.origin} took no byte for {self._stall_timeout_s:g} s",
                    peer=self._target.origin,
                )
            self._look()
            if self._reader.has_head:
                return  # a 200 to everything that matters: what is left is framing

    def _read_what_came(self) -> None:
        """The connection broke while sending: the reason may have come before the reset."""
        while True:
            try:
                data = self._line.receive_some()
            except PeerFailed:
                return
            if data is None:
                return
            self._take(data)


def read_answer(line: Line, reader: AnswerReader, timeout_s: float) -> Answer:
    """Read until the answer's head is there and its body is complete, long enough, or late.

    Raises PeerFailed (`peer.reset`, `peer.no_answer`, `peer.protocol`).
    """
    deadline = time.monotonic() + timeout_s
    has_begun = False
    while not reader.is_complete:
        if reader.has_head:
            deadline = min(deadline, time.monotonic() + EXCERPT_S)
        try:
            data = line.receive_some()
            if data is None:
                if line.wait(deadline - time.monotonic(), to_send=False):
                    continue
                if reader.has_head:
                    break
                line.cut()
                raise PeerFailed("peer.no_answer", f"no answer came within {timeout_s:g} s")
        except PeerFailed as error:
            if reader.has_head and error.code == "peer.reset":
                break  # the status is known
            raise
        if not has_begun:
            has_begun = True
            deadline = time.monotonic() + min(timeout_s, HEAD_S)
        if data:
            reader.feed(data)
        else:
            reader.end()
    return reader.answer()


def request_head(method: str, path: str, fields: Mapping[str, str]) -> bytes:
    """Raises Refused (`request.invalid`) for what would break out of its line."""
    for name, value in fields.items():
        if _FIELD_NAME.fullmatch(name) is None or _FIELD_VALUE.fullmatch(value) is None:
            field = "token" if name == "Authorization" else name
            raise Refused("request.invalid", f"the value of {field} cannot stand in a request", field=field)
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    return "\r\n".join(lines).encode("ascii")


def fetch_json(
    target: Target,
    method: str,
    path: str,
    *,
    headers: Mapping[str, str],
    timeout_s: float,
    max_bytes: int,
    body: object = None,
    ssl_context: ssl.SSLContext | None = None,
) -> tuple[int, object]:
    """One small call to another sidecar, over the addresses that were checked for its uploads. Follows no redirect.

    Returns (status, the decoded JSON body; None where there is none, or it is not JSON and the status is not 2xx).
    Args: `timeout_s` for connecting, and again for the answer. Raises PeerFailed (`peer.*`).
    """
    content = b"" if body is None else json.dumps(body).encode()
    fields = {"Host": target.authority, "User-Agent": USER_AGENT, "Accept": "application/json", "Connection": "close"}
    if body is not None:
        fields["Content-Type"] = "application/json"
    if content or method not in ("GET", "HEAD"):
        fields["Content-Length"] = str(len(content))
    head = request_head(method, path, {**fields, **headers})
    line = Line(target)
    try:
        line.open(timeout_s, ssl_context)
        left = memoryview(head + content)
        deadline = time.monotonic() + timeout_s
        while left:
            taken = line.send_some([left])
            left = left[taken:]
            if not taken and not line.wait(deadline - time.monotonic(), to_send=True):
                raise PeerFailed("peer.stalled", f"{target.origin} takes no request", peer=target.origin)
        reader = AnswerReader(max_bytes)
        answer = read_answer(line, reader, timeout_s)
    finally:
        line.cut()
    if reader.is_cut_short or not reader.is_complete:
        raise PeerFailed("peer.protocol", f"the answer of {target.origin} is too long or incomplete")
    try:
        return answer.status, json.loads(answer.body) if answer.body else None
    except (ValueError, RecursionError) as error:
        if 200 <= answer.status < 300:
            raise PeerFailed("peer.protocol", f"the answer of {target.origin} is not JSON") from error
        return answer.status, None
