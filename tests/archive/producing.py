"""Make volumes and archives of them, and look at both."""

from __future__ import annotations

import gzip
import hashlib
import os
import stat
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from sidecar.archive.entries import Notice, NoticeKind
from sidecar.archive.meter import Meter
from sidecar.archive.produce import ArchiveProducer, Dialect
from tests.programs import needed

MTIME_NS = 1_700_000_000_123_456_789


class Made(NamedTuple):
    """An archive and what was said while it was made."""

    wire: bytes
    notices: list[Notice]
    meter: Meter

    @property
    def tar(self) -> bytes:
        return gzip.decompress(self.wire)

    def kinds(self, kind: NoticeKind) -> list[bytes]:
        return [notice.path for notice in self.notices if notice.kind is kind]


def make(
    volume: Path,
    *,
    dialect: Dialect = Dialect.SIDECAR,
    level: int = 1,
    between: Callable[[], object] = lambda: None,
    on_notice: Callable[[Notice], object] = lambda notice: None,
    max_rounds: int = 3,
) -> Made:
    """The whole archive. between: done after the first scan."""
    notices: list[Notice] = []

    def notice(one: Notice) -> None:
        notices.append(one)
        on_notice(one)

    meter = Meter()
    producer = ArchiveProducer(
        volume,
        dialect=dialect,
        gzip_level=level,
        max_entries=100_000,
        max_rounds=max_rounds,
        meter=meter,
        notice=notice,
    )
    try:
        producer.scan()
        between()
        wire = b"".join([bytes(piece) for piece in producer.pieces()]) + producer.ending()
    finally:
        producer.close()
    assert meter.wire_bytes == len(wire)
    assert (meter.content_bytes, meter.files) == (meter.total_bytes, meter.total_files)
    return Made(wire, notices, meter)


class Seen(NamedTuple):
    """One entry of a tree, as far as an archive carries it."""

    kind: str
    mode: int
    mtime_ns: int
    content: bytes
    inode: int


def tree(root: Path, *, seconds: bool = False) -> dict[bytes, Seen]:
    """Every entry below `root`. Inodes are numbered by first appearance, so that hard links can be compared."""
    seen: dict[bytes, Seen] = {}
    inodes: dict[int, int] = {}
    top = os.fsencode(root)
    for directory, names, files in os.walk(top):
        names.sort()
        for name in sorted([*names, *files]):
            path = directory + b"/" + name
            status = os.lstat(path)
            kind, content, inode = "special", b"", 0
            if stat.S_ISLNK(status.st_mode):
                kind, content = "symlink", os.readlink(path)
            elif stat.S_ISDIR(status.st_mode):
                kind = "directory"
            elif stat.S_ISREG(status.st_mode):
                kind = "file"
                with open(path, "rb") as file:
                    content = hashlib.sha256(file.read()).digest()
                inode = inodes.setdefault(status.st_ino, len(inodes))
            mtime = status.st_mtime_ns // 10**9 * 10**9 if seconds else status.st_mtime_ns
            mode = 0o777 if kind == "symlink" else stat.S_IMODE(status.st_mode)
            seen[path[len(top) + 1 :]] = Seen(kind, mode, mtime, content, inode)
    return seen


def write(root: Path, name: bytes | str, content: bytes = b"x", mode: int = 0o644, mtime_ns: int = MTIME_NS) -> bytes:
    """A file, its directories where missing; its full path."""
    path = os.path.join(os.fsencode(root), os.fsencode(name))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(content)
    os.chmod(path, mode)
    os.utime(path, ns=(mtime_ns, mtime_ns))
    return path


def stamp_directories(root: Path, mtime_ns: int = MTIME_NS) -> None:
    """A known mtime for every directory and symlink: making their content changed it."""
    for directory, names, files in os.walk(os.fsencode(root), topdown=False):
        for name in [*names, *files]:
            path = directory + b"/" + name
            if os.path.islink(path):
                os.utime(path, ns=(mtime_ns, mtime_ns), follow_symlinks=False)
        os.utime(directory, ns=(mtime_ns, mtime_ns))


# What the programs say about odd times and, bsdtar only and with exit code 1, about names that are not UTF-8. They
# restore them all the same; of anything else there must be no word.
TOLERATED = (
    "implausibly old time stamp",
    "s in the future",
    "can't be converted from UTF-8 to current locale",
    "Error exit delayed from previous errors",
)


def untar(program: str, tar: bytes, into: Path) -> None:
    """Extract with a program of this machine, which must have nothing to complain about."""
    into.mkdir()
    done = subprocess.run(
        [needed(program), "-xpf", "-", "-C", str(into)],
        input=tar,
        capture_output=True,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
        check=False,
    )
    said = [line for line in done.stderr.decode(errors="replace").splitlines() if line]
    assert [line for line in said if not any(known in line for known in TOLERATED)] == []
    assert done.returncode == 0 or program == "bsdtar"


@contextmanager
def powerless() -> Iterator[Path]:
    """A directory in which this process has only an ordinary user's rights, also when the tests run as root."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        user = os.geteuid()
        if user == 0:
            os.chown(name, 65534, 65534)
            os.seteuid(65534)
        try:
            yield Path(name)
        finally:
            os.seteuid(user)


@contextmanager
def no_residue() -> Iterator[None]:
    """Neither thread nor descriptor is left that was not there before."""
    threads = set(threading.enumerate())
    descriptors = set(os.listdir("/proc/self/fd"))
    yield
    assert set(threading.enumerate()) == threads
    assert len(os.listdir("/proc/self/fd")) == len(descriptors)
