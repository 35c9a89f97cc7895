"""`python -m integration.bench`: what it measures, in which order, and its exit code.

0: measured (with --check: and every bar held). 1: a bar was missed, or a copy is not what was sent. 2: nothing was
measured.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.console import Console

from integration.bench import bus, ours, report
from integration.bench.bus import BusIs
from integration.bench.figures import MIB, Move
from integration.bench.ours import MoveFailed, Wire, destination_volume, source_volume
from integration.bench.pipeline import PipelineFailed, missing_tools, run_pipeline
from integration.bench.volumes import SMALL_FILE_BYTES, Place, make_small_files, place, trouble
from sidecar.demo.compare import compare
from sidecar.demo.nats import run_nats
from sidecar.demo.node import NodeFailed
from sidecar.demo.world import make_world

_WIRES: Final = {"our wire": Wire.OURS, "strangers' wire": Wire.STRANGERS}
_GZIP: Final = "tar | gzip -1"
_TAR: Final = "tar | tar"


class CopyDiffers(Exception):
    """What arrived is not what was sent."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    options = _options(arguments)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    if missing := missing_tools():
        console.print(f"Nothing to compare with: {', '.join(missing)} not found.")
        return 2
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # cleans up as for Ctrl-C
    try:
        if options.memory is not None:
            return _memory(console, options)
        missed = _world(console, options)
        if options.small:
            _small(console, options)
        if options.events:
            missed += _bus(console, options)
        return 1 if missed and options.check else 0
    except (MoveFailed, PipelineFailed, NodeFailed, CopyDiffers) as failed:
        console.print(str(failed), markup=False)
        return 1
    except KeyboardInterrupt:
        console.print("Interrupted; nothing is left behind.")
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench ARGS=...", description="Speed and memory of two real nodes.")
    parser.add_argument("--size", type=int, default=1350, metavar="MB", help="of the world (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of each way, alternating (default: %(default)s)")
    parser.add_argument("--small", type=int, default=50_000, metavar="FILES", help="of 4 KiB; 0: none (%(default)s)")
    parser.add_argument(
        "--events",
        type=int,
        default=20_000,
        help="through the outbox, and moves with the bus; 0: neither (%(default)s)",
    )
    parser.add_argument("--gzip-level", type=int, default=1, help="of our source (default: %(default)s)")
    parser.add_argument(
        "--memory",
        type=float,
        nargs="?",
        const=5.0,
        metavar="GIB",
        help="instead of speed: move one volume of so many GiB (5) on each wire, and fail above 150 MiB per process",
    )
    parser.add_argument("--directory", type=Path, help="work here instead of in memory or the temporary directory")
    parser.add_argument("--check", action="store_true", help="exit code 1 when a bar is missed")
    options = parser.parse_args(arguments)
    if (
        options.size < 1
        or options.rounds < 1
        or options.small < 0
        or options.events < 0
        or not 0 <= options.gzip_level <= 9
    ):
        parser.error("sizes and rounds are 1 or more, a gzip level is 0 to 9")
    return options


def _world(console: Console, options: argparse.Namespace) -> list[str]:
    with place(options.size * 1_000_000, options.directory) as where:
        world = make_world(source_volume(where.directory), options.size)
        _announce(console, f"World: {world.content_bytes / 1e6:.0f} MB in {world.files:,} files", where)
        moves: dict[str, list[Move]] = {name: [] for name in (*_WIRES, _GZIP)}
        for number in range(options.rounds):
            for name, wire in _WIRES.items():
                moves[name].append(_move(where.directory, wire, world.content_bytes, options.gzip_level))
                if number == 0:
                    _compare(where.directory, wire)
            moves[_GZIP].append(_pipeline(where.directory, gzip=True))
            _progress(console, number, moves)
    console.print(report.table("A game world", moves, _GZIP, world.content_bytes, world.files))
    missed = report.missed(moves["strangers' wire"], moves[_GZIP], world.content_bytes)
    bar = f"at most {report.MAX_WALL_RATIO} of its wall time, {report.MAX_CPU_S_PER_GB:g} CPU-s/GB, 150 MiB each"
    console.print(f"The bar, on the strangers' wire ({bar}): {'; '.join(missed) or 'held'}.")
    return missed


def _small(console: Console, options: argparse.Namespace) -> None:
    content_bytes = options.small * SMALL_FILE_BYTES
    with place(content_bytes, options.directory) as where:
        make_small_files(source_volume(where.directory), options.small)
        _announce(console, f"Small files: {options.small:,} of 4 KiB", where)
        moves: dict[str, list[Move]] = {name: [] for name in (*_WIRES, _TAR)}
        for number in range(options.rounds):
            for name, wire in _WIRES.items():
                moves[name].append(_move(where.directory, wire, content_bytes, options.gzip_level))
                if number == 0:
                    _compare(where.directory, wire)
            moves[_TAR].append(_pipeline(where.directory, gzip=False))
            _progress(console, number, moves)
    console.print(report.table("Many small files", moves, _TAR, content_bytes, options.small))


def _bus(console: Console, options: argparse.Namespace) -> list[str]:
    with place(options.size * 1_000_000, options.directory) as where:
        world = make_world(source_volume(where.directory), options.size)
        _announce(console, f"The bus: {options.events:,} events, and the world with it off, on and down", where)
        found = asyncio.run(bus.rates(where.directory / "events", options.events))
        console.print(
            f"Events per second: {found.written:,.0f} to disk without a broker, {found.flushed:,.0f} from there to a "
            f"stream, {found.through:,.0f} all the way with a broker."
        )
        moves = asyncio.run(_bus_moves(console, options, where.directory, world.content_bytes))
    console.print(report.table("One world, and the bus", moves, BusIs.OFF, world.content_bytes, world.files))
    missed = report.apart(moves, BusIs.OFF, bus.MAX_APART)
    console.print(f"The bar (within {bus.MAX_APART:.0%} of the time without a bus): {'; '.join(missed) or 'held'}.")
    return missed


async def _bus_moves(
    console: Console, options: argparse.Namespace, directory: Path, content_bytes: int
) -> dict[str, list[Move]]:
    moves: dict[str, list[Move]] = {name: [] for name in BusIs}
    (directory / "nats").mkdir()
    async with run_nats(directory / "nats", jetstream=True) as broker:
        for number in range(options.rounds):
            names = list(BusIs)
            for name in names[number % 3 :] + names[: number % 3]:  # each comes first as often as the others
                section = bus.bus_section(name, broker.url)
                moves[name].append(await ours.move(directory, Wire.OURS, content_bytes, options.gzip_level, section))
            _progress(console, number, moves)
    return moves


def _memory(console: Console, options: argparse.Namespace) -> int:
    content_bytes = int(options.memory * (1 << 30))
    with place(content_bytes, options.directory) as where:
        world = make_world(source_volume(where.directory), 1 + content_bytes // 980_000)  # a world is a little smaller
        _announce(console, f"World: {world.content_bytes / (1 << 30):.2f} GiB in {world.files:,} files", where)
        missed = []
        for name, wire in _WIRES.items():
            one = _move(where.directory, wire, world.content_bytes, options.gzip_level)
            _compare(where.directory, wire)
            console.print(
                f"{name}: peak {one.source_peak_bytes / MIB:.0f} MiB at the source, "
                f"{one.destination_peak_bytes / MIB:.0f} MiB at the destination, in {one.wall_s:.1f} s."
            )
            missed += report.too_large([one])
    console.print(f"The bar (150 MiB each): {'; '.join(missed) or 'held'}.")
    return 1 if missed else 0


def _announce(console: Console, what: str, where: Place) -> None:
    medium = "in memory (tmpfs)" if where.is_tmpfs else "on the disk: its speed is in the figures"
    console.print(f"{what}, at {where.directory}, {medium}. Load before: {os.getloadavg()[0]:.1f}.")


def _progress(console: Console, number: int, moves: dict[str, list[Move]]) -> None:
    seconds = ", ".join(f"{name} {rounds[-1].wall_s:.2f} s" for name, rounds in moves.items())
    console.print(f"Round {number + 1}: {seconds}. Load: {os.getloadavg()[0]:.1f}.", markup=False)


def _move(directory: Path, wire: Wire, content_bytes: int, gzip_level: int) -> Move:
    return asyncio.run(ours.move(directory, wire, content_bytes, gzip_level))


def _pipeline(directory: Path, *, gzip: bool) -> Move:
    copy = directory / f"pipeline-{time.monotonic_ns()}"
    try:
        return run_pipeline(source_volume(directory), copy, gzip=gzip)
    finally:
        shutil.rmtree(copy)


def _compare(directory: Path, wire: Wire) -> None:
    compared = compare(source_volume(directory), destination_volume(directory))
    if found := trouble(compared, for_strangers=wire is Wire.STRANGERS):
        raise CopyDiffers("What arrived is not what was sent:\n" + "\n".join(found[:10]))


if __name__ == "__main__":
    sys.exit(main())
