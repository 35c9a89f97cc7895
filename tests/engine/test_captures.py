"""Every recorded upload of a real daemon arrives whole at a node of ours, however the network cuts it."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from sidecar.ports import FilePlace
from tests.engine.replays import BACKUP, FILES, STREAMS, captured, differences, send
from tests.engine.rig import SERVER, running_node

PLAIN = ["pt-source", "pe-source", "ca-source", "ca-source-zstd", "pe-source-backups", "ca-source-backups"]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", PLAIN)
def test_a_capture(tmp_path: Path, name: str, seed: int) -> None:
    async def scenario() -> None:
        async with running_node(tmp_path, "b", keeps_files=True) as rig:
            answer = await send(rig, captured(name, rig), seed)
            assert answer.startswith(b"HTTP/1.1 200 OK")
            assert differences(rig.volume(), is_calagopus=name.startswith("ca")) == []
            has_backups = name.endswith("backups")
            assert rig.filed() == ([f"{BACKUP}.tar.gz"] if has_backups else [])
            assert answer.endswith(b'{"backups":["%s"]}' % BACKUP.encode() if has_backups else b"{}")
            logs = [f"{SERVER}.log"] if name == "pe-source-backups" else []
            assert rig.filed(FilePlace.INSTALL_LOGS) == logs
            assert (await rig.settled()).status == "completed"
            assert rig.staging() == []

    asyncio.run(scenario())


@pytest.mark.parametrize("seed", range(6))
def test_a_capture_of_several_streams(tmp_path: Path, seed: int) -> None:
    async def scenario() -> None:
        async with running_node(tmp_path, "b") as rig:
            order = random.Random(seed).sample(STREAMS, len(STREAMS))
            answers = await asyncio.gather(*(send(rig, captured(name, rig), seed) for name in order))
            assert all(answer.startswith(b"HTTP/1.1 200 OK") for answer in answers)
            assert differences(rig.volume(), is_calagopus=True) == []
            view = await rig.settled()
            assert view.status == "completed"
            assert view.progress.bytes_done == sum(len(content) for _, content in FILES.values())
            assert view.progress.files_done == len(FILES)
            assert len(rig.node.views()) == 1
            assert rig.staging() == []

    asyncio.run(scenario())
