"""Tokens as panels sign them, and as strangers forge them."""

from __future__ import annotations

from typing import Any

import jwt

from sidecar.calls.auth import NodeAuth
from tests.api.fake_transfers import SERVER

NODE_TOKEN = "tokenB" * 8
NOW = 1_795_317_200.0


def auth(*, require_scope: bool = False) -> NodeAuth:
    return NodeAuth(NODE_TOKEN, require_scope=require_scope, now=lambda: NOW)


def bearer(token: str = NODE_TOKEN) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def signed(claims: dict[str, Any], key: Any = NODE_TOKEN, algorithm: str = "HS256") -> str:
    """Claims that are None are left out."""
    return jwt.encode({name: claim for name, claim in claims.items() if claim is not None}, key, algorithm=algorithm)


def upload_claims(**changes: Any) -> dict[str, Any]:
    """What a panel puts into an upload's token."""
    claims = {
        "iss": "http://panel.test",
        "aud": ["http://127.0.0.1:9102"],
        "jti": "0244bacd",
        "iat": int(NOW),
        "nbf": int(NOW) - 300,
        "exp": int(NOW) + 900,
        "sub": SERVER,
        "unique_id": "x",
        "scope": "transfer",
    }
    return {**claims, **changes}


def socket_claims(**changes: Any) -> dict[str, Any]:
    claims = {
        "iat": int(NOW),
        "nbf": int(NOW) - 300,
        "exp": int(NOW) + 600,
        "user_uuid": "0e0f0a0b-0000-4000-8000-000000000001",
        "server_uuid": SERVER,
        "permissions": ["websocket.connect", "admin.websocket.transfer"],
        "scope": "websocket",
    }
    return {**claims, **changes}
