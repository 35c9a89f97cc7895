"""Compares two trees entry by entry: type, mode, time, size, SHA-256, link target, and which names are one file.

Independent of the code that moves files: it walks, looks and hashes by itself. Owners are not compared, because a node
gives received files to its own user. Names are compared as bytes.

Memory: one record per entry, and one piece per hashing thread.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import msgspec

_PIECE_BYTES: Final = 1024 * 1024
_THREADS: Final = 4  # reading and hashing release the lock; more only makes the disk seek

_KINDS: Final = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}


class Difference(msgspec.Struct, frozen=True):
    """One thing that is not the same. left, right: what is there, as text; `-` where there is nothing."""

    path: str
    what: str  # missing, type, mode, mtime, size, content, target, links
    left: str
    right: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}: {self.left} / {self.right}"


class Comparison(msgspec.Struct, frozen=True):
    """The outcome. entries, files, content_bytes: of the left tree, each hard-linked name counted."""

    differences: tuple[Difference, ...]
    entries: int
    files: int
    content_bytes: int

    @property
    def is_equal(self) -> bool:
        return not self.differences


class _Entry(msgspec.Struct, frozen=True):
    kind: str
    mode: int
    mtime_ns: int
    size: int  # 0 for what is not a file
    target: bytes | None
    linked: tuple[bytes, ...]  # all names of this file inside the tree, when there are several


def compare(left: Path, right: Path) -> Comparison:
    """Every difference between two directories, in the order of the names; the roots themselves: mode only.

    Raises OSError when a tree cannot be read.
    """
    ours, theirs = _read(left), _read(right)
    differences: list[Difference] = []
    to_hash: list[bytes] = []
    for path in sorted(ours.keys() | theirs.keys()):
        name = os.fsdecode(path).encode("utf-8", "backslashreplace").decode()
        one, other = ours.get(path), theirs.get(path)
        if one is None or other is None:
            differences.append(Difference(name, "missing", one.kind if one else "-", other.kind if other else "-"))
            continue
        if one.kind != other.kind:
            differences.append(Difference(name, "type", one.kind, other.kind))
            continue
        differences += _attributes(name, one, other)
        if one.kind == "file" and one.size == other.size:
            to_hash.append(path)
    roots = [stat.S_IMODE(root.stat().st_mode) for root in (left, right)]
    if roots[0] != roots[1]:
        differences.append(Difference(".", "mode", f"{roots[0]:04o}", f"{roots[1]:04o}"))
    differences += _contents(left, right, to_hash)
    files = [entry for entry in ours.values() if entry.kind == "file"]
    return Comparison(tuple(differences), len(ours), len(files), sum(entry.size for entry in files))


def _attributes(name: str, one: _Entry, other: _Entry) -> Iterator[Difference]:
    if one.mode != other.mode:
        yield Difference(name, "mode", f"{one.mode:04o}", f"{other.mode:04o}")
    if one.mtime_ns != other.mtime_ns:
        yield Difference(name, "mtime", str(one.mtime_ns), str(other.mtime_ns))
    if one.size != other.size:
        yield Difference(name, "size", str(one.size), str(other.size))
    if one.target != other.target:
        yield Difference(name, "target", repr(one.target), repr(other.target))
    if one.linked != other.linked:
        yield Difference(name, "links", repr(one.linked), repr(other.linked))


def _contents(left: Path, right: Path, paths: list[bytes]) -> Iterator[Difference]:
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="compare") as pool:
        ours = pool.map(lambda path: _digest(left, path), paths)
        theirs = pool.map(lambda path: _digest(right, path), paths)
        for path, one, other in zip(paths, ours, theirs, strict=True):
            if one != other:
                name = os.fsdecode(path).encode("utf-8", "backslashreplace").decode()
                yield Difference(name, "content", one, other)


def _digest(root: Path, path: bytes) -> str:
    digest = hashlib.sha256()
    buffer = bytearray(_PIECE_BYTES)
    with open(os.path.join(os.fsencode(root), path), "rb", buffering=0) as file:  # noqa: PTH118 - names are bytes
        while size := file.readinto(buffer):
            digest.update(memoryview(buffer)[:size])
    return digest.hexdigest()


def _read(root: Path) -> dict[bytes, _Entry]:
    """All entries below the root by their path from it."""
    seen: dict[bytes, os.stat_result] = {}
    names: dict[tuple[int, int], list[bytes]] = {}
    todo = [b""]
    base = os.fsencode(root)
    while todo:
        folder = todo.pop()
        with os.scandir(os.path.join(base, folder)) as entries:  # noqa: PTH118 - names are bytes
            for entry in entries:
                path = folder + b"/" + entry.name if folder else entry.name
                status = entry.stat(follow_symlinks=False)
                seen[path] = status
                if stat.S_ISDIR(status.st_mode):
                    todo.append(path)
                elif status.st_nlink > 1:
                    names.setdefault((status.st_dev, status.st_ino), []).append(path)
    return {
        path: _Entry(
            kind=_KINDS.get(stat.S_IFMT(status.st_mode), "unknown"),
            mode=stat.S_IMODE(status.st_mode),
            mtime_ns=status.st_mtime_ns,
            size=status.st_size if stat.S_ISREG(status.st_mode) else 0,
            target=os.readlink(base + b"/" + path) if stat.S_ISLNK(status.st_mode) else None,  # noqa: PTH115
            linked=_linked(names.get((status.st_dev, status.st_ino), [])),
        )
        for path, status in seen.items()
    }


def _linked(paths: list[bytes]) -> tuple[bytes, ...]:
    return tuple(sorted(paths)) if len(paths) > 1 else ()
