"""The command `watch`: from options to what is to be shown."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final
from uuid import UUID

import msgspec
import typer

from sidecar.bus.settings import BusSettings
from sidecar.cli.ending import EXIT_USAGE, fail, fail_settings
from sidecar.errors import HostFailed
from sidecar.settings import load_nats
from sidecar.settings.values import NODE_ID_PATTERN
from sidecar.watch.run import Wanted, WatchFailed, watch

RETRY_S: Final = 2.0  # at most, between two attempts to connect: somebody looks on, and they are few


def run(
    config: Path | None,
    options: Mapping[str, tuple[str, str]],
    servers: Sequence[str],
    nodes: Sequence[str],
    *,
    active_only: bool,
    once: bool,
    as_json: bool,
) -> None:
    """Args: options: of the broker, see `load_nats`. Ends the program by typer.Exit."""
    uuids = tuple(_uuid(server) for server in servers)
    for node in nodes:
        if re.fullmatch(NODE_ID_PATTERN, node, re.ASCII) is None:
            fail(f"{node!r} is not the id of a node", EXIT_USAGE)
    try:
        nats = load_nats(config, os.environ, options)
        settings = BusSettings.of_user(nats, name="transfer-sidecar watch")
        settings = msgspec.structs.replace(settings, retry_max_s=RETRY_S)
        settings.connect_options()  # files that cannot be read
    except HostFailed as wrong:
        fail_settings(wrong)
    logging.getLogger().addHandler(logging.NullHandler())  # what is wrong is shown, and not between the lines
    wanted = Wanted(
        root=nats.root,
        stream=nats.stream if nats.jetstream else None,
        servers=uuids,
        nodes=tuple(nodes),
        active_only=active_only,
        once=once,
        as_json=as_json,
    )
    try:
        ended_by = watch(settings, wanted)
    except WatchFailed as failed:
        fail(str(failed))
    raise typer.Exit(128 + ended_by if ended_by else 0)


def _uuid(server: str) -> str:
    try:
        return str(UUID(server))
    except ValueError:
        fail(f"{server!r} is not the UUID of a server", EXIT_USAGE)
