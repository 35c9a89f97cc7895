"""Files that an upload carries behind the checksums: streamed, hashed, and no part of the archive."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest

from sidecar.errors import HostFailed, PeerFailed
from sidecar.wire.upload import FilePart
from tests.wire.scripted import answering, scripted
from tests.wire.serving import Receiver, serving
from tests.wire.test_upload import OK, uploading

MIB = 1 << 20


def file_part(number: int, pieces: list[bytes]) -> FilePart:
    return FilePart(
        name=f"backup_{number}",
        filename=f"{number}.tar.gz",
        content_type="application/octet-stream",
        pieces=lambda: iter(pieces),
        checksum_name=f"checksum_backup_{number}",
    )


@pytest.mark.parametrize("sizes", [[[]], [[5]], [[MIB, 0, 3], [], [MIB] * 4]])
def test_files_follow_the_checksums(sizes: list[list[int]]) -> None:
    receiver = Receiver()
    contents = [[bytes([number]) * size for size in pieces] for number, pieces in enumerate(sizes)]
    with serving(receiver) as node, uploading(node.url) as upload:
        upload.open()
        upload.send(b"archive")
        files = tuple(file_part(number, pieces) for number, pieces in enumerate(contents))
        upload.finish(hashlib.sha256(b"archive").hexdigest(), files=files)
        assert upload.answer().status == 200
        upload.close()
        assert upload.bytes_sent == 7
    seen = receiver.outcome()
    names = ["archive", "checksum", "checksum_archive"]
    for number in range(len(sizes)):
        names += [f"backup_{number}", f"checksum_backup_{number}"]
    assert [part.name for part in seen] == names
    for number, pieces in enumerate(contents):
        file, checksum = seen[3 + 2 * number], seen[4 + 2 * number]
        assert file.sha256 == hashlib.sha256(b"".join(pieces)).hexdigest() == checksum.head.decode()
        assert file.filename == f"{number}.tar.gz"


def test_a_file_that_cannot_be_read_ends_the_upload_unfinished() -> None:
    def breaking() -> Iterator[bytes]:
        yield b"some"
        raise HostFailed("disk.failed", "a bad sector")

    receiver = Receiver()
    with serving(receiver) as node:
        with pytest.raises(HostFailed), uploading(node.url) as upload:
            upload.open()
            upload.send(b"archive")
            part = file_part(0, [])
            broken = FilePart(
                name=part.name,
                filename=part.filename,
                content_type=part.content_type,
                pieces=breaking,
                checksum_name=part.checksum_name,
            )
            upload.finish("0" * 64, files=(broken,))
        assert receiver.failure().code == "upload.truncated"


def test_an_early_200_is_none_while_files_are_to_follow() -> None:
    with scripted(answering(OK, after_bytes=4 * MIB)) as server, uploading(server.url) as upload:
        upload.open()
        upload.send(b"archive")
        with pytest.raises(PeerFailed) as caught:
            upload.finish("0" * 64, files=(file_part(0, [bytes(MIB)] * 64),))
    assert caught.value.code == "peer.protocol"
