"""How a transfer's events are called on the WebSocket: two dialects, one vocabulary inside.

Documented: `transfer.status` with the six statuses, `transfer.logs` with lines in the documented markup.
Daemon: `transfer status` and `transfer logs` (with a space), the words that panels in the field listen for, and lines
with terminal colours. There `failed` and `cancelled` are `failure`, and a destination says `success` and then
`completed`, because one family of panels waits for the first and another for the second.

One panel's console closes and reopens its socket at every `transfer status` it does not know. Sent after each
authentication, the current state would make it reconnect for ever: so the daemon dialect never repeats a word and is
not sent the current state; the documented dialect, which that console ignores, is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import assert_never

from sidecar.engine.log_lines import format_ansi_line, format_line
from sidecar.lifecycle.statuses import Role, Status
from sidecar.settings.values import Dialect
from sidecar.views import EventKind, TransferEvent, TransferView

Message = tuple[str, list[str]]  # event, args


class Speaker:
    """One socket's way of telling transfers. Remembers the last word per transfer and dialect (one transfer a server).

    Args: dialects to speak; sees_logs, whether the socket's user may read log lines.
    """

    def __init__(self, dialects: Iterable[Dialect]) -> None:
        self._dialects = tuple(dialect for dialect in Dialect if dialect in set(dialects))
        self._transfer = ""
        self._said: dict[Dialect, str] = {}

    def current(self, view: TransferView) -> list[Message]:
        """The state of a transfer that is under way, for a socket that has just authenticated."""
        self._follow(view.transfer)
        if view.status.is_final or Dialect.DOCUMENTED not in self._dialects:
            return []
        self._said[Dialect.DOCUMENTED] = view.status.value
        return [("transfer.status", [view.status.value])]

    def tell(self, event: TransferEvent, *, sees_logs: bool) -> list[Message]:
        """The messages for one event, maybe none. `sees_logs`: whether the socket's user may read log lines."""
        self._follow(event.transfer)
        match event.kind:
            case EventKind.STATUS:
                return [message for dialect in self._dialects for message in self._status(dialect, event)]
            case EventKind.LOGS:
                return [_logs(dialect, event) for dialect in self._dialects] if sees_logs else []
            case EventKind.PROGRESS:
                return []  # neither dialect has it: the log lines carry the progress
            case _:
                assert_never(event.kind)

    def _follow(self, transfer: str) -> None:
        if transfer != self._transfer:
            self._transfer = transfer
            self._said.clear()

    def _status(self, dialect: Dialect, event: TransferEvent) -> list[Message]:
        match dialect:
            case Dialect.DOCUMENTED:
                name, words = "transfer.status", [event.status.value]
            case Dialect.DAEMON:
                name, words = "transfer status", daemon_words(event.role, event.status)
            case _:
                assert_never(dialect)
        if not words or self._said.get(dialect) == words[-1]:
            return []
        self._said[dialect] = words[-1]
        return [(name, [word]) for word in words]


def daemon_words(role: Role, status: Status) -> list[str]:
    """A status in the daemons' words, in the order to send; empty where they say nothing."""
    match status:
        case Status.PENDING:
            return []
        case Status.PROCESSING | Status.CANCELLING:
            return [status.value] if role is Role.SOURCE else []
        case Status.FAILED | Status.CANCELLED:
            return ["failure"]
        case Status.COMPLETED:
            return ["completed"] if role is Role.SOURCE else ["success", "completed"]
        case _:
            assert_never(status)


def _logs(dialect: Dialect, event: TransferEvent) -> Message:
    match dialect:
        case Dialect.DOCUMENTED:
            return "transfer.logs", [event.line or format_line(event.role, event.time, event.message or "")]
        case Dialect.DAEMON:
            return "transfer logs", [format_ansi_line(event.role, event.time, event.message or "")]
        case _:
            assert_never(dialect)
