"""What a daemon's console proves about how old the daemon is, and what proves nothing."""

from __future__ import annotations

import asyncio
import json

import pytest
from websockets.asyncio.server import ServerConnection, serve

from sidecar.adapters.daemon_socket import accepts_token
from sidecar.errors import HostFailed

SERVER = "4c2a8d1e-0000-4000-8000-000000000001"


async def answered(answer: str, *, closes: bool) -> bool | None:
    async def console(socket: ServerConnection) -> None:
        assert json.loads(await socket.recv())["event"] == "auth"
        match answer:
            case "close":
                await socket.close()
            case "drop":
                socket.transport.abort()
            case "silence":
                await socket.wait_closed()
            case _:
                await socket.send(json.dumps({"event": answer, "args": ["..."]}))
                await socket.wait_closed()

    async with serve(console, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        answers = answer not in ("silence", "status")
        return await ask(f"http://127.0.0.1:{port}", closes=closes, wait_s=30.0 if answers else 0.5)


async def ask(url: str, *, closes: bool, wait_s: float = 30.0) -> bool | None:
    return await accepts_token(
        url,
        SERVER,
        key="k" * 64,
        origin="http://127.0.0.1",
        issued_s=1_000,
        now_s=2_000,
        wait_s=wait_s,
        checks_certificate=True,
        closes=closes,
    )


@pytest.mark.parametrize(
    ("answer", "from_go", "from_calagopus"),
    [
        ("auth success", True, True),
        ("jwt error", False, False),
        ("daemon error", None, None),  # of a signature, or of anything else inside
        ("close", None, False),
        ("drop", None, False),  # so does Calagopus: whoever asks must ask again
        ("silence", None, None),
        ("status", None, None),
    ],
)
def test_what_an_answer_proves(answer: str, from_go: bool | None, from_calagopus: bool | None) -> None:
    assert asyncio.run(answered(answer, closes=False)) is from_go
    assert asyncio.run(answered(answer, closes=True)) is from_calagopus


def test_nobody_there() -> None:
    with pytest.raises(HostFailed) as failed:
        asyncio.run(ask("http://127.0.0.1:1", closes=True))
    assert failed.value.code == "daemon.unreachable"
