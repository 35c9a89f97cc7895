"""Hides what the destination is: a TCP relay that answers the probe with 404 and passes everything else on.

A source asks `GET /api/transfers/sidecar` first, and what answers 404 is a stranger that gets the stranger's archive.
The relay is a process of its own, so that what it costs is in nobody's figures; bytes are spliced inside the kernel.

    python -m integration.bench.relay LISTENER_FD HOST PORT
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import sys
import threading
from typing import Final

_PROBE: Final = b"GET /api/transfers/sidecar "
_NOT_FOUND: Final = b"HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\nConnection: close\r\n\r\nnot found"
_PIPE_BYTES: Final = 1 << 20


def serve(listener: socket.socket, destination: tuple[str, int]) -> None:
    """Accept for ever. A connection that breaks on one side is broken on the other."""
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_relay, args=(connection, destination), daemon=True).start()


def _relay(caller: socket.socket, destination: tuple[str, int]) -> None:
    with caller, contextlib.suppress(OSError):
        if _is_probe(caller):
            caller.sendall(_NOT_FOUND)
            return
        with socket.create_connection(destination) as callee:
            back = threading.Thread(target=_pump, args=(callee, caller), daemon=True)
            back.start()
            _pump(caller, callee)
            back.join()


def _is_probe(caller: socket.socket) -> bool:
    """Looks without taking: what is no probe is passed on from its first byte."""
    seen = b""
    while len(seen) < len(_PROBE) and _PROBE.startswith(seen):
        before = len(seen)
        seen = caller.recv(len(_PROBE), socket.MSG_PEEK)
        if len(seen) == before:  # nothing new: the caller ended, or sends byte by byte, which no probe does
            return False
    return seen.startswith(_PROBE)


def _pump(source: socket.socket, target: socket.socket) -> None:
    reader, writer = os.pipe()
    try:
        with contextlib.suppress(OSError):
            fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        while count := os.splice(source.fileno(), writer, _PIPE_BYTES):
            while count:
                count -= os.splice(reader, target.fileno(), count)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
    finally:
        os.close(reader)
        os.close(writer)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as inherited, contextlib.suppress(KeyboardInterrupt):
        serve(inherited, (sys.argv[2], int(sys.argv[3])))
