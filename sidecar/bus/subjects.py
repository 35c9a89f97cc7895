"""The bus's names: `<root>.v1.event.<node>.<direction>.<kind>.<server>.<transfer>`.

A subject is a route, and a wildcard or a stray dot in one would send events where nobody looks, or to everybody. The
client library publishes `a..b`, `a.*` and `a.>` without complaint, so each token is checked here: node and root by a
pattern, UUIDs by parsing and writing them anew, the rest are words of ours.
"""

from __future__ import annotations

import re
from typing import Final
from uuid import UUID

import msgspec

from sidecar.views import EventKind, TransferEvent

DEFAULT_ROOT: Final = "transfer"
ALL: Final = "_all"
_NODE: Final = re.compile(r"[A-Za-z0-9_-]{1,48}", re.ASCII)
_ROOT: Final = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", re.ASCII)


class Subjects(msgspec.Struct, frozen=True):
    """The subjects of one node. Raises ValueError for a root or node id that cannot stand in a subject."""

    node: str
    root: str = DEFAULT_ROOT

    def __post_init__(self) -> None:
        if not _NODE.fullmatch(self.node) or self.node == ALL:
            raise ValueError(f"the node id {self.node!r} does not match {_NODE.pattern}, or is {ALL}")
        check_root(self.root)

    def event(self, event: TransferEvent) -> str:
        """The subject of one event. Raises ValueError where its ids are not UUIDs."""
        return self.event_of(event.role.direction, event.kind, event.server, event.transfer)

    def event_of(self, direction: str, kind: EventKind, server: str, transfer: str) -> str:
        """As `event`, of its parts."""
        words = (self.node, direction, kind.value, str(UUID(server)), str(UUID(transfer)))
        return f"{self.root}.v1.event." + ".".join(words)

    @property
    def all_events(self) -> str:
        """A filter of everything that this node publishes."""
        return f"{self.root}.v1.event.{self.node}.>"

    def command(self, word: str) -> str:
        """Where this node takes that command."""
        return f"{self.root}.v1.command.{self.node}.{word}"

    def broadcast(self, word: str) -> str:
        """Where every node takes that command; `_all` is no node's id, for those that use it are refused."""
        return f"{self.root}.v1.command.{ALL}.{word}"

    def own(self, word: str) -> str:
        """What this node says to itself: two tokens behind the id, where no permission for commands reaches."""
        return f"{self.root}.v1.command.{self.node}.self.{word}"

    def is_answerable(self, reply: str) -> bool:
        """Whether a caller may be answered there: not where our own permissions would publish in the caller's place."""
        return not reply.startswith((f"{self.root}.", "$"))


def check_root(root: str) -> None:
    """Raises ValueError for a root that cannot begin a subject."""
    if not _ROOT.fullmatch(root):
        raise ValueError(f"the subject root {root!r} does not match {_ROOT.pattern}")


def event_filter(
    root: str = DEFAULT_ROOT,
    *,
    node: str | None = None,
    kind: EventKind | None = None,
    server: str | None = None,
    transfer: str | None = None,
) -> str:
    """A subscription to events, narrowed by what is given. Raises ValueError for what cannot stand in a subject."""
    check_root(root)
    if node is not None and not _NODE.fullmatch(node):
        raise ValueError(f"the node id {node!r} does not match {_NODE.pattern}")
    words = (
        node or "*",
        "*",
        kind.value if kind else "*",
        str(UUID(server)) if server else "*",
        str(UUID(transfer)) if transfer else "*",
    )
    return f"{root}.v1.event." + ".".join(words)
