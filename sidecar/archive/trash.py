"""Volumes that were given up: moved aside by renames on the same filesystem, kept for a while, then removed.

    <trash root>/<server>.<label>.<n>/item.json   what, why, when; written before anything is moved
    <trash root>/<server>.<label>.<n>/volume      the volume itself, as it was (put back by moving it back)

An item is complete once `volume` exists. In a MOUNT the entries are gathered in `volume.partial`, which becomes
`volume` at the end; so after a crash `move_to_trash` goes on with the item it had begun. Nothing in the trash is ever
followed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec

from sidecar.archive.durable import disk_errors, fsync_directory, is_directory, write_file_durably
from sidecar.archive.moving import move
from sidecar.archive.remove_tree import remove_tree
from sidecar.archive.staging import (
    MARKER_NAME,
    LayoutKind,
    Step,
    VolumeLayout,
    make_private,
    no_step,
    safe_name,
)
from sidecar.errors import HostFailed

_NOTE: Final = "item.json"
_VOLUME: Final = "volume"
_PARTIAL: Final = "volume.partial"
_DOOMED: Final = ".removing-"
_INCOMPLETE_S: Final = 86_400  # an item that was begun and never completed; the call that began it may still come back
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class _Note(msgspec.Struct, frozen=True):
    server: str
    label: str
    moved_at_s: float
    origin: str


class TrashItem(msgspec.Struct, frozen=True):
    """One volume in the trash."""

    id: str
    server: str
    label: str  # why, or which transfer
    moved_at_s: float  # Unix time
    origin: Path  # where it lay
    path: Path  # where it lies
    complete: bool


def move_to_trash(
    layout: VolumeLayout, server: str, label: str, *, now_s: float, step: Step = no_step
) -> TrashItem | None:
    """Move the server's volume aside; a MOUNT is emptied. Idempotent, durable, goes on after a crash.

    Args: `label`: why, as one component of a path: the transfer's id, `deleted`; `now_s`: Unix time, for `purge`.

    Returns the item; where there is no volume: the newest item of that server and label (an earlier call has moved it),
    None if there is none. Raises HostFailed (`disk.failed`): then part of a MOUNT may have moved; call again.
    """
    prefix = f"{safe_name(server)}.{safe_name(label)}."
    with disk_errors(f"cannot move {layout.volume} to the trash"):
        mine = [item for item in list_trash(layout.trash_root) if item.id.startswith(prefix)]
        mine.sort(key=lambda item: int(item.id.removeprefix(prefix)) if item.id.removeprefix(prefix).isdigit() else -1)
        begun = mine[-1] if mine and not mine[-1].complete else None
        if not _has_volume(layout):
            gathering = begun is not None and is_directory(begun.path.with_name(_PARTIAL))
            if not gathering:
                return next((item for item in reversed(mine) if item.complete), None)
        item = begun if begun is not None else _begin(layout, server, label, prefix, now_s, step)
        if layout.kind is LayoutKind.DIRECTORY:
            step("rename")
            move(layout.volume, item.path)  # onto nothing: the item is not complete
        else:
            _gather(layout, item.path, step)
        step("sync")
        fsync_directory(item.path.parent)
        fsync_directory(layout.volume.parent if layout.kind is LayoutKind.DIRECTORY else layout.volume)
        return msgspec.structs.replace(item, complete=True)


def _has_volume(layout: VolumeLayout) -> bool:
    if layout.kind is LayoutKind.DIRECTORY:
        return os.path.lexists(layout.volume)
    return is_directory(layout.volume) and bool(layout.own_entries())


def _begin(layout: VolumeLayout, server: str, label: str, prefix: str, now_s: float, step: Step) -> TrashItem:
    make_private(layout.trash_root)
    number = 0
    while os.path.lexists(layout.trash_root / f"{prefix}{number}"):
        number += 1
    place = layout.trash_root / f"{prefix}{number}"
    step("make item")
    place.mkdir(0o700)
    step("note")
    note = _Note(server, label, now_s, str(layout.volume))
    write_file_durably(place / _NOTE, msgspec.json.encode(note))
    fsync_directory(layout.trash_root)
    return TrashItem(place.name, server, label, now_s, layout.volume, place / _VOLUME, False)


def _gather(layout: VolumeLayout, target: Path, step: Step) -> None:
    partial = target.with_name(_PARTIAL)
    if not is_directory(partial):
        step("make partial")
        partial.mkdir(0o700)
    for name in layout.own_entries():
        step(f"move {name}")
        if os.path.lexists(partial / name):
            raise HostFailed("disk.failed", f"{name!r} appeared again while the volume was moved to the trash")
        move(layout.volume / name, partial / name)
    step("unmark")
    (layout.volume / MARKER_NAME).unlink(missing_ok=True)
    fsync_directory(partial)
    step("complete")
    os.rename(partial, target)  # noqa: PTH104 - onto nothing: the item is not complete


def list_trash(trash_root: Path) -> list[TrashItem]:
    """What is in the trash, oldest first. What is not ours or has no readable note is left out. Raises HostFailed."""
    items: list[TrashItem] = []
    with disk_errors(f"cannot read the trash {trash_root}"):
        if not is_directory(trash_root):
            return []
        for place in trash_root.iterdir():
            name = place.name
            if name.startswith(".") or not is_directory(place):
                continue
            note = _read_note(place / _NOTE)
            if note is None:
                continue
            volume = place / _VOLUME
            items.append(
                TrashItem(
                    name, note.server, note.label, note.moved_at_s, Path(note.origin), volume, os.path.lexists(volume)
                )
            )
    return sorted(items, key=lambda item: (item.moved_at_s, item.id))


def _read_note(path: Path) -> _Note | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return msgspec.json.decode(os.read(descriptor, 64 << 10), type=_Note)
    except msgspec.DecodeError:
        return None
    finally:
        os.close(descriptor)


def _is_stillborn(place: Path, now_s: float) -> bool:
    """Begun, and cut off before the note was written: so nothing was moved into it."""
    if not is_directory(place) or _read_note(place / _NOTE) is not None:
        return False
    holds = [path.name for path in place.iterdir() if not path.name.startswith(f".{_NOTE}.")]
    return not holds and now_s - place.lstat().st_mtime >= _INCOMPLETE_S


def purge(trash_root: Path, retain_s: float, now_s: float, step: Step = no_step) -> list[TrashItem]:
    """Remove every item that was moved `retain_s` or more before `now_s`; with 0 every complete one at once.

    Returns what was removed. An item is renamed before it is taken apart, so what `list_trash` shows is always whole.
    Raises HostFailed (`disk.failed`) at the first that cannot be removed.
    """
    removed: list[TrashItem] = []
    with disk_errors(f"cannot purge the trash {trash_root}"):
        if not is_directory(trash_root):
            return removed
        root = os.open(trash_root, _DIRECTORY)
        try:
            for place in list(trash_root.iterdir()):
                if place.name.startswith(_DOOMED) or _is_stillborn(place, now_s):
                    remove_tree(root, place.name)
            for item in list_trash(trash_root):
                keep_s = retain_s if item.complete else max(retain_s, _INCOMPLETE_S)
                if now_s - item.moved_at_s < keep_s and (retain_s > 0 or not item.complete):
                    continue
                step("doom")
                os.rename(item.id, _DOOMED + item.id, src_dir_fd=root, dst_dir_fd=root)
                step("remove")
                remove_tree(root, _DOOMED + item.id)
                removed.append(item)
            fsync_directory(root)
        finally:
            os.close(root)
    return removed
