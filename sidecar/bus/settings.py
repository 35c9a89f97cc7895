"""How to reach the broker, and what is refused about it.

`tls://` means TLS before the first byte: the client library would otherwise read the server's greeting in plaintext,
believe it when it says that TLS is not needed, and send the password in the clear. So with `tls` in use the handshake
comes first, which the broker has to allow (`tls { handshake_first: auto }`), and a plaintext broker is an error.
"""

from __future__ import annotations

import re
import ssl
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import msgspec

from sidecar.errors import HostFailed
from sidecar.settings.values import Nats

_SCHEMES = ("nats", "tls")


class BusSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One account on one broker or cluster. Raises HostFailed (`settings.invalid`) on construction."""

    urls: tuple[str, ...]
    name: str = "transfer-sidecar"
    inbox_prefix: str = "_INBOX"  # `_INBOX_<node>` where the broker grants each node its own
    user: str | None = None
    password: str | None = None
    token: str | None = None
    creds_file: Path | None = None  # JWT and seed, as `nsc` writes them
    nkey_seed: str | None = None
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    connect_s: float = 5.0
    ping_s: float = 10.0  # a dead connection is noticed within three of these
    retry_min_s: float = 0.25
    retry_max_s: float = 10.0
    drain_s: float = 5.0

    def __post_init__(self) -> None:
        if not self.urls:
            raise HostFailed("settings.invalid", "The bus has no URL.", field="nats.url")
        for url in self.urls:
            try:
                parts = urlsplit(url)
                is_usable = parts.scheme in _SCHEMES and bool(parts.hostname) and (parts.port or 4222) > 0
            except ValueError:
                is_usable = False
            if not is_usable:
                raise HostFailed("settings.invalid", "A bus URL is not nats://host:port or tls://host:port.")
        if len({urlsplit(url).scheme for url in self.urls}) > 1:
            raise HostFailed("settings.invalid", "Bus URLs with and without TLS are mixed.", field="nats.url")
        if not self.uses_tls and (self.tls_ca or self.tls_cert):
            raise HostFailed("settings.invalid", "Bus TLS files are set, but its URL is not tls://.", field="nats.url")

    @classmethod
    def of(cls, nats: Nats, *, name: str, inbox_prefix: str) -> Self:
        """Args: name: what the broker shows; inbox_prefix: where the settings have none."""
        return cls(
            urls=nats.urls,
            name=name,
            inbox_prefix=nats.inbox_prefix or inbox_prefix,
            user=nats.user or None,
            password=nats.password.reveal() or None,
            token=nats.token.reveal() or None,
            creds_file=nats.creds,
            nkey_seed=nats.nkey_seed.reveal() or None,
            tls_ca=nats.tls_ca,
            tls_cert=nats.tls_cert,
            tls_key=nats.tls_key,
        )

    @classmethod
    def of_user(cls, nats: Nats, *, name: str) -> Self:
        """For a program that is no node: answers come on `_INBOX_<user>`, which is what its user may hear."""
        is_token = re.fullmatch(r"[A-Za-z0-9_-]+", nats.user) is not None
        return cls.of(nats, name=name, inbox_prefix=f"_INBOX_{nats.user}" if is_token else "_INBOX")

    def __repr__(self) -> str:
        return f"BusSettings(urls={self.shown_urls!r}, name={self.name!r})"

    @property
    def uses_tls(self) -> bool:
        return urlsplit(self.urls[0]).scheme == "tls"

    @property
    def shown_urls(self) -> str:
        """The URLs without user and password, for logs."""
        shown = []
        for url in self.urls:
            parts = urlsplit(url)
            shown.append(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}")
        return ",".join(shown)

    def connect_options(self) -> dict[str, Any]:
        """The client library's options for one connection that does not repair itself: `connection.py` does that.

        Raises HostFailed (`settings.invalid`) for TLS files that cannot be read.
        """
        options: dict[str, Any] = {
            "servers": list(self.urls),
            "name": self.name,
            "inbox_prefix": self.inbox_prefix,
            "allow_reconnect": False,
            "max_reconnect_attempts": 1,
            "reconnect_time_wait": 0,
            "connect_timeout": self.connect_s,
            "ping_interval": self.ping_s,
            "max_outstanding_pings": 2,
            "pending_size": 0,
            "drain_timeout": self.drain_s,
            "user": self.user,
            "password": self.password,
            "token": self.token,
            "user_credentials": str(self.creds_file) if self.creds_file else None,
            "nkeys_seed_str": self.nkey_seed,
        }
        if self.uses_tls:
            options["tls"] = self._tls_context()
            options["tls_handshake_first"] = True
        return options

    def _tls_context(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=str(self.tls_ca) if self.tls_ca else None)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            if self.tls_cert:
                context.load_cert_chain(self.tls_cert, self.tls_key)
        except (OSError, ssl.SSLError) as error:
            raise HostFailed("settings.invalid", f"A TLS file of the bus cannot be used: {error}.") from error
        return context
