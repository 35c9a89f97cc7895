"""The panel's remote API over HTTP: the configuration of a server, the two verdicts, and the oracle.

Every method is one attempt with one deadline, `call_timeout_s`: a call that was given up lands within that time or
never, and the engine counts on it (D9). Redirects are not followed, because a POST would arrive as something else.
Answers are read uncompressed and up to a limit.

The oracle's "no" lets a source give its copy up or a destination move a volume away, so it is said only after a
complete, well-formed walk over the list. Panels page without a fixed order (Laravel) or by a time that is not unique
(Calagopus), and a server that leaves while the walk goes on shifts the others: one can slip from a page not yet read to
one that was. So a list of several pages must read the same twice in a row. A "yes" needs no such care: whoever is
listed is listed.

Source: docs/PROTOCOL.md, the panel's remote API; read in the panels of all three families.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
import msgspec

from sidecar import __version__
from sidecar.errors import PeerFailed
from sidecar.ports import Configuration, Verdict

log = logging.getLogger(__name__)

PER_PAGE: Final = 50  # what the daemons ask for; every panel allows it
_MAX_PAGES: Final = 2000  # 100,000 servers on one node
_MAX_WALKS: Final = 5  # of a list that changes all the time
_MAX_ANSWER_BYTES: Final = 32 * 1024 * 1024  # a page of 50 configurations with large eggs is about 5 MB
_MAX_VERDICT_BYTES: Final = 1024 * 1024
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})

# 4xx that say nothing about the transfer: asked to come again, or refused by a proxy on the way
_COME_AGAIN: Final = frozenset({407, 408, 421, 425, 429})


class _Meta(msgspec.Struct, frozen=True):
    last_page: int
    total: int
    current_page: int | None = None


class _Identity(msgspec.Struct, frozen=True):
    uuid: str | None = None


class _Item(msgspec.Struct, frozen=True):
    uuid: str | None = None  # Pterodactyl and Pelican; Calagopus has it in the settings only
    settings: _Identity | None = None


class _Page(msgspec.Struct, frozen=True):
    """A resource collection (`meta`), or a bare Laravel paginator (the same fields beside `data`)."""

    data: list[_Item]
    meta: _Meta | None = None
    last_page: int | None = None
    total: int | None = None
    current_page: int | None = None


class _Document(msgspec.Struct, frozen=True):
    settings: dict[str, Any] | list[Any]
    process_configuration: dict[str, Any] | list[Any]


_PAGE = msgspec.json.Decoder(_Page, strict=False)  # PHP gives numbers of a query as strings
_DOCUMENT = msgspec.json.Decoder(_Document)


class HttpPanel:
    """Fulfils `ports.Panel`. Close it with `close` or as a context manager.

    Memory: one answer at a time and call, at most 32 MiB.
    """

    def __init__(
        self,
        url: str,
        *,
        token_id: str,
        token: str,
        call_timeout_s: float = 15.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.call_timeout_s = call_timeout_s
        self._base = url.rstrip("/")
        self._client = httpx.AsyncClient(
            headers={
                "Authorization": f"Bearer {token_id}.{token}",
                "Accept": "application/vnd.pterodactyl.v1+json",
                "Accept-Encoding": "identity",  # a compressed answer has no known size
                "User-Agent": f"transfer-sidecar/{__version__} (id:{token_id})",
            },
            timeout=call_timeout_s,
            follow_redirects=False,
            verify=urlsplit(url).scheme == "https",  # plain HTTP need not read the machine's certificates
            # a proxy of the environment is for the world outside, as the daemons take it
            trust_env=urlsplit(url).hostname not in _LOOPBACK,
            transport=transport,
        )

    async def __aenter__(self) -> HttpPanel:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def configuration(self, server: str) -> Configuration:
        """One attempt of `GET /api/remote/servers/{uuid}`; unknown fields are kept.

        Raises PeerFailed (`panel.unreachable`, `panel.refused`, `panel.malformed`).
        """
        answer = await self._get(f"/api/remote/servers/{server}")
        try:
            document = _DOCUMENT.decode(answer)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise PeerFailed(
                "panel.malformed", f"the panel's configuration of the server is malformed: {error}"
            ) from error
        settings, process = _object(document.settings), _object(document.process_configuration)
        if not settings:
            raise PeerFailed("panel.malformed", "the panel's configuration of the server is empty")
        named = settings.get("uuid")
        if isinstance(named, str) and named.lower() != server:
            raise PeerFailed("panel.malformed", "the panel answered with the configuration of another server")
        return Configuration(settings=settings, process_configuration=process)

    async def report_success(self, server: str, backups: Sequence[str] = ()) -> Verdict:
        return await self._report(server, "success", backups)

    async def report_failure(self, server: str) -> Verdict:
        return await self._report(server, "failure")

    async def is_ours(self, server: str) -> bool | None:
        """The oracle, see the module's reasoning. None also where the list never reads the same twice."""
        before: list[str] | None = None
        for _ in range(_MAX_WALKS):
            try:
                uuids, pages = await self._walk(server)
            except PeerFailed as error:
                log.info("the panel's list of servers: %s", error.message)
                return None
            if uuids is None:
                before = None  # changed under our eyes
                continue
            if server in uuids:
                return True
            if pages <= 1 or uuids == before:
                return False
            before = uuids
        log.warning("the panel's list of servers changed during each of %d walks", _MAX_WALKS)
        return None

    async def _walk(self, server: str) -> tuple[list[str] | None, int]:
        """One walk: (the UUIDs, or None where the pages contradict each other; number of pages). Ends at `server`."""
        uuids: list[str] = []
        first: _Meta | None = None
        number = 1
        while True:
            page = await self._page(number)
            meta = _meta_of(page)
            listed = [_uuid_of(item) for item in page.data]
            uuids += listed
            if server in listed:
                return uuids, number
            if first is None:
                first = meta
            if (meta.last_page, meta.total) != (first.last_page, first.total):
                return None, number
            if meta.current_page is not None and meta.current_page != number:
                raise PeerFailed("panel.malformed", f"asked for page {number}, the panel sent {meta.current_page}")
            if number >= first.last_page:
                break
            number += 1
        if len(uuids) != first.total or len(set(uuids)) != len(uuids):
            return None, number
        return uuids, number

    async def _page(self, number: int) -> _Page:
        answer = await self._get("/api/remote/servers", {"page": str(number), "per_page": str(PER_PAGE)})
        try:
            return _PAGE.decode(answer)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise PeerFailed("panel.malformed", f"page {number} is malformed: {error}") from error

    async def _get(self, path: str, query: dict[str, str] | None = None) -> bytes:
        status, body = await self._call("GET", path, query=query, limit=_MAX_ANSWER_BYTES)
        if status == httpx.codes.OK:
            return body
        if 400 <= status < 500 and status not in _COME_AGAIN:
            raise PeerFailed("panel.refused", f"the panel answered {status}", status=status)
        raise PeerFailed("panel.unreachable", f"the panel answered {status}", status=status)

    async def _report(self, server: str, outcome: str, backups: Sequence[str] = ()) -> Verdict:
        path = f"/api/remote/servers/{server}/transfer/{outcome}"
        try:
            # Calagopus wants the object, Pterodactyl and Pelican do not read it
            body = msgspec.json.encode({"backups": list(backups)})
            status, _ = await self._call("POST", path, body=body, limit=_MAX_VERDICT_BYTES)
        except PeerFailed as error:
            log.info("the panel did not answer `%s` of server %s: %s", outcome, server, error.message)
            return Verdict.UNANSWERED
        log.info("the panel answered `%s` of server %s with %d", outcome, server, status)
        if 200 <= status < 300:
            return Verdict.ACCEPTED
        if 400 <= status < 500 and status not in _COME_AGAIN:
            return Verdict.REFUSED
        return Verdict.UNANSWERED

    async def _call(
        self, method: str, path: str, *, query: dict[str, str] | None = None, body: bytes | None = None, limit: int
    ) -> tuple[int, bytes]:
        """One request, one deadline. Raises PeerFailed (`panel.unreachable`, `panel.malformed`)."""
        headers = {"Content-Type": "application/json"} if body is not None else None
        try:
            async with (
                asyncio.timeout(self.call_timeout_s),
                self._client.stream(method, self._base + path, params=query, content=body, headers=headers) as response,
            ):
                return response.status_code, await _read(response, limit)
        except TimeoutError as error:
            message = f"the panel did not answer within {self.call_timeout_s:g} s"
            raise PeerFailed("panel.unreachable", message) from error
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            said = str(error) or type(error).__name__
            raise PeerFailed("panel.unreachable", f"the panel cannot be reached: {said}") from error


async def _read(response: httpx.Response, limit: int) -> bytes:
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise PeerFailed("panel.malformed", "the panel's answer is compressed although that was not asked for")
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > limit:
            raise PeerFailed("panel.malformed", f"the panel's answer is longer than {limit} bytes", limit_bytes=limit)
    return bytes(body)


def _object(value: dict[str, Any] | list[Any]) -> dict[str, Any]:
    """PHP writes an empty object as `[]`."""
    if isinstance(value, dict):
        return value
    if value:
        raise PeerFailed("panel.malformed", "the panel's configuration of the server holds a list for an object")
    return {}


def _meta_of(page: _Page) -> _Meta:
    meta = page.meta
    if meta is None:
        if page.last_page is None or page.total is None:
            raise PeerFailed("panel.malformed", "the panel's list does not say how long it is")
        meta = _Meta(page.last_page, page.total, page.current_page)
    if not (0 <= meta.last_page <= _MAX_PAGES and 0 <= meta.total <= _MAX_PAGES * PER_PAGE):
        raise PeerFailed("panel.malformed", "the panel's list has an impossible length", pages=meta.last_page)
    return meta


def _uuid_of(item: _Item) -> str:
    uuid = item.uuid or (item.settings.uuid if item.settings is not None else None)
    if not uuid:
        raise PeerFailed("panel.malformed", "the panel's list holds a server without a UUID")
    return uuid.lower()
