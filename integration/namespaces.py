"""Two hosts in one machine: network namespaces joined by a virtual cable, which can be pulled.

The addresses are of the documentation's network (RFC 5737) and exist inside the namespaces only. What runs in the
tests' own namespace reaches a host, and is reached from it, through sockets that were made inside: a socket belongs for
ever to the namespace of the thread that made it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

import msgspec

from integration.link import loopback_listener, relay

T = TypeVar("T")

_CLONE_NEWNET: Final = 0x40000000
_NAMES: Final = Path("/run/netns")
_CALL_S: Final = 10.0


class NoNamespaces(Exception):
    """Why there are none; one line for a person."""


class Host(msgspec.Struct, frozen=True):
    """One end of the cable."""

    name: str
    address: str
    interface: str

    @property
    def within(self) -> tuple[str, ...]:
        """What a command line that is to run there begins with."""
        return (_ip(), "netns", "exec", self.name)

    def pull_cable(self) -> None:
        _run(_ip(), "-n", self.name, "link", "set", self.interface, "down")

    def plug_in(self) -> None:
        _run(_ip(), "-n", self.name, "link", "set", self.interface, "up")

    def inside(self, make: Callable[[], T]) -> T:
        """What `make` returns when it runs inside."""
        with ThreadPoolExecutor(1) as thread:  # its only thread stays inside, and ends
            return thread.submit(self._enter, make).result()

    def _enter(self, make: Callable[[], T]) -> T:
        libc = ctypes.CDLL(None, use_errno=True)
        with (_NAMES / self.name).open("rb") as namespace:
            if libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return make()


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Raises NoNamespaces."""
    if os.geteuid() != 0 or not _ip():
        raise NoNamespaces("network namespaces take root and iproute2")
    tag = uuid4().hex[:6]
    hosts = (Host(f"sidecar-{tag}-a", "192.0.2.1", "cable"), Host(f"sidecar-{tag}-b", "192.0.2.2", "cable"))
    with contextlib.ExitStack() as stack:
        for host in hosts:
            try:
                _run(_ip(), "netns", "add", host.name)
            except subprocess.CalledProcessError as refused:
                raise NoNamespaces(f"this kernel gives no network namespaces: {refused.stderr.strip()}") from None
            stack.callback(_run, _ip(), "netns", "delete", host.name)
        first, second = hosts
        # both ends are born inside, so nothing of it is ever seen outside
        _run(
            *(_ip(), "-n", first.name, "link", "add", "cable", "type", "veth"),
            *("peer", "name", "cable", "netns", second.name),
        )
        for host in hosts:
            _run(_ip(), "-n", host.name, "address", "add", f"{host.address}/24", "dev", "cable")
            for interface in ("lo", "cable"):
                _run(_ip(), "-n", host.name, "link", "set", interface, "up")
        yield hosts


@contextlib.asynccontextmanager
async def door_in(host: Host, port: int) -> AsyncIterator[str]:
    """A URL here that leads to a port of the host."""

    async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        inside = await asyncio.to_thread(host.inside, _tcp)
        try:
            async with asyncio.timeout(_CALL_S):
                await asyncio.get_running_loop().sock_connect(inside, (host.address, port))
            return await asyncio.open_connection(sock=inside)
        except BaseException:
            inside.close()
            raise

    async with relay(loopback_listener(), connect) as link:
        yield link.url


@contextlib.asynccontextmanager
async def door_out(host: Host, url: str) -> AsyncIterator[str]:
    """A URL inside the host that leads to a loopback URL here."""
    port = urlsplit(url).port
    listener = await asyncio.to_thread(host.inside, loopback_listener)
    async with relay(listener, partial(asyncio.open_connection, "127.0.0.1", port)) as link:
        yield link.url


def _tcp() -> socket.socket:
    made = socket.socket()
    made.setblocking(False)
    return made


def _ip() -> str:
    return shutil.which("ip", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin") or ""


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
