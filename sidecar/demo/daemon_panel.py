"""How a stand-in node daemon calls the panel, with each family's own patience."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Final

import httpx
import msgspec

from sidecar.demo.panel_documents import Document, Family

log = logging.getLogger(__name__)

_PER_PAGE: Final = 50
_CALAGOPUS_TRIES: Final = 10


class PanelCalls:
    """`retry_s`: how long a Go daemon repeats a call, and thirty times the unit of Calagopus' pauses."""

    def __init__(
        self, family: Family, url: str, *, token_id: str, token: str, call_timeout_s: float, retry_s: float
    ) -> None:
        self._family = family
        self._url = url
        self._headers = {"Authorization": f"Bearer {token_id}.{token}", "Accept": "application/json"}
        self._call_timeout_s = call_timeout_s
        self._retry_s = retry_s

    async def listed(self) -> list[Document]:
        """The documents of all servers of this node. Raises RuntimeError where the panel does not answer."""
        await self.ask("POST", "/api/remote/servers/reset")
        found: list[Document] = []
        page, last = 1, 1
        while page <= last:
            status, answer = await self.ask("GET", f"/api/remote/servers?page={page}&per_page={_PER_PAGE}")
            if status != httpx.codes.OK:
                raise RuntimeError(f"the panel does not list this node's servers: {status}")
            last = int(answer["meta"]["last_page"])
            found += answer["data"]
            page += 1
        return found

    async def configuration(self, server: str) -> Document | None:
        status, document = await self.ask("GET", f"/api/remote/servers/{server}")
        return document if status == httpx.codes.OK else None

    async def tell(self, server: str, outcome: str, backups: Sequence[str] = ()) -> bool:
        """Whether the panel accepted `success` or `failure`; a refusal is never repeated."""
        path = f"/api/remote/servers/{server}/transfer/{outcome}"
        is_calagopus = self._family is Family.CALAGOPUS
        body: Any = {"backups": list(backups)} if is_calagopus else None
        deadline = asyncio.get_running_loop().time() + self._retry_s
        pause_s = self._retry_s / 60
        for attempt in range(1, _CALAGOPUS_TRIES + 1):
            status, _ = await self.ask("POST", path, body)
            if status is not None and status < 500:
                return 200 <= status < 300
            pause_s = self._retry_s * attempt**2 / 30 if is_calagopus else pause_s * 1.5
            if not is_calagopus and asyncio.get_running_loop().time() + pause_s > deadline:
                break
            await asyncio.sleep(pause_s)
        return False

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int | None, Document]:
        """One attempt. Returns (status or None, the JSON object or an empty one)."""
        content = msgspec.json.encode(body) if method == "POST" else None
        headers = {"Content-Type": "application/json"} if method == "POST" else {}
        try:
            async with httpx.AsyncClient(
                headers=self._headers, timeout=self._call_timeout_s, trust_env=False, verify=False
            ) as client:
                answer = await client.request(method, self._url + path, content=content, headers=headers)
                document = answer.json() if answer.content else {}
        except (httpx.HTTPError, OSError) as error:
            log.info("the panel did not answer %s %s: %r", method, path, error)
            return None, {}
        except ValueError:
            document = {}
        return answer.status_code, document if isinstance(document, dict) else {}
