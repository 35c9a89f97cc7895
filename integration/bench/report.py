"""The figures as tables, and whether they are what they must be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from rich.table import Table

from integration.bench.figures import MIB, Move, middle

MAX_WALL_RATIO: Final = 0.3  # of tar | gzip -1, on the wire that strangers get
MAX_CPU_S_PER_GB: Final = 8.0  # of both processes together, on the same wire
MAX_PEAK_BYTES: Final = 150 * MIB  # of each process, whatever the volume


def table(title: str, moves: Mapping[str, Sequence[Move]], beside: str, content_bytes: int, files: int) -> Table:
    """One row per way, the medians of its rounds; ratios to the row `beside`."""
    columns = ("", "wall s", "MB/s", "files/s", "CPU-s/GB: source", "destination", "both", "wall ratio", "CPU ratio",
               "peak MiB")  # fmt: skip
    made = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        made.add_column(column, justify="right" if index else "left", no_wrap=not index)
    reference, gb = middle(moves[beside]), content_bytes / 1e9
    for name, rounds in moves.items():
        one = middle(rounds)
        peaks = f"{one.source_peak_bytes / MIB:.0f} + {one.destination_peak_bytes / MIB:.0f}"
        made.add_row(
            name,
            f"{one.wall_s:.2f}",
            f"{content_bytes / 1e6 / one.wall_s:.0f}",
            f"{files / one.wall_s:,.0f}",
            f"{one.source_cpu_s / gb:.2f}",
            f"{one.destination_cpu_s / gb:.2f}",
            f"{one.cpu_s / gb:.2f}",
            f"{one.wall_s / reference.wall_s:.3f}",
            f"{one.cpu_s / reference.cpu_s:.3f}",
            peaks if one.source_peak_bytes else "",
        )
    return made


def missed(strangers: Sequence[Move], pipeline: Sequence[Move], content_bytes: int) -> list[str]:
    """What the world's figures miss, a sentence each."""
    ours, reference = middle(strangers), middle(pipeline)
    found = []
    if (ratio := ours.wall_s / reference.wall_s) > MAX_WALL_RATIO:
        found.append(f"wall time is {ratio:.2f} of the pipeline's, more than {MAX_WALL_RATIO}")
    if (cost := ours.cpu_s / (content_bytes / 1e9)) > MAX_CPU_S_PER_GB:
        found.append(f"both processes take {cost:.1f} CPU-s/GB, more than {MAX_CPU_S_PER_GB:g}")
    return found + too_large(strangers)


def apart(moves: Mapping[str, Sequence[Move]], beside: str, most: float) -> list[str]:
    """Which way takes more time than the way `beside`, by more than `most` of it, a sentence each."""
    reference = middle(moves[beside])
    ratios = {name: middle(rounds).wall_s / reference.wall_s for name, rounds in moves.items()}
    return [f"{name}: {ratio:.3f} of the time of {beside}" for name, ratio in ratios.items() if ratio > 1 + most]


def too_large(moves: Sequence[Move]) -> list[str]:
    """Which end's peak is above `MAX_PEAK_BYTES`, a sentence each."""
    one = middle(moves)
    peaks = {"source": one.source_peak_bytes, "destination": one.destination_peak_bytes}
    return [
        f"the {end}'s peak is {peak / MIB:.0f} MiB, more than {MAX_PEAK_BYTES // MIB}"
        for end, peak in peaks.items()
        if peak >= MAX_PEAK_BYTES
    ]
