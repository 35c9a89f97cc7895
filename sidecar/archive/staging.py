"""Where an incoming volume waits until it is proved, and how it then becomes the server's volume (D3, D5, D8).

Two layouts, both on one filesystem, because only a rename is atomic:

    DIRECTORY  <volumes>/<uuid>                     the volume, an ordinary directory
               <volumes>/.sidecar-staging/<transfer>  becomes it by one rename
               <volumes>/.sidecar-trash/
    MOUNT      <volume>/                            a mount point, or a path that an operator chose
               <volume>/.sidecar-staging/<transfer>   its top-level entries are moved up, one rename each
               <volume>/.sidecar-trash/

A commit is journaled before it begins, with the staging directory's identity, and from then on only rolled forward:
`commit` may be called again after a crash at any point and ends in the same tree. The identity is the inode number (the
device's number is kept for people: it may change when a node boots again). In a MOUNT the marker `.sidecar-commit`,
first in the staging directory and at the end in the volume, says the same: that the volume was found empty, and whose
entries have been moved.

`.sidecar-staging` itself has mode 0700: nobody else looks into a volume that is not proved, whatever its own mode.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Final

import msgspec

from sidecar.archive.durable import disk_errors, fsync_directory, is_directory, sync_filesystem, write_file_durably
from sidecar.archive.moving import move
from sidecar.archive.remove_tree import remove_tree
from sidecar.errors import HostFailed, Refused

STAGING_NAME: Final = ".sidecar-staging"
TRASH_NAME: Final = ".sidecar-trash"
MARKER_NAME: Final = ".sidecar-commit"
OWN_PREFIX: Final = ".sidecar-"
FILESYSTEM_OWN: Final = "lost+found"  # stays with its filesystem, in a MOUNT
_SAFE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

Step = Callable[[str], None]


def no_step(name: str) -> None:
    """The default of `step` arguments: tests put a crash there, at each named point."""


class LayoutKind(StrEnum):
    DIRECTORY = "directory"
    MOUNT = "mount"


class VolumeLayout(msgspec.Struct, frozen=True):
    """Where a server's volume, its staging and its trash are."""

    kind: LayoutKind
    volume: Path
    staging_root: Path
    trash_root: Path

    @classmethod
    def detect(cls, volume: Path, volumes: Path) -> VolumeLayout:
        """The layout of a server's `volume`, given the directory of all volumes.

        DIRECTORY for an ordinary child of `volumes`, there or not; MOUNT for a mount point and for any other path.
        """
        if volume.parent == volumes and not _is_mount_point(volume):
            return cls(LayoutKind.DIRECTORY, volume, volumes / STAGING_NAME, volumes / TRASH_NAME)
        return cls(LayoutKind.MOUNT, volume, volume / STAGING_NAME, volume / TRASH_NAME)

    def own_entries(self) -> list[str]:
        """In a MOUNT: what lies in the volume and belongs to the server, sorted. Raises OSError."""
        return sorted(
            path.name
            for path in self.volume.iterdir()
            if not path.name.startswith(OWN_PREFIX) and path.name != FILESYSTEM_OWN
        )


class Identity(msgspec.Struct, frozen=True):
    """Which directory it is, whatever its name. For the journal."""

    device: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> Identity | None:
        """None where there is no directory of that name (a link is none)."""
        try:
            found = path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return cls(found.st_dev, found.st_ino) if stat.S_ISDIR(found.st_mode) else None

    def matches(self, other: Identity | None) -> bool:
        return other is not None and other.inode == self.inode


class Staging:
    """One transfer's staging directory."""

    def __init__(self, layout: VolumeLayout, transfer: str, identity: Identity) -> None:
        """Use `make`."""
        self.layout = layout
        self.transfer = transfer
        self.path = layout.staging_root / transfer
        self.identity = identity

    @classmethod
    def make(cls, layout: VolumeLayout, transfer: str, *, resume: bool = False) -> Staging:
        """An empty directory with mode 0700; with `resume` what an earlier attempt left there is welcome.

        Raises HostFailed: `volume.missing` when the mount point is not there, `disk.failed` when the directory exists
        (without `resume`), lies on another filesystem, or the disk refuses.
        """
        path = layout.staging_root / safe_name(transfer)
        if layout.kind is LayoutKind.MOUNT and not layout.volume.is_dir():
            raise HostFailed("volume.missing", f"{layout.volume} is not there: is it mounted?", path=str(layout.volume))
        with disk_errors(f"cannot make the staging directory {path}"):
            make_private(layout.staging_root)
            try:
                path.mkdir(0o700)
            except FileExistsError as error:
                if not resume or not is_directory(path):
                    raise HostFailed("disk.failed", f"{path} exists already", path=str(path)) from error
            fsync_directory(layout.staging_root)
            home = layout.volume if layout.kind is LayoutKind.MOUNT else layout.volume.parent
            identity = Identity.of(path)
            if identity is None or identity.device != home.stat().st_dev:
                raise HostFailed("disk.failed", f"{path} lies on another filesystem than {home}", path=str(path))
        return cls(layout, transfer, identity)

    def sync(self) -> None:
        """Make all that was extracted durable. Raises HostFailed."""
        with disk_errors(f"cannot sync {self.path}"):
            descriptor = os.open(self.path, _DIRECTORY)
            try:
                sync_filesystem(descriptor)
            finally:
                os.close(descriptor)
        fsync_directory(self.layout.staging_root)

    def remove(self) -> None:
        """Remove it and all that is in it. Idempotent. Raises HostFailed."""
        remove_staging(self.layout, self.transfer)


def remove_staging(layout: VolumeLayout, transfer: str) -> None:
    """Remove a transfer's staging directory by name, after a restart too. Missing is fine. Raises HostFailed."""
    name = safe_name(transfer)
    try:
        root = os.open(layout.staging_root, _DIRECTORY)
    except FileNotFoundError:
        return
    except OSError as error:
        raise HostFailed("disk.failed", f"cannot open {layout.staging_root}: {error.strerror}") from error
    try:
        remove_tree(root, name)
        fsync_directory(root)
    finally:
        os.close(root)


def list_staging(layout: VolumeLayout) -> list[str]:
    """The transfers that have a staging directory, sorted: after a restart, to remove what no journal knows."""
    with disk_errors(f"cannot read {layout.staging_root}"):
        if not is_directory(layout.staging_root):
            return []
        return sorted(path.name for path in layout.staging_root.iterdir() if _SAFE_NAME.match(path.name))


def commit(layout: VolumeLayout, staging_path: Path, identity: Identity, step: Step = no_step) -> None:
    """Make the staging directory the server's volume. Call it again after a crash: it rolls forward, twice equals once.

    The volume's root gets the mode and owner of the staging directory (set by the extraction), as far as the owner of a
    mount point lets it. Durable on return.

    Raises Refused (`volume.exists`) when something else lies where the volume belongs: nothing has changed then;
    HostFailed (`volume.missing`) when neither the staging directory nor its result can be found, (`disk.failed`).
    """
    with disk_errors(f"cannot commit {staging_path} as {layout.volume}"):
        if layout.kind is LayoutKind.DIRECTORY:
            _commit_directory(layout, staging_path, identity, step)
        else:
            _commit_mount(layout, staging_path, identity, step)


def _commit_directory(layout: VolumeLayout, staging_path: Path, identity: Identity, step: Step) -> None:
    if not identity.matches(Identity.of(layout.volume)):
        _check_staging(layout, staging_path, identity)
        if os.path.lexists(layout.volume):
            raise Refused("volume.exists", f"{layout.volume} exists already", path=str(layout.volume))
        step("rename")
        move(staging_path, layout.volume)
    step("sync volumes")
    fsync_directory(layout.volume.parent)
    step("sync staging")
    if is_directory(layout.staging_root):
        fsync_directory(layout.staging_root)


def _commit_mount(layout: VolumeLayout, staging_path: Path, identity: Identity, step: Step) -> None:
    proof = msgspec.json.encode({"transfer": staging_path.name, "inode": identity.inode})
    done, begun = layout.volume / MARKER_NAME, staging_path / MARKER_NAME
    if Identity.of(staging_path) is None:
        if _content(done) != proof:
            _check_staging(layout, staging_path, identity)
        step("sync staging")
        if is_directory(layout.staging_root):
            fsync_directory(layout.staging_root)
        return
    _check_staging(layout, staging_path, identity)
    if _content(done) != proof:
        if _content(begun) != proof:
            occupied = layout.own_entries()
            if occupied:
                raise Refused(
                    "volume.exists", f"{layout.volume} is not empty: {occupied[0]!r}", path=str(layout.volume)
                )
            step("mark")
            write_file_durably(begun, proof)
        _move_up(layout, staging_path, step)
        step("take over mode")
        _take_over(staging_path, layout.volume)
        step("mark done")
        os.rename(begun, done)  # noqa: PTH104 - replaces the marker of an earlier transfer
    step("sync volume")
    fsync_directory(layout.volume)
    step("remove staging")
    remove_staging(layout, staging_path.name)
    step("sync staging")


def _move_up(layout: VolumeLayout, staging_path: Path, step: Step) -> None:
    names = sorted(path.name for path in staging_path.iterdir())
    for name in names:
        if name.startswith((OWN_PREFIX, f".{MARKER_NAME}.")):
            continue
        target = layout.volume / name
        if name != FILESYSTEM_OWN and os.path.lexists(target):
            raise Refused("volume.exists", f"{target} appeared while the volume was committed", path=str(target))
        step(f"move {name}")
        move(staging_path / name, target)
    step("sync moves")
    fsync_directory(layout.volume)
    fsync_directory(staging_path)


def _take_over(staging_path: Path, volume: Path) -> None:
    wanted, found = staging_path.stat(), volume.stat()
    try:
        if (wanted.st_uid, wanted.st_gid) != (found.st_uid, found.st_gid):
            os.chown(volume, wanted.st_uid, wanted.st_gid)
        volume.chmod(stat.S_IMODE(wanted.st_mode))
    except PermissionError:
        return  # whoever mounted it decides who may use it, and the files below carry their own owner


def _check_staging(layout: VolumeLayout, staging_path: Path, identity: Identity) -> None:
    found = Identity.of(staging_path)
    if found is None:
        raise HostFailed(
            "volume.missing",
            f"neither {staging_path} nor what it was to become can be found",
            staging=str(staging_path),
            volume=str(layout.volume),
        )
    if not identity.matches(found):
        raise HostFailed("disk.failed", f"{staging_path} is another directory than the one that was proved")


def _content(path: Path) -> bytes | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(descriptor, 4096)
    finally:
        os.close(descriptor)


def make_private(directory: Path) -> None:
    """A directory of ours with mode 0700, made where missing. Raises OSError, HostFailed when it is something else."""
    try:
        directory.mkdir(0o700)
    except FileExistsError:
        if not is_directory(directory):
            raise HostFailed("disk.failed", f"{directory} is not a directory", path=str(directory)) from None
        return
    fsync_directory(directory.parent)


def safe_name(name: str) -> str:
    """`name` again, if it can be one component of a path and none of ours. Raises ValueError."""
    if not _SAFE_NAME.match(name):
        raise ValueError(f"{name!r} is not usable as a directory's name")
    return name


def _is_mount_point(path: Path) -> bool:
    """Also for a bind mount of the same filesystem, which the device's number does not show."""
    if not is_directory(path):
        return False
    if os.path.ismount(path):
        return True
    try:
        table = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape")
    except OSError:
        return False
    real = os.path.realpath(path)
    return any(_unescaped(line.split(" ", 5)[4]) == real for line in table.splitlines())


def _unescaped(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
