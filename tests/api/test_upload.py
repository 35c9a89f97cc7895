"""`POST /api/transfers`: who is let in, what the engine is told, and to whom nothing may be answered."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sidecar.engine.contract import IncomingUpload, SourceCut
from sidecar.errors import DataCorrupt, HostFailed, Refused
from tests.api.fake_transfers import SERVER, TRANSFER, FakeTransfers
from tests.api.node import Node, in_loop, node
from tests.api.tokens import NODE_TOKEN, signed, upload_claims

GOOD = signed(upload_claims())
MULTIPART = "multipart/form-data; boundary=xyz"
BODY = b"--xyz--\r\n"


def head(*headers: str, token: str = GOOD, content_type: str | None = MULTIPART, length: int = len(BODY)) -> str:
    lines = ["POST /api/transfers HTTP/1.1", "Host: x", f"Authorization: Bearer {token}", f"Content-Length: {length}"]
    if content_type is not None:
        lines.append(f"Content-Type: {content_type}")
    return "\n".join([*lines, *headers])


async def read_body(upload: IncomingUpload) -> None:
    """What an engine does: take the body off the connection, in a thread of its own."""
    body = upload.connection.take_body(stall_timeout_s=5.0)
    try:
        await asyncio.to_thread(body.read)
    finally:
        body.close()


async def upload(n: Node, *headers: str, **options: Any) -> bytes:
    return await n.raw(head(*headers, **options), BODY)


@in_loop
async def test_an_upload_is_answered_200() -> None:
    transfers = FakeTransfers()
    transfers.receiver = read_body
    async with node(transfers) as n:
        answer = await upload(n)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.endswith(b"\r\n\r\n{}")
        (got,) = n.transfers.received
        assert (got.server, got.boundary, got.peer) == (SERVER, b"xyz", "127.0.0.1")
        assert (got.transfer, got.is_sidecar, got.is_calagopus, got.multiplex_streams) == (None, False, False, 0)
        assert got.start_on_completion is None


@in_loop
async def test_what_a_sidecar_says_of_its_upload() -> None:
    async with node() as n:
        await upload(
            n,
            "Sidecar-Protocol: 1",
            f"sidecar-transfer: {TRANSFER.upper()}",
            "Sidecar-Start: true",
            "Sidecar-Content-Bytes: 12345",
            "Sidecar-Entries: 7",
        )
        (got,) = n.transfers.received
        assert (got.transfer, got.is_sidecar, got.start_on_completion) == (TRANSFER, True, True)
        assert (got.content_bytes, got.entries) == (12345, 7)


@pytest.mark.parametrize(
    "header",
    [
        "Sidecar-Transfer: ../../x",
        "Sidecar-Start: yes",
        "Sidecar-Content-Bytes: -1",
        "Sidecar-Content-Bytes: 99999999999999999999",
        "Sidecar-Entries: 1e9",
    ],
)
@in_loop
async def test_hostile_headers(header: str) -> None:
    async with node() as n:
        answer = await upload(n, header)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"request.invalid" in answer
        assert n.transfers.received == []


@in_loop
async def test_hostile_headers_are_not_looked_at_before_the_token() -> None:
    async with node() as n:
        assert (await upload(n, "Sidecar-Start: yes", token="x")).startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize("content_type", [None, "application/json", "multipart/form-data", "text/plain; boundary=x"])
@in_loop
async def test_wrong_content_types(content_type: str | None) -> None:
    async with node() as n:
        answer = await upload(n, content_type=content_type)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b'"error":"invalid content type"' in answer
        assert n.transfers.received == []


@pytest.mark.parametrize(
    ("token", "status", "code"),
    [
        (NODE_TOKEN, 401, b"auth.jwt"),
        (signed(upload_claims(exp=1)), 401, b"auth.jwt_expired"),
        (signed(upload_claims(), key="another node's token, long enough"), 401, b"auth.jwt"),
        (signed(upload_claims(sub="x")), 401, b"auth.jwt"),
        (signed(upload_claims(scope="websocket")), 403, b"auth.jwt_scope"),
    ],
)
@in_loop
async def test_bad_tokens(token: str, status: int, code: bytes) -> None:
    async with node() as n:
        answer = await upload(n, token=token)
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        assert b'"code":"%s"' % code in answer
        if status == 401:
            assert b'"error":"The required authorization heads were not present in the request."' in answer
            assert b"www-authenticate: Bearer\r\n" in answer.lower().replace(b": bearer", b": Bearer")
        assert n.transfers.received == []


@in_loop
async def test_a_token_without_scope_where_one_is_required() -> None:
    async with node(require_scope=True) as n:
        assert (await upload(n, token=signed(upload_claims(scope=None)))).startswith(b"HTTP/1.1 403 ")


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (DataCorrupt("archive.checksum", "x"), 400, b"checksums don't match"),
        (Refused("upload.order", "x"), 400, b"archive must be sent before the checksum"),
        (Refused("upload.missing_part", "x"), 400, b"missing archive or checksum"),
        (Refused("transfer.exists", "x"), 409, b"A transfer is already in progress for this server."),
        (HostFailed("environment.failed", "The image is missing."), 500, b"The image is missing."),
        (HostFailed("transfer.too_many", "Full."), 503, b"Full."),
    ],
)
@in_loop
async def test_failures_of_the_engine(error: Exception, status: int, text: bytes) -> None:
    transfers = FakeTransfers()
    transfers.failures["receive"] = error
    async with node(transfers) as n:
        answer = await upload(n)
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        assert text in answer
        assert await upload(n, "Multiplex-Stream-Count: 0") == b""  # takes any answer for success


@in_loop
async def test_nothing_is_sent_after_a_cut() -> None:
    transfers = FakeTransfers()
    transfers.failures["receive"] = SourceCut()
    async with node(transfers) as n:
        assert await upload(n) == b""


@in_loop
async def test_why_nothing_is_sent_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Symptom: a stranger's transfer fails, and the log says nothing but `no answer`."""
    transfers = FakeTransfers()
    transfers.failures["receive"] = cut = SourceCut()
    cut.__cause__ = HostFailed("disk.full", "12 bytes free\x1b")
    async with node(transfers) as n:
        assert await upload(n) == b""
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert line == "upload failed: disk.full: 12 bytes free\\x1b"


@pytest.mark.parametrize("stream", ["Multiplex-Stream-Count: 2", "Multiplex-Stream: 0"])
@pytest.mark.parametrize(
    "options",
    [{"token": "x"}, {"token": signed(upload_claims(exp=1))}, {"content_type": "application/json"}, {}],
)
@in_loop
async def test_a_calagopus_source_is_failed_by_silence(stream: str, options: dict[str, Any]) -> None:
    transfers = FakeTransfers()
    transfers.failures["receive"] = Refused("transfer.exists", "x")
    async with node(transfers) as n:
        assert await upload(n, stream, **options) == b""
        assert len(n.transfers.received) == (0 if options else 1)


@in_loop
async def test_streams_of_a_calagopus_source() -> None:
    async with node() as n:
        assert (await upload(n, "Multiplex-Stream-Count: 2")).startswith(b"HTTP/1.1 200 ")
        assert (await upload(n, "Multiplex-Stream: 1")).startswith(b"HTTP/1.1 200 ")
        main, extra = n.transfers.received
        assert (main.is_calagopus, main.multiplex_streams, main.multiplex_stream) == (True, 2, None)
        assert (extra.is_calagopus, extra.multiplex_streams, extra.multiplex_stream) == (True, 0, 1)
        assert await upload(n, "Multiplex-Stream-Count: many") == b""


@in_loop
async def test_a_bug_cuts_strangers_and_is_told_to_our_own() -> None:
    transfers = FakeTransfers()
    transfers.failures["receive"] = KeyError("x")
    async with node(transfers) as n:
        assert await upload(n) == b""
        answer = await upload(n, "Sidecar-Protocol: 1", f"Sidecar-Transfer: {TRANSFER}")
        assert answer.startswith(b"HTTP/1.1 500 ")
        assert b"transfer.internal" in answer


@in_loop
async def test_an_upload_is_refused_while_it_is_still_being_sent() -> None:
    """A source that goes on sending reads the refusal; it is not lost in a reset."""
    async with node() as n:
        answer = await n.raw(head(token="x", length=1 << 20), b"x" * (1 << 20))
        assert answer.startswith(b"HTTP/1.1 401 ")
