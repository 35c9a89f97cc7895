"""Docker engines of the tests' own: one for each node, as on two machines.

An engine of a node knows only its node's containers, so both nodes can call a server's container by its UUID, as
daemons do. The engines need neither a bridge nor iptables; their containers have the machine's network, bound to
127.0.0.x. Where no engine can be started, one that answers is shared, and containers of the first node get other
names.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import docker
import msgspec
import requests

START_S: Final = 30.0
STOP_S: Final = 20.0
POLL_S: Final = 0.05
# the second way needs no overlay filesystem, as inside a container
STORAGE: Final[tuple[tuple[str, ...], ...]] = ((), ("--storage-driver=vfs",))


class NoEngine(Exception):
    """Why there is none; one line for a person."""


class Engine(msgspec.Struct, frozen=True):
    """An engine that answers."""

    url: str
    client: Any  # docker.DockerClient


class Engines(msgspec.Struct, frozen=True):
    """That of the first and of the second node; the same one where `is_shared`."""

    first: Engine
    second: Engine
    is_shared: bool

    @property
    def all(self) -> tuple[Engine, ...]:
        return (self.first,) if self.is_shared else (self.first, self.second)


@contextlib.contextmanager
def two_engines(directory: Path) -> Iterator[Engines]:
    """Raises NoEngine. `directory`: a short path, because a socket's has at most 107 bytes."""
    with contextlib.ExitStack() as stack:
        try:
            started = [stack.enter_context(_own_engine(directory / name)) for name in ("a", "b")]
        except NoEngine as why:
            stack.close()
            try:
                shared = stack.enter_context(_answering_engine())
            except NoEngine as other:
                raise NoEngine(f"{why}, and {other}") from None
            print(f"both nodes share one Docker engine: {why}")
            yield Engines(shared, shared, is_shared=True)
            return
        yield Engines(started[0], started[1], is_shared=False)


@contextlib.contextmanager
def _own_engine(directory: Path) -> Iterator[Engine]:
    program = shutil.which("dockerd", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if os.geteuid() != 0 or program is None:
        raise NoEngine("no Docker engine can be started (it takes root and dockerd)")
    why = ""
    for storage in STORAGE:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(
                [
                    program,
                    *("--data-root", str(directory / "data"), "--exec-root", str(directory / "exec")),
                    *("--pidfile", str(directory / "pid"), "--host", f"unix://{directory}/socket"),
                    *("--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false"),
                    *storage,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            client = _wait_answer(process, f"unix://{directory}/socket")
            if client is not None:
                try:
                    yield Engine(f"unix://{directory}/socket", client)
                finally:
                    client.close()
                return
            why = (directory / "log").read_text("utf-8", "replace").strip().rpartition("\n")[2][-300:]
        finally:
            _end(process)
            _unmount_all(directory)
    raise NoEngine(f"dockerd does not start: {why}")


def _wait_answer(process: subprocess.Popen[bytes], url: str) -> Any:
    deadline = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        if (client := _client(url)) is not None:
            return client
        time.sleep(POLL_S)
    return None


def _end(process: subprocess.Popen[bytes]) -> None:
    """By its own id: TERM ends its containers, too."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
            return
        process.kill()
        process.wait()


def _unmount_all(directory: Path) -> None:
    """An engine leaves the mount of its containers' first network namespace behind."""
    # the fifth word is the mount point, with blanks as octal numbers; a temporary directory's name has none
    mounted = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text("utf-8").splitlines()]
    for place in sorted((place for place in mounted if Path(place).is_relative_to(directory)), reverse=True):
        subprocess.run(["umount", "--lazy", place], check=False, capture_output=True)


@contextlib.contextmanager
def _answering_engine() -> Iterator[Engine]:
    url = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    client = _client(url) if url.startswith("unix://") else None
    if client is None:
        raise NoEngine(f"none answers on {url}")
    try:
        yield Engine(url, client)
    finally:
        client.close()


def _client(url: str) -> Any:
    """A client of an engine that answers, else None; the SDK leaves its own socket open where nobody listens."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(url.removeprefix("unix://"))
        except OSError:
            return None
    client = docker.DockerClient(base_url=url, timeout=60)
    try:
        client.ping()
    except (docker.errors.DockerException, requests.exceptions.RequestException, OSError):
        client.close()
        return None
    return client
