"""A certificate that is renewed while the server runs.

Certificates last weeks, servers months, and whoever renews the files (certbot, a cron job of the node daemon) does not
know about us. So at each handshake the two files are looked at (two `stat`, no timer and no task), and where they
changed a new context is made and given to that handshake and all later ones. Connections that stand keep the old one.

The pair is loaded into a context of its own before it is used: a half-written renewal (new certificate, old key) or a
file that cannot be read leaves the old pair in use, and is tried again when the files change again.

Source: Python's `ssl.SSLContext.sni_callback`, which OpenSSL calls in every handshake, with or without a server name.
"""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

_log = logging.getLogger(__name__)

_Signature = tuple[tuple[int, int, int], ...]


class RenewedCertificate:
    """Keeps what a listening context presents equal to two files. Args: cert, key: PEM; the key may be in `cert`."""

    def __init__(self, cert: Path, key: Path | None) -> None:
        self._cert = cert
        self._key = key
        self._seen = self._signature()
        self._renewed: ssl.SSLContext | None = None

    def follow(self, context: ssl.SSLContext) -> None:
        """Make `context`, which has the files loaded as they were at construction or later, present renewed ones."""
        context.sni_callback = self._choose

    def _choose(self, connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, context: ssl.SSLContext) -> None:
        self._look(context)
        if self._renewed is not None:
            connection.context = self._renewed

    def _look(self, context: ssl.SSLContext) -> None:
        try:
            found = self._signature()
        except OSError as error:  # between the removal of the old file and the renaming of the new one
            _log.warning("the TLS certificate cannot be looked at, the one in use stays: %s", error)
            return
        if found == self._seen:
            return
        self._seen = found
        fresh = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        fresh.minimum_version = context.minimum_version
        try:
            fresh.load_cert_chain(self._cert, self._key)
        except (OSError, ssl.SSLError) as error:
            _log.error("the renewed TLS certificate cannot be used, the one in use stays: %s", error)
            return
        self._renewed = fresh
        _log.info("the TLS certificate %s was renewed and is in use", self._cert)

    def _signature(self) -> _Signature:
        """What changes with a renewal, in place or by rename. Raises OSError."""
        stats = [path.stat() for path in (self._cert, self._key) if path is not None]
        return tuple((stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in stats)
