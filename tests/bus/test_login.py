"""Every way to log in at a real broker, TLS in both directions, and what is refused."""

from __future__ import annotations

import asyncio
import base64
import os
import ssl
import subprocess
import time
from pathlib import Path
from typing import Any

import msgspec
import nkeys
import pytest

from sidecar.bus.connection import BusConnection, BusState
from tests.bus.broker import broker
from tests.bus.event_rig import patiently, settings, until
from tests.programs import needed


def nkey(seed_of: str) -> tuple[str, str]:
    """(seed, public key). seed_of: U user, A account, O operator."""
    prefix = {"U": nkeys.PREFIX_BYTE_USER, "A": nkeys.PREFIX_BYTE_ACCOUNT, "O": nkeys.PREFIX_BYTE_OPERATOR}[seed_of]
    seed = nkeys.encode_seed(os.urandom(32), prefix)
    pair = nkeys.from_seed(bytearray(seed))
    return bytes(seed).decode(), pair.public_key.decode()


def jwt(claims: dict[str, Any], seed: str) -> str:
    """As `nsc` makes them."""

    def part(value: object) -> str:
        return base64.urlsafe_b64encode(msgspec.json.encode(value)).decode().rstrip("=")

    text = f"{part({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{part(claims)}"
    signature = nkeys.from_seed(bytearray(seed.encode())).sign(text.encode())
    return f"{text}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


@patiently
async def test_a_token(tmp_path: Path) -> None:
    with broker(tmp_path, 'authorization { token: "right" }') as server:
        await server.wait_listening()
        async with BusConnection(settings(server.url, token="right")) as connection:
            await connection.wait_connected()
        async with BusConnection(settings(server.url, token="wrong")) as connection:
            await until(lambda: "uthorization" in connection.last_error)


@patiently
async def test_an_nkey(tmp_path: Path) -> None:
    seed, public = nkey("U")
    other, _ = nkey("U")
    with broker(tmp_path, f'authorization {{ users: [ {{ nkey: "{public}" }} ] }}') as server:
        await server.wait_listening()
        async with BusConnection(settings(server.url, nkey_seed=seed)) as connection:
            await connection.wait_connected()
        async with BusConnection(settings(server.url, nkey_seed=other)) as connection:
            await until(lambda: "uthorization" in connection.last_error)


@patiently
async def test_credentials_and_a_jwt_that_expires(tmp_path: Path) -> None:
    """The client closes for good when the broker says that the JWT has expired; a renewed file is taken up."""
    operator, operator_key = nkey("O")
    account, account_key = nkey("A")
    user, user_key = nkey("U")

    def credentials(expires_in_s: int) -> str:
        now = 1_795_000_000  # the broker looks at `exp` alone
        claims: dict[str, Any] = {"jti": "x", "iat": now, "iss": account_key, "sub": user_key, "name": "u"}
        claims |= {"nats": {"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1}}
        if expires_in_s:
            claims["exp"] = int(time.time()) + expires_in_s
        return (
            f"-----BEGIN NATS USER JWT-----\n{jwt(claims, account)}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{user}\n------END USER NKEY SEED------\n"
        )

    limits = {"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "conn": -1, "leaf": -1}
    account_claims = {"jti": "a", "iat": 1, "iss": operator_key, "sub": account_key, "name": "a"}
    account_claims |= {"nats": {"type": "account", "version": 2, "limits": {**limits, "wildcards": True}}}
    operator_claims = {"jti": "o", "iat": 1, "iss": operator_key, "sub": operator_key, "name": "o"}
    operator_claims |= {"nats": {"type": "operator", "version": 2}}
    configuration = f"""
        operator: {jwt(operator_claims, operator)}
        resolver: MEMORY
        resolver_preload: {{ {account_key}: {jwt(account_claims, operator)} }}"""
    file = tmp_path / "node.creds"
    file.write_text(credentials(2))
    with broker(tmp_path, configuration) as server:
        await server.wait_listening()
        async with BusConnection(settings(server.url, creds_file=file)) as connection:
            await connection.wait_connected()
            await until(lambda: not connection.is_connected)
            assert connection.state is not BusState.CLOSED
            await until(lambda: bool(connection.last_error))
            file.write_text(credentials(0))
            await connection.wait_connected()
            assert connection.connections == 2


class Authority:
    """Certificates of one authority, made with openssl."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir()
        self.certificate = directory / "ca.pem"
        self._key = directory / "ca.key"
        use = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")  # Python 3.13 wants to see it
        named = ("-subj", "/CN=ca", "-days", "2", *use)
        self._run("req", "-x509", *self._new(self._key), *named, "-out", str(self.certificate))

    def issue(self, name: str) -> tuple[Path, Path]:
        key, request, made = (self._directory / f"{name}.{ending}" for ending in ("key", "csr", "pem"))
        names = self._directory / f"{name}.ext"
        names.write_text("subjectAltName=IP:127.0.0.1\nauthorityKeyIdentifier=keyid\n")
        self._run("req", *self._new(key), "-subj", f"/CN={name}", "-out", str(request))
        signed_by = ("-CA", str(self.certificate), "-CAkey", str(self._key), "-CAcreateserial")
        self._run(
            "x509", "-req", "-in", str(request), *signed_by, "-days", "2", "-extfile", str(names), "-out", str(made)
        )
        return made, key

    def _new(self, key: Path) -> tuple[str, ...]:
        curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        return (*curve, "-keyout", str(key))

    def _run(self, *arguments: str) -> None:
        subprocess.run([needed("openssl"), *arguments], check=True, capture_output=True)


@patiently
async def test_both_ends_prove_who_they_are(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    (cert, key), (mine, my_key) = authority.issue("broker"), authority.issue("node")
    tls = f'tls {{ cert_file: "{cert}", key_file: "{key}", ca_file: "{authority.certificate}", verify: true'
    with broker(tmp_path, f"{tls}, handshake_first: true }}") as server:
        await server.wait_listening()
        url = f"tls://127.0.0.1:{server.port}"
        known = settings(url, tls_ca=authority.certificate, tls_cert=mine, tls_key=my_key)
        async with BusConnection(known) as connection:
            await connection.wait_connected()
            await connection.publish("x", b"1", {})
            await connection.settle(2.0)
        async with BusConnection(settings(url, tls_ca=authority.certificate)) as connection:
            await until(lambda: bool(connection.last_error))
            assert not connection.is_connected


@patiently
async def test_a_real_broker_without_tls_hears_no_secret(tmp_path: Path) -> None:
    log = tmp_path / "broker.log"
    lines = f'trace: true\nlog_file: "{log}"\nauthorization {{ user: "u", password: "secret" }}'
    with broker(tmp_path, lines) as server:
        await server.wait_listening()
        wanted = settings(f"tls://127.0.0.1:{server.port}", user="u", password="secret")
        async with BusConnection(wanted) as connection:
            await until(lambda: bool(connection.last_error))
            assert not connection.is_connected
        assert "CONNECT" not in log.read_text()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_versions(tmp_path: Path, version: ssl.TLSVersion) -> None:
    async def main() -> None:
        authority = Authority(tmp_path / "ca")
        cert, key = authority.issue("broker")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key)
        context.maximum_version = version
        heard: list[str] = []

        async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heard.append(writer.get_extra_info("ssl_object").version())
            writer.close()

        listener = await asyncio.start_server(greet, "127.0.0.1", 0, ssl=context)
        url = f"tls://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        async with BusConnection(settings(url, tls_ca=authority.certificate)) as connection:
            await until(lambda: bool(heard))
            assert not connection.is_connected
        listener.close()
        assert heard[0] == ("TLSv1.2" if version is ssl.TLSVersion.TLSv1_2 else "TLSv1.3")

    asyncio.run(main())
