"""Which container is a server's: by configuration, by exact name, by label, or by the name that a daemon chose; and
whether anything else runs on the server's volume.

One list of the engine answers all of it, so the parts of the answer belong to one moment. A volume is compared by
mount, not by name: a running container of any name that mounts it can write to it. What mounts a directory *above* the
volume (a daemon in a container, this sidecar) mounts every server's volume and says nothing about one of them.

Mounts are paths of the engine's mount namespace. Where this process sees them elsewhere, `engine_paths` says how.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Final

import msgspec

from sidecar.adapters.container_spec import KIND_LABEL, SERVER_KIND, SERVER_LABEL
from sidecar.adapters.docker_engine import DockerEngine, Document
from sidecar.errors import HostFailed

log = logging.getLogger(__name__)

_RUNNING: Final = frozenset({"running", "paused", "restarting"})
_INSTALLER_KIND: Final = "server_installer"
_INSTALLER_NAME: Final = "_installer"
_MIN_ID_CHARS: Final = 12  # a shorter configured name is a name


class Found(msgspec.Struct, frozen=True):
    """What the engine has of one server."""

    row: Document | None  # the server's container in the form of the list
    strangers: list[str]  # names of other running containers that mount its volume

    @property
    def id(self) -> str | None:
        return None if self.row is None else str(self.row["Id"])

    @property
    def is_running(self) -> bool:
        return self.row is not None and is_running(self.row)


def is_running(row: Document) -> bool:
    """Running, paused or about to be restarted, by the list's `State`."""
    return str(row.get("State", "")).lower() in _RUNNING


def is_up(details: Document) -> bool:
    """The same by the state of `inspect`."""
    state = details.get("State") or {}
    return bool(state.get("Running") or state.get("Restarting") or state.get("Paused"))


def names(row: Document) -> list[str]:
    """Without the leading slash; names that links gave it are left out."""
    return [name[1:] for name in row.get("Names") or [] if name.count("/") == 1]


def label(row: Document, key: str) -> str:
    return str((row.get("Labels") or {}).get(key, ""))


def is_installer(row: Document) -> bool:
    """A daemon's container that installs a server; it is never the server."""
    return label(row, KIND_LABEL) == _INSTALLER_KIND or any(name.endswith(_INSTALLER_NAME) for name in names(row))


class ServerContainers:
    """Looks servers up. Blocking; raises HostFailed (`engine.*`)."""

    def __init__(
        self,
        engine: DockerEngine,
        *,
        volume_path: Callable[[str], Path],
        configured: Mapping[str, str],
        data_target: str,
        engine_paths: Mapping[str, str],
    ) -> None:
        self._engine = engine
        self._volume_path = volume_path
        self.configured = configured
        self._data_target = PurePosixPath(data_target)
        self._engine_paths = {PurePosixPath(ours): PurePosixPath(theirs) for ours, theirs in engine_paths.items()}

    def find(self, server: str) -> Found:
        """The server's container, and who else runs on its volume.

        Raises HostFailed (`engine.failed`) where the answer is ambiguous: several running containers of that server,
        or one whose data is mounted from somewhere else than the server's volume.
        """
        rows = [row for row in self._engine.containers() if row.get("Id")]
        groups = self._groups(server, [row for row in rows if not is_installer(row)])
        chosen = next((row for group in groups if (row := self._one_of(server, group)) is not None), None)
        if chosen is not None and self._is_elsewhere(chosen, server):
            raise HostFailed(
                "engine.failed",
                f"the container of server {server} mounts {self._data_target} from somewhere else than the server's "
                "volume on this node",
            )
        strangers = [
            ", ".join(names(row)) or str(row["Id"])[:12]
            for row in rows
            if is_running(row) and self.mounts(row, server) and (chosen is None or row["Id"] != chosen["Id"])
        ]
        return Found(chosen, strangers)

    def _groups(self, server: str, rows: list[Document]) -> Iterator[list[Document]]:
        """What may be the server, the surest first."""
        configured = self.configured.get(server)
        if configured:
            yield [row for row in rows if configured in names(row) or _is_id(configured, row)]
            # the operator has said which one it is: others of that UUID may belong to another node on this engine
            rows = [row for row in rows if not self._is_elsewhere(row, server)]
        yield [row for row in rows if server in names(row)]
        yield [row for row in rows if label(row, SERVER_LABEL) == server]
        yield [
            row
            for row in rows
            if label(row, KIND_LABEL) == SERVER_KIND
            and any(name.endswith(f".{server}") for name in names(row))
            and self.mounts(row, server)
        ]

    def _one_of(self, server: str, group: list[Document]) -> Document | None:
        running = [row for row in group if is_running(row)]
        if len(running) > 1:
            raise HostFailed("engine.failed", f"{len(running)} running containers say that they are server {server}")
        if running:
            return running[0]
        return max(group, key=lambda row: int(row.get("Created") or 0), default=None)

    def _is_elsewhere(self, row: Document, server: str) -> bool:
        """Whether the container has the place of a server's data filled with something else than this volume."""
        return any(
            PurePosixPath(mount.get("Destination") or "/") == self._data_target and not self._is_volume(mount, server)
            for mount in row.get("Mounts") or []
        )

    def mounts(self, row: Document, server: str) -> bool:
        """Whether the container mounts the server's volume or a part of it, wherever."""
        return any(self._is_volume(mount, server) for mount in row.get("Mounts") or [])

    def _is_volume(self, mount: Document, server: str) -> bool:
        source = mount.get("Source")
        if not source:
            return False
        volume = self._volume_path(server)
        seen = self._in_our_namespace(source)
        if seen.resolve().is_relative_to(volume.resolve()):
            return True
        try:
            return seen.samefile(volume)  # the same directory by way of another mount
        except OSError:
            return False

    def _in_our_namespace(self, path: str) -> Path:
        """Where this process sees a path of the engine."""
        for ours, theirs in self._engine_paths.items():
            if PurePosixPath(path).is_relative_to(theirs):
                return Path(ours / PurePosixPath(path).relative_to(theirs))
        return Path(path)

    def volume_in_engine(self, server: str) -> str:
        """Where the engine sees the server's volume."""
        resolved = PurePosixPath(self._volume_path(server).resolve())
        for ours, theirs in self._engine_paths.items():
            if resolved.is_relative_to(ours):
                return str(theirs / resolved.relative_to(ours))
        return str(resolved)


def _is_id(configured: str, row: Document) -> bool:
    return len(configured) >= _MIN_ID_CHARS and str(row["Id"]).startswith(configured)
