"""The socket proxy of docker/socket-proxy as a process, with its own configuration, in front of a real engine."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from integration.image import ROOT

CONFIG: Final = ROOT / "docker/socket-proxy/haproxy.cfg"
_START_S: Final = 20.0
_SEARCHED: Final = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


class NoProxy(Exception):
    """HAProxy is not installed."""


def haproxy() -> Path:
    """The program. Raises NoProxy."""
    found = shutil.which("haproxy", path=_SEARCHED)
    if found is None:
        raise NoProxy("haproxy is not installed (Debian: haproxy)")
    return Path(found)


@contextlib.contextmanager
def socket_proxy(directory: Path, engine: str, *, watch_only: bool = False) -> Iterator[Path]:
    """Its socket. `engine`: `unix://...`; `directory`: a short path, because a socket's has at most 107 bytes."""
    directory.mkdir(parents=True, exist_ok=True)
    socket, log = directory / "p.sock", directory / "haproxy.log"
    environ = {**os.environ, "PROXY_SOCKET": str(socket), "ENGINE_SOCKET": engine.removeprefix("unix://")}
    if watch_only:
        environ["WATCH_ONLY"] = "1"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(haproxy()), "-db", "-f", str(CONFIG)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environ,
        )
    try:
        deadline = time.monotonic() + _START_S
        while not socket.exists():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        yield socket
    finally:
        process.terminate()
        process.wait(_START_S)
