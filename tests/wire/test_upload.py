"""The source's upload against destinations that do everything a destination can do wrong."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import hashlib
import ipaddress
import json
import os
import queue
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from sidecar.errors import PeerFailed, Refused
from sidecar.wire.destination import DestinationPolicy, Target
from sidecar.wire.framing import ChunkedFraming
from sidecar.wire.headers import UploadHeaders, encode
from sidecar.wire.multipart import parse_content_type
from sidecar.wire.upload import ExtraPart, Upload, failure_of, fetch_json
from tests.wire.scripted import Scripted, answering, read_to_end, scripted
from tests.wire.serving import (
    WAIT_S,
    Node,
    Receive,
    Receiver,
    Scope,
    Send,
    answer,
    connection_of,
    header_of,
    reset,
    serving,
)

MIB = bytes(range(256)) * 4096
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


def target_of(url: str) -> Target:
    return DestinationPolicy([]).resolve(url)


@contextlib.contextmanager
def uploading(
    url: str,
    *,
    stall_timeout_s: float = WAIT_S,
    answer_timeout_s: float = WAIT_S,
    ssl_context: ssl.SSLContext | None = None,
) -> Iterator[Upload]:
    upload = Upload(
        target_of(url),
        token="Bearer a.b.c",
        headers=encode(UploadHeaders(transfer=None, entries=3, protocol=1)),
        stall_timeout_s=stall_timeout_s,
        connect_timeout_s=WAIT_S,
        answer_timeout_s=answer_timeout_s,
        ssl_context=ssl_context,
    )
    try:
        yield upload
    finally:
        upload.cut()


def send_all(upload: Upload, pieces: list[bytes], extra: tuple[ExtraPart, ...] = ()) -> None:
    digest = hashlib.sha256()
    upload.open()
    for piece in pieces:
        upload.send(piece)
        digest.update(piece)
    upload.finish(digest.hexdigest(), extra)


def failing(
    url: str, pieces: int = 3, *, stall_timeout_s: float = WAIT_S, answer_timeout_s: float = WAIT_S
) -> PeerFailed:
    uploaded = uploading(url, stall_timeout_s=stall_timeout_s, answer_timeout_s=answer_timeout_s)
    with pytest.raises(PeerFailed) as caught, uploaded as upload:
        send_all(upload, [MIB] * pieces)
        got = upload.answer()
        assert got.status != 200
        raise failure_of(got)
    return caught.value


def test_the_bytes_of_an_upload() -> None:
    noted: queue.Queue[bytes] = queue.Queue()

    def script(client: socket.socket) -> None:
        noted.put(read_to_end(client))
        client.sendall(OK)

    with scripted(script) as server, uploading(server.url) as upload:
        extra = ExtraPart(name="install_logs", filename="install.log", content=b"log", content_type="text/plain")
        send_all(upload, [b"first", b"", b"second"], (extra,))
        assert upload.answer().status == 200
        assert upload.bytes_sent == 11
        upload.close()
    head, _, body = noted.get(timeout=WAIT_S).partition(b"\r\n\r\n")
    request, *lines = head.decode("ascii").split("\r\n")
    fields = dict(line.split(": ", 1) for line in lines)
    boundary = parse_content_type(fields.pop("Content-Type")).decode()
    assert fields.pop("User-Agent").startswith("transfer-sidecar/")
    assert request == "POST /api/transfers HTTP/1.1"
    assert fields == {
        "Host": server.url.split("/")[2],
        "Authorization": "Bearer a.b.c",
        "Transfer-Encoding": "chunked",
        "Sidecar-Protocol": "1",
        "Sidecar-Entries": "3",
    }
    framing, content, position = ChunkedFraming(), b"", 0
    while not framing.done:
        start, position = framing.advance(body, position, len(body))
        content += body[start:position]
    digest = hashlib.sha256(b"firstsecond").hexdigest()
    assert content.decode() == "\r\n".join(
        [
            f"--{boundary}",
            'Content-Disposition: form-data; name="archive"; filename="archive.tar.gz"',
            "Content-Type: application/octet-stream",
            "",
            "firstsecond",
            f"--{boundary}",
            'Content-Disposition: form-data; name="checksum"',
            "",
            digest,
            f"--{boundary}",
            'Content-Disposition: form-data; name="checksum_archive"',
            "",
            digest,
            f"--{boundary}",
            'Content-Disposition: form-data; name="install_logs"; filename="install.log"',
            "Content-Type: text/plain",
            "",
            "log",
            f"--{boundary}--",
            "",
        ]
    )


def test_nothing_of_the_boundary_is_sent_before_the_point_of_no_return() -> None:
    """S1: until `finish`, what was sent ends inside the archive part."""
    noted: queue.Queue[bytes] = queue.Queue()

    def script(client: socket.socket) -> None:
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while data := client.recv(1 << 20):
                received += data
                noted.put(received)

    with scripted(script) as server, uploading(server.url) as upload:
        upload.open()
        upload.send(b"all of the archive")
        received = b""
        while not received.endswith(b"all of the archive\r\n"):
            received = noted.get(timeout=WAIT_S)
        boundary = received.split(b"boundary=")[1].split(b"\r\n")[0]
        assert received.count(b"--" + boundary) == 1  # the archive part's own
        upload.cut()
        with pytest.raises(PeerFailed):
            upload.finish("0" * 64)
    assert noted.empty()


@pytest.mark.parametrize("size", [1, 10_000, 3 << 20])
def test_our_own_destination(size: int) -> None:
    receiver = Receiver()
    content = os.urandom(size)
    with serving(receiver) as node, uploading(node.url) as upload:
        send_all(upload, [content[at : at + 700_000] for at in range(0, size, 700_000)])
        got = upload.answer()
    assert (got.status, got.excerpt) == (200, "{}")
    seen = receiver.outcome()
    assert [part.name for part in seen] == ["archive", "checksum", "checksum_archive"]
    assert seen[0].sha256 == hashlib.sha256(content).hexdigest() == seen[1].head.decode() == seen[2].head.decode()


@pytest.mark.parametrize(
    ("response", "code", "words"),
    [
        (
            b"HTTP/1.1 302 Found\r\nLocation: http://elsewhere/\r\nContent-Length: 0\r\n\r\n",
            "peer.redirect",
            "elsewhere",
        ),
        (b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 9\r\n\r\nbad token", "peer.status", "401: bad token"),
        (b"HTTP/1.1 413 X\r\nServer: nginx/1.2\r\nContent-Length: 0\r\n\r\n", "peer.proxy", "nginx/1.2"),
        (b"HTTP/1.1 500 X\r\nTransfer-Encoding: chunked\r\n\r\n4\r\noops\r\n0\r\n\r\n", "peer.status", "500: oops"),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n", "peer.proxy", "a proxy"),
        (b"HTTP/1.1 524 X\r\nServer: cloudflare\r\nContent-Length: 0\r\n\r\n", "peer.proxy", "cloudflare"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "peer.status", "204"),
        (b"HTTP/1.1 500 X\r\nContent-Length: 9999\r\n\r\nan answer cut short", "peer.status", "cut short"),
        (b"HTTP/1.1 500 X\r\nContent-Length: 999999\r\n\r\n" + b"x" * 999_999, "peer.status", "xxx"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "peer.protocol", "not HTTP"),
        (b"\x15\x03\x01\x00\x02\x02\x16", "peer.protocol", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 70_000 + b"\r\n\r\n", "peer.protocol", "too long"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 4000, "peer.protocol", "too long"),
        (b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n", "peer.protocol", ""),
    ],
)
@pytest.mark.parametrize("early", [True, False])
def test_what_a_destination_answers(response: bytes, code: str, words: str, early: bool) -> None:
    def script(client: socket.socket) -> None:
        answering(response, after_bytes=(1 << 20) if early else None)(client)

    def cut_short(client: socket.socket) -> None:
        read_to_end(client) if not early else client.recv(1000)
        client.sendall(response)
        client.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while client.recv(1 << 20):
                pass

    with scripted(cut_short if b"9999\r\n\r\nan" in response else script) as server:
        failed = failing(server.url, pieces=100 if early else 3)
    assert failed.code == code
    assert words in failed.message


def test_the_code_of_another_sidecar_is_kept() -> None:
    body = b'{"error": "the checksum is wrong", "code": "archive.checksum"}'
    with scripted(answering(b"HTTP/1.1 502 X\r\nContent-Length: %d\r\n\r\n" % len(body) + body)) as server:
        failed = failing(server.url)
    assert (failed.code, failed.facts["peer_code"], failed.facts["status"]) == ("peer.status", "archive.checksum", 502)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            {"error": "No room.", "detail": "4 bytes free.", "code": "disk.full", "request_id": "x", "errno": "ENOSPC"},
            "the destination answered 400: No room. 4 bytes free. (disk.full)",
        ),
        ({"error": "checksums don't match", "request_id": "x"}, "the destination answered 400: checksums don't match"),
        ({"error": "a\u001b[31m\nb"}, "the destination answered 400: a [31m b"),
        ({"error": 5}, 'the destination answered 400: {"error": 5}'),
        ({"errors": [{"code": "X"}]}, 'the destination answered 400: {"errors": [{"code": "X"}]}'),
        ({"error": "x" * 900}, "the destination answered 400: " + "x" * 300),
    ],
)
def test_a_json_error_is_told_in_its_own_words(body: dict[str, object], said: str) -> None:
    content = json.dumps(body).encode()
    with scripted(answering(b"HTTP/1.1 400 X\r\nContent-Length: %d\r\n\r\n" % len(content) + content)) as server:
        assert failing(server.url).message == said


def test_an_early_answer_of_our_own_destination_is_seen_promptly() -> None:
    async def fail_after_a_megabyte(scope: Scope, receive: Receive, send: Send) -> None:
        body = connection_of(scope).take_body(stall_timeout_s=WAIT_S)

        def read() -> None:
            seen = 0
            while seen < 1 << 20:
                seen += len(body.read())
            body.close()

        await asyncio.to_thread(read)
        await answer(send, 500, b'{"code": "disk.full"}')

    with serving(fail_after_a_megabyte) as node, uploading(node.url) as upload:
        upload.open()
        with pytest.raises(PeerFailed) as caught:
            for _ in range(1000):
                upload.send(MIB)
    assert caught.value.facts["peer_code"] == "disk.full"
    assert upload.bytes_sent < 300 << 20


def test_an_early_200_is_no_success() -> None:
    with scripted(answering(OK, after_bytes=1000)) as server:
        failed = failing(server.url, pieces=100)
    assert failed.code == "peer.protocol"


def test_interim_answers_are_skipped_and_a_trickled_one_is_read() -> None:
    def script(client: socket.socket) -> None:
        read_to_end(client)
        for byte in b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK:
            client.sendall(bytes([byte]))

    with scripted(script) as server, uploading(server.url) as upload:
        send_all(upload, [MIB])
        assert upload.answer().status == 200


@pytest.mark.parametrize("how", [reset, socket.socket.close])
@pytest.mark.parametrize("when", ["first", "middle", "last"])
def test_a_destination_that_closes_without_an_answer(how: Callable[[socket.socket], None], when: str) -> None:
    def script(client: socket.socket) -> None:
        if when == "last":
            read_to_end(client)
        elif when == "middle":
            client.recv(100_000)
        how(client)

    with scripted(script) as server:
        assert failing(server.url, pieces=30).code == "peer.reset"


def test_half_an_answer_is_none() -> None:
    def script(client: socket.socket) -> None:
        read_to_end(client)
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Le")

    with scripted(script) as server:
        assert failing(server.url).code == "peer.reset"


@pytest.mark.parametrize("beginning", [b"", b"HTTP/1.1 200 OK\r\nX: "])
def test_a_destination_that_never_answers(beginning: bytes) -> None:
    with scripted(answering(beginning)) as server:
        assert failing(server.url, answer_timeout_s=0.1).code == "peer.no_answer"


def test_a_destination_that_takes_no_byte_is_stalled() -> None:
    done = threading.Event()

    def script(client: socket.socket) -> None:
        done.wait(WAIT_S)

    with scripted(script, receive_buffer=4096) as server:
        try:
            assert failing(server.url, pieces=100, stall_timeout_s=0.1).code == "peer.stalled"
        finally:
            done.set()


def test_a_slow_destination_is_not_stalled() -> None:
    took_all = threading.Event()

    def script(client: socket.socket) -> None:
        received = 0
        while received < 3 << 20:
            received += len(client.recv(2048))
        took_all.set()
        with contextlib.suppress(ConnectionError):  # the source cuts when the test is over
            client.recv(1 << 20)

    with scripted(script, receive_buffer=4096) as server, uploading(server.url, stall_timeout_s=0.5) as upload:
        upload.open()
        upload.send(MIB * 3)
        assert took_all.wait(WAIT_S)


def test_refused_and_unreachable() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert failing(f"http://127.0.0.1:{unused.getsockname()[1]}/").code == "peer.refused"
    with socket.socket() as full:  # a listener whose queue is full answers no SYN
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        with contextlib.ExitStack() as stack:
            for _ in range(4):
                filler = stack.enter_context(socket.socket())
                filler.setblocking(False)
                filler.connect_ex(("127.0.0.1", port))
            upload = Upload(
                target_of(f"http://127.0.0.1:{port}/"),
                token="Bearer x",
                headers={},
                stall_timeout_s=1.0,
                connect_timeout_s=0.1,
                answer_timeout_s=1.0,
            )
            with pytest.raises(PeerFailed) as caught:
                upload.open()
            assert caught.value.code == "peer.unreachable"


def test_the_next_address_is_tried() -> None:
    receiver = Receiver()
    with serving(receiver) as node:
        target = DestinationPolicy([], resolver=lambda _host, _port: ["127.0.0.2", "127.0.0.1"]).resolve(
            f"http://node.test:{node.port}/api/transfers"
        )
        assert fetch_json(target, "GET", "/x", headers={}, timeout_s=WAIT_S, max_bytes=100)[0] == 200


@pytest.mark.parametrize("waiting_in", ["send", "answer"])
def test_cut_ends_what_waits_at_once(waiting_in: str) -> None:
    released, waits = threading.Event(), threading.Event()
    outcomes: queue.Queue[bytes | BaseException] = queue.Queue()

    def script(client: socket.socket) -> None:
        if waiting_in == "answer":
            read_to_end(client)
        waits.set()
        released.wait(WAIT_S)
        try:
            while data := client.recv(1 << 20):
                pass
            outcomes.put(data)
        except ConnectionError as error:
            outcomes.put(error)

    with scripted(script, receive_buffer=4096) as server, uploading(server.url) as upload:

        def cut() -> None:
            waits.wait(WAIT_S)
            upload.cut()
            upload.cut()

        cutter = threading.Thread(target=cut)
        cutter.start()
        try:
            with pytest.raises(PeerFailed) as caught:
                send_all(upload, [MIB] * (100 if waiting_in == "send" else 1))
                upload.answer()
        finally:
            cutter.join()
            released.set()
        assert caught.value.code == "peer.reset"
        assert isinstance(outcomes.get(timeout=WAIT_S), ConnectionResetError)


def test_cut_before_and_after_everything() -> None:
    with scripted(answering(OK)) as server:
        with uploading(server.url) as upload:
            upload.cut()
            with pytest.raises(PeerFailed):
                upload.open()
        with uploading(server.url) as upload:
            send_all(upload, [b"x"])
            assert upload.answer().status == 200


def test_uploads_leave_no_descriptor() -> None:
    def upload_once(node: Node, number: int) -> None:
        with uploading(node.url) as upload:
            if number % 3:
                send_all(upload, [b"x"])
            if number % 3 == 2:
                upload.answer()

    with serving(Receiver()) as node:
        upload_once(node, 2)
        before = len(list(Path("/proc/self/fd").iterdir()))
        for number in range(60):
            upload_once(node, number)
        upload_once(node, 2)
        assert len(list(Path("/proc/self/fd").iterdir())) <= before + 4  # of the server, which closes in its own time


@pytest.mark.parametrize("token", ["", "Bearer a\r\nX: y", "Bearer \x00", "Bearer é", " Bearer a"])
def test_a_token_that_breaks_out_of_its_line_is_refused(token: str) -> None:
    with pytest.raises(Refused) as caught:
        Upload(
            target_of("http://127.0.0.1:1/"),
            token=token,
            headers={},
            stall_timeout_s=1.0,
            connect_timeout_s=1.0,
            answer_timeout_s=1.0,
        )
    assert caught.value.facts == {"field": "token"}
    assert not token or token not in str(caught.value)


def fetch(server: Scripted, **options: object) -> tuple[int, object]:
    body = options.get("body")
    return fetch_json(target_of(server.url), "POST", "/y", headers={"X": "y"}, timeout_s=1.0, max_bytes=50, body=body)


def control(response: bytes) -> Callable[[socket.socket], None]:
    def script(client: socket.socket) -> None:
        client.recv(1 << 16)
        client.sendall(response)

    return script


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (b'HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n{"a": 1}', (200, {"a": 1})),
        (b'HTTP/1.1 200 OK\r\n\r\n{"a": 1}', (200, {"a": 1})),
        (b"HTTP/1.1 204 No Content\r\n\r\n", (204, None)),
        (b"HTTP/1.1 404 X\r\nContent-Length: 4\r\n\r\nnone", (404, None)),
        (b"HTTP/1.1 302 X\r\nLocation: /z\r\nContent-Length: 0\r\n\r\n", (302, None)),
    ],
)
def test_a_control_call(response: bytes, expected: tuple[int, object]) -> None:
    with scripted(control(response)) as server:
        assert fetch(server) == expected


@pytest.mark.parametrize(
    ("response", "code"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnone", "peer.protocol"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n" + b"1" * 99, "peer.protocol"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n" + b"[" * 40, "peer.protocol"),
        (b"", "peer.reset"),
    ],
)
def test_a_control_call_that_fails(response: bytes, code: str) -> None:
    with scripted(control(response)) as server, pytest.raises(PeerFailed) as caught:
        fetch(server, body={"b": 2})
    assert caught.value.code == code


class Certificate:
    """A self-signed certificate for 127.0.0.1 on disk."""

    def __init__(self, directory: Path) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "node")])
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
            )
            .sign(key, hashes.SHA256())
        )
        self.cert = directory / "cert.pem"
        self.key = directory / "key.pem"
        self.cert.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        self.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )

    def trusted(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.cert))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate(tmp_path_factory.mktemp("tls"))


def test_tls(certificate: Certificate) -> None:
    receiver = Receiver()
    content = os.urandom(5 << 20)
    with serving(receiver, tls_cert=certificate.cert, tls_key=certificate.key) as node:
        url = node.url.replace("http:", "https:")
        with uploading(url, ssl_context=certificate.trusted()) as upload:
            send_all(upload, [content[at : at + (1 << 20)] for at in range(0, len(content), 1 << 20)])
            assert upload.answer().status == 200
            upload.close()
        assert receiver.outcome()[0].sha256 == hashlib.sha256(content).hexdigest()
        called = fetch_json(
            target_of(url),
            "GET",
            "/x",
            headers={},
            timeout_s=WAIT_S,
            max_bytes=10,
            ssl_context=certificate.trusted(),
        )
        assert called == (200, "hello")
        assert failing(url).code == "peer.tls"  # not in this machine's list of authorities
        with uploading(url, ssl_context=certificate.trusted()) as upload:
            upload.open()
            upload.send(MIB)
        assert receiver.failure().code == "upload.truncated"
    with scripted(answering(b"HTTP/1.1 400 X\r\n\r\n", after_bytes=1)) as plain:
        assert failing(plain.url.replace("http:", "https:")).code == "peer.tls"


def test_tls_hang_up_and_abort(certificate: Certificate) -> None:
    seen: queue.Queue[str] = queue.Queue()

    async def watch(scope: Scope, receive: Receive, send: Send) -> None:
        connection = connection_of(scope)
        seen.put("began")
        if header_of(scope, b"sidecar-start") == "true":
            connection.abort()
            return
        await connection.wait_closed()
        seen.put("closed")

    with serving(watch, tls_cert=certificate.cert, tls_key=certificate.key) as node:
        url = node.url.replace("http:", "https:")
        with uploading(url, ssl_context=certificate.trusted()) as upload:
            upload.open()
            upload.send(MIB[:100_000])
            assert seen.get(timeout=WAIT_S) == "began"
        assert seen.get(timeout=WAIT_S) == "closed"
        aborted = Upload(
            target_of(url),
            token="Bearer x",
            headers={"Sidecar-Start": "true"},
            stall_timeout_s=WAIT_S,
            connect_timeout_s=WAIT_S,
            answer_timeout_s=WAIT_S,
            ssl_context=certificate.trusted(),
        )
        with contextlib.closing(aborted), pytest.raises(PeerFailed) as caught:
            aborted.open()
            aborted.answer()
        assert caught.value.code == "peer.reset"
