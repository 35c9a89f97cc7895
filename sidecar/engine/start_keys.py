"""Starting once: a start that carries a key is the same start whenever it comes again.

The key is part of the transfer's first decision, so there is no moment at which one is on disk without the other: a
node that was killed between the decision and its answer finds both again at its next start, and one that was killed
before the decision has begun nothing. A key therefore counts as long as its transfer is remembered, which the node's
history bounds; there is no second store that could disagree with the journal.

A refused start leaves nothing behind: its key is free, and the caller may try again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from sidecar.engine.contract import StartTransfer
from sidecar.errors import HostFailed, Refused, SidecarError
from sidecar.journal.records import Facts, OutgoingFacts


class StartKeys:
    """The keys of remembered transfers and of starts that are under way. Memory: some 200 bytes a transfer."""

    def __init__(self) -> None:
        self._known: dict[str, OutgoingFacts] = {}
        self._under_way: dict[str, tuple[str, asyncio.Future[str]]] = {}

    def remember(self, facts: Facts) -> None:
        """A transfer that has begun, now or before a restart."""
        if isinstance(facts, OutgoingFacts) and facts.key is not None:
            self._known[facts.key] = facts

    def forget(self, facts: Facts) -> None:
        if isinstance(facts, OutgoingFacts) and facts.key is not None:
            self._known.pop(facts.key, None)

    async def once(self, request: StartTransfer, start: Callable[[], Awaitable[str]]) -> str:
        """The id of the transfer that the request's key stands for; `start` is run where there is none.

        Requests with the same key that come meanwhile wait for that one and end as it does.
        Raises Refused (`request.key_reused`) where the key came with another request, and what `start` raises.
        """
        assert request.key is not None
        digest = request.digest()
        if (facts := self._known.get(request.key)) is not None:
            _check(facts.key_digest, digest)
            return facts.transfer
        if (under_way := self._under_way.get(request.key)) is not None:
            _check(under_way[0], digest)
            return await asyncio.shield(under_way[1])
        outcome: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        outcome.add_done_callback(_look)
        self._under_way[request.key] = (digest, outcome)
        try:
            transfer = await start()
            outcome.set_result(transfer)
        except SidecarError as error:
            outcome.set_exception(error)
            raise
        finally:
            del self._under_way[request.key]
            if not outcome.done():  # cancelled, or a bug: whoever waits is not to be cancelled with it
                outcome.set_exception(HostFailed("transfer.interrupted", "The start of that key was cut short."))
        return transfer


def _check(known: str, digest: str) -> None:
    if known != digest:
        message = "The idempotency key has been used for another request; a new request needs a new key."
        raise Refused("request.key_reused", message)


def _look(outcome: asyncio.Future[str]) -> None:
    """Where nobody waits for it, an exception is not a lost one."""
    outcome.exception()
