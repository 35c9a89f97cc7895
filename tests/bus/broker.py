"""A real broker on loopback, that a test may stop and start again on the same port."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sidecar.demo.node import free_port

_NATS_SERVER = Path(sys.executable).parent / "nats-server"


class Broker:
    """Args: directory for its files; configuration, lines of its configuration file; has_jetstream, which keeps its
    messages in the directory."""

    def __init__(self, directory: Path, configuration: str = "", *, has_jetstream: bool = False) -> None:
        self.port = free_port()
        self._directory = directory
        self.configuration = configuration
        self._has_jetstream = has_jetstream
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> None:
        ports = self._directory / "ports"
        shutil.rmtree(ports, ignore_errors=True)
        ports.mkdir()
        self._process = subprocess.Popen(
            [str(_NATS_SERVER), "-c", str(self._write())], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def _write(self) -> Path:
        file, ports = self._directory / "nats.conf", self._directory / "ports"
        lines = [f'listen: "127.0.0.1:{self.port}"', f"ports_file_dir: {json.dumps(str(ports))}", self.configuration]
        if self._has_jetstream:
            store = json.dumps(str(self._directory / "jetstream"))
            lines.append(f"jetstream {{ store_dir: {store}, max_file_store: 4GB }}")
        file.write_text("\n".join(lines) + "\n")
        return file

    def reload(self, configuration: str) -> None:
        """Work with another configuration from now on; it may take a moment."""
        self.configuration = configuration
        self._write()
        self._signal(signal.SIGHUP)

    def lame_duck(self) -> None:
        """It asks its clients to leave, and ends."""
        self._signal(signal.SIGUSR2)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    @property
    def has_ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

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
        self._signal(signal.SIGSTOP)
        os.waitpid(self._process.pid, os.WUNTRACED)  # until it has really stopped

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)


@contextmanager
def broker(
    directory: Path, configuration: str = "", *, is_up: bool = True, has_jetstream: bool = False
) -> Iterator[Broker]:
    server = Broker(directory, configuration, has_jetstream=has_jetstream)
    if is_up:
        server.start()
    try:
        yield server
    finally:
        server.stop()
