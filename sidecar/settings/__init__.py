"""The settings: what an operator may set (`values`), where each value is read from (`load`, `reading`, `wings`), and
how they are shown (`render`). Read once at start, frozen, and passed on as plain values."""

from __future__ import annotations

from sidecar.settings.load import Loaded, load, load_nats
from sidecar.settings.values import (
    Api,
    Containers,
    Deletion,
    Dialect,
    Limits,
    Log,
    LogFormat,
    LogLevel,
    Nats,
    Node,
    Owner,
    Panel,
    RuntimeKind,
    Secret,
    ServerOverride,
    Servers,
    Settings,
    State,
    StopPolicy,
    Transfer,
    WebSocket,
)

__all__ = [
    "Api",
    "Containers",
    "Deletion",
    "Dialect",
    "Limits",
    "Loaded",
    "Log",
    "LogFormat",
    "LogLevel",
    "Nats",
    "Node",
    "Owner",
    "Panel",
    "RuntimeKind",
    "Secret",
    "ServerOverride",
    "Servers",
    "Settings",
    "State",
    "StopPolicy",
    "Transfer",
    "WebSocket",
    "load",
    "load_nats",
]
