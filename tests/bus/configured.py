"""The NATS server of `docker/nats/`, run with that very configuration, and what its log says of denied operations."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import nats
from nats.aio.client import Client

from sidecar.demo.node import free_port

FILES: Final = Path(__file__).parents[2] / "docker" / "nats"
PASSWORDS: Final = {name: f"secret-of-{name}" for name in ("admin", "panel", "reader", "node-a", "node-b", "node-c")}
_NATS_SERVER: Final = Path(sys.executable).parent / "nats-server"


class ConfiguredBroker:
    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self.files = directory / "nats"
        self._log = directory / "nats.log"
        shutil.copytree(FILES, self.files)
        main = self.files / "nats-server.conf"
        main.write_text(
            main.read_text("utf-8").replace('store_dir: "/data"', f'store_dir: "{directory}/store"'), "utf-8"
        )
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def denied(self) -> list[str]:
        """Every operation so far that the server refused, as its log tells it."""
        return re.findall(r"((?:Publish|Subscription|Reply) Violation .*)", self._log.read_text("utf-8", "replace"))

    def start(self) -> None:
        variables = {f"NATS_{name.replace('-', '_').upper()}_PASSWORD": word for name, word in PASSWORDS.items()}
        self._process = subprocess.Popen(
            [
                *(str(_NATS_SERVER), "-c", str(self.files / "nats-server.conf")),
                *("--addr", "127.0.0.1", "--port", str(self.port)),
                *("--log", str(self._log)),
            ],
            env=os.environ | variables,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def use_tls(self, cert: Path, key: Path) -> None:
        """Take the comment signs from the block `tls`; before the start."""
        main = self.files / "nats-server.conf"
        text = main.read_text("utf-8")
        begin, end = text.index("# tls {"), text.index("# }", text.index("# tls {")) + len("# }")
        block = re.sub("(?m)^# ", "", text[begin:end])
        block = block.replace("/etc/nats/tls.crt", str(cert)).replace("/etc/nats/tls.key", str(key))
        main.write_text(text[:begin] + block + text[end:], "utf-8")

    def reload(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@asynccontextmanager
async def configured(directory: Path, *, tls: tuple[Path, Path] | None = None) -> AsyncIterator[ConfiguredBroker]:
    server = ConfiguredBroker(directory)
    if tls is not None:
        server.use_tls(*tls)
    server.start()
    try:
        async with asyncio.timeout(20):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
                except OSError:
                    assert server._process is not None and server._process.poll() is None, "it does not start"
                    await asyncio.sleep(0.01)  # there is no event for another process's port
                    continue
                writer.close()
                await writer.wait_closed()
                break
        yield server
    finally:
        server.stop()


class Someone:
    """A user of the server, who tries things."""

    def __init__(self, client: Client, errors: list[str]) -> None:
        self.client = client
        self._errors = errors

    async def is_denied(self, doing: Any) -> bool:
        """Whether the server said that it refuses what was done."""
        before = len(self._errors)
        await doing
        await self.client.flush()
        await self.client.flush()  # the refusal comes before the answer to this
        return len(self._errors) > before

    async def may_publish(self, subject: str, **options: Any) -> bool:
        return not await self.is_denied(self.client.publish(subject, b"{}", **options))

    async def may_subscribe(self, subject: str, queue: str = "") -> bool:
        return not await self.is_denied(self.client.subscribe(subject, queue=queue))


@asynccontextmanager
async def someone(server: ConfiguredBroker, user: str, **options: Any) -> AsyncIterator[Someone]:
    errors: list[str] = []

    async def note(error: Exception) -> None:
        errors.append(str(error))

    login = options or {"user": user, "password": PASSWORDS[user]}
    client = await nats.connect(
        server.url, inbox_prefix=f"_INBOX_{user}", error_cb=note, allow_reconnect=False, connect_timeout=10, **login
    )
    try:
        yield Someone(client, errors)
    finally:
        await client.close()
