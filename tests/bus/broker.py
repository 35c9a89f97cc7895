"""A real broker on loopback, that a test may stop and start again on the same port."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NATS_SERVER = Path(sys.executable).parent / "nats-server"


class Broker:
    """Args: directory for its files; configuration, lines of its configuration file."""

    def __init__(self, directory: Path, configuration: str = "") -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._directory = directory
        self._configuration = configuration
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> None:
        file = self._directory / "nats.conf"
        ports = self._directory / "ports"
        shutil.rmtree(ports, ignore_errors=True)
        ports.mkdir()
        file.write_text(
            f'listen: "127.0.0.1:{self.port}"\nports_file_dir: {json.dumps(str(ports))}\n{self._configuration}\n'
        )
        self._process = subprocess.Popen(
            [str(_NATS_SERVER), "-c", str(file)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    async def wait_listening(self) -> None:
        """Return once it takes connections."""
        async with asyncio.timeout(10):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                except OSError:
                    await asyncio.sleep(0.01)  # there is no event for another process's port
                    continue
                writer.close()
                await writer.wait_closed()
                return

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """It keeps its connections and answers nothing, like a machine that is gone."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)
        os.waitpid(self._process.pid, os.WUNTRACED)  # until it has really stopped


@contextmanager
def broker(directory: Path, configuration: str = "", *, is_up: bool = True) -> Iterator[Broker]:
    server = Broker(directory, configuration)
    if is_up:
        server.start()
    try:
        yield server
    finally:
        server.stop()
