"""What only a daemon's console socket shows: whether it holds a server as transferring, and since when it runs.

Neither Pterodactyl nor Pelican shows it in its REST API, and power actions on such a server are accepted and do
nothing. But the first thing a console is told after its authentication is `status`, and for a server that is offline
then `stats`, unless the server is being installed or transferred. Looking changes nothing.

Source: docs/PROTOCOL.md, WebSocket; read in both daemons.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Final

import msgspec
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from sidecar.adapters.daemon_hand_over import mint_socket_token
from sidecar.errors import HostFailed

_MAX_MESSAGE_BYTES: Final = 1024 * 1024
_VALID_S: Final = 60
_REFUSALS: Final = ("jwt error", "daemon error")


class _Message(msgspec.Struct, frozen=True):
    event: str
    args: list[str] | None = None


_MESSAGE: Final = msgspec.json.Decoder(_Message)


async def sees_transferring(
    url: str, server: str, *, key: str, origin: str, now_s: int, wait_s: float, checks_certificate: bool
) -> bool | None:
    """Args: url: the daemon's API; origin: the panel's URL, which the daemon expects; wait_s: for `stats` to come.

    Returns None where the socket does not say. Raises HostFailed (`daemon.unreachable`).
    """
    token = mint_socket_token(server, key=key, audience=url, now_s=now_s)
    state: str | None = None
    try:
        async with asyncio.timeout(wait_s), _console(url, server, origin, checks_certificate) as socket:
            await socket.send(msgspec.json.encode({"event": "auth", "args": [token]}).decode())
            async for raw in socket:
                message = _MESSAGE.decode(raw)
                if message.event == "status":
                    state = "".join(message.args or ())
                    if state != "offline":
                        return False
                elif message.event == "stats":
                    return False
                elif message.event in _REFUSALS:
                    return None
    except TimeoutError:
        return True if state is not None else None
    except (OSError, WebSocketException) as error:
        raise HostFailed("daemon.unreachable", f"the node daemon's console socket failed: {error}") from error
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return None


async def accepts_token(
    url: str,
    server: str,
    *,
    key: str,
    origin: str,
    issued_s: int,
    now_s: int,
    wait_s: float,
    checks_certificate: bool,
    closes: bool,
) -> bool | None:
    """Whether a console's token that was issued at `issued_s` is taken, for a server that the daemon knows.

    Args: closes: the daemon is of the family that closes the socket instead of refusing in words.

    Returns None where the socket does not say: a lost connection and an error inside the daemon refuse no token.
    Raises HostFailed (`daemon.unreachable`).
    """
    refused = False if closes else None
    token = mint_socket_token(server, key=key, audience=url, now_s=issued_s, valid_s=now_s - issued_s + _VALID_S)
    try:
        async with asyncio.timeout(wait_s), _console(url, server, origin, checks_certificate) as socket:
            await socket.send(msgspec.json.encode({"event": "auth", "args": [token]}).decode())
            async for raw in socket:
                match _MESSAGE.decode(raw).event:
                    case "auth success":
                        return True
                    case "jwt error":
                        return False
                    case "daemon error":
                        return None
            return refused
    except TimeoutError:
        return None
    except ConnectionClosed:
        return refused
    except (OSError, WebSocketException) as error:
        raise HostFailed("daemon.unreachable", f"the node daemon's console socket failed: {error}") from error
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def _console(url: str, server: str, origin: str, checks_certificate: bool) -> connect:
    address = f"ws{url.removeprefix('http')}/api/servers/{server}/ws"
    return connect(
        address,
        origin=origin,  # type: ignore[arg-type]  # a NewType of str
        proxy=None,
        ssl=_tls(checks_certificate) if address.startswith("wss") else None,
        max_size=_MAX_MESSAGE_BYTES,
        close_timeout=1,
    )


def _tls(checks_certificate: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if not checks_certificate:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
