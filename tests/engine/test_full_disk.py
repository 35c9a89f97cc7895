"""A disk that fills up while a server arrives: its own reason, nothing left, and room again for the next transfer."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from tests.engine.rig import SERVER, running_node
from tests.engine.strangers import archive_of, body_of, raw_upload

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")]

DISK_BYTES = 4 << 20
MANY_INODES = 200


@pytest.fixture(params=[f"size={DISK_BYTES}", f"size=64m,nr_inodes={MANY_INODES}"], ids=["bytes", "inodes"])
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """The volumes of node b, on a filesystem of their own."""
    volumes = tmp_path / "b" / "volumes"
    volumes.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", request.param, "none", volumes], capture_output=True)
    if mounted.returncode:
        if os.environ.get("CI"):
            pytest.fail(f"cannot mount: {mounted.stderr!r}")
        pytest.skip("mounting is not allowed here")
    yield volumes
    subprocess.run(["umount", volumes], check=True)


def test_a_disk_that_fills_up_during_the_receipt(tmp_path: Path, small_disk: Path) -> None:
    """A stranger announces nothing, so only the disk itself can say it. Symptom: disk full, no error shown, and partial
    files that keep it full."""
    large = {"region.mca": Random(5).randbytes(DISK_BYTES * 2)}
    many = {f"stats/{number}.json": b"{}" for number in range(MANY_INODES * 2)}
    is_of_bytes = os.statvfs(small_disk).f_files > MANY_INODES
    too_much = body_of(archive_of(large if is_of_bytes else many))

    async def scenario() -> None:
        async with running_node(tmp_path / "b", "b") as b:
            free = os.statvfs(small_disk)
            async with raw_upload(b, too_much) as upload:
                answer = await upload.answer()
            reason = "disk.full" if is_of_bytes else "disk.inodes"
            assert answer.startswith(b"HTTP/1.1 500 ") and f'"code":"{reason}"'.encode() in answer
            came = await b.settled()
            assert (came.status, came.reason) == ("failed", reason)
            assert not b.volume().exists() and b.staging() == [] and b.trash() == []
            after = os.statvfs(small_disk)
            kept = 8  # the node's own directories, made for the first transfer
            assert after.f_bfree >= free.f_bfree - kept and after.f_ffree >= free.f_ffree - kept

            async with raw_upload(b, body_of()) as upload:
                assert await upload.status() == 200
            assert (await b.settled()).status == "completed"
            assert (b.volume(SERVER) / "a.txt").read_bytes() == b"hello"

    asyncio.run(scenario())
