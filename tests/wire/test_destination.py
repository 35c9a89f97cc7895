"""Which destinations are allowed, with a resolver that says what the test wants."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from sidecar.errors import HostFailed, PeerFailed, Refused
from sidecar.wire.destination import DestinationPolicy, Target, resolve_with_system

NAMES: dict[str, list[str]] = {
    "node.example.com": ["192.0.2.10", "2001:db8::10"],
    "other.example.com": ["192.0.2.20"],
    "inside.example.com": ["10.1.2.3"],
    "both.example.com": ["10.1.2.3", "192.0.2.30"],
    "metadata.example.com": ["169.254.169.254"],
    "rebinding.example.com": ["192.0.2.10", "169.254.169.254"],
    "xn--nd-fka.example.com": ["192.0.2.40"],
    "empty.example.com": [],
}


class Resolver:
    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append((host, port))
        if host.rstrip(".") in NAMES:
            return NAMES[host.rstrip(".")]
        if ":" in host or host[0].isdigit():
            return resolve_with_system(host, port)
        raise OSError("no such name")


def resolve(url: str, *allowed: str) -> Target:
    return DestinationPolicy(allowed, resolver=Resolver()).resolve(url)


@pytest.mark.parametrize(
    ("url", "host", "port", "path", "authority"),
    [
        ("http://node.example.com/api/transfers", "node.example.com", 80, "/api/transfers", "node.example.com"),
        ("https://NODE.example.com", "node.example.com", 443, "/", "node.example.com"),
        ("https://node.example.com:8080/a?b=c", "node.example.com", 8080, "/a?b=c", "node.example.com:8080"),
        ("http://[::1]:9/x", "::1", 9, "/x", "[::1]:9"),
        ("http://127.0.0.1:9/x", "127.0.0.1", 9, "/x", "127.0.0.1:9"),
        ("http://nöd.example.com/", "xn--nd-fka.example.com", 80, "/", "xn--nd-fka.example.com"),
    ],
)
def test_what_a_target_is_made_of(url: str, host: str, port: int, path: str, authority: str) -> None:
    target = resolve(url)
    assert (target.host, target.port, target.path, target.authority) == (host, port, path, authority)


def test_the_name_is_resolved_once_and_only_checked_addresses_remain() -> None:
    resolver = Resolver()
    target = DestinationPolicy(["10.0.0.0/8"], resolver=resolver).resolve("http://both.example.com:81/")
    assert target.addresses == ("10.1.2.3",)
    assert resolver.asked == [("both.example.com", 81)]


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("http://node.example.com/", "node.example.com"),
        ("http://node.example.com./", "node.example.com"),
        ("http://node.example.com/", "*.example.com"),
        ("http://node.example.com:99/", "NODE.example.com."),
        ("http://inside.example.com/", "10.0.0.0/8"),
        ("http://10.9.9.9:1/", "10.9.9.9"),
        ("http://[2001:db8::1]/", "2001:db8::/32"),
        ("http://[2001:db8::1]/", "[2001:db8::1]"),
        ("http://[::ffff:10.0.0.1]/", "10.0.0.0/8"),
        ("http://127.0.0.1:4711/", "http://127.0.0.1:*"),
        ("https://node.example.com/", "https://node.example.com"),
        ("https://node.example.com:8443/", "https://node.example.com:8443"),
        ("https://node.example.com:8443/", "*://*.example.com:*"),
        ("http://[::1]:5/", "http://[::1]:*"),
    ],
)
def test_allowed(url: str, allowed: str) -> None:
    assert resolve(url, allowed).addresses
    assert resolve(url, "unused.example.org", allowed).addresses


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("http://other.example.com/", "node.example.com"),
        ("http://node.example.com.evil.org/", "node.example.com"),
        ("http://evilnode.example.com/", "node.example.com"),
        ("http://other.example.com/", "10.0.0.0/8"),
        ("http://127.0.0.1:4711/", "https://127.0.0.1:*"),
        ("http://node.example.com:81/", "http://node.example.com"),
        ("https://node.example.com/", "http://node.example.com:80"),
        ("http://node.example.com:80/", "http://node.example.com:81"),
    ],
)
def test_not_allowed(url: str, allowed: str) -> None:
    with pytest.raises(Refused) as caught:
        resolve(url, allowed)
    assert caught.value.code == "destination.not_allowed"


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "169.254.0.1",
        "2852039166",  # 169.254.169.254 as one number
        "0xa9fea9fe",
        "0.0.0.0",
        "0.1.2.3",
        "224.0.0.1",
        "255.255.255.255",
        "100.100.100.200",
        "[fe80::1]",
        "[fd00:ec2::254]",
        "[::]",
        "[ff02::1]",
        "[::ffff:169.254.169.254]",
        "[::169.254.169.254]",
        "[2002:a9fe:a9fe::1]",
        "[64:ff9b::a9fe:a9fe]",
        "metadata.example.com",
        "rebinding.example.com",
    ],
)
@pytest.mark.parametrize("allowed", [(), ("0.0.0.0/0", "::/0"), ("*", "http://*:*")])
def test_always_refused(host: str, allowed: tuple[str, ...]) -> None:
    with pytest.raises(Refused) as caught:
        resolve(f"http://{host}/", *allowed)
    assert caught.value.code == "destination.not_allowed"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "node.example.com",
        "ftp://node.example.com/",
        "file:///etc/passwd",
        "http://",
        "http:///path",
        "http://user@node.example.com/",
        "http://user:secret@node.example.com/",
        "http://node.example.com/#fragment",
        "http://node.example.com/#",
        "http://node.example.com:0/",
        "http://node.example.com:65536/",
        "http://node.example.com:x/",
        "http://node example.com/",
        "http://node.example.com/a b",
        "http://node.example.com/\r\nX: y",
        "http://node.example.com\\@evil.org/",
        "http://node.example.com/ü",
        "http://[::1/",
        "http://[fe80::1%25eth0]/",
        "http://[fe80::1%eth0]/",
        "http://-a.example.com/",
        "http://" + "a" * 254 + "/",
        "http://a..b/",
        "http://node.example.com/" + "a" * 2048,
    ],
)
def test_no_url_of_a_destination(url: str) -> None:
    with pytest.raises(Refused) as caught:
        resolve(url)
    assert caught.value.code == "request.invalid"


@pytest.mark.parametrize("host", ["nowhere.example.com", "empty.example.com"])
def test_unresolvable(host: str) -> None:
    with pytest.raises(PeerFailed) as caught:
        resolve(f"http://{host}/")
    assert caught.value.code == "peer.unresolvable"


@pytest.mark.parametrize("entry", ["", "http://", "10.0.0.0/99", "a b", "http://host:port", "ftp://host"])
def test_an_entry_that_means_nothing_is_an_error(entry: str) -> None:
    with pytest.raises(HostFailed) as caught:
        DestinationPolicy([entry])
    assert caught.value.code == "settings.invalid"
