"""What a type cannot say: settings that are missing, that contradict each other, or that work but deserve a word."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from sidecar.settings.values import Nats, Settings

_PANEL_WAITS_S: Final = 15  # panels give up a request to a node after this
_HOST: Final = re.compile(r"[A-Za-z0-9*?_.-]+")
_ORIGIN: Final = re.compile(r"(?:https?|\*)://(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9*?_.-]+)(?::(?:[0-9]{1,5}|\*))?")


def contradictions(settings: Settings) -> Iterator[tuple[str, str]]:
    """(path, what is wrong) for every value that cannot be used together with the others, or at all."""
    yield from _node(settings)
    yield from _addresses(settings)
    yield from _pairs(settings)
    yield from _places(settings)


def _node(settings: Settings) -> Iterator[tuple[str, str]]:
    if not settings.node.id:
        yield "node.id", "it must be set (or made from node.name, or taken from a Wings file)"
    if settings.node.id == "_all":
        yield "node.id", "_all is no node: on the bus it means every one"
    if not settings.node.token:
        yield "node.token", "it must be set (or taken from a Wings file, or from node.token_file)"
    if settings.panel.url and not settings.node.token_id:
        yield "node.token_id", "it must be set where panel.url is: the panel is called with it"


def _addresses(settings: Settings) -> Iterator[tuple[str, str]]:
    if settings.panel.url and (wrong := _wrong_url(settings.panel.url, ("http", "https"))):
        yield "panel.url", wrong
    if settings.api.public_url and (wrong := _wrong_url(settings.api.public_url, ("http", "https"))):
        yield "api.public_url", wrong
    if settings.daemon.url and (wrong := _wrong_url(settings.daemon.url, ("http", "https"))):
        yield "daemon.url", wrong
    if settings.daemon.url and not settings.panel.url:
        yield "panel.url", "it must be set where daemon.url is: a node daemon lives with a panel"
    if settings.api.front and not settings.daemon.url:
        yield "api.front", "there is no daemon.url to pass anything through to"
    yield from _bus(settings.nats)
    host = settings.containers.host
    if not re.fullmatch(r"unix:///.+|tcp://[^/@\s]+:[0-9]{1,5}", host):
        yield "containers.host", "it must be unix:///path/of/the.sock or tcp://host:port"
    for origin in settings.api.allowed_origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            yield "api.allowed_origins", f"{origin!r} is not an origin such as https://panel.example.com, and not *"
    for pattern in settings.transfer.allowed_destinations:
        if not _is_destination(pattern):
            yield (
                "transfer.allowed_destinations",
                f"{pattern!r} is not a host, a network (10.0.0.0/8) or an origin (https://node-*.example.com:8080)",
            )


def _bus(nats: Nats) -> Iterator[tuple[str, str]]:
    urls = nats.urls
    for url in urls:
        if wrong := _wrong_url(url, ("nats", "tls")):
            yield "nats.url", wrong
            return
    schemes = {urlsplit(url).scheme for url in urls}
    if len(schemes) > 1:
        yield "nats.url", "servers with TLS (tls://) and without (nats://) must not be mixed"
    elif schemes == {"nats"} and (nats.tls_ca or nats.tls_cert):
        yield "nats.url", "it must begin with tls:// where nats.tls_ca or nats.tls_cert is set"


def _wrong_url(url: str, schemes: tuple[str, ...]) -> str | None:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return "it is not a URL"
    if parts.username is not None or parts.password is not None:
        return "it must not hold a user or a password; there are settings for them"  # and the URL is logged
    if parts.scheme not in schemes or not parts.hostname:
        return f"it must be a URL that begins with {', '.join(f'{scheme}://' for scheme in schemes)}"
    if parts.query or parts.fragment:
        return "it must not have a query or a fragment"
    return None


def _is_destination(pattern: str) -> bool:
    if "://" in pattern:
        return _ORIGIN.fullmatch(pattern) is not None
    if "/" in pattern or ":" in pattern:
        try:
            ipaddress.ip_network(pattern.strip("[]"))
        except ValueError:
            return False
        return True
    return _HOST.fullmatch(pattern) is not None


def bus_contradictions(nats: Nats) -> Iterator[tuple[str, str]]:
    """As `contradictions`, of the section `[nats]` alone."""
    yield from _bus(nats)
    yield from _certificate("nats", nats.tls_cert, nats.tls_key)
    yield from _login(nats)


def _pairs(settings: Settings) -> Iterator[tuple[str, str]]:
    yield from _certificate("api", settings.api.tls_cert, settings.api.tls_key)
    yield from _certificate("nats", settings.nats.tls_cert, settings.nats.tls_key)
    yield from _login(settings.nats)


def _certificate(section: str, cert: Path | None, key: Path | None) -> Iterator[tuple[str, str]]:
    if (cert is None) != (key is None):
        missing, given = ("tls_key", "tls_cert") if key is None else ("tls_cert", "tls_key")
        yield f"{section}.{missing}", f"it must be set together with {section}.{given}"


def _login(nats: Nats) -> Iterator[tuple[str, str]]:
    if bool(nats.user) != bool(nats.password):
        missing, given = ("password", "user") if nats.user else ("user", "password")
        yield f"nats.{missing}", f"it must be set together with nats.{given}"
    ways = {"token": nats.token, "user": nats.user, "creds": nats.creds, "nkey_seed": nats.nkey_seed}
    given_ways = [name for name, value in ways.items() if value]
    if len(given_ways) > 1:
        yield f"nats.{given_ways[1]}", f"one way to log in is enough, and nats.{given_ways[0]} is set as well"


def _places(settings: Settings) -> Iterator[tuple[str, str]]:
    volumes, state = settings.servers.volumes, settings.state.dir
    if volumes == volumes.parent:
        yield "servers.volumes", "it must be a directory of its own"
    elif state == volumes or volumes in state.parents:
        yield "state.dir", "it must not be inside servers.volumes, where it would be taken for a server"
    for name, path in (("backups", settings.servers.backups), ("install_logs", settings.servers.install_logs)):
        if path is not None and (path == volumes or volumes in path.parents):
            yield f"servers.{name}", "it must not be inside servers.volumes, where it would be taken for a server"
    if settings.servers.backups is not None and settings.servers.backups == settings.servers.install_logs:
        yield "servers.install_logs", "it must be another directory than servers.backups"
    seen: dict[object, str] = {}
    for uuid, override in settings.servers.named.items():
        for name, value in (("volume", override.volume), ("container", override.container)):
            if value and (name, value) in seen:
                yield f"servers.{uuid}.{name}", f"it is the {name} of {seen[name, value]} as well"
            elif value:
                seen[name, value] = uuid


def remarks(settings: Settings) -> Iterator[str]:
    """What works but deserves a word in the log at start. Looks at the disk."""
    if not settings.servers.volumes.is_dir():
        yield f"servers.volumes: {settings.servers.volumes} is not a directory (yet)"
    for name, path in (("backups", settings.servers.backups), ("install_logs", settings.servers.install_logs)):
        if path is not None and not path.parent.is_dir():
            yield f"servers.{name}: {path.parent} is not a directory (yet); transfers that bring such files will fail"
    if settings.containers.stop_timeout_s > _PANEL_WAITS_S and not settings.transfer.respond_async:
        yield (
            f"containers.stop_timeout_s: panels give up a request after {_PANEL_WAITS_S} s, and a caller that hangs up "
            "before the server has stopped cancels the transfer; set transfer.respond_async with a longer time"
        )
    if settings.api.tls_cert is None and not _is_loopback(settings.api.host):
        yield "api.tls_cert: this node answers on the network without TLS; tokens and worlds can be read on the way"
    if settings.containers.host.startswith("tcp://"):
        yield "containers.host: whoever reaches that port is root on the engine's machine"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
