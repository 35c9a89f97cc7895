"""Where an upload may go: the URL of a request, checked, with the addresses that were checked.

The panel names the destination, but a panel's database can be wrong or taken over, and this node stands inside a
network that has more to offer than game servers: cloud metadata services hand out credentials to whoever asks. So
link-local and metadata addresses are refused whatever the settings say, and a host name is resolved once: the
connection is made to an address that passed, never to a second answer of the same name (DNS rebinding).

An entry of the allowed list is a host (`node2.example.com`, `*.example.com`), a network (`10.0.0.0/8`), an address, or
an origin (`https://node2.example.com:8080`, `http://127.0.0.1:*`). An empty list allows any other destination.
"""

from __future__ import annotations

import fnmatch
import ipaddress
import re
import socket
from collections.abc import Callable, Sequence
from typing import Final
from urllib.parse import urlsplit

import msgspec

from sidecar.errors import HostFailed, PeerFailed, Refused

URL_CHARS: Final = 2048
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_ORIGIN: Final = re.compile(r"(https?|\*)://(\[[^\[\]]*\]|[^\[\]/:]+)(?::([0-9]{1,5}|\*))?/?")
_HOST: Final = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*\.?")
_URL: Final = re.compile(r"[^\x00-\x20\x7f\\<>\"{}|^`]+")
_PATH: Final = re.compile(r"[\x21-\x7e]*")

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
# Never a game node, and dangerous to talk to.
_FORBIDDEN: Final[tuple[_Network, ...]] = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8",  # "this host"; 0.0.0.0 reaches loopback
        "169.254.0.0/16",  # link-local: metadata services of most clouds
        "100.100.100.200/32",  # metadata, Alibaba
        "168.63.129.16/32",  # host agent, Azure
        "224.0.0.0/4",
        "255.255.255.255/32",
        "::/128",
        "fe80::/10",
        "fd00:ec2::254/128",  # metadata, Amazon
        "fd20:ce::254/128",  # metadata, Google
        "ff00::/8",
    )
)
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
_COMPATIBLE: Final = ipaddress.ip_network("::/96")


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A destination that was allowed. `addresses` are the only ones that may be connected to, in resolver order."""

    scheme: str
    host: str  # ASCII, lower case, an IPv6 literal without brackets
    port: int
    path: str  # with the query, begins with "/"
    addresses: tuple[str, ...]

    @property
    def authority(self) -> str:
        """The Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """For people: scheme, host and port, never a path or a token."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


Resolver = Callable[[str, int], Sequence[str]]


def resolve_with_system(host: str, port: int) -> Sequence[str]:
    """The host's addresses by the system's resolver, in its order. Blocks. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class DestinationPolicy:
    """The allowed list of this node. Frozen after construction; use it from any thread."""

    def __init__(self, allowed: Sequence[str], *, resolver: Resolver = resolve_with_system) -> None:
        """Raises HostFailed (`settings.invalid`) for an entry that is neither host, network, address nor origin."""
        self._resolver = resolver
        self._any = not allowed
        self._hosts: list[str] = []
        self._networks: list[_Network] = []
        self._origins: list[tuple[str, str, str | None]] = []
        for entry in allowed:
            self._add(entry.strip())

    def _add(self, entry: str) -> None:
        origin = _ORIGIN.fullmatch(entry.lower())
        if origin is not None:
            self._origins.append((origin[1], origin[2].strip("[]"), origin[3]))
            return
        try:
            self._networks.append(ipaddress.ip_network(entry.strip("[]"), strict=False))
        except ValueError:
            host = entry.lower().rstrip(".")
            if re.fullmatch(r"[a-z0-9_.*?-]{1,253}", host) is None:
                raise HostFailed(
                    "settings.invalid", f"{entry!r} is neither a host, a network nor an origin", field="allowed"
                ) from None
            self._hosts.append(host)

    def resolve(self, url: str) -> Target:
        """Check a URL and look its host up. Blocks for the resolver.

        Raises Refused (`request.invalid`: not a URL that a destination can have; `destination.not_allowed`),
        PeerFailed (`peer.unresolvable`).
        """
        scheme, host, port, path = _parse(url)
        by_name = self._any or self._is_named(scheme, host, port)
        if not by_name and not self._networks:
            raise Refused("destination.not_allowed", f"the settings of this node do not allow {host}", host=host)
        try:
            addresses = [ipaddress.ip_address(address) for address in self._resolver(host, port)]
        except (OSError, UnicodeError) as error:
            raise PeerFailed("peer.unresolvable", f"the host name {host} cannot be resolved", host=host) from error
        except ValueError as error:  # a scoped address: link-local
            raise Refused("destination.not_allowed", f"{host} has an address with a zone", host=host) from error
        if not addresses:
            raise PeerFailed("peer.unresolvable", f"the host name {host} has no address", host=host)
        for address in addresses:
            if is_forbidden(address):
                raise Refused(
                    "destination.not_allowed",
                    f"{host} is at {address}, which no transfer may go to",
                    host=host,
                    address=str(address),
                )
        kept = [str(a) for a in addresses if by_name or any(_plain(a) in network for network in self._networks)]
        if not kept:
            raise Refused("destination.not_allowed", f"the settings of this node do not allow {host}", host=host)
        return Target(scheme=scheme, host=host, port=port, path=path, addresses=tuple(kept))

    def _is_named(self, scheme: str, host: str, port: int) -> bool:
        if any(fnmatch.fnmatchcase(host.rstrip("."), pattern) for pattern in self._hosts):
            return True
        for of_scheme, of_host, of_port in self._origins:
            ports = ("*", str(port)) if of_port is not None else (None,)
            if (
                of_scheme in ("*", scheme)
                and fnmatch.fnmatchcase(host.rstrip("."), of_host)
                and of_port in ports
                and (of_port is not None or port == _DEFAULT_PORTS[scheme])
            ):
                return True
        return False


def is_forbidden(address: _Address) -> bool:
    """Whether no transfer may ever go to that address, in whichever form it is written."""
    plain = _plain(address)
    return any(plain in network for network in _FORBIDDEN)


def _plain(address: _Address) -> _Address:
    """The IPv4 address inside an IPv6 one, where there is one; else the address."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    inner = address.ipv4_mapped or address.sixtofour
    if inner is None and (address in _NAT64 or (address in _COMPATIBLE and int(address) > 1)):
        inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address if inner is None else inner


def _parse(url: str) -> tuple[str, str, int, str]:
    if len(url) > URL_CHARS or _URL.fullmatch(url) is None:
        raise _invalid("the destination URL is too long or holds characters that no URL has")
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = parts.port
    except ValueError as error:
        raise _invalid("the destination URL is damaged") from error
    if parts.scheme not in _DEFAULT_PORTS:
        raise _invalid("the destination URL is neither http nor https")
    if "@" in parts.netloc or "#" in url:
        raise _invalid("the destination URL has a user name or a fragment")
    if port == 0:
        raise _invalid("the destination URL has port 0")
    if ":" in host:
        try:
            host = ipaddress.IPv6Address(host).compressed
        except ValueError as error:
            raise _invalid("the destination URL has a damaged IPv6 address") from error
        if "%" in host:
            raise _invalid("the destination URL has an IPv6 zone")
    else:
        try:
            host = host.encode("idna").decode("ascii").lower() if len(host) <= 253 else ""
        except UnicodeError as error:
            raise _invalid("the destination URL has a damaged host name") from error
        if _HOST.fullmatch(host) is None:
            raise _invalid("the destination URL has no host name")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if _PATH.fullmatch(path) is None:
        raise _invalid("the path of the destination URL is not ASCII")
    return parts.scheme, host, port if port is not None else _DEFAULT_PORTS[parts.scheme], path


def _invalid(message: str) -> Refused:
    return Refused("request.invalid", message, field="url")
