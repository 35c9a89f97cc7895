"""Without a panel: the destination's journal decides, and the source asks it.

The question itself fails a transfer that is not committed, so the answer is final; that is what makes it an arbiter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sidecar.engine.peer import settle
from sidecar.errors import SidecarError
from sidecar.journal.records import OutgoingFacts
from sidecar.ports import Verdict

if TYPE_CHECKING:
    from sidecar.engine.services import Services


class PeerArbiter:
    """For the source: fulfils `ports.Arbiter`."""

    def __init__(self, services: Services, facts: OutgoingFacts) -> None:
        self._services = services
        self._facts = facts

    async def report_success(self, server: str, backups: Sequence[str] = ()) -> Verdict:
        return Verdict.REFUSED  # a source never reports success

    async def report_failure(self, server: str) -> Verdict:
        return Verdict.UNANSWERED if await self._outcome() is None else Verdict.ACCEPTED

    async def is_ours(self, server: str) -> bool | None:
        outcome = await self._outcome()
        return None if outcome is None else outcome == "failed"

    async def _outcome(self) -> str | None:
        return await self._services.in_thread(self._ask)

    def _ask(self) -> str | None:
        facts, services = self._facts, self._services
        try:
            target = services.policy.resolve(facts.url)
        except SidecarError:
            return None
        return settle(target, facts.server, facts.transfer, facts.token, services.timings.call_timeout_s, services.tls)


class JournalArbiter:
    """For the destination: what it has committed is its own. Fulfils `ports.Arbiter`."""

    async def report_success(self, server: str, backups: Sequence[str] = ()) -> Verdict:
        return Verdict.ACCEPTED

    async def report_failure(self, server: str) -> Verdict:
        return Verdict.ACCEPTED

    async def is_ours(self, server: str) -> bool | None:
        return True
