"""What every transfer of a node shares: neighbours, journal, threads, and the numbers that rule time."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from ssl import SSLContext
from typing import ParamSpec, TypeVar

import msgspec

from sidecar.archive.extract import ExtractLimits
from sidecar.engine.hub import EventHub
from sidecar.engine.volumes import Volumes
from sidecar.errors import PeerFailed
from sidecar.journal.store import Journal
from sidecar.ports import Configuration, Daemon, FilePlace, Panel, Runtime
from sidecar.wire.destination import DestinationPolicy

P = ParamSpec("P")
T = TypeVar("T")


class Timings(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds. The defaults are the rules' own; tests make them short."""

    young_s: float = 30.0  # S4, D4b: a refusal of a call sent earlier decides nothing
    quarantine_s: float = 60.0  # S7: our own, Pterodactyl's and Pelican's destinations give up within 30 s
    quarantine_calagopus_s: float = 600.0  # S7: it retries its panel call for minutes
    call_timeout_s: float = 15.0  # D9: a call that was given up lands within this time or never
    panel_commit_s: float = 1.0  # S4: from our 202 until the panel has written down what strangers ask it about
    join_s: float = 10.0  # how long one of several streams waits for the main one
    admission_s: float = 10.0  # D2: 403 and 404 are tried again: the panel's transaction may still be open
    retry_first_s: float = 0.5
    retry_cap_s: float = 30.0
    refused_caller_tries: int = 3  # D8: the destination's `failure` before it gives up; the source tells it too
    progress_interval_s: float = 5.0
    progress_event_s: float = 1.0
    panel_stop_lookup_s: float = 3.0  # how the panel wants the server stopped; part of the panel's own 15 s
    daemon_call_s: float = 30.0  # H3: a call of a local daemon to the panel lands within this time or never
    late_exit_s: float = 60.0  # after a failed stop: the server may still end and must then be started again


class Sending(msgspec.Struct, frozen=True, kw_only=True):
    """How the source sends."""

    gzip_level: int = 1
    stall_timeout_s: float = 60.0
    connect_timeout_s: float = 10.0
    answer_timeout_s: float = 1800.0
    max_entries: int = 10_000_000
    restart_on_failure: bool = True
    backups: Path | None = None  # where backups lie that may have to travel with a server
    install_logs: Path | None = None  # where a server's installation log may lie


class Receiving(msgspec.Struct, frozen=True, kw_only=True):
    """What the destination takes."""

    stall_timeout_s: float = 60.0
    owner: tuple[int, int] | None = None
    reserve_bytes: int = 512 * 1024 * 1024
    reserve_inodes: int = 1000
    max_part_header_bytes: int = 16 * 1024
    max_parts: int = 256
    max_multiplex_streams: int = 16
    places: dict[FilePlace, Path] = msgspec.field(default_factory=dict)  # what is not named here is not kept
    carrying: Path | None = None  # where files wait that have no place here and go to the node daemon


@dataclass(frozen=True, kw_only=True)
class Services:
    """Constructed once, in the composition root."""

    node: str
    runtime: Runtime
    panel: Panel | None  # None: standalone, the destination's journal is the arbiter
    daemon: Daemon | None = None  # beside a node daemon: arrived servers are handed over to it
    journal: Journal
    volumes: Volumes
    policy: DestinationPolicy
    extract_limits: ExtractLimits
    executor: ThreadPoolExecutor
    spool: Path
    timings: Timings = field(default_factory=Timings)
    sending: Sending = field(default_factory=Sending)
    receiving: Receiving = field(default_factory=Receiving)
    tls: SSLContext | None = None
    hub: EventHub = field(default_factory=EventHub)
    now: Callable[[], float] = time.time

    async def in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run blocking work in the owned pool.

        If cancelled, it still waits for the thread, which cannot be cancelled: stop what the thread works on first.
        """
        running = asyncio.get_running_loop().run_in_executor(self.executor, lambda: work(*args, **kwargs))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            with suppress(Exception):
                await running
            raise

    async def configuration(self, server: str) -> Configuration | None:
        """The panel's configuration of a server, or None without a panel. One attempt."""
        return None if self.panel is None else await self.panel.configuration(server)


class Backoff:
    """Waiting times between tries: none before the first, then doubling with jitter up to a cap."""

    def __init__(self, timings: Timings) -> None:
        self._timings = timings
        self.tries = 0

    def reset(self) -> None:
        self.tries = 0

    async def wait(self) -> None:
        """Wait as long as it is due before the next try, and count it."""
        if self.tries:
            delay = min(self._timings.retry_cap_s, self._timings.retry_first_s * 2 ** min(self.tries - 1, 16))
            await asyncio.sleep(delay * random.uniform(0.75, 1.25))
        self.tries += 1


def is_temporary(error: PeerFailed) -> bool:
    """Whether asking the panel again can help: it did not answer."""
    return error.code == "panel.unreachable"
