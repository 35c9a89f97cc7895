"""What real daemons put on the wire, replayed as it was and cut at random places."""

from __future__ import annotations

import itertools
import random
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.wire.serving import WAIT_S, Node, Receiver, read_all, serving

CAPTURES = Path(__file__).parent.parent / "captures"
BACKUP = "0b7f9e9c-52a4-4a8a-8c3a-6a3f1c1f0001"
PARTS = {
    "pt-source": ["archive", "checksum"],
    "pe-source": ["archive", "checksum_archive"],
    "pe-source-backups": [
        "archive",
        "checksum_archive",
        f"backup_{BACKUP}.tar.gz",
        f"checksum_backup_{BACKUP}.tar.gz",
        "install_logs",
    ],
    "ca-source": ["archive", "checksum"],
    "ca-source-zstd": ["archive", "checksum"],
    "ca-source-backups": ["archive", "checksum", f"backup-{BACKUP}", f"backup-checksum-{BACKUP}"],
    "ca-source-multiplex-0": ["archive", "checksum"],
    "ca-source-multiplex-1": ["archive", "checksum"],
    "ca-source-multiplex-2": ["archive", "checksum"],
}


@pytest.fixture(scope="module")
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture(scope="module")
def node(receiver: Receiver) -> Iterator[Node]:
    with serving(receiver) as running:
        yield running


def pieces_of(data: bytes, seed: int) -> list[bytes]:
    if seed == 0:
        return [data]
    chance = random.Random(seed)
    edges = sorted({0, len(data), *(chance.randrange(len(data)) for _ in range(seed * 40))})
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", PARTS)
def test_a_capture_replayed(node: Node, receiver: Receiver, name: str, seed: int) -> None:
    wire = (CAPTURES / f"{name}.http").read_bytes()
    with node.dial() as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces_of(wire, seed):
            client.sendall(piece)
        client.settimeout(WAIT_S)
        assert read_all(client).startswith(b"HTTP/1.1 200 OK")
    seen = receiver.outcome()
    assert [part.name for part in seen] == PARTS[name]
    archive, checksum = seen[0], seen[1]
    assert re.fullmatch(r"archive\.tar(\.gz|\.zst)?", archive.filename or "")
    assert checksum.head.decode() == archive.sha256
    assert checksum.size_bytes == 64
    if len(seen) >= 4:
        assert seen[3].head.decode() == seen[2].sha256


def test_the_captures_close_their_multipart_as_expected() -> None:
    """Pterodactyl and Pelican write the closing boundary twice: the tests above are worth something."""
    for name in PARTS:
        wire = (CAPTURES / f"{name}.http").read_bytes()
        assert len(re.findall(rb"--[0-9a-f-]+--\r\n", wire)) == (1 if name.startswith("ca") else 2)
