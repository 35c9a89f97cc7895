"""A blocking connection that another thread can cut at any moment.

`shutdown()` from another thread would end the stream politely, behind what is queued; `close()` from another thread
leaves a poll of a descriptor that somebody else may open next. So each system call is short and non-blocking and made
under a lock, and the waiting happens outside it, on the socket and on an eventfd: `cut` closes the socket under the
lock (RST) and wakes the waiter, which finds out under the lock that its socket is gone.

Linux only (eventfd), as the rest of the program.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Sequence
from typing import Final

from sidecar.errors import PeerFailed
from sidecar.wire.destination import Target

RECEIVE_BYTES: Final = 64 << 10
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
_KEEPALIVE: Final = (  # an answer may take as long as an image pull; a dead peer is noticed within two minutes
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 6),
)


class Line:
    """One connection to a checked target. One thread uses it; any thread may `cut` it."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._wake = -1
        self._waiting = False
        self._gone = False
        self._send_needs = select.POLLOUT
        self._receive_needs = select.POLLIN

    @property
    def is_tls(self) -> bool:
        return self._target.scheme == "https"

    def open(self, connect_timeout_s: float, context: ssl.SSLContext | None) -> None:
        """Connect to the first address that takes the connection, at most `connect_timeout_s` for each and for TLS.

        Raises PeerFailed (`peer.refused`, `peer.unreachable`, `peer.tls`, `peer.reset` when cut).
        """
        failures: list[OSError] = []
        for address in self._target.addresses:
            try:
                self._connect(address, connect_timeout_s)
                break
            except OSError as error:
                self._drop()
                failures.append(error)
        else:
            raise self._unconnected(failures)
        if self.is_tls:
            self._start_tls(connect_timeout_s, context if context is not None else ssl.create_default_context())

    def send_some(self, buffers: Sequence[bytes | memoryview]) -> int:
        """Send what fits, in order, without copying. Returns the number of bytes taken, 0 if it would block.

        Raises PeerFailed (`peer.reset`).
        """
        with self._lock:
            sock = self._checked()
            try:
                taken = sock.send(buffers[0]) if isinstance(sock, ssl.SSLSocket) else sock.sendmsg(buffers)
            except (BlockingIOError, ssl.SSLWantWriteError):
                self._send_needs = select.POLLOUT
                return 0
            except ssl.SSLWantReadError:
                self._send_needs = select.POLLIN
                return 0
            except OSError as error:
                raise self._broken() from error
            return taken

    def receive_some(self) -> bytes | None:
        """What has arrived, at most `RECEIVE_BYTES`; None if nothing has, empty at the peer's end.

        Raises PeerFailed (`peer.reset`).
        """
        with self._lock:
            sock = self._checked()
            try:
                return sock.recv(RECEIVE_BYTES)
            except (BlockingIOError, ssl.SSLWantReadError):
                self._receive_needs = select.POLLIN
                return None
            except ssl.SSLWantWriteError:
                self._receive_needs = select.POLLOUT
                return None
            except OSError as error:
                raise self._broken() from error

    def wait(self, timeout_s: float, *, to_send: bool) -> bool:
        """Wait until there may be something to receive or, with `to_send`, room to send. False after `timeout_s`.

        Raises PeerFailed (`peer.reset`) when cut.
        """
        with self._lock:
            sock = self._checked()
            poll = select.poll()
            poll.register(sock, self._receive_needs | (self._send_needs if to_send else 0))
            poll.register(self._wake, select.POLLIN)
            self._waiting = True
        try:
            ready = poll.poll(max(0.0, timeout_s) * 1000)
        finally:
            with self._lock:
                self._waiting = False
                if self._gone:
                    self._close_wake()
        with self._lock:
            self._checked()
        return bool(ready)

    def cut(self) -> None:
        """Close with RST, from any thread. What waits in the other thread raises `peer.reset`. Idempotent."""
        self._end(reset=True)

    def close(self) -> None:
        """Close politely. Idempotent."""
        self._end(reset=False)

    def _end(self, *, reset: bool) -> None:
        with self._lock:
            if self._gone:
                return
            self._gone = True
            if self._socket is not None:
                if reset:
                    with contextlib.suppress(OSError):  # broken already
                        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                self._socket.close()
                self._socket = None
            if self._waiting:
                os.eventfd_write(self._wake, 1)
            else:
                self._close_wake()

    def _close_wake(self) -> None:
        if self._wake >= 0:
            os.close(self._wake)
            self._wake = -1

    def _checked(self) -> socket.socket:
        if self._gone or self._socket is None:
            raise PeerFailed("peer.reset", "the connection was cut by this node")
        return self._socket

    def _broken(self) -> PeerFailed:
        return PeerFailed("peer.reset", f"the connection to {self._target.origin} broke", peer=self._target.origin)

    def _connect(self, address: str, timeout_s: float) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        with self._lock:
            if self._gone:
                sock.close()
                self._checked()
            self._socket = sock
            if self._wake < 0:
                self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for level, option, value in _KEEPALIVE:
                sock.setsockopt(level, option, value)
            try:
                sock.connect((address, self._target.port))
            except BlockingIOError:
                pass
            else:
                return
        if not self.wait(timeout_s, to_send=True):
            raise TimeoutError(f"no answer from {address}")
        with self._lock:
            code = self._checked().getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))

    def _drop(self) -> None:
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None

    def _unconnected(self, failures: list[OSError]) -> PeerFailed:
        origin = self._target.origin
        self.cut()
        if any(isinstance(failure, ConnectionRefusedError) for failure in failures):
            failed = PeerFailed("peer.refused", f"{origin} refuses connections", peer=origin)
        elif any(isinstance(failure, ConnectionResetError) for failure in failures):
            failed = self._broken()  # it was accepted, and closed before we knew
        else:
            failed = PeerFailed("peer.unreachable", f"{origin} cannot be reached", peer=origin)
        failed.__cause__ = failures[-1] if failures else None
        return failed

    def _start_tls(self, timeout_s: float, context: ssl.SSLContext) -> None:
        origin = self._target.origin
        deadline = time.monotonic() + timeout_s
        try:
            with self._lock:
                sock = context.wrap_socket(
                    self._checked(), server_hostname=self._target.host.rstrip("."), do_handshake_on_connect=False
                )
                self._socket = sock
            while True:
                try:
                    with self._lock:
                        self._checked()
                        sock.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    self._receive_needs = select.POLLIN
                except ssl.SSLWantWriteError:
                    self._receive_needs = select.POLLOUT
                if not self.wait(deadline - time.monotonic(), to_send=False):
                    raise PeerFailed("peer.tls", f"{origin} does not answer the TLS handshake", peer=origin)
            self._receive_needs = select.POLLIN
        except ssl.SSLError as error:
            self.cut()
            reason = error.verify_message if isinstance(error, ssl.SSLCertVerificationError) else error.reason
            raise PeerFailed("peer.tls", f"TLS with {origin} failed: {reason}", peer=origin) from error
        except OSError as error:
            self.cut()
            raise self._broken() from error
        except PeerFailed:
            self.cut()
            raise
