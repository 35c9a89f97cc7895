"""Neither node's memory grows with the volume: half a GiB moved, the kernel's own peak of each process.

`python -m integration.bench --memory` moves 5 GiB, on both wires; docs/PERFORMANCE.md has what it showed.
"""

from __future__ import annotations

import asyncio

import pytest

from integration.bench import ours
from integration.bench.ours import Wire, source_volume
from integration.bench.report import MAX_PEAK_BYTES
from integration.bench.volumes import place, trouble
from sidecar.demo.compare import compare
from sidecar.demo.world import make_world

_VOLUME_BYTES = 512 << 20


@pytest.mark.parametrize("wire", list(Wire))
def test_both_ends_stay_below_150_mib(wire: Wire) -> None:
    with place(_VOLUME_BYTES, None) as where:
        world = make_world(source_volume(where.directory), _VOLUME_BYTES // 1_000_000)
        moved = asyncio.run(ours.move(where.directory, wire, world.content_bytes))
        destination = ours.destination_volume(where.directory)
        found = trouble(compare(source_volume(where.directory), destination), for_strangers=wire is Wire.STRANGERS)
    assert moved.source_peak_bytes < MAX_PEAK_BYTES
    assert moved.destination_peak_bytes < MAX_PEAK_BYTES
    assert found == []
