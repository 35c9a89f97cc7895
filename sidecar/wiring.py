"""The one composition root: builds everything from the settings, runs it, and closes it in reverse.

Nothing else in the program constructs an adapter, and nothing here decides anything.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec

from sidecar import log_output
from sidecar.adapters.beside import BesideRuntime
from sidecar.adapters.daemon_containers import DaemonContainers
from sidecar.adapters.daemon_http import HttpDaemon
from sidecar.adapters.docker_containers import DockerRuntime
from sidecar.adapters.no_containers import NoRuntime
from sidecar.adapters.panel_http import HttpPanel
from sidecar.api.app import Beside, build_app
from sidecar.api.front import is_passed_on
from sidecar.api.health import Check, Readiness
from sidecar.api.reading import ApiLimits
from sidecar.api.system import EngineInfo
from sidecar.api.websocket import SocketSettings
from sidecar.archive.extract import ExtractLimits
from sidecar.bus.link import first
from sidecar.calls.auth import NodeAuth
from sidecar.engine.cabinet import CARRYING_NAME
from sidecar.engine.node import Node
from sidecar.engine.services import Receiving, Sending, Services, Timings
from sidecar.engine.volumes import Volumes
from sidecar.journal.lock import exclusive, exclusive_volumes
from sidecar.journal.store import Journal
from sidecar.ports import FilePlace, Panel, Runtime
from sidecar.settings.checks import remarks
from sidecar.settings.values import Deletion, RuntimeKind, Settings
from sidecar.wire.destination import DestinationPolicy
from sidecar.wire.flow import WireLimits
from sidecar.wire.listener import ApiServer
from sidecar.wire.server import is_nothing
from sidecar.wiring_bus import CODECS, cancelled_at_the_end, open_bus

log = logging.getLogger(__name__)

CONSOLE_BYTES = 32 * 1024
DAEMON_CALL_S = 10.0  # it is on this machine
_SAME_SIGNAL_S = 1.0


class Running(msgspec.Struct, frozen=True):
    """A node that serves."""

    node: Node
    port: int


async def serve(settings: Settings) -> None:
    """Run a node until SIGTERM or SIGINT, then let running transfers end for `transfer.shutdown_grace_s`, or until
    another such signal, a second later or more: a terminal and whoever supervises may both pass on the same one.

    Raises HostFailed (`settings.invalid`, `journal.failed`), OSError (address in use).
    """
    log_output.set_up(settings.log.level.value, settings.log.format.value)
    for remark in remarks(settings):
        log.warning("%s", remark)
    stop, hurry = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    asked_at: float | None = None

    def signalled() -> None:
        nonlocal asked_at
        if asked_at is None:
            asked_at = loop.time()
            stop.set()
        elif loop.time() - asked_at >= _SAME_SIGNAL_S:
            hurry.set()

    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, signalled)
    async with running(settings) as node:
        host = f"[{settings.api.host}]" if ":" in settings.api.host else settings.api.host
        scheme = "https" if settings.api.tls_cert else "http"
        log.info("node %s serves on %s://%s:%d", settings.node.id, scheme, host, node.port)
        await stop.wait()
        grace_s = settings.transfer.shutdown_grace_s
        log.info("stopping: running transfers have %g s to end; a second signal cuts them", grace_s)
        await first(node.node.drain(grace_s), hurry.wait(), None)
        if hurry.is_set():
            log.warning("a second signal: what still runs is cut, and taken up at the next start")
    log.info("stopped")


@asynccontextmanager
async def running(settings: Settings, *, timings: Timings | None = None) -> AsyncIterator[Running]:
    """A node that serves until the block is left. `timings`: for tests that cannot wait as long as the rules do.

    Raises HostFailed where another process works with the same state directory (`journal.failed`) or the same volumes
    (`settings.invalid`).
    """
    async with AsyncExitStack() as stack:
        stack.enter_context(exclusive(settings.state.dir))  # before anything is recovered
        stack.enter_context(exclusive_volumes(settings.servers.volumes))
        transfer, streams = settings.transfer, settings.limits.max_multiplex_streams
        workers = 4 + 4 * transfer.max_outgoing + (4 + streams) * transfer.max_incoming  # started only when needed
        executor = stack.enter_context(ThreadPoolExecutor(workers, thread_name_prefix="sidecar"))
        daemon = await _daemon(settings, stack)
        runtime = await _runtime(settings, stack, daemon)
        panel = await _panel(settings, stack)
        services = _services(settings, executor, runtime, panel, daemon, timings or _timings(settings))
        node = Node(
            services,
            max_outgoing=settings.transfer.max_outgoing,
            max_incoming=settings.transfer.max_incoming,
            refuse_deletion=settings.servers.deletion is Deletion.REFUSE,
        )
        checks = [
            Check("node", node.check),
            Check("containers", runtime.check, is_required=settings.containers.runtime is not RuntimeKind.NONE),
            Check("volumes", lambda: services.in_thread(services.volumes.check)),
            Check("journal", lambda: services.in_thread(services.journal.check)),
        ]
        auth = NodeAuth(settings.node.token.reveal(), require_scope=settings.panel.require_scope, now=time.time)
        # The bus comes before the node, so that it hears the first events, those of recovery, too.
        bus = await open_bus(settings, services, node, auth, stack) if settings.nats.url else None
        await stack.enter_async_context(node.running())
        if bus is not None:  # commands only from now on, and none any more when the node ends
            checks += bus.checks
            await stack.enter_async_context(bus.control.running())
        background = await stack.enter_async_context(cancelled_at_the_end())
        background(asyncio.create_task(node.keep_house(), name="keep house"))
        server = _server(settings, node, auth, Readiness(checks, clock=time.monotonic), _engine_info(runtime))
        port = await server.start()
        stack.push_async_callback(server.stop, 1.0)
        yield Running(node, port)


def _services(
    settings: Settings,
    executor: ThreadPoolExecutor,
    runtime: Runtime,
    panel: Panel | None,
    daemon: HttpDaemon | None,
    timings: Timings,
) -> Services:
    limits, transfer = settings.limits, settings.transfer
    named = {server: override.volume for server, override in settings.servers.named.items() if override.volume}
    owner = settings.servers.owner
    kept = {FilePlace.BACKUPS: settings.servers.backups, FilePlace.INSTALL_LOGS: settings.servers.install_logs}
    places = {place: directory for place, directory in kept.items() if directory is not None}
    carrying = settings.servers.volumes / CARRYING_NAME if daemon is not None else None
    filed = [*places.values(), *([carrying] if carrying is not None else [])]
    spool = settings.state.dir / "spool"
    spool.mkdir(mode=0o700, parents=True, exist_ok=True)
    return Services(
        node=settings.node.id,
        runtime=runtime,
        panel=panel,
        daemon=daemon,
        journal=Journal(settings.state.dir),
        volumes=Volumes(settings.servers.volumes, named, retain_s=transfer.retain_s, filed=filed),
        policy=DestinationPolicy(transfer.allowed_destinations),
        extract_limits=ExtractLimits(
            max_entries=limits.max_entries,
            max_bytes=limits.max_content_bytes,
            max_path_bytes=limits.max_path_bytes,
            max_depth=limits.max_depth,
            max_directories=limits.max_directories,
        ),
        executor=executor,
        spool=spool,
        timings=timings,
        sending=Sending(
            gzip_level=transfer.gzip_level,
            stall_timeout_s=transfer.stall_timeout_s,
            connect_timeout_s=transfer.connect_timeout_s,
            answer_timeout_s=transfer.answer_timeout_s,
            max_entries=limits.max_entries,
            restart_on_failure=settings.containers.restart_on_failure,
            backups=settings.servers.backups,
            install_logs=settings.servers.install_logs,
        ),
        receiving=Receiving(
            stall_timeout_s=transfer.stall_timeout_s,
            owner=(owner.uid, owner.gid) if owner is not None else None,
            reserve_bytes=limits.reserve_bytes,
            reserve_inodes=limits.reserve_inodes,
            max_part_header_bytes=limits.max_part_header_bytes,
            max_parts=limits.max_parts,
            max_multiplex_streams=limits.max_multiplex_streams,
            places=places,
            carrying=carrying,
        ),
    )


def _timings(settings: Settings) -> Timings:
    return Timings(
        call_timeout_s=settings.panel.call_timeout_s, progress_interval_s=settings.transfer.progress_interval_s
    )


async def _panel(settings: Settings, stack: AsyncExitStack) -> Panel | None:
    if not settings.panel.url:
        return None
    panel = HttpPanel(
        settings.panel.url,
        token_id=settings.node.token_id,
        token=settings.node.token.reveal(),
        call_timeout_s=settings.panel.call_timeout_s,
    )
    stack.push_async_callback(panel.close)
    return panel


async def _daemon(settings: Settings, stack: AsyncExitStack) -> HttpDaemon | None:
    if not settings.daemon.url:
        return None
    daemon = HttpDaemon(
        settings.daemon.url,
        token=settings.node.token.reveal(),
        origin=settings.panel.url,
        volume_path=_volume_path(settings),
        call_timeout_s=DAEMON_CALL_S,
        hand_over_s=settings.daemon.hand_over_timeout_s,
    )
    stack.push_async_callback(daemon.close)
    return daemon


def _volume_path(settings: Settings) -> Callable[[str], Path]:
    named = {server: override.volume for server, override in settings.servers.named.items() if override.volume}
    return lambda server: named.get(server, settings.servers.volumes / server)


async def _runtime(settings: Settings, stack: AsyncExitStack, daemon: HttpDaemon | None) -> Runtime:
    if daemon is not None:
        beside = BesideRuntime(
            daemon,
            _daemon_containers(settings) if settings.containers.runtime is RuntimeKind.DOCKER else None,
            stop_timeout_s=settings.containers.stop_timeout_s,
            stop_policy=settings.containers.stop_policy,
        )
        stack.push_async_callback(beside.close)
        return beside
    if settings.containers.runtime is RuntimeKind.NONE:
        return NoRuntime()
    containers, owner = settings.containers, settings.servers.owner
    runtime = DockerRuntime(
        host=containers.host,
        volume_path=_volume_path(settings),
        containers=_container_names(settings),
        stop_timeout_s=containers.stop_timeout_s,
        stop_policy=containers.stop_policy,
        network=containers.network,
        data_target=containers.data_target,
        owner=(owner.uid, owner.gid) if owner is not None else None,
    )
    stack.push_async_callback(runtime.close)
    return runtime


def _container_names(settings: Settings) -> dict[str, str]:
    return {server: override.container for server, override in settings.servers.named.items() if override.container}


def _daemon_containers(settings: Settings) -> DaemonContainers:
    return DaemonContainers(
        host=settings.containers.host,
        volume_path=_volume_path(settings),
        containers=_container_names(settings),
        data_target=settings.containers.data_target,
    )


def _server(
    settings: Settings, node: Node, auth: NodeAuth, readiness: Readiness, engine_info: EngineInfo | None
) -> ApiServer:
    limits = settings.limits
    app = build_app(
        transfers=node,
        auth=auth,
        readiness=readiness,
        limits=ApiLimits(max_json_bytes=limits.max_json_bytes, json_body_s=limits.request_timeout_s),
        sockets=SocketSettings(
            panel_url=settings.panel.url,
            allowed_origins=settings.api.allowed_origins,
            dialects=frozenset(settings.websocket.dialects),
            max_per_server=limits.max_websockets_per_server,
            max_total=limits.max_websockets,
            max_message_bytes=limits.max_websocket_message_bytes,
        ),
        codecs=CODECS,
        respond_async=settings.transfer.respond_async,
        engine_info=engine_info,
        metrics_token=settings.api.metrics_token.reveal(),
        beside=Beside(daemon_url=settings.daemon.url, is_front=settings.api.front) if settings.daemon.url else None,
    )
    return ApiServer(
        app,
        is_streamed=is_passed_on if settings.api.front else is_nothing,
        host=settings.api.host,
        port=settings.api.port,
        tls_cert=settings.api.tls_cert,
        tls_key=settings.api.tls_key,
        limits=WireLimits(head_bytes=limits.max_header_bytes, head_timeout_s=limits.request_timeout_s),
        max_connections=limits.max_connections,
        # A console's messages are the daemon's to bound; the largest that any family takes is 32 KiB.
        websocket_message_bytes=max(limits.max_websocket_message_bytes, CONSOLE_BYTES if settings.daemon.url else 0),
    )


def _engine_info(runtime: Runtime) -> EngineInfo | None:
    info: EngineInfo | None = getattr(runtime, "engine_info", None)
    return info
