"""Who is calling: the node token of a panel, and the tokens (JWT) that a panel signs with it for others.

One secret does several things, as in the node daemons: it is the bearer token of the panel's own calls, and the HS256
key of upload tokens, of WebSocket tokens and of command tokens. The algorithm is fixed here and never taken from the
token's header. Claims are checked by hand against an injected clock, so that what is required and what is tolerated
stands in one place:

- times may be integers or fractions; `exp` is required, `nbf` is honoured when present
- `scope` (a string of words or a list) must name the purpose when it is present; older panels leave it out, which is
  accepted unless `require_scope`
- `iss`, `aud`, `jti` and `unique_id` say nothing that this node could verify and are ignored, but in command tokens
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
MAX_TOKEN_ID_CHARS: Final = 128
COMMAND_TOKEN_S: Final = 600.0  # a command's token is made for one command; its id is remembered as long as it lives
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


class CommandClaims(msgspec.Struct, frozen=True):
    """What a good command token says."""

    token_id: str
    issued_at: float
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

    def scraping(self, token: str) -> NodeAuth:
        """As this, for who only reads numbers: `token` is its node token, unless it is empty."""
        return NodeAuth(token, require_scope=self._require_scope, now=self._now) if token else self

    def check_node_token(self, authorization: Sequence[str]) -> None:
        """Args: authorization, every Authorization header. Raises Refused (`auth.missing`, `auth.token`)."""
        if not self.is_node_token(authorization):
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

    def is_node_token(self, authorization: Sequence[str]) -> bool:
        """Whether the header holds the node's own token. Raises Refused (`auth.missing`)."""
        return hmac.compare_digest(_bearer(authorization).encode("latin-1", "replace"), self._key)

    def command_claims(self, authorization: Sequence[str], *, node: str, command: str) -> CommandClaims:
        """The claims of a command's token: for this node, for this command (or for all: `command`), for once.

        Nothing is optional here, `scope` neither: these tokens are younger than the panels that leave it out.
        Raises Refused (`auth.missing`, `auth.jwt`, `auth.jwt_expired`, `auth.jwt_scope`).
        """
        claims = self._claims(_bearer(authorization), None, 0.0)
        if not {"command", command} & set(_words(claims.get("scope"))):
            raise Refused("auth.jwt_scope", f"The token's scope includes neither 'command' nor '{command}'.")
        audience = claims.get("aud")
        if node not in (audience if isinstance(audience, list) else [audience]):
            raise Refused("auth.jwt_scope", "The token's audience is not this node.")
        token_id = claims.get("jti")
        if not isinstance(token_id, str) or not 0 < len(token_id) <= MAX_TOKEN_ID_CHARS:
            raise Refused("auth.jwt", "The token has no id ('jti') of reasonable length.")
        issued_at, expires_at = _time(claims, "iat"), _time(claims, "exp")
        if expires_at > self._now() + COMMAND_TOKEN_S:
            raise Refused("auth.jwt", f"The token is valid for more than {COMMAND_TOKEN_S:g} s.")
        return CommandClaims(token_id, issued_at, expires_at)

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

    def _claims(self, token: str, purpose: str | None, expired_for_s: float) -> dict[str, Any]:
        """Args: purpose, the word that a scope must include where there is one; None: the caller looks at it."""
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
        if purpose is not None:
            self._check_scope(claims.get("scope"), purpose)
        return claims

    def _check_scope(self, scope: object, purpose: str) -> None:
        if scope is None:
            if self._require_scope:
                raise Refused("auth.jwt_scope", "The token has no scope, which the settings of this node require.")
            return
        if purpose not in _words(scope):
            raise Refused("auth.jwt_scope", f"The token's scope does not include '{purpose}'.")


def _words(scope: object) -> list[str]:
    """A scope is a string of words or a list of them."""
    words = scope.split() if isinstance(scope, str) else scope
    return [word for word in words if isinstance(word, str)] if isinstance(words, list) else []


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
