"""Noticing that a peer hung up without reading a byte from it.

A transport that does not read (paused by back-pressure, an upload waiting for its admission, a request behind another)
is deaf: asyncio notices neither FIN nor RST then, and reading on only to listen would take bytes that nobody has room
for. Linux tells the two apart: EPOLLRDHUP and EPOLLHUP are reported for a socket whether or not its bytes are wanted.
One epoll set per server watches all connections, and asyncio watches that set.

Limit: a FIN behind bytes that do not fit into this host's receive buffer is on its way, not here; it is noticed once
the bytes are taken. A peer that dies silently is noticed by whoever waits for its bytes (stall watchdog).

Memory: one descriptor per server, one entry per connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
from collections.abc import Callable
from typing import Final

_HANGUP: Final = select.EPOLLRDHUP | select.EPOLLONESHOT  # HUP and ERR are always reported


class HangupWatch:
    """Calls back, once, in the event loop, when a watched socket's peer hung up."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[], None]] = {}
        loop.add_reader(self._epoll.fileno(), self._look)

    def add(self, fd: int, callback: Callable[[], None]) -> None:
        """Watch `fd` until `remove(fd)`, which has to come before the descriptor is closed."""
        self._callbacks[fd] = callback
        self._epoll.register(fd, _HANGUP)

    def remove(self, fd: int) -> None:
        if self._callbacks.pop(fd, None) is not None and not self._epoll.closed:
            with contextlib.suppress(OSError):
                self._epoll.unregister(fd)

    def close(self) -> None:
        """Stop watching everything."""
        self._callbacks.clear()
        if not self._epoll.closed:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()

    def _look(self) -> None:
        for fd, _ in self._epoll.poll(0):
            callback = self._callbacks.get(fd)
            if callback is not None:
                callback()


def has_hung_up(fd: int) -> bool:
    """Whether the peer of this socket has closed or reset the connection, as far as this host knows right now."""
    poll = select.poll()
    poll.register(fd, select.POLLRDHUP)
    return bool(poll.poll(0))
