"""One node of the demo: a process that runs `serve` with a configuration file of its own, as in production."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Final

import httpx
import msgspec

from sidecar.demo.nats import end_process
from sidecar.settings.render import toml

_READY_S: Final = 60.0  # a start takes half a second, on a machine that has nothing else to do
_POLL_S: Final = 0.05
_STOP_S: Final = 10.0  # it ends in an orderly way first
_SHOWN_LOG_LINES: Final = 15
_PORTS: Final = range(10_000, 30_000)  # below those of connections that name none, 32768 and up on Linux


class NodeFailed(Exception):
    """A node does not start, or ended by itself; the text has the end of its log."""


class DemoNode(msgspec.Struct, frozen=True, kw_only=True):
    """A node that answers. log: everything it has said."""

    name: str
    url: str
    token_id: str
    token: str
    volumes: Path
    log: Path
    process: asyncio.subprocess.Process

    @property
    def pid(self) -> int:
        return self.process.pid

    def begin_stop(self) -> None:
        """Tell it to stop, without waiting: several nodes then stop at the same time."""
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.terminate()

    def log_tail(self) -> str:
        return _tail(self.log)


def free_port() -> int:
    """A loopback port that is free at this moment, and that the system gives to nobody who asks for any port.

    Raises OSError where none is found.
    """
    for port in random.SystemRandom().sample(_PORTS, 100):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError(errno.EADDRINUSE, f"no free port was found between {_PORTS[0]} and {_PORTS[-1]}")


def write_config(path: Path, sections: Mapping[str, Mapping[str, Any]]) -> None:
    """A TOML file with the given sections; readable by its owner only, for it holds a token."""
    lines: list[str] = []
    for section, values in sections.items():
        lines += [f"[{section}]", *(f"{name} = {toml(value)}" for name, value in values.items()), ""]
    path.touch(mode=0o600)
    path.write_text("\n".join(lines), "utf-8")


@contextlib.asynccontextmanager
async def run_node(
    directory: Path, name: str, sections: Mapping[str, Mapping[str, Any]], *, port: int, token_id: str, token: str
) -> AsyncIterator[DemoNode]:
    """A node that is ready, until the scope ends; then it is told to stop, and waited for.

    Args: directory: an existing one, for its volumes, journal, configuration and log; sections: settings beside those
    of identity, address and places.
    Raises NodeFailed.
    """
    volumes, state, config, log = _places(directory)
    own: dict[str, dict[str, Any]] = {
        "node": {"id": name, "token_id": token_id, "token": token},
        "api": {"host": "127.0.0.1", "port": port, "public_url": f"http://127.0.0.1:{port}"},
        "servers": {"volumes": volumes},
        "state": {"dir": state},
    }
    write_config(config, own | dict(sections))
    # settings of the caller's own environment must not reach the demo
    environ = {name: value for name, value in os.environ.items() if not name.startswith("SIDECAR_")}
    with _opened(log) as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "sidecar", "serve", "--config", str(config)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=asyncio.subprocess.STDOUT,
            env=environ,
            start_new_session=True,  # Ctrl-C reaches the demo alone, which ends the node
        )
    try:
        url = f"http://127.0.0.1:{port}"
        await _wait_ready(process, url, name, log)
        yield DemoNode(name=name, url=url, token_id=token_id, token=token, volumes=volumes, log=log, process=process)
    finally:
        await end_process(process, _STOP_S)


def _places(directory: Path) -> tuple[Path, Path, Path, Path]:
    volumes, state = directory / "volumes", directory / "state"
    volumes.mkdir(exist_ok=True)
    state.mkdir(mode=0o700, exist_ok=True)
    return volumes, state, directory / "sidecar.toml", directory / "node.log"


@contextlib.contextmanager
def _opened(log: Path) -> Any:
    with log.open("ab") as output:
        yield output


async def _wait_ready(process: asyncio.subprocess.Process, url: str, name: str, log: Path) -> None:
    last = "no answer"
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_READY_S), httpx.AsyncClient(timeout=2.0, trust_env=False) as client:
            while process.returncode is None:
                with contextlib.suppress(httpx.HTTPError):
                    response = await client.get(f"{url}/readyz")
                    if response.status_code == 200:
                        return
                    last = f"/readyz answered {response.status_code}: {response.text[:300]}"
                await asyncio.sleep(_POLL_S)
            last = f"it ended with exit code {process.returncode}"
    raise NodeFailed(f"{name} does not get ready ({last})\n{_tail(log)}")


def _tail(log: Path) -> str:
    with contextlib.suppress(OSError):
        return "\n".join(log.read_text("utf-8", "replace").splitlines()[-_SHOWN_LOG_LINES:])
    return ""
