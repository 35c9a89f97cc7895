"""Who may command this node over the bus: the node token, or a token made with it for one command.

A command token is HS256 with the node token; `aud` is the node, `scope` names the command or all (`command`), `jti` is
its own, `exp` is near. It counts once. Its id is remembered in memory for as long as it lives; a node that has been
restarted remembers none, and therefore takes no token that was issued before its start, nor one that was issued more
than `MAX_AHEAD_S` in the future, which would outlive that rule. That costs a caller whose
clock is behind a few seconds of patience after a restart; a file of ids would cost an fsync a command, and an attacker
who records tokens gains nothing by the one or the other.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import Final

from sidecar.calls.auth import CommandClaims, NodeAuth
from sidecar.errors import Refused

MAX_AHEAD_S: Final = 2.0  # a caller's clock may be that far ahead
MAX_LIVE_TOKENS: Final = 20_000  # used and not yet expired; some 200 bytes each, and only good ones are kept


class CommandAuth:
    """Args: auth; node, its id; is_required, whether a command without Authorization is refused (one with it is always
    checked); now, seconds since 1970, also the start of this program at construction."""

    def __init__(self, auth: NodeAuth, *, node: str, is_required: bool, now: Callable[[], float]) -> None:
        self._auth = auth
        self._node = node
        self._is_required = is_required
        self._now = now
        self._started_at = now()
        self._used: set[str] = set()
        self._by_end: list[tuple[float, str]] = []

    def check(self, authorization: Sequence[str], command: str) -> None:
        """Args: authorization, every Authorization header.

        Raises Refused (`auth.*`, `request.busy` where more tokens live than are remembered).
        """
        if not authorization and not self._is_required:
            return
        if self._auth.is_node_token(authorization):
            return
        if "".join(authorization).count(".") != 2:  # no JWT at all: the same words as over REST
            self._auth.check_node_token(authorization)
        self._use(self._auth.command_claims(authorization, node=self._node, command=command))

    def _use(self, claims: CommandClaims) -> None:
        now = self._now()
        while self._by_end and self._by_end[0][0] <= now:
            self._used.discard(heapq.heappop(self._by_end)[1])
        if claims.token_id in self._used:
            raise Refused("auth.jwt_replayed", "The token has been used before; each command needs its own.")
        if claims.issued_at > now + MAX_AHEAD_S:
            raise Refused("auth.jwt", "The token was issued in the future; compare the clocks of caller and node.")
        if claims.issued_at < self._started_at:
            raise Refused("auth.jwt_replayed", "The token is older than this node's start, so it may have been used.")
        if len(self._used) >= MAX_LIVE_TOKENS:
            raise Refused("request.busy", "Too many command tokens are alive; shorter ones are forgotten sooner.")
        self._used.add(claims.token_id)
        heapq.heappush(self._by_end, (claims.expires_at, claims.token_id))
