"""What a destination answered: read within bounds, and named when it is not what was hoped for.

The answer decides a transfer (only a complete 200 is a success), so its head is parsed strictly, and an answer that is
none is `peer.protocol`, never a guess. What is not a 200 often comes from a proxy in front of the destination, and
operators look for the cause in the wrong place then: so the proxy is named.
"""

from __future__ import annotations

import json
import re
from typing import Final

import httptools
import msgspec

from sidecar.errors import PeerFailed

ANSWER_HEAD_BYTES: Final = 64 << 10  # and no further read, unless the final head is complete by then
EXCERPT_BYTES: Final = 2 << 10
_KEPT_HEADERS: Final = frozenset({"server", "via", "location", "content-type", "x-request-id", "cf-ray", "retry-after"})
_HEADER_CHARS: Final = 256
_SAID_CHARS: Final = 300  # of a body in a message: one long path, and what was wrong with it
_UNPRINTABLE: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_PROXY_STATUSES: Final = frozenset({413, 502, 504, *range(520, 527)})


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A complete response head, and the beginning of the body as text."""

    status: int
    excerpt: str  # at most EXCERPT_BYTES, without control characters
    headers: dict[str, str]  # those that tell who answered; names in lower case
    code: str | None = None  # the `code` of an error body in this project's form
    body: bytes = b""


class AnswerReader:
    """Fed what arrives; knows when the final head and the body are there. Memory: the head bound and `body_bytes`."""

    def __init__(self, body_bytes: int = EXCERPT_BYTES) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._body_bytes = body_bytes
        self._seen_bytes = 0
        self._headers: dict[str, str] = {}
        self._body = bytearray()
        self._status = 0
        self.has_head = False
        self.is_complete = False
        self.is_cut_short = False  # the body is longer than `body_bytes`

    def feed(self, data: bytes) -> None:
        """Raises PeerFailed (`peer.protocol`) where the answer is not HTTP or its head too long."""
        if self.is_complete:
            return
        if not self.has_head:
            if self._seen_bytes >= ANSWER_HEAD_BYTES:
                raise PeerFailed("peer.protocol", "the head of the destination's answer is too long")
            self._seen_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self.has_head:
                raise PeerFailed("peer.protocol", "the destination's answer is not HTTP") from error
            self.is_complete = True  # the status is known; a damaged body changes nothing about it

    def end(self) -> None:
        """The peer's FIN. Raises PeerFailed (`peer.reset`) where no complete head had come."""
        if not self.has_head:
            raise PeerFailed("peer.reset", "the destination closed the connection without an answer")
        self.is_complete = True

    def answer(self) -> Answer:
        text = _UNPRINTABLE.sub(" ", bytes(self._body[:EXCERPT_BYTES]).decode("utf-8", "replace")).strip()
        return Answer(
            status=self._status,
            excerpt=text,
            headers={name: value for name, value in self._headers.items() if name in _KEPT_HEADERS},
            code=_code_of(bytes(self._body)),
            body=bytes(self._body),
        )

    # the parser's callbacks

    def on_message_begin(self) -> None:
        if not self.has_head:
            self._headers = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.has_head:
            text = _UNPRINTABLE.sub(" ", value.decode("latin-1"))
            self._headers[name.decode("latin-1").lower()] = text[:_HEADER_CHARS]

    def on_headers_complete(self) -> None:
        if not self.has_head:
            self._status = self._parser.get_status_code()
            self.has_head = self._status >= 200

    def on_body(self, body: bytes) -> None:
        if self.has_head and not self.is_complete:
            room = self._body_bytes - len(self._body)
            self._body += body[:room]
            if len(body) > room:
                self.is_cut_short = self.is_complete = True

    def on_message_complete(self) -> None:
        self.is_complete = self.has_head


def _code_of(body: bytes) -> str | None:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return None
    code = content.get("code") if isinstance(content, dict) else None
    return code if isinstance(code, str) and re.fullmatch(r"[a-z_]{1,32}\.[a-z_]{1,32}", code) else None


def _said(answer: Answer) -> str:
    """What the body says to a person: the sentences of a JSON error, with our own code, or else its beginning."""
    try:
        content = json.loads(answer.body)
    except (ValueError, RecursionError):
        content = None
    sentences = [content.get("error"), content.get("detail")] if isinstance(content, dict) else []
    said = " ".join(sentence.strip() for sentence in sentences if isinstance(sentence, str))
    text = " ".join(_UNPRINTABLE.sub(" ", said or answer.excerpt).split())[:_SAID_CHARS]
    return f"{text} ({answer.code})" if answer.code is not None else text


def failure_of(answer: Answer) -> PeerFailed:
    """The error that an answer other than a 200 to a whole upload is."""
    status, server = answer.status, answer.headers.get("server", "")
    excerpt = " ".join(answer.excerpt.split())[:_SAID_CHARS]
    facts: dict[str, str | int] = {"status": status, "excerpt": excerpt, "server": server}
    if answer.code is not None:
        facts["peer_code"] = answer.code
    if status == 200:
        return PeerFailed("peer.protocol", "the destination answered 200 before the upload was complete", **facts)
    if 300 <= status < 400:
        location = answer.headers.get("location", "")
        facts["location"] = location
        return PeerFailed("peer.redirect", f"the destination answered {status}, a redirect to {location!r}", **facts)
    if status in _PROXY_STATUSES and answer.code is None:
        proxy = f"the proxy {server!r}" if server else "a proxy"
        why = {
            413: "refused the size of the upload: raise its limit for request bodies, or use a direct address",
            502: "lost the destination",
            504: "gave up waiting for the destination: raise its time-outs",
            524: "gave up waiting for the destination: raise its time-outs",
        }.get(status, "could not hand the upload to the destination")
        return PeerFailed("peer.proxy", f"{proxy} in front of the destination answered {status}: it {why}", **facts)
    said = _said(answer)
    return PeerFailed("peer.status", f"the destination answered {status}{f': {said}' if said else ''}", **facts)
