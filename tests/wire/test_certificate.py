"""A certificate that is renewed under a running server: new handshakes get the new one, connections stand."""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import socket
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from sidecar.errors import HostFailed
from sidecar.wire.listener import ApiServer
from tests.wire.serving import WAIT_S, Node, Receive, Scope, Send, answer, read_response, serving

GET = b"GET /x HTTP/1.1\r\nHost: node\r\n\r\n"


class Pair:
    """A self-signed certificate and its key, as PEM."""

    def __init__(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "node")])
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .sign(key, hashes.SHA256())
        )
        self.cert = certificate.public_bytes(serialization.Encoding.PEM)
        self.key = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        self.digest = hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest()


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    await answer(send, 200)


def dial(node: Node, *, name: str | None = None, tls: ssl.TLSVersion | None = None) -> ssl.SSLSocket:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if tls is not None:
        context.maximum_version = tls
    return context.wrap_socket(socket.create_connection(("127.0.0.1", node.port), WAIT_S), server_hostname=name)


def presented(node: Node, *, name: str | None = None, tls: ssl.TLSVersion | None = None) -> str:
    with dial(node, name=name, tls=tls) as client:
        der = client.getpeercert(binary_form=True)
    assert der is not None
    return hashlib.sha256(der).hexdigest()


def replace(path: Path, content: bytes) -> None:
    """As renewals do: a new file under the old name."""
    fresh = path.with_suffix(".new")
    fresh.write_bytes(content)
    fresh.rename(path)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "cert.pem", tmp_path / "key.pem"


def test_a_renewed_certificate_is_presented_and_connections_stand(
    files: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    cert, key = files
    old, new = Pair(), Pair()
    cert.write_bytes(old.cert)
    key.write_bytes(old.key)
    with serving(hello, tls_cert=cert, tls_key=key) as node, dial(node) as standing:
        assert presented(node) == old.digest
        replace(cert, new.cert)
        assert presented(node) == old.digest, "a half-written renewal is not used"
        assert "cannot be used" in caplog.text
        replace(key, new.key)
        for tls in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            for name in (None, "node.example"):
                assert presented(node, name=name, tls=tls) == new.digest
        standing.sendall(GET)
        assert read_response(standing).startswith(b"HTTP/1.1 200")


def test_a_certificate_that_is_gone_or_broken_changes_nothing(files: tuple[Path, Path]) -> None:
    cert, key = files
    old, new = Pair(), Pair()
    cert.write_bytes(old.cert + old.key)  # both in one file, without a file for the key
    with serving(hello, tls_cert=cert) as node:
        cert.unlink()
        assert presented(node) == old.digest
        cert.write_bytes(b"not PEM")
        assert presented(node) == old.digest
        cert.write_bytes(new.cert + new.key)
        assert presented(node) == new.digest
    assert not key.exists()


@pytest.mark.parametrize("content", [None, b"not PEM"])
def test_a_certificate_that_cannot_be_used_is_named(files: tuple[Path, Path], content: bytes | None) -> None:
    cert, key = files
    if content is not None:
        cert.write_bytes(content)
        key.write_bytes(content)

    async def start() -> None:
        await ApiServer(hello, tls_cert=cert, tls_key=key).start()

    with pytest.raises(HostFailed, match=f"^api.tls_cert, api.tls_key: {cert} and {key} cannot be used: ") as failed:
        asyncio.run(start())
    assert failed.value.code == "settings.invalid"
