"""Progress from counters: totals, rate and time left. Hints for people; nothing is decided by them."""

from __future__ import annotations

import time
from collections import deque

from sidecar.archive.meter import Meter
from sidecar.views import Progress

WINDOW_S = 10.0  # the rate is that of the last seconds, so that a stall shows


class Pace:
    """Turns a meter's counters into progress; call `progress` whenever somebody looks."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque(maxlen=64)

    def progress(self, meter: Meter) -> Progress:
        now, done = time.monotonic(), meter.content_bytes
        if not self._samples or now - self._samples[-1][0] >= WINDOW_S / 60:
            self._samples.append((now, done))
        while len(self._samples) > 1 and now - self._samples[0][0] > WINDOW_S:
            self._samples.popleft()
        began, had = self._samples[0]
        rate = (done - had) / (now - began) if now > began else 0.0
        total = meter.total_bytes
        left = max(0, total - done) / rate if total is not None and rate > 0 else None
        return Progress(
            bytes_done=done if total is None else min(done, total),
            bytes_total=total,
            files_done=meter.files if meter.total_files is None else min(meter.files, meter.total_files),
            files_total=meter.total_files,
            wire_bytes=meter.wire_bytes,
            rate_bytes_per_s=rate,
            eta_s=left,
        )


def bar(progress: Progress, width: int = 25) -> str:
    """The daemons' line: `Uploading [=====     ] 1.0 GiB / 2.0 GiB`, with rate, files and time left."""
    percent = progress.percent
    filled = int(width * (percent or 0.0) / 100)
    done, total = size(progress.bytes_done), size(progress.bytes_total) if progress.bytes_total is not None else "?"
    files = f"{progress.files_done}/{progress.files_total if progress.files_total is not None else '?'} files"
    left = f", {duration(progress.eta_s)} left" if progress.eta_s is not None else ""
    drawn = "=" * filled + " " * (width - filled)
    return f"[{drawn}] {done} / {total} ({size(progress.rate_bytes_per_s)}/s, {files}{left})"


def size(count: float) -> str:
    """`1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def duration(seconds: float) -> str:
    """`1h 02m`, `3m 05s`, `7s`."""
    whole = int(seconds)
    if whole >= 3600:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 60}m {whole % 60:02d}s" if whole >= 60 else f"{whole}s"
