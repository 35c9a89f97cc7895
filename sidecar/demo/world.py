"""Makes a game server's volume: deterministic, of any size, and like a real one in what matters to a transfer.

By bytes: 62 % region files, of which part compresses (chunks that are compressed already, padded to sectors, beside
tables and empty sectors), 18 % jars (do not compress), 12 % logs (compress tenfold), 8 % a database that is mostly
holes and zeros, player data and configuration. Among them what transfers trip over: symbolic links (relative, dangling,
absolute, to a directory), empty directories, a hard link, odd modes, old times with nanoseconds, names in other
scripts, with spaces and line breaks, and longer than a tar header takes, an executable script, an empty file.

The same seed and size give the same bytes and times everywhere. Random bytes come from one block that is made once and
cut at random places, because a generator makes them slower than a disk takes them.

Memory: the block and one file's piece, under 32 MiB whatever the size.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

_MIB: Final = 1024 * 1024
_BLOCK_BYTES: Final = 16 * _MIB  # repeats farther apart than the window of any codec in use
_PIECE_BYTES: Final = 256 * 1024
_SECTOR_BYTES: Final = 4096
_REGION_BYTES: Final = 6 * _MIB
_JAR_BYTES: Final = 2 * _MIB
_LOG_BYTES: Final = _MIB
_OLDEST_S: Final = 1_262_304_000  # 2010
_NEWEST_S: Final = 1_735_689_600  # 2025: no file is ever from the future
_WORDS: Final = (
    "Server thread/INFO", "Async Chunk Loader/WARN", "joined the game", "left the game", "moved too quickly!",
    "Saving chunks for level", "minecraft:overworld", "minecraft:the_nether", "Can't keep up!", "issued server command",
    "UUID of player", "lost connection: Disconnected", "was slain by Zombie", "ThreadedAnvilChunkStorage",
)  # fmt: skip


class World(msgspec.Struct, frozen=True):
    """What was made. Sizes are those of file contents; a hard link is one more file without content of its own."""

    root: Path
    files: int
    directories: int
    symlinks: int
    content_bytes: int


class _Maker:
    def __init__(self, root: Path, seed: int) -> None:
        self.root = root
        self.random = random.Random(seed)
        self.block = memoryview(self.random.randbytes(_BLOCK_BYTES))
        self.lines = [
            f"[{self.random.randrange(24):02}:{self.random.randrange(60):02}:{self.random.randrange(60):02}] "
            f"[{self.random.choice(_WORDS)}]: {self.random.choice(_WORDS)} {self.random.randrange(10**6)} "
            f"({self.random.randrange(-5000, 5000)}, {self.random.randrange(256)})\n"
            for _ in range(4000)
        ]
        self.content_bytes = 0
        self.files = 0

    def noise(self, size_bytes: int) -> memoryview:
        """Bytes that do not compress; at most a piece."""
        start = self.random.randrange(_BLOCK_BYTES - size_bytes)
        return self.block[start : start + size_bytes]

    def directory(self, name: str) -> Path:
        path = self.root / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def file(self, path: Path, chunks: Iterator[bytes | memoryview], mode: int = 0o644) -> int:
        """Returns the size."""
        with path.open("wb", buffering=0) as file:
            for chunk in chunks:
                _write_all(file, chunk)
            size = file.tell()
        self.finish(path, mode, size)
        return size

    def finish(self, path: Path, mode: int, size_bytes: int) -> None:
        path.chmod(mode)
        self.files += 1
        self.content_bytes += size_bytes

    def region(self, size_bytes: int) -> Iterator[bytes | memoryview]:
        """Two sectors of tables, then chunks of noise padded to whole sectors, some with a plain part, some empty."""
        yield b"".join(self.random.randrange(2**24).to_bytes(4, "big") for _ in range(64)) * 32  # 8 KiB
        left = size_bytes - 2 * _SECTOR_BYTES
        while left > 0:
            pieces: list[bytes | memoryview] = []
            batch = 0
            while batch < _PIECE_BYTES and left - batch > 0:
                sectors = self.random.randrange(1, 12)
                payload = self.random.randrange((sectors - 1) * _SECTOR_BYTES + 200, sectors * _SECTOR_BYTES)
                kind = self.random.random()
                if kind < 0.04:
                    pieces.append(bytes(sectors * _SECTOR_BYTES))
                elif kind < 0.14:
                    pieces.append((self.noise(64).tobytes() * (payload // 64 + 1))[:payload])
                    pieces.append(bytes(sectors * _SECTOR_BYTES - payload))
                else:
                    pieces.append(self.noise(payload))
                    pieces.append(bytes(sectors * _SECTOR_BYTES - payload))
                batch += sectors * _SECTOR_BYTES
            joined = b"".join(pieces)[:left]
            left -= len(joined)
            yield joined

    def jar(self, size_bytes: int) -> Iterator[bytes | memoryview]:
        yield b"PK\x03\x04"
        left = size_bytes - 4
        while left > 0:
            piece = self.noise(min(left, _PIECE_BYTES))
            left -= len(piece)
            yield piece

    def log(self, size_bytes: int) -> Iterator[bytes | memoryview]:
        left = size_bytes
        while left > 0:
            start = self.random.randrange(len(self.lines) - 1000)
            piece = "".join(self.lines[start : start + 1000]).encode()[:left]
            left -= len(piece)
            yield piece

    def json(self, keys: int) -> bytes:
        values = {
            f"key_{self.random.randrange(1000)}": self.random.choice((True, 7, "minecraft:stone", [1, 2], {"x": 0.5}))
            for _ in range(keys)
        }
        return msgspec.json.format(msgspec.json.encode(values), indent=2)

    def time_ns(self) -> int:
        return self.random.randrange(_OLDEST_S, _NEWEST_S) * 1_000_000_000 + self.random.randrange(1_000_000_000)


def make_world(root: Path, size_mb: int, seed: int = 1) -> World:
    """Make a volume of about `size_mb` million bytes in `root`, which must not exist or be empty.

    Raises OSError when the disk refuses, or FileExistsError when `root` has something in it.
    """
    root.mkdir(parents=True, exist_ok=True)
    if any(root.iterdir()):
        raise FileExistsError(f"{root} is not empty")
    total = size_mb * 1_000_000
    maker = _Maker(root, seed)
    _regions(maker, total * 62 // 100)
    _jars(maker, total * 18 // 100)
    _logs(maker, total * 12 // 100)
    _small(maker, total * 8 // 100)
    _odd(maker)
    directories, symlinks = _date(maker)
    return World(root, maker.files, directories, symlinks, maker.content_bytes)


def _sizes(maker: _Maker, total: int, usual: int) -> Iterator[int]:
    """Sizes that vary around the usual one and add up to the total."""
    while total > 0:
        size = min(total, maker.random.randrange(usual // 2, usual * 3 // 2))
        if total - size < _SECTOR_BYTES * 4:
            size = total
        total -= size
        yield size


def _regions(maker: _Maker, total: int) -> None:
    folders = [maker.directory(f"{world}/region") for world in ("world", "world_nether/DIM-1", "world_the_end/DIM1")]
    for index, size in enumerate(_sizes(maker, total, _REGION_BYTES)):
        folder = folders[0 if index % 4 else index // 4 % 3]
        maker.file(folder / f"r.{index % 13 - 6}.{index // 13 - 3}.mca", maker.region(size))


def _jars(maker: _Maker, total: int) -> None:
    plugins, libraries = maker.directory("plugins"), maker.directory("libraries/com/mojang/brigadier/1.2.9")
    for index, size in enumerate(_sizes(maker, total, _JAR_BYTES)):
        maker.file((libraries if index % 5 == 0 else plugins) / f"plugin-{index}.jar", maker.jar(size))


def _logs(maker: _Maker, total: int) -> None:
    folder = maker.directory("logs")
    for index, size in enumerate(_sizes(maker, total, _LOG_BYTES)):
        maker.file(folder / ("latest.log" if index == 0 else f"2024-{index % 12 + 1:02}-{index}.log"), maker.log(size))


def _small(maker: _Maker, total: int) -> None:
    """A database with holes, and as many small files as a server of that size has."""
    database = maker.directory("plugins/CoreProtect") / "database.db"
    size = total * 3 // 4
    with database.open("wb", buffering=0) as file:
        _write_all(file, b"SQLite format 3\x00")
        for offset in range(_SECTOR_BYTES, size - _SECTOR_BYTES, 16 * _SECTOR_BYTES):
            if maker.random.random() < 0.5:
                file.seek(offset)
                _write_all(file, maker.noise(2048).tobytes() + bytes(2048))
        file.truncate(max(size, 16))
    maker.finish(database, 0o640, max(size, 16))
    players, config = maker.directory("world/playerdata"), maker.directory("config/modules")
    for index in range(max(20, total // 55_000)):
        if index % 3:
            text = maker.json(maker.random.randrange(5, 60))
            maker.file(config / f"module-{index}.json", iter([text]), 0o644 if index % 7 else 0o600)
        else:
            maker.file(
                players / f"{index:08x}.dat", iter([b"\x1f\x8b", maker.noise(maker.random.randrange(500, 9000))])
            )


def _odd(maker: _Maker) -> None:
    """What transfers trip over."""
    for name in ("world/datapacks", "backups/old/empty", "crash-reports"):
        maker.directory(name)
    maker.directory("private").chmod(0o700)
    odd = maker.directory("odd names")
    for name, content, mode in (
        ("server.properties", b"motd=A server\nmax-players=20\n", 0o644),
        ("eula.txt", b"eula=true\n", 0o444),
        ("start.sh", b"#!/bin/sh\nexec java -jar server.jar nogui\n", 0o755),
        ("private/ops.json", b"[]\n", 0o600),
        ("odd names/Спавн.yml", b"a: 1\n", 0o644),
        ("odd names/世界 \N{JAPANESE OGRE}.txt", b"b\n", 0o664),
        ("odd names/line\nbreak & 'quotes' \"both\" \\.txt", b"c\n", 0o644),
        ("odd names/-rf", b"d\n", 0o644),
        ("odd names/.hidden", b"e\n", 0o604),
        ("odd names/empty", b"", 0o644),
        (f"odd names/{'x' * 200}.txt", b"long\n", 0o644),
    ):
        maker.file(maker.root / name, iter([content]), mode)
    raw = os.fsencode(odd) + b"/latin-\xe9.txt"  # a name that is not UTF-8
    with open(os.open(raw, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "wb") as file:
        file.write(b"f\n")
    maker.finish(Path(os.fsdecode(raw)), 0o644, 2)
    deep = maker.directory("/".join(["deep"] + [f"level-{level:02}" for level in range(20)]))
    maker.file(deep / "bottom.txt", iter([b"bottom\n"]))
    os.link(maker.root / "server.properties", maker.root / "server.properties.linked")
    maker.files += 1
    for name, target in (
        ("latest.log", "logs/latest.log"),
        ("world/logs", "../logs"),
        ("dangling", "nowhere/at-all"),
        ("host-timezone", "/etc/localtime"),
        ("odd names/up-and-out", "../../../outside"),
    ):
        (maker.root / name).symlink_to(target)


def _date(maker: _Maker) -> tuple[int, int]:
    """Give everything an old time, in a fixed order, directories after their content. Returns directories, symlinks."""
    directories = symlinks = 0
    dated: set[int] = set()
    # sorted, because every disk walks in an order of its own, and the times are to be the same on all
    for folder in sorted([maker.root, *_folders(maker.root)], key=lambda path: (-len(path.parts), path)):
        for path in sorted(path for path in folder.iterdir() if path.is_symlink() or not path.is_dir()):
            status = path.lstat()
            symlinks += path.is_symlink()
            if status.st_nlink == 1 or status.st_ino not in dated:
                dated.add(status.st_ino)
                moment = maker.time_ns()
                os.utime(path, ns=(moment, moment), follow_symlinks=False)
        moment = maker.time_ns()
        os.utime(folder, ns=(moment, moment))
        directories += 1
    return directories - 1, symlinks  # the root is not an entry


def _folders(root: Path) -> Iterator[Path]:
    for path in root.iterdir():
        if path.is_dir() and not path.is_symlink():
            yield path
            yield from _folders(path)


def _write_all(file: BinaryIO, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
