"""What the destination needs of the engine: the image before the commit, the container after it."""

from __future__ import annotations

import logging
import time
from typing import Final

from sidecar.adapters.container_spec import (
    HOST_NETWORK,
    NO_NETWORK,
    Site,
    build_spec,
    image_of,
    understand,
    without_optional,
)
from sidecar.adapters.docker_engine import DockerEngine, Document
from sidecar.adapters.server_containers import ServerContainers, is_up
from sidecar.errors import HostFailed, PeerFailed
from sidecar.ports import Configuration

log = logging.getLogger(__name__)

_DAEMON_NETWORKS: Final = ("pterodactyl_nw", "pelican_nw")
_DEFAULT_NETWORK: Final = "bridge"


class Environments:
    """Blocking. One server at a time, which the caller sees to."""

    def __init__(
        self,
        engine: DockerEngine,
        servers: ServerContainers,
        *,
        network: str,
        data_target: str,
        owner: tuple[int, int],
        timezone: str,
        allowed_mounts: tuple[str, ...],
        pull_stall_s: float,
        settle_s: float,
    ) -> None:
        self._engine = engine
        self._servers = servers
        self._network = network
        self._data_target = data_target
        self._owner = owner
        self._timezone = timezone
        self._allowed_mounts = allowed_mounts
        self._pull_stall_s = pull_stall_s
        self._settle_s = settle_s

    def prepare(self, configuration: Configuration | None) -> None:
        """The engine answers, the configuration is understood, network and image exist; the image is pulled if not.

        Raises HostFailed (`environment.image`, `environment.failed`, `engine.*`), PeerFailed (`panel.malformed`).
        """
        self._engine.ping()
        if configuration is None:
            return
        image, is_local = image_of(understand(configuration))
        self._choose_network()
        if self._engine.has_image(image):
            return
        if is_local:
            raise HostFailed("environment.image", f"the local image {image} does not exist on this node")
        log.info("pulling image %s", image)
        try:
            self._engine.pull(image, self._pull_stall_s)
        except HostFailed as error:
            raise HostFailed("environment.image", f"image {image}: {error.message}", **error.facts) from error

    def create(self, server: str, configuration: Configuration, *, replaces: str | None) -> str:
        """Create the server's container and return its id. `replaces`: a stopped one that is removed before.

        Raises HostFailed (`environment.failed`, `engine.unreachable`).
        """
        try:
            settings = understand(configuration)
            spec = build_spec(server, settings, self._site(server))
            for source in spec.refused_mounts:
                log.warning("server %s: mount of %s left out: not allowed on this node", server, source)
            if replaces is not None:
                self._engine.remove(replaces)
            try:
                return self._create(server, spec.document)
            except HostFailed as error:
                smaller = without_optional(spec.document)
                if error.code != "engine.failed" or smaller is None:
                    raise
                log.warning("server %s: %s; tried again without block I/O and OOM settings", server, error.message)
                return self._create(server, smaller)
        except (HostFailed, PeerFailed) as error:
            raise _failed(error) from error

    def start(self, server: str, container: str) -> None:
        """Start it and see that it stays up for a moment. Raises HostFailed (`environment.failed`, ...)."""
        try:
            self._engine.start(container)
        except HostFailed as error:
            raise _failed(error) from error
        time.sleep(self._settle_s)
        details = self._engine.inspect(container)
        if details is None or not is_up(details):
            code = int(((details or {}).get("State") or {}).get("ExitCode") or 0)
            raise HostFailed("environment.failed", f"server {server} ended right after its start", exit_code=code)

    def _create(self, server: str, document: Document) -> str:
        container, warnings = self._engine.create(server, document)
        for warning in warnings:
            log.warning("server %s: %s", server, warning)
        return container

    def _site(self, server: str) -> Site:
        network, gateway = self._choose_network()
        return Site(
            volume=self._servers.volume_in_engine(server),
            data_target=self._data_target,
            user=self._owner,
            timezone=self._timezone,
            network=network,
            gateway=gateway,
            allowed_mounts=self._allowed_mounts,
        )

    def _choose_network(self) -> tuple[str, str | None]:
        """The network that containers are created in, and its own address."""
        if self._network in (HOST_NETWORK, NO_NETWORK):
            return self._network, None
        for name in (self._network,) if self._network else (*_DAEMON_NETWORKS, _DEFAULT_NETWORK):
            document = self._engine.network(name)
            if document is not None:
                ranges = (document.get("IPAM") or {}).get("Config") or []
                return name, next((str(one["Gateway"]) for one in ranges if one.get("Gateway")), None)
        raise HostFailed("environment.failed", f"there is no Docker network {self._network or _DEFAULT_NETWORK}")


def _failed(error: HostFailed | PeerFailed) -> HostFailed:
    if isinstance(error, HostFailed) and error.code == "engine.unreachable":
        return error
    return HostFailed("environment.failed", error.message, **error.facts)
