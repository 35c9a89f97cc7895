"""Build archives, extract them, look at what became of them."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sidecar.archive.entries import Notice
from sidecar.archive.extract import Extracted, Extraction, ExtractLimits
from sidecar.archive.meter import Meter

MTIME = 1_700_000_000


def extract(
    pieces: bytes | Iterable[bytes],
    staging: Path,
    *,
    limits: ExtractLimits | None = None,
    notices: list[Notice] | None = None,
    meter: Meter | None = None,
) -> Extracted:
    """All of it, into `staging`, which is made where missing."""
    staging.mkdir(exist_ok=True)
    extraction = Extraction(
        staging,
        limits=limits or ExtractLimits(),
        owner=None,
        meter=meter or Meter(),
        notice=(notices if notices is not None else []).append,
    )
    try:
        for piece in [pieces] if isinstance(pieces, bytes) else pieces:
            extraction.feed(piece)
        return extraction.finish()
    finally:
        extraction.abort()


def split(data: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def member(name: str | bytes, content: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(os.fsdecode(name))
    info.size = len(content)
    info.mtime = MTIME
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


def directory(name: str | bytes, mode: int = 0o755) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.DIRTYPE, mode=mode)


def symlink(name: str | bytes, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.SYMTYPE, linkname=target, mode=0o777)


def hard_link(name: str | bytes, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.LNKTYPE, linkname=target)


def removed(name: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, pax_headers={"SIDECAR.removed": "1"})


def tar_of(*members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


Tree = dict[bytes, tuple[object, ...]]


def tree_of(top: Path, *, nanoseconds: bool = True, directory_times: bool = True) -> Tree:
    """Every entry: type, mode, mtime, and content, target or the names of the same inode."""
    found: Tree = {}
    inodes: dict[int, bytes] = {}
    unit = 1 if nanoseconds else 10**9
    base = os.fsencode(top)
    for folder, folders, files in os.walk(base):
        for name in sorted(folders) + sorted(files):
            path = folder + b"/" + name
            short = path[len(base) + 1 :]
            info = os.lstat(path)
            mode = stat.S_IMODE(info.st_mode)
            if stat.S_ISLNK(info.st_mode):
                found[short] = ("symlink", os.readlink(path))
            elif stat.S_ISDIR(info.st_mode):
                found[short] = ("directory", mode, info.st_mtime_ns // unit if directory_times else None)
            else:
                with open(path, "rb") as file:
                    digest = hashlib.sha256(file.read()).hexdigest()
                first = inodes.setdefault(info.st_ino, short)
                found[short] = ("file", mode, info.st_mtime_ns // unit, info.st_size, digest, first)
    return found


def make_volume(top: Path) -> None:
    """A small volume with most of what game volumes hold."""
    top.mkdir()
    files = {
        "server.properties": b"motd=hello\n",
        "world/r\u00e9gion \u2603/r.0.0.mca": bytes(range(256)) * 64,
        "world/level.dat": b"",
        "zeros.db": bytes(300_000) + b"end",
        "noise.jar": os.urandom(200_000),
        f"{'d' * 60}/{'e' * 60}/{'f' * 90}.txt": b"long name\n",
        f"{'n' * 255}": b"longest name\n",
    }
    for name, content in files.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (top / "run.sh").write_bytes(b"#!/bin/sh\n")
    (top / "run.sh").chmod(0o755)
    os.link(top / "run.sh", top / "hard-link.sh")
    (top / "server.properties").chmod(0o640)
    (top / "plugins/empty").mkdir(parents=True)
    (top / "plugins/read-only").mkdir()
    (top / "plugins/read-only/jar").write_bytes(b"jar")
    (top / "latest").symlink_to("world/level.dat")
    (top / "linkdir").symlink_to("world")
    (top / "dangling").symlink_to("nowhere")
    (top / "outside").symlink_to("/etc/hostname")
    for number, path in enumerate(sorted(top.rglob("*"), reverse=True)):
        if not path.is_symlink():
            os.utime(path, ns=(0, (MTIME + number) * 10**9 + 123_456_789))
    (top / "plugins/read-only").chmod(0o555)
