"""What one move cost, and the median of several. Sizes are those of file contents; a GB is 10^9 bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

import msgspec
import psutil

MIB = 1 << 20


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """One move. CPU seconds are user and system time of the processes of each end. Peaks are 0 where not measured."""

    wall_s: float
    source_cpu_s: float
    destination_cpu_s: float
    source_peak_bytes: int = 0
    destination_peak_bytes: int = 0
    wire_bytes: int = 0

    @property
    def cpu_s(self) -> float:
        return self.source_cpu_s + self.destination_cpu_s


def middle(moves: Sequence[Move]) -> Move:
    """The median of each figure by itself, and the highest of the peaks."""
    return Move(
        wall_s=median(move.wall_s for move in moves),
        source_cpu_s=median(move.source_cpu_s for move in moves),
        destination_cpu_s=median(move.destination_cpu_s for move in moves),
        source_peak_bytes=max(move.source_peak_bytes for move in moves),
        destination_peak_bytes=max(move.destination_peak_bytes for move in moves),
        wire_bytes=max(move.wire_bytes for move in moves),
    )


def cpu_s(pid: int) -> float:
    """User and system time of a running process, all its threads, since it began."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def peak_bytes(pid: int) -> int:
    """The highest resident size of a running process since it began, as the kernel counted it: no sample misses it."""
    for line in Path(f"/proc/{pid}/status").read_text("ascii").splitlines():
        name, _, value = line.partition(":")
        if name == "VmHWM":
            return int(value.split()[0]) * 1024
    raise OSError(f"process {pid} has no VmHWM: it ended")
