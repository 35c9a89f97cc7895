"""What real daemons put on the wire, sent to a node of ours with a token of its own and cut at random places."""

from __future__ import annotations

import asyncio
import itertools
import random
import re
from contextlib import suppress
from pathlib import Path

from tests.engine.rig import SERVER, Rig, transfer_token

CAPTURES = Path(__file__).parent.parent / "captures"
BACKUP = "0b7f9e9c-52a4-4a8a-8c3a-6a3f1c1f0001"
STREAMS = [f"ca-source-multiplex-{number}" for number in range(3)]
_MTIME = 1_700_000_000
_LONG = "/".join(["d" * 60, "e" * 60, "f" * 90 + ".txt"])
_REGION = "world/région ☃/r.0.0.mca"

FILES: dict[str, tuple[int, bytes]] = {
    "server.properties": (0o640, b"motd=hello\n"),
    "run.sh": (0o755, b"#!/bin/sh\nexec true\n"),
    "hard-link.sh": (0o755, b"#!/bin/sh\nexec true\n"),
    _REGION: (0o644, bytes(range(256)) * 64),
    _LONG: (0o644, b"long name\n"),
    "zeros.db": (0o644, bytes(40_000)),
}
LINKS = {"latest": _REGION, "linkdir": "world", "dangling": "nowhere", "outside": "/etc/hostname"}


def captured(name: str, rig: Rig, **claims: object) -> bytes:
    """One recorded request, with a token that `rig` takes."""
    wire = (CAPTURES / f"{name}.http").read_bytes()
    token = transfer_token(rig.token, SERVER, **claims)
    head, _, body = wire.partition(b"\r\n\r\n")
    head, count = re.subn(rb"(?i)(\r\nauthorization: )[^\r]*", lambda found: found[1] + token.encode(), head)
    assert count == 1
    return head + b"\r\n\r\n" + body


def pieces_of(data: bytes, seed: int) -> list[bytes]:
    """The whole for seed 0; for others cut at as many random places as the seed says, times 40."""
    if seed == 0:
        return [data]
    chance = random.Random(seed)
    edges = sorted({0, len(data), *(chance.randrange(len(data)) for _ in range(seed * 40))})
    return [data[a:b] for a, b in itertools.pairwise(edges)]


async def send(rig: Rig, request: bytes, seed: int = 0, *, stop_at: int | None = None) -> bytes:
    """The answer; empty where the connection was closed without one. `stop_at`: cut the connection there."""
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
    try:
        with suppress(ConnectionError):
            for piece in pieces_of(request[:stop_at], seed):
                writer.write(piece)
                await writer.drain()
            if stop_at is not None:
                writer.transport.abort()
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
            length = re.search(rb"(?i)content-length: ([0-9]+)", head)
            return head + (await reader.readexactly(int(length[1])) if length else b"")
        return b""
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


def differences(root: Path, *, is_calagopus: bool) -> list[str]:
    """What is not as the recorded volume was, as far as that family sends it."""
    wrong: list[str] = []
    expected = set(FILES)
    for name, (mode, content) in FILES.items():
        path = root / name
        if not path.is_file() or path.read_bytes() != content:
            wrong.append(f"{name}: content")
        elif (found := path.stat()).st_mode & 0o7777 != mode or found.st_mtime != _MTIME:
            wrong.append(f"{name}: {found.st_mode:o} {found.st_mtime}")
    if is_calagopus:
        expected |= set(LINKS)
        for name, target in LINKS.items():
            path = root / name
            if not path.is_symlink() or str(path.readlink()) != target or path.lstat().st_mtime != _MTIME:
                wrong.append(f"{name}: link")
        for directory in ("plugins", "plugins/empty", "world", "world/région ☃"):
            if not (root / directory).is_dir() or (root / directory).stat().st_mtime != _MTIME:
                wrong.append(f"{directory}: directory")
    found_names = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_symlink() or not path.is_dir()}
    return wrong + [f"{name}: not expected" for name in sorted(found_names - expected)]
