"""Answers in JSON; one that is not a success has the body of `calls.problems` and the headers of its status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from starlette.responses import Response

from sidecar.calls.problems import told
from sidecar.errors import SidecarError

RETRY_AFTER_S: Final = 30  # transfers last minutes: asking more often finds the same answer

_encode = msgspec.json.Encoder().encode


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer with a JSON body; `value` is anything that msgspec encodes."""
    return Response(_encode(value), status, headers, "application/json")


def problem(error: SidecarError, request_id: str, headers: Mapping[str, str] | None = None) -> Response:
    """The answer to a request that failed with `error`."""
    headers = {**_headers(error), **(headers or {}), "X-Request-Id": request_id}
    return json_response(told(error, request_id), error.status, headers)


def _headers(error: SidecarError) -> dict[str, str]:
    if error.status == 401:
        return {"WWW-Authenticate": "Bearer"}
    if error.status == 503:
        return {"Retry-After": str(RETRY_AFTER_S)}
    return {}
