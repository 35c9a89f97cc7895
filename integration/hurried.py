"""`serve` as the program does it, but with the times of the rules shortened: 30 s of doubt are 1 s.

For tests of what happens after those times; all else runs the program itself. Called as `python -m integration.hurried
serve --config FILE`.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

from sidecar import log_output
from sidecar.engine.services import Timings
from sidecar.settings.load import load
from sidecar.wiring import running

HURRIED = Timings(
    young_s=1.0,
    quarantine_s=1.0,
    quarantine_calagopus_s=1.0,
    call_timeout_s=1.5,
    admission_s=2.0,
    retry_first_s=0.1,
    retry_cap_s=0.5,
    progress_interval_s=0.2,
    progress_event_s=0.1,
    panel_stop_lookup_s=3.0,
    late_exit_s=1.0,
)


async def main(config: Path) -> None:
    settings = load(config).settings
    log_output.set_up(settings.log.level.value, settings.log.format.value)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with running(settings, timings=HURRIED) as node:
        await stop.wait()
        await node.node.drain(0)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[-1])))
