"""Which web pages may open a WebSocket: the panel's, and those that the settings list.

Browsers send the page's origin and let any page connect, so the check is ours. With a panel (or a list) a missing
Origin is refused too, as the node daemons do: what is no browser can set one. Without both there is nothing to compare
with, and the token alone decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from sidecar.errors import Refused

_DEFAULT_PORTS = {"http": 80, "https": 443}


class Origins:
    """Args: panel_url, empty without a panel; allowed, origins like `https://panel.example`, or `*` for any."""

    def __init__(self, panel_url: str, allowed: Sequence[str]) -> None:
        self._any = "*" in allowed
        known = [*allowed, *([panel_url] if panel_url else [])]
        self._is_open = not known
        self._allowed = frozenset(origin for entry in known if (origin := maybe_origin(entry)))

    def check(self, given: Sequence[str]) -> None:
        """Args: every Origin header of the request. Raises Refused (`auth.origin`)."""
        if self._any or self._is_open:
            return
        if len(given) != 1 or maybe_origin(given[0]) not in self._allowed:
            raise Refused(
                "auth.origin", "The origin of this WebSocket is not the panel's and not allowed by the settings."
            )


def maybe_origin(url: str) -> str | None:
    """`scheme://host[:port]` in lower case without a default port, or None for what has no origin (`null`)."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if not parts.scheme or not parts.hostname:
        return None
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    is_default = port is None or port == _DEFAULT_PORTS.get(parts.scheme)
    return f"{parts.scheme}://{host}" if is_default else f"{parts.scheme}://{host}:{port}"
