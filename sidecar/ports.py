"""The neighbours of the engine, as contracts. Adapters fulfil them; the engine knows nothing else of the world outside.

Each contract is for one server at a time, named by its UUID in lower case. Methods are coroutines because they wait; an
adapter does blocking work in threads of its own. If a call is cancelled, the neighbour may or may not have acted.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

import msgspec


class RunState(StrEnum):
    RUNNING = "running"
    STOPPED = "stopped"
    MISSING = "missing"  # no container, and no running container mounts the volume


class Observed(msgspec.Struct, frozen=True):
    """A server's environment as it was before a transfer touched it; journaled, so plain values only."""

    state: RunState
    container: str | None = None  # full id
    restart_policy: dict[str, Any] | None = None  # as the engine gave it, to be put back
    restart_count: int = 0


class StopHow(msgspec.Struct, frozen=True):
    """How to stop: the panel's `process_configuration.stop`, or the engine's own stop."""

    kind: str = "stop"  # stop, command, signal
    value: str | None = None  # the console line, or the signal's name


class Configuration(msgspec.Struct, frozen=True):
    """The panel's answer to `GET /api/remote/servers/{uuid}`, as it came (shape: the remote API)."""

    settings: dict[str, Any]
    process_configuration: dict[str, Any]


class FilePlace(StrEnum):
    """Where a file that came with a server belongs on this node."""

    BACKUPS = "backups"
    INSTALL_LOGS = "install_logs"


class ArrivedFile(msgspec.Struct, frozen=True):
    """A file that came with a server, verified and in staging; journaled, so plain values only."""

    place: FilePlace
    name: str  # one component of a path
    sha256_hex: str
    backup: str | None = None  # UUID of the backup that it is
    is_carried: bool = False  # it goes to the node daemon with the hand-over, which files it
    folder: str | None = None  # below the place's directory, where that daemon keeps one for each server
    is_kept: bool = False  # the node daemon is known to have it


class CarriedFile(msgspec.Struct, frozen=True):
    """A file that goes to the node daemon with the hand-over."""

    file: ArrivedFile
    path: Path  # where it waits


class Carries(msgspec.Struct, frozen=True):
    """What a node daemon takes with a hand-over."""

    places: frozenset[FilePlace] = frozenset()
    folders: frozenset[FilePlace] = frozenset()  # those of which it keeps a folder for each server


class Runtime(Protocol):
    """What runs the servers of this node: a container engine, nothing, later a node daemon."""

    async def observe(self, server: str) -> Observed:
        """The environment as it is now. Changes nothing.

        Raises HostFailed (`engine.unreachable`, `engine.failed`): then nothing may be assumed.
        """

    async def stop(self, server: str, observed: Observed, how: StopHow) -> None:
        """Stop the server and return once it verifiably does not run: not running, not restarting, not replaced.

        Disarms the restart policy first. Already stopped or missing returns at once. Idempotent.
        Raises HostFailed (`server.stop_timeout`, `server.stop_failed`, `engine.*`).
        """

    async def verify_stopped(self, server: str, observed: Observed) -> None:
        """Raise HostFailed (`server.started_outside`) unless the server is still stopped, the same container."""

    async def wait_started_outside(self, server: str) -> None:
        """Return when a container of that server is seen to start; wait otherwise. Never raises for a lost engine."""

    async def start(self, server: str, observed: Observed) -> None:
        """Put the restart policy back and, if it ran when observed, start it again. Idempotent.

        Raises HostFailed.
        """

    async def prepare(self, server: str, configuration: Configuration | None) -> None:
        """All that may fail without harm before the commit: engine reachable, image present or pulled.

        Raises HostFailed (`environment.image`, `engine.*`), PeerFailed (`panel.malformed`).
        """

    async def activate(self, server: str, configuration: Configuration | None, *, start: bool) -> None:
        """This node owns the server now: make its environment, start it if asked. Idempotent.

        Raises HostFailed (`environment.failed`, `engine.*`).
        """

    async def remove(self, server: str) -> None:
        """The server has left this node: remove its stopped environment, never its volume. Missing is fine."""

    async def mounts_running(self, server: str) -> bool:
        """Whether any running container mounts the server's volume (compared by mount, not by name)."""

    async def check(self) -> None:
        """Readiness: raise HostFailed (`engine.unreachable`) when the engine does not answer."""


class Verdict(StrEnum):
    """What one call to the arbiter came to. One attempt; the engine decides whether to try again."""

    ACCEPTED = "accepted"  # 2xx
    REFUSED = "refused"  # 4xx: 409, 403, 404, 417 ...: decides nothing by itself
    UNANSWERED = "unanswered"  # no answer, 5xx, an answer that is not HTTP


class Arbiter(Protocol):
    """Who decides which node owns a server: the panel's database, or without a panel the destination's journal."""

    async def report_success(self, server: str, backups: Sequence[str] = ()) -> Verdict:
        """Tell that this node has the whole server, and which of its backups (UUIDs). Destination only."""

    async def report_failure(self, server: str) -> Verdict:
        """Ask for the server's active transfer to be ended as failed."""

    async def is_ours(self, server: str) -> bool | None:
        """The oracle: whether this node owns the server now; None where it did not answer."""


class Delivery(StrEnum):
    """What became of a hand-over. No answer of a daemon proves anything about the panel (H1)."""

    ANSWERED = "answered"  # any other complete answer: the daemon is done with it, whatever it says
    ACCEPTED = "accepted"  # it is done, and says that all went well, files included
    UNANSWERED = "unanswered"  # sent, and no answer came: the daemon may still act (H2)
    UNSENT = "unsent"  # not sent: the daemon is unreachable, or knows the server already


class Daemon(Protocol):
    """A node daemon beside which the sidecar works: it owns the server once it has been handed over."""

    async def knows(self, server: str) -> bool | None:
        """Whether the daemon has that server registered; None where it did not answer."""

    async def carries(self) -> Carries:
        """Which files it takes with a hand-over. Raises HostFailed (`daemon.*`)."""

    async def hand_over(self, server: str, files: Sequence[CarriedFile] = ()) -> Delivery:
        """Make the daemon adopt the volume that is in its place: an ordinary transfer with an empty archive.

        `files` follow the archive in that daemon's own form. The daemon tells the panel `success` itself. No time-out
        of ours: it may retry its panel call for minutes.
        """

    async def forget(self, server: str) -> None:
        """DELETE the server at the daemon and wait until it is unknown. The daemon deletes the files that it finds at
        the volume's place: move them aside before.

        Raises HostFailed (`daemon.*`).
        """

    async def is_stuck(self, server: str) -> bool | None:
        """Whether the daemon holds the server as transferring although the panel has decided; None: no answer."""


class Panel(Arbiter, Protocol):
    """The panel's remote API."""

    async def configuration(self, server: str) -> Configuration:
        """One attempt. Raises PeerFailed (`panel.unreachable`, `panel.refused`, `panel.malformed`)."""
