"""S3: while a transfer is in doubt the source's server stays stopped, whoever starts it.

Past the point no start can fail the transfer any more: the destination may have the server already. But a node daemon
that is restarted brings back what ran according to its notes, which may be a minute old, and a console that was open
before still has its start button. Two would run. So it is stopped again, through the runtime as always, until the
outcome is known; then the server runs where it belongs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from sidecar.engine.services import Backoff
from sidecar.engine.transfer import Transfer
from sidecar.errors import HostFailed
from sidecar.ports import RunState, StopHow

KILL: Final = StopHow("signal", "SIGKILL")


async def keep_stopped(transfer: Transfer, how: Callable[[], StopHow]) -> None:
    """Return when the transfer is past its doubt, or a bug has stopped it before. `how`: as it was stopped first.

    If cancelled: a stop that is under way may go on to its end.
    """
    await transfer.wait_until(lambda state: state.in_doubt or state.is_final)
    if not transfer.state.in_doubt:
        return
    guarding = asyncio.create_task(_guard(transfer, how), name=f"guard {transfer.facts.transfer}")
    try:
        await transfer.wait_until(lambda state: not state.in_doubt)
    finally:
        guarding.cancel()
        try:
            await guarding
        except asyncio.CancelledError:
            pass
        except Exception:
            transfer.log.exception("a bug: nobody watches that the server stays stopped")


async def _guard(transfer: Transfer, how: Callable[[], StopHow]) -> None:
    runtime, server = transfer.services.runtime, transfer.facts.server
    backoff = Backoff(transfer.services.timings)
    while True:
        await backoff.wait()
        await runtime.wait_started_outside(server)
        try:
            observed = await runtime.observe(server)
            if observed.state is not RunState.RUNNING:
                continue  # it has ended by itself
            transfer.say("Somebody started the server while its outcome is in doubt: it is stopped again.")
            try:
                await runtime.stop(server, observed, how())
            except HostFailed as error:
                if error.code != "server.stop_timeout":
                    raise
                await runtime.stop(server, observed, KILL)
        except HostFailed as error:
            transfer.log.warning("the server runs in doubt and cannot be stopped: %s (%s)", error.message, error.code)
        else:
            backoff.reset()
