"""Who is calling: the node token of a panel, and the tokens (JWT) that a panel signs with it for others.

One secret does three things, as in the node daemons: it is the bearer token of the panel's own calls, and the HS256 key
of upload tokens and of WebSocket tokens. The algorithm is fixed here and never taken from the token's header. Claims
are checked by hand against an injected clock, so that what is required and what is tolerated stands in one place:

- times may be integers or fractions; `exp` is required, `nbf` is honoured when present
- `scope` (a string of words or a list) must name the purpose when it is present; older panels leave it out, which is
  accepted unless `require_scope`
- `iss`, `aud`, `jti` and `unique_id` say nothing that this node could verify and are ignored
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Sequence
from typing import Any, Final

import jwt
import msgspec

from sidecar.errors import Refused

MAX_TOKEN_CHARS: Final = 8 * 1024  # a panel's tokens have some 500; enough for one with many permissions
_LAST_SECOND: Final = 253402300799.0  # 9999-12-31: a later `exp` means "never" and must not overflow a float

_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE | re.ASCII)


def maybe_uuid(text: object) -> str | None:
    """The UUID in lower case, if `text` is one in the usual form of 8-4-4-4-12 digits."""
    return text.lower() if isinstance(text, str) and _UUID.fullmatch(text) else None


class UploadClaims(msgspec.Struct, frozen=True):
    """What a good upload token says."""

    server: str  # UUID, lower case
    expires_at: float


class SocketClaims(msgspec.Struct, frozen=True):
    """What a good WebSocket token says."""

    server: str
    user: str
    permissions: frozenset[str]
    expires_at: float


class NodeAuth:
    """Checks callers against this node's token.

    Args: token, the node token; require_scope, whether a token without `scope` is refused; now, seconds since 1970.
    """

    def __init__(self, token: str, *, require_scope: bool, now: Callable[[], float]) -> None:
        if not token:
            raise ValueError("the node token is empty")
        self._key = token.encode()
        self._require_scope = require_scope
        self._now = now
        self._jws = jwt.PyJWS(algorithms=["HS256"])

    def __repr__(self) -> str:
        return "NodeAuth(token=***)"

    def check_node_token(self, authorization: Sequence[str]) -> None:
        """Args: authorization, every Authorization header. Raises Refused (`auth.missing`, `auth.token`)."""
        given = _bearer(authorization).encode("latin-1", "replace")
        if not hmac.compare_digest(given, self._key):
            raise Refused("auth.token", "The bearer token is not this node's.")

    def upload_claims(self, authorization: Sequence[str], *, expired_for_s: float = 0.0) -> UploadClaims:
        """The claims of an upload's token, which may have expired up to `expired_for_s` ago.

        Raises Refused (`auth.missing`, `auth.jwt`, `auth.jwt_expired`, `auth.jwt_scope`).
        """
        claims = self._claims(_bearer(authorization), "transfer", expired_for_s)
        server = maybe_uuid(claims.get("sub"))
        if server is None:
            raise Refused("auth.jwt", "The token's subject is not the UUID of a server.")
        return UploadClaims(server, _time(claims, "exp"))

    def socket_claims(self, token: str, server: str) -> SocketClaims:
        """The claims of a WebSocket's token for that server.

        Raises Refused (`auth.jwt`, `auth.jwt_expired`, `auth.jwt_scope`); the message is a daemon's `jwt: ...`.
        """
        try:
            claims = self._claims(token, "websocket", 0.0)
            _time(claims, "iat")
        except Refused as refused:
            words = "exp claim is invalid" if refused.code == "auth.jwt_expired" else refused.message
            raise Refused(refused.code, f"jwt: {words}") from None
        if maybe_uuid(claims.get("server_uuid")) != server:
            raise Refused("auth.jwt", "jwt: server uuid mismatch")
        user = claims.get("user_uuid")
        if not isinstance(user, str) or not user:
            raise Refused("auth.jwt", "jwt: no user uuid present")
        permissions = claims.get("permissions")
        if not isinstance(permissions, list) or not all(isinstance(name, str) for name in permissions):
            raise Refused("auth.jwt", "jwt: no permissions present")
        if not {"websocket.connect", "*"} & set(permissions):
            raise Refused("auth.jwt_scope", "jwt: missing connect permission")
        return SocketClaims(server, user, frozenset(permissions), _time(claims, "exp"))

    def _claims(self, token: str, purpose: str, expired_for_s: float) -> dict[str, Any]:
        if len(token) > MAX_TOKEN_CHARS or not token.isascii():
            raise Refused("auth.jwt", "The token is too long or not ASCII.")
        try:
            payload = self._jws.decode(token, self._key, algorithms=["HS256"])
            claims = msgspec.json.decode(payload, type=dict[str, Any])
        except (jwt.PyJWTError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Refused("auth.jwt", "The token is damaged or not signed with this node's key.") from error
        now = self._now()
        if "nbf" in claims and claims["nbf"] is not None and now < _time(claims, "nbf"):
            raise Refused("auth.jwt", "The token is not valid yet; compare the clocks of panel and node.")
        if now >= _time(claims, "exp") + expired_for_s:
            raise Refused("auth.jwt_expired", "The token has expired.")
        self._check_scope(claims.get("scope"), purpose)
        return claims

    def _check_scope(self, scope: object, purpose: str) -> None:
        if scope is None:
            if self._require_scope:
                raise Refused("auth.jwt_scope", "The token has no scope, which the settings of this node require.")
            return
        words = scope.split() if isinstance(scope, str) else scope
        if not isinstance(words, list) or purpose not in words:
            raise Refused("auth.jwt_scope", f"The token's scope does not include '{purpose}'.")


def _bearer(authorization: Sequence[str]) -> str:
    """The token of the only Authorization header. Two of them would let a proxy and us read different ones."""
    if len(authorization) == 1:
        scheme, _, token = authorization[0].strip().partition(" ")
        if scheme.lower() == "bearer" and token and " " not in token:
            return token
    raise Refused("auth.missing", "The Authorization header is missing, repeated or not a bearer token.")


def _time(claims: dict[str, Any], name: str) -> float:
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise Refused("auth.jwt", f"The token's '{name}' is missing or not a time.")
    return float(max(-_LAST_SECOND, min(_LAST_SECOND, value)))  # clamped before: a huge integer overflows a float
