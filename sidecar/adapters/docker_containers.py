"""Game servers as Docker containers: stopped so that it is certain, created as the node daemons create them.

Three things make a stop certain. The restart policy is disarmed first, because a server that ends by itself (a "stop"
typed at its console) is brought back by `always` and `unless-stopped`. No time-out of a wait is believed: the container
is inspected. And "no such container" only counts where the engine answered and nothing that runs mounts the volume.

A thread can not be cancelled: a stop whose caller went away runs to its end (without killing), and `start`, which the
caller then asks for, waits for it, because one lock per server orders them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

from sidecar.adapters.container_environments import Environments
from sidecar.adapters.container_spec import KIND_LABEL, SERVER_KIND, SERVER_LABEL
from sidecar.adapters.docker_engine import PULL_STALL_S, DockerEngine, Document
from sidecar.adapters.server_containers import Found, ServerContainers, is_running, is_up, label
from sidecar.adapters.start_watch import StartWatch
from sidecar.errors import HostFailed
from sidecar.ports import Configuration, Observed, RunState, StopHow
from sidecar.settings.values import StopPolicy

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_DISARMED: Final = {"Name": "no"}
_KILL_WAIT_S: Final = 10.0  # after SIGKILL: the engine's own clean-up
_POLL_S: Final = 0.1  # between two inspections of a container that the engine is about to restart
_FIND_TRIES: Final = 3
_CLOSE_S: Final = 2.0  # a watch in the middle of a call to an engine that hangs ends by itself, later
_SIGNAL_LETTERS: Final = {"C": "SIGINT", "\\": "SIGQUIT"}  # as typed with the control key


class DockerRuntime:
    """Fulfils `ports.Runtime`.

    Args: `host` the engine's address; `volume_path` a server's volume as this process sees it; `containers` the names
    of containers that are not named by their server's UUID; `network` and `data_target` of created containers, an empty
    network being the daemons' where it exists and else the engine's default; `owner` their user (None: this process's);
    `allowed_mounts` the engine's directories that a panel may mount besides the volume; `engine_paths` prefixes of
    paths here -> the same in the engine's mount namespace, where they differ; `settle_s` between two looks at a
    container that has stopped or started.

    Memory: `threads` + `watchers` threads at most, started when they are needed.
    """

    def __init__(
        self,
        *,
        host: str,
        volume_path: Callable[[str], Path],
        containers: Mapping[str, str] | None = None,
        stop_timeout_s: float = 15.0,
        stop_policy: StopPolicy = StopPolicy.FAIL,
        network: str = "",
        data_target: str = "/home/container",
        owner: tuple[int, int] | None = None,
        timezone: str = "UTC",
        allowed_mounts: tuple[str, ...] = (),
        engine_paths: Mapping[str, str] | None = None,
        call_timeout_s: float = 30.0,
        pull_stall_s: float = PULL_STALL_S,
        settle_s: float = 0.2,
        reconnect_s: float = 1.0,
        threads: int = 8,
        watchers: int = 64,
    ) -> None:
        self._engine = DockerEngine(host, call_timeout_s=call_timeout_s, connections=threads + watchers)
        self._servers = ServerContainers(
            self._engine,
            volume_path=volume_path,
            configured=dict(containers or {}),
            data_target=data_target,
            engine_paths=engine_paths or {},
        )
        self._environments = Environments(
            self._engine,
            self._servers,
            network=network,
            data_target=data_target,
            owner=owner or (os.getuid(), os.getgid()),
            timezone=timezone,
            allowed_mounts=allowed_mounts,
            pull_stall_s=pull_stall_s,
            settle_s=settle_s,
        )
        self._stop_timeout_s = stop_timeout_s
        self._stop_policy = stop_policy
        self._settle_s = settle_s
        self._reconnect_s = reconnect_s
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="docker")
        self._watchers = ThreadPoolExecutor(watchers, thread_name_prefix="docker-events")
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._stopped: dict[str, tuple[str, Any, Any]] = {}  # server -> the run that was stopped, see `_run_of`

    async def engine_info(self) -> Mapping[str, Any] | None:
        """What the engine's `GET /info` answers, or None where it does not; for those who show it."""
        try:
            return await self._in_thread(self._engine.info)
        except HostFailed:
            return None

    async def close(self) -> None:
        """Wait for running calls, end the threads, close the connections. Cancel the waits for a start before."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._close_all)

    def _close_all(self) -> None:
        self._threads.shutdown(wait=True)
        self._watchers.shutdown(wait=True)
        self._engine.close()

    async def _in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *args, **kwargs))

    # ---- the port -------------------------------------------------------------------------------------------------

    async def observe(self, server: str) -> Observed:
        """As `ports.Runtime.observe`. RUNNING without a container: a stranger runs on the volume; `stop` refuses."""
        return await self._in_thread(self._observe, server)

    async def stop(self, server: str, observed: Observed, how: StopHow) -> None:
        """As `ports.Runtime.stop`.

        If cancelled: the stop goes on to its end or its time-out, but nothing is killed; `start` waits for it.
        """
        cancelled = threading.Event()
        try:
            await self._in_thread(self._stop, server, observed, how, cancelled)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def verify_stopped(self, server: str, observed: Observed) -> None:
        """As `ports.Runtime.verify_stopped`. Notices a run that has ended again, if this process did the stop."""
        await self._in_thread(self._verify, server, observed.container)

    async def wait_started_outside(self, server: str) -> None:
        """As `ports.Runtime.wait_started_outside`. If cancelled: its thread is told, and waited for a moment."""
        watch = StartWatch(self._engine, self._servers, server, self._run_has_changed, reconnect_s=self._reconnect_s)
        running = asyncio.get_running_loop().run_in_executor(self._watchers, watch.run)
        try:
            await asyncio.shield(running)
        finally:
            watch.close()
            await asyncio.wait([running], timeout=_CLOSE_S)

    async def start(self, server: str, observed: Observed) -> None:
        await self._in_thread(self._start, server, observed)

    async def prepare(self, server: str, configuration: Configuration | None) -> None:
        await self._in_thread(self._environments.prepare, configuration)

    async def activate(self, server: str, configuration: Configuration | None, *, start: bool) -> None:
        await self._in_thread(self._activate, server, configuration, start)

    async def remove(self, server: str) -> None:
        await self._in_thread(self._remove, server)

    async def mounts_running(self, server: str) -> bool:
        return await self._in_thread(self._mounts_running, server)

    async def check(self) -> None:
        await self._in_thread(self._engine.ping)

    # ---- looking --------------------------------------------------------------------------------------------------

    def _observe(self, server: str) -> Observed:
        found, details = self._look(server)
        if found.strangers:
            return Observed(RunState.RUNNING)
        if details is None:
            return Observed(RunState.MISSING)
        return Observed(
            state=RunState.RUNNING if is_up(details) else RunState.STOPPED,
            container=str(details["Id"]),
            restart_policy=details.get("HostConfig", {}).get("RestartPolicy"),
            restart_count=int(details.get("RestartCount") or 0),
        )

    def _look(self, server: str) -> tuple[Found, Document | None]:
        """The server's container in both forms; looked up again when it vanishes between the two."""
        for _ in range(_FIND_TRIES):
            found = self._servers.find(server)
            if found.id is None:
                return found, None
            details = self._engine.inspect(found.id)
            if details is not None:
                return found, details
        raise HostFailed("engine.failed", f"the container of server {server} changes all the time")

    def _mounts_running(self, server: str) -> bool:
        return any(is_running(row) and self._servers.mounts(row, server) for row in self._engine.containers())

    # ---- stopping -------------------------------------------------------------------------------------------------

    def _stop(self, server: str, observed: Observed, how: StopHow, cancelled: threading.Event) -> None:
        with self._locks[server]:
            if cancelled.is_set():
                return
            if observed.container is None and observed.state is RunState.RUNNING:
                raise HostFailed(
                    "server.stop_failed",
                    f"a running container mounts the volume of server {server}, but it is not known to be the server's",
                )
            details = self._engine.inspect(observed.container) if observed.container is not None else None
            if details is None:
                self._verify(server, observed.container)
                return
            container = str(details["Id"])
            self._disarm(details)
            try:
                # looked at again: until it was disarmed, the policy could bring it back
                details = self._engine.inspect(container)
                if details is not None and is_up(details):
                    self._bring_down(server, details, how, cancelled)
                self._settle(server, container)
            except HostFailed:
                with suppress(HostFailed):  # the caller's `start` puts it back too
                    self._rearm(container, observed.restart_policy)
                raise

    def _bring_down(self, server: str, details: Document, how: StopHow, cancelled: threading.Event) -> None:
        container = str(details["Id"])
        if details.get("HostConfig", {}).get("AutoRemove"):
            log.warning("the container of server %s removes itself when it stops", server)
        deadline = time.monotonic() + self._stop_timeout_s
        if details["State"].get("Paused"):
            self._engine.unpause(container)
        self._ask_to_stop(details, how)
        if self._wait_down(container, deadline):
            return
        if self._stop_policy is StopPolicy.FAIL or cancelled.is_set():
            raise HostFailed(
                "server.stop_timeout",
                f"server {server} did not stop within {self._stop_timeout_s:g} s",
                timeout_s=self._stop_timeout_s,
            )
        log.warning("server %s did not stop within %g s: killed", server, self._stop_timeout_s)
        self._engine.signal(container, "SIGKILL")
        if not self._wait_down(container, time.monotonic() + _KILL_WAIT_S):
            raise HostFailed("server.stop_failed", f"server {server} still runs after SIGKILL")

    def _ask_to_stop(self, details: Document, how: StopHow) -> None:
        container, config = str(details["Id"]), details.get("Config") or {}
        if how.kind == "command" and how.value:
            if config.get("OpenStdin"):
                self._engine.write_stdin(container, how.value.rstrip("\r\n").encode() + b"\n")
                return
            log.warning("container %s has no console to type %r at", container[:12], how.value)
        name = signal_name(how.value) if how.kind == "signal" and how.value else None
        # not the engine's own stop: that kills when its time is over, and killing is a setting here
        self._engine.signal(container, name or str(config.get("StopSignal") or "SIGTERM"))

    def _wait_down(self, container: str, deadline: float) -> bool:
        while True:
            self._engine.wait(container, max(0.0, deadline - time.monotonic()))
            details = self._engine.inspect(container)
            if details is None or not is_up(details):
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_S)

    def _settle(self, server: str, container: str) -> None:
        """Look twice, a moment apart: whoever watches the server may have begun to bring it back."""
        self._stopped.pop(server, None)
        self._verify(server, container)
        details = self._engine.inspect(container)
        if details is not None:
            self._stopped[server] = _run_of(details)
        time.sleep(self._settle_s)
        self._verify(server, container)

    def _verify(self, server: str, container: str | None) -> None:
        found, details = self._look(server)
        if found.strangers:
            raise HostFailed("server.started_outside", f"container {found.strangers[0]} runs on the server's volume")
        if details is None:
            return
        if container is not None and details["Id"] != container:
            raise HostFailed("server.started_outside", "the server's container was replaced by another")
        if is_up(details) or self._run_has_changed(server, details):
            raise HostFailed("server.started_outside", "the server's container was started by somebody else")

    def _run_has_changed(self, server: str, details: Document) -> bool:
        """Whether the container ran since it was stopped here, even if it has ended again."""
        stopped = self._stopped.get(server)
        return stopped is not None and stopped != _run_of(details)

    def _disarm(self, details: Document) -> None:
        if _policy_name(details.get("HostConfig", {}).get("RestartPolicy")) != "no":
            self._engine.set_restart_policy(str(details["Id"]), _DISARMED)

    def _rearm(self, container: str, policy: Mapping[str, Any] | None) -> None:
        if policy is not None and _policy_name(policy) != "no":
            self._engine.set_restart_policy(container, policy)

    # ---- starting -------------------------------------------------------------------------------------------------

    def _start(self, server: str, observed: Observed) -> None:
        with self._locks[server]:
            self._stopped.pop(server, None)
            if observed.container is None:
                return
            details = self._engine.inspect(observed.container)
            if details is None:
                details = self._look(server)[1]  # replaced by whoever watches the server
            if details is None:
                if observed.state is RunState.RUNNING:
                    raise HostFailed("environment.failed", f"the container of server {server} is gone")
                return
            container = str(details["Id"])
            if container == observed.container:
                self._rearm(container, observed.restart_policy)
            if observed.state is RunState.RUNNING and not is_up(details):
                self._engine.start(container)

    # ---- the destination ------------------------------------------------------------------------------------------

    def _activate(self, server: str, configuration: Configuration | None, start: bool) -> None:
        with self._locks[server]:
            self._stopped.pop(server, None)
            found = self._servers.find(server)
            if found.strangers:
                raise HostFailed("environment.failed", f"container {found.strangers[0]} runs on the server's volume")
            if found.is_running:
                return  # activated before
            if configuration is None or (found.id is not None and server in self._servers.configured):
                container = found.id
            else:
                container = self._environments.create(server, configuration, replaces=found.id)
            if start and container is not None:
                self._environments.start(server, container)

    def _remove(self, server: str) -> None:
        with self._locks[server]:
            self._stopped.pop(server, None)
            found = self._servers.find(server)
            if found.row is None or found.id is None:
                return
            if found.is_running:
                raise HostFailed("server.started_outside", f"server {server} runs: its container is not removed")
            if label(found.row, SERVER_LABEL) != server and label(found.row, KIND_LABEL) != SERVER_KIND:
                log.info("the container of server %s was not made by a daemon or here: kept, stopped", server)
                return
            self._engine.remove(found.id)


def signal_name(value: str) -> str | None:
    """A panel's or a person's name of a signal as the engine takes it: `C`, `^C`, `INT`, `SIGINT`, `2` -> SIGINT."""
    name = value.strip().upper().removeprefix("^")
    name = _SIGNAL_LETTERS.get(name, name)
    with suppress(ValueError):
        return signal.Signals(int(name)).name
    name = name if name.startswith("SIG") else f"SIG{name}"
    return name if name in signal.Signals.__members__ else None


def _run_of(details: Document) -> tuple[str, Any, Any]:
    """One run of a container: its id, when it was started, how often its policy has restarted it."""
    return str(details["Id"]), (details.get("State") or {}).get("StartedAt"), details.get("RestartCount")


def _policy_name(policy: Mapping[str, Any] | None) -> str:
    return str((policy or {}).get("Name") or "no")
