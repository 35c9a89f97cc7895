"""The runtime beside a node daemon: the daemon starts and stops its servers, and the engine proves that it did.

A container that is stopped behind a daemon's back counts as crashed, and a new one runs a second or two later, which
writes while the archive is read. So every start and stop goes through the daemon's power API. Its word alone is not
enough either: two families say `offline` as soon as a kill was sent. A stop is over when the daemon says `offline` and
no container of the server, and none that mounts its volume, runs; still so `settle_s` later, and none is new.

Without an engine (`containers` None) the daemon's state is all there is: what others run on the volume is not seen.

Adopting a server on the destination is the hand-over's work (`ports.Daemon`), so here only what surrounds it is done.
"""

from __future__ import annotations

import asyncio
import logging
import math
from typing import Any, Final

from sidecar.adapters.daemon_containers import DaemonContainers, Seen
from sidecar.adapters.daemon_http import DaemonState, HttpDaemon, PowerAction
from sidecar.errors import HostFailed
from sidecar.ports import Configuration, Observed, RunState, StopHow
from sidecar.settings.values import StopPolicy

log = logging.getLogger(__name__)

_KILL_WAIT_S: Final = 10.0  # after the daemon's kill: the engine's own clean-up
_MAX_WAIT_S: Final = 300  # what daemons let an action wait for the one before it
_NOTHING: Final = Seen()
_UNSEEN: Final = "unseen"  # without an engine: the daemon runs it, in a container that nobody here can name


class BesideRuntime:
    """Fulfils `ports.Runtime`. Close it; the daemon is the caller's to close.

    Args: `containers` None: no engine is asked; `stop_again_s` when a stop is repeated of which nothing is seen: a
    daemon may lose one of a server that has just begun to start; `settle_s` how long a stopped server is watched
    before it counts, longer than a daemon takes to bring a server back; `start_timeout_s` how long a start may take to
    be seen: daemons set the owners of all files first; `poll_s` between two questions to the daemon.
    """

    def __init__(
        self,
        daemon: HttpDaemon,
        containers: DaemonContainers | None,
        *,
        stop_timeout_s: float = 15.0,
        stop_policy: StopPolicy = StopPolicy.FAIL,
        stop_again_s: float = 3.0,
        settle_s: float = 2.0,
        start_timeout_s: float = 120.0,
        poll_s: float = 0.25,
    ) -> None:
        self._daemon = daemon
        self._containers = containers
        self._stop_timeout_s = stop_timeout_s
        self._stop_policy = stop_policy
        self._stop_again_s = stop_again_s
        self._settle_s = settle_s
        self._start_timeout_s = start_timeout_s
        self._poll_s = poll_s
        self._stopped: dict[str, tuple[str | None, str | None]] = {}  # server -> the run that was stopped, `Seen.run`

    async def close(self) -> None:
        """Close the engine's connections."""
        if self._containers is not None:
            await self._containers.close()

    async def engine_info(self) -> dict[str, Any] | None:
        """What the engine's `GET /info` answers, or None where it does not; for those who show it."""
        try:
            return None if self._containers is None else await self._containers.info()
        except HostFailed:
            return None

    async def _look(self, server: str) -> Seen:
        return _NOTHING if self._containers is None else await self._containers.look(server)

    # ---- the source ------------------------------------------------------------------------------------------------

    async def observe(self, server: str) -> Observed:
        """As `ports.Runtime.observe`; raises HostFailed (`daemon.*`) too. MISSING: the daemon does not know it."""
        state, seen = await self._daemon.state(server), await self._look(server)
        if not seen.is_still or state not in (None, DaemonState.OFFLINE):
            return Observed(RunState.RUNNING, _UNSEEN if self._containers is None else seen.container)
        if state is None and seen.container is None:
            return Observed(RunState.MISSING)
        return Observed(RunState.STOPPED, seen.container)

    async def stop(self, server: str, observed: Observed, how: StopHow) -> None:
        """As `ports.Runtime.stop`. How to stop is the daemon's own knowledge: it has the panel's configuration; only
        SIGKILL, of a server that is deleted, is asked for by name.

        If cancelled: the daemon may go on stopping; nothing is killed any more, and `start` waits for it.
        """
        state, seen = await self._daemon.state(server), await self._look(server)
        if seen.strangers or (state is None and seen.is_running):
            who = seen.strangers[0] if seen.strangers else seen.container
            raise HostFailed(
                "server.stop_failed",
                f"container {who} runs on the volume of server {server}, and the node daemon does not manage it",
            )
        if seen.is_running or state not in (None, DaemonState.OFFLINE):
            if how == StopHow("signal", "SIGKILL"):
                await self._kill(server, seen.container)
            else:
                await self._bring_down(server, state, seen.container)
        await self._settle(server, observed)

    async def _bring_down(self, server: str, state: DaemonState | None, container: str | None) -> None:
        if state is not DaemonState.STOPPING:  # a second stop would wait behind the first, and behind our start
            await self._ask_stop(server)
        if await self._wait_down(server, container, self._stop_timeout_s, repeats=True):
            return
        if self._stop_policy is StopPolicy.FAIL:
            raise HostFailed(
                "server.stop_timeout",
                f"server {server} did not stop within {self._stop_timeout_s:g} s",
                timeout_s=self._stop_timeout_s,
            )
        log.warning("server %s did not stop within %g s: killed by the daemon", server, self._stop_timeout_s)
        await self._kill(server, container)

    async def _ask_stop(self, server: str) -> None:
        await self._daemon.power(server, PowerAction.STOP, wait_s=_whole(self._stop_timeout_s))

    async def _kill(self, server: str, container: str | None) -> None:
        await self._daemon.power(server, PowerAction.KILL)
        if not await self._wait_down(server, container, _KILL_WAIT_S):
            raise HostFailed("server.stop_failed", f"server {server} still runs after the node daemon's kill")

    async def _wait_down(self, server: str, container: str | None, timeout_s: float, *, repeats: bool = False) -> bool:
        """Whether daemon and engine say so in time; both are asked at least once.

        `repeats` a stop that was lost, and sees one to its end that has to wait for a start: given up before, it would
        end the server after that was taken for running again. Else raises HostFailed (`server.started_outside`) where
        it was down already, unseen, and runs again.
        """
        loop = asyncio.get_running_loop()
        asked_at = loop.time()
        deadline = asked_at + timeout_s
        is_stopping = False
        while True:
            state, seen = await self._daemon.state(server), await self._look(server)
            if state in (None, DaemonState.OFFLINE) and seen.is_still:
                return True
            is_new = container is not None and seen.is_running and seen.container != container
            is_back = is_new or (is_stopping and state in (DaemonState.STARTING, DaemonState.RUNNING))
            if is_back and not repeats:
                raise HostFailed("server.started_outside", "the server was started by somebody else while it stopped")
            is_stopping = state is DaemonState.STOPPING
            if loop.time() >= deadline:
                return False
            if repeats and state is DaemonState.RUNNING and loop.time() >= asked_at + self._stop_again_s:
                await self._ask_stop(server)
                asked_at = loop.time()
            await asyncio.sleep(self._poll_s)

    async def _settle(self, server: str, observed: Observed) -> None:
        """Look on for a while: a daemon that takes the end for a crash brings the server back after a moment."""
        self._stopped.pop(server, None)
        seen = await self._verify(server, observed)
        self._stopped[server] = seen.run
        until = asyncio.get_running_loop().time() + self._settle_s
        while (left_s := until - asyncio.get_running_loop().time()) > 0:
            await asyncio.sleep(min(left_s, self._poll_s))
            await self._verify(server, observed)

    async def verify_stopped(self, server: str, observed: Observed) -> None:
        """As `ports.Runtime.verify_stopped`. Notices a run that has ended again, where its container is still there."""
        await self._verify(server, observed)

    async def _verify(self, server: str, observed: Observed) -> Seen:
        state, seen = await self._daemon.state(server), await self._look(server)
        if seen.strangers:
            raise HostFailed("server.started_outside", f"container {seen.strangers[0]} runs on the server's volume")
        if seen.is_running or state not in (None, DaemonState.OFFLINE):
            raise HostFailed("server.started_outside", "the server was started at the node daemon by somebody else")
        if seen.started_at is None:
            return seen  # removed after the stop, as one family does; or new, and never started
        if observed.container is not None and seen.container != observed.container:
            raise HostFailed("server.started_outside", "the server's container was replaced by another")
        if server in self._stopped and self._stopped[server] != seen.run:
            raise HostFailed("server.started_outside", "the server was started in the meantime by somebody else")
        return seen

    async def wait_started_outside(self, server: str) -> None:
        """As `ports.Runtime.wait_started_outside`: the engine's events, or without an engine the daemon's state."""
        if self._containers is not None:
            await self._containers.wait_started(server, self._stopped.get(server))
            return
        while True:
            try:
                if await self._daemon.state(server) not in (None, DaemonState.OFFLINE):
                    return
            except HostFailed:
                pass  # a daemon that is away starts nothing; it is asked again
            await asyncio.sleep(self._poll_s)

    async def start(self, server: str, observed: Observed) -> None:
        """As `ports.Runtime.start`. One that is still stopping is waited for, and left as it is where it runs on."""
        self._stopped.pop(server, None)
        if observed.state is RunState.RUNNING:
            await self._start(server)

    async def _start(self, server: str) -> None:
        """Return when the daemon says that the server starts or runs. A start it does not get round to is repeated."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._start_timeout_s
        is_asked = False
        while True:
            match await self._daemon.state(server):
                case None:
                    raise HostFailed("environment.failed", f"the node daemon does not know server {server}")
                case DaemonState.STARTING | DaemonState.RUNNING:
                    return
                case DaemonState.OFFLINE if not is_asked and (await self._look(server)).is_still:
                    await self._daemon.power(server, PowerAction.START, wait_s=_whole(self._stop_timeout_s))
                    is_asked = True
                case DaemonState.STOPPING if loop.time() >= deadline - self._start_timeout_s + self._stop_timeout_s:
                    if (await self._look(server)).is_running or self._containers is None:
                        log.warning("server %s was asked to stop, and runs on", server)
                        return
            if loop.time() >= deadline:
                raise HostFailed(
                    "environment.failed",
                    f"the node daemon did not start server {server} within {self._start_timeout_s:g} s",
                    timeout_s=self._start_timeout_s,
                )
            await asyncio.sleep(self._poll_s)

    async def remove(self, server: str) -> None:
        """Nothing: the panel's DELETE reaches the daemon, which removes its container."""

    # ---- the destination -------------------------------------------------------------------------------------------

    async def prepare(self, server: str, configuration: Configuration | None) -> None:
        """As `ports.Runtime.prepare`: the daemon answers and does not know the server yet. The image is its affair.

        Raises HostFailed (`daemon.*`, `engine.unreachable`).
        """
        await self.check()
        if await self._daemon.state(server) is not None:
            raise HostFailed(
                "daemon.refused",
                f"the node daemon knows server {server} already, from an earlier transfer that failed: restart it, and "
                "try again",
            )

    async def activate(self, server: str, configuration: Configuration | None, *, start: bool) -> None:
        """As `ports.Runtime.activate`: the daemon has made the environment; it is started if asked.

        Raises HostFailed (`daemon.restart_needed`: the server is this node's and its files are safe, but the daemon
        holds it as transferring or does not know it; at its next start it asks the panel; `environment.failed`).
        """
        self._stopped.pop(server, None)
        state = await self._state_soon(server)
        if state is None:
            raise HostFailed(
                "daemon.restart_needed", f"the node daemon does not know server {server} yet: restart the daemon"
            )
        if await self._daemon.is_stuck(server):
            raise HostFailed(
                "daemon.restart_needed",
                f"the node daemon holds server {server} as transferring and does not start it: restart the daemon",
            )
        if start:
            await self._start(server)

    async def _state_soon(self, server: str) -> DaemonState | None:
        """Of a daemon that may just be restarting: asked again for as long as a start may take."""
        deadline = asyncio.get_running_loop().time() + self._start_timeout_s
        while True:
            try:
                return await self._daemon.state(server)
            except HostFailed as error:
                if error.code != "daemon.unreachable" or asyncio.get_running_loop().time() >= deadline:
                    raise
            await asyncio.sleep(self._poll_s)

    async def mounts_running(self, server: str) -> bool:
        """As `ports.Runtime.mounts_running`. Without an engine: whether the daemon runs the server."""
        if self._containers is None:
            return await self._daemon.state(server) not in (None, DaemonState.OFFLINE)
        return not (await self._look(server)).is_still

    async def check(self) -> None:
        """As `ports.Runtime.check`; raises HostFailed (`daemon.*`) too."""
        await self._daemon.check()
        if self._containers is not None:
            await self._containers.ping()


def _whole(seconds: float) -> int:
    return min(_MAX_WAIT_S, math.ceil(seconds))
