"""Where each server's files are, were, and wait: one place that knows the layout of this node's disk. Blocking."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from sidecar.archive.durable import disk_errors, fsync_directory, is_directory
from sidecar.archive.filing import filing_layout
from sidecar.archive.staging import Identity, VolumeLayout, list_staging, remove_staging
from sidecar.archive.trash import TrashItem, move_to_trash, purge
from sidecar.errors import HostFailed

_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Leftover(msgspec.Struct, frozen=True):
    """A staging directory."""

    layout: VolumeLayout
    transfer: str
    is_filed: bool = False  # of single files that came with a server, such as its backups

    def clear(self, server: str, now_s: float) -> None:
        """Remove it; files that could not be filed may be the only copy and go to the trash.

        Raises HostFailed (`disk.failed`).
        """
        if self.is_filed:
            layout = filing_layout(self.layout.staging_root.parent, self.transfer)
            move_to_trash(layout, server, f"not-filed-{self.transfer}", now_s=now_s)
        else:
            remove_staging(self.layout, self.transfer)


class Volumes:
    """`root` holds one directory per server, named by its UUID; `named` are servers that live elsewhere."""

    def __init__(self, root: Path, named: Mapping[str, Path], *, retain_s: float, filed: Iterable[Path] = ()) -> None:
        """`filed`: directories of single files that come with servers; they have staging and trash of their own."""
        self._root = root
        self._named = dict(named)
        self._retain_s = retain_s
        self._filed = list(filed)

    def layout(self, server: str) -> VolumeLayout:
        return VolumeLayout.detect(self._named.get(server, self._root / server), self._root)

    def has(self, server: str) -> bool:
        """Whether the server's volume is here, with anything in it where it is a mount point."""
        return has_volume(self.layout(server))

    def servers(self) -> list[str]:
        """The servers whose volumes are here, sorted. Raises HostFailed (`disk.failed`)."""
        with disk_errors(f"cannot read {self._root}"):
            found = {path.name for path in self._root.iterdir() if _UUID.fullmatch(path.name) and path.is_dir()}
        return sorted(found | {server for server in self._named if self.has(server)})

    def layouts(self) -> list[VolumeLayout]:
        """Each place that can hold staging or trash, once: the root's, and those of servers that live elsewhere."""
        shared = VolumeLayout.detect(self._root / "any", self._root)
        own = [self.layout(server) for server in self._named]
        mounted = [self.layout(path.name) for path in self._children() if _UUID.fullmatch(path.name)]
        filed = [filing_layout(directory, "any") for directory in self._filed]
        return [shared, *filed, *(one for one in [*own, *mounted] if one.staging_root != shared.staging_root)]

    def _children(self) -> list[Path]:
        try:
            return sorted(self._root.iterdir())
        except OSError:
            return []

    def leftovers(self) -> list[Leftover]:
        """Every staging directory on this node."""
        filed = {filing_layout(directory, "any").staging_root for directory in self._filed}
        return [
            Leftover(layout, transfer, layout.staging_root in filed)
            for layout in self.layouts()
            for transfer in list_staging(layout)
        ]

    @property
    def filed(self) -> list[Path]:
        """The directories of single files that come with servers."""
        return list(self._filed)

    def trash(self, server: str, label: str, now_s: float) -> TrashItem | None:
        """Move a server's volume aside, durable; nothing there is fine. With `retain_s` 0 it is purged at once.

        Raises HostFailed (`disk.failed`).
        """
        layout = self.layout(server)
        item = move_to_trash(layout, server, label, now_s=now_s)
        purge(layout.trash_root, self._retain_s, now_s)
        return item

    def set_aside(self, server: str, transfer: str, identity: Identity) -> None:
        """Move a committed volume back to its staging place, durable. Done already is fine. Undone by `commit`.

        Raises HostFailed (`disk.failed`, `volume.missing`).
        """
        layout = self.layout(server)
        aside = layout.staging_root / transfer
        with disk_errors(f"cannot move {layout.volume} aside"):
            if identity.matches(Identity.of(aside)):
                return
            if not identity.matches(Identity.of(layout.volume)):
                raise HostFailed("volume.missing", f"{layout.volume} is not the volume that was committed.")
            os.rename(layout.volume, aside)  # noqa: PTH104 - onto nothing: the commit emptied that place
            fsync_directory(layout.staging_root)
            fsync_directory(layout.volume.parent)

    def purge(self, now_s: float) -> list[TrashItem]:
        """Remove what has been in any trash for `retain_s`. Raises HostFailed (`disk.failed`)."""
        return [item for layout in self.layouts() for item in purge(layout.trash_root, self._retain_s, now_s)]

    def check(self) -> None:
        """Readiness: raise HostFailed (`disk.failed`) unless volumes can be read and made."""
        if not is_directory(self._root):
            raise HostFailed("disk.failed", f"{self._root} is not a directory.", path=str(self._root))
        if not os.access(self._root, os.R_OK | os.W_OK | os.X_OK):
            raise HostFailed("disk.failed", f"{self._root} cannot be read and written.", path=str(self._root))


def has_volume(layout: VolumeLayout) -> bool:
    """Whether a volume lies at the layout's place; a mount point without a file of the server's is none."""
    if not is_directory(layout.volume):
        return False
    return layout.kind == "directory" or bool(layout.own_entries())


def space_directory(layout: VolumeLayout) -> Path:
    """A directory that exists on the volume's filesystem."""
    return layout.volume if layout.kind == "mount" else layout.volume.parent
