"""What readiness says of the events: whether they get through, what waits, and what was given up."""

from __future__ import annotations

from typing import Any

from sidecar.bus.mirror import Mirror
from sidecar.bus.outbox import Outbox
from sidecar.errors import HostFailed


async def check_events(outbox: Outbox, mirror: Mirror) -> dict[str, Any]:
    """The readiness probe of the outbox and the stream.

    Raises HostFailed (`bus.outbox_*`, `bus.stream_*`): degraded, never not ready, for transfers go on.
    """
    kept, sent = outbox.facts(), mirror.facts()
    facts: dict[str, Any] = {
        "waiting": kept.waiting,
        "dropped_progress": kept.dropped_progress,
        "dropped_logs": kept.dropped_logs,
        "undeliverable": sent.undeliverable,
    }
    if sent.is_kept is not None:
        facts["guarantee"] = "at least once" if sent.is_kept else "at most once"
    if kept.put_aside:
        facts["put_aside"] = kept.put_aside
    if kept.code is not None:
        raise HostFailed(kept.code, f"The outbox of events cannot be used: {kept.trouble}.", **facts)
    if sent.code is not None:
        raise HostFailed(sent.code, f"Events are kept here: {sent.words}.", trouble=sent.words, **facts)
    if kept.put_aside:
        raise HostFailed("bus.outbox_damaged", "The outbox was damaged and put aside; events may be lost.", **facts)
    return facts
