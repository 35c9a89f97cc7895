"""A destination that does what a test's script says, on a raw socket."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
from collections.abc import Callable, Iterator

from tests.wire.serving import WAIT_S, read_all, reset

Script = Callable[[socket.socket], None]
__all__ = ["WAIT_S", "Scripted", "answering", "read_all", "read_to_end", "reset", "scripted"]


class Scripted:
    """What the script's server is reached by, and what it noted."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/api/transfers"
        self.noted: queue.Queue[bytes] = queue.Queue()


@contextlib.contextmanager
def scripted(script: Script, *, receive_buffer: int | None = None) -> Iterator[Scripted]:
    """Takes one connection and runs the script on it; the connection is closed after it."""
    with socket.socket() as listener:
        if receive_buffer is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(WAIT_S)
        server = Scripted(listener.getsockname()[1])
        failures: list[BaseException] = []

        def run() -> None:
            try:
                client, _ = listener.accept()
                client.settimeout(WAIT_S)
                with client:
                    script(client)
            except BaseException as error:  # noqa: BLE001  (raised again below, in the test's thread)
                failures.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield server
        finally:
            thread.join(WAIT_S)
        if failures:
            raise failures[0]


def read_to_end(client: socket.socket) -> bytes:
    """A whole chunked request."""
    received = bytearray()
    while not received.endswith(b"\r\n0\r\n\r\n"):
        data = client.recv(1 << 20)
        assert data, bytes(received[-200:])
        received += data
    return bytes(received)


def answering(response: bytes, *, after_bytes: int | None = None) -> Script:
    """Answer after the whole request, or after that many bytes of it, and then read on until the client is gone."""

    def script(client: socket.socket) -> None:
        if after_bytes is None:
            read_to_end(client)
        else:
            left = after_bytes
            while left > 0:
                left -= len(client.recv(min(left, 1 << 20)))
        client.sendall(response)
        with contextlib.suppress(ConnectionError):
            while client.recv(1 << 20):
                pass

    return script
