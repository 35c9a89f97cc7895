"""One request to the node of this configuration, over the address, port and TLS that it listens with.

The certificate is not checked: it names the node's public name, we call a loopback address of our own machine, and
nothing but this node's own token is sent. The standard library's client, because it starts in no time.
"""

from __future__ import annotations

import http.client
import json
import ssl
from typing import Any, Final

import msgspec

from sidecar.settings import Api, Secret

_WILDCARDS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}
_ANSWER_BYTES: Final = 65536  # more is not shown


class NoAnswer(Exception):
    """The node gave no HTTP answer; the text says why."""


class Answer(msgspec.Struct, frozen=True):
    status: int
    body: Any  # the JSON value, or None

    @property
    def detail(self) -> str:
        """The error of the body, to be put behind a sentence."""
        if isinstance(self.body, dict) and isinstance(self.body.get("error"), str):
            return f": {self.body['error']}"
        return ""


def ask(
    api: Api, method: str, path: str, *, token: Secret | None = None, body: Any = None, timeout_s: float = 30.0
) -> Answer:
    """Raises NoAnswer."""
    if api.port == 0:
        raise NoAnswer("api.port is 0, so only the running node knows its port")
    host = _WILDCARDS.get(api.host.strip("[]"), api.host.strip("[]"))
    connection: http.client.HTTPConnection
    if api.tls_cert is not None:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPSConnection(host, api.port, timeout=timeout_s, context=context)
    else:
        connection = http.client.HTTPConnection(host, api.port, timeout=timeout_s)
    headers = {"Accept": "application/json"}
    if token is not None:
        headers["Authorization"] = f"Bearer {token.reveal()}"
    data = None
    if body is not None:
        data = json.dumps(body).encode()
        headers["Content-Type"] = "application/json"
    try:
        connection.request(method, path, body=data, headers=headers)
        response = connection.getresponse()
        content = response.read(_ANSWER_BYTES)
        status = response.status
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise NoAnswer(f"{host} port {api.port}: {reason}") from error
    finally:
        connection.close()
    try:
        return Answer(status, json.loads(content))
    except ValueError:
        return Answer(status, None)
