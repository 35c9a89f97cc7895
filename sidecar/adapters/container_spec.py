"""A server's container from the panel's configuration, the way the node daemons build it (docs/PROTOCOL.md).

Pure: a document goes in, the Engine API's create document comes out. What a panel may leave out gets a default; what is
there with a wrong type is refused, because a server that starts with half of its settings damages its own world.

Memory is counted in MiB as Pelican and Calagopus do; Pterodactyl's decimal megabytes would give a server 5 % less than
it had on the other node.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from sidecar.errors import PeerFailed
from sidecar.ports import Configuration

SERVER_LABEL: Final = "transfer-sidecar.server"
KIND_LABEL: Final = "ContainerType"  # the daemons' own
SERVER_KIND: Final = "server_process"

HOST_NETWORK: Final = "host"
NO_NETWORK: Final = "none"

_MIB: Final = 1024 * 1024
_PLACEHOLDER: Final = re.compile(r"\{\{\s*([A-Za-z0-9_.]+)\s*\}\}")
_DROPPED: Final = [
    "setpcap", "mknod", "audit_write", "net_raw", "dac_override", "fowner", "fsetid", "net_bind_service", "sys_chroot",
    "setfcap", "sys_ptrace",
]  # fmt: skip
_NAME_SERVERS: Final = ["1.1.1.1", "1.0.0.1"]
_PIDS: Final = 512
_LOOPBACK: Final = "127.0.0.1"

Scalar = str | int | float | bool | None


class Build(msgspec.Struct, frozen=True):
    """Limits; sizes in MiB, 0 is unlimited, processor in percent of one."""

    memory_limit: int = 0
    overhead_memory: int = 0
    swap: int = 0
    io_weight: int | None = None
    cpu_limit: int = 0
    threads: str | None = None
    oom_disabled: bool | None = None
    oom_killer: bool | None = None


class Image(msgspec.Struct, frozen=True):
    image: str = ""
    timezone: str | None = None


class Address(msgspec.Struct, frozen=True):
    ip: str
    port: int


class Allocations(msgspec.Struct, frozen=True):
    default: Address | None = None
    mappings: dict[str, list[int]] = {}


class ExtraMount(msgspec.Struct, frozen=True):
    source: str
    target: str
    read_only: bool = False


class Settings(msgspec.Struct, frozen=True):
    """What is used of the panel's `settings`."""

    invocation: str = ""
    environment: dict[str, Scalar] = {}
    labels: dict[str, Scalar] = {}
    build: Build = Build()
    container: Image = Image()
    allocations: Allocations = Allocations()
    mounts: list[ExtraMount] = []


class Site(msgspec.Struct, frozen=True, kw_only=True):
    """What this node adds: paths are the engine's."""

    volume: str
    data_target: str
    user: tuple[int, int]
    timezone: str
    network: str
    gateway: str | None = None  # the network's own address, which stands for 127.0.0.1 in an allocation
    allowed_mounts: tuple[str, ...] = ()


class Spec(msgspec.Struct, frozen=True):
    """The create document, and the mounts that this node does not allow and so left out."""

    document: dict[str, Any]
    refused_mounts: list[str]


def understand(configuration: Configuration) -> Settings:
    """Read the settings. Raises PeerFailed (`panel.malformed`) naming the field."""
    try:
        settings = msgspec.convert(_without_empty_lists(configuration.settings), Settings, strict=False)
    except (msgspec.ValidationError, RecursionError) as error:
        raise PeerFailed("panel.malformed", f"the server's settings are not understood: {error}") from error
    if not image_of(settings)[0]:
        raise PeerFailed("panel.malformed", "the server's settings name no image")
    return settings


def image_of(settings: Settings) -> tuple[str, bool]:
    """The image's name, and whether it must not be pulled (`~` before or after the name: it is local)."""
    name = settings.container.image.strip()
    return name.strip("~"), name.startswith("~") or name.endswith("~")


def build_spec(server: str, settings: Settings, site: Site) -> Spec:
    """The document for `POST /containers/create`; the container's name is the server's UUID."""
    mounts, refused = _mounts(settings, site)
    has_ports = site.network not in (HOST_NETWORK, NO_NETWORK)
    bindings = _ports(settings, site) if has_ports else {}
    host = {
        "NetworkMode": site.network,
        "Mounts": mounts,
        "Tmpfs": {"/tmp": "rw,exec,nosuid,size=100M"},
        "PortBindings": bindings,
        "ReadonlyRootfs": True,
        "CapDrop": _DROPPED,
        "SecurityOpt": ["no-new-privileges"],
        "RestartPolicy": {"Name": ""},  # who watches the server decides about restarts, not the engine
        "LogConfig": {
            "Type": "local",
            "Config": {"max-size": "5m", "max-file": "1", "compress": "false", "mode": "non-blocking"},
        },
        **({"Dns": _NAME_SERVERS} if has_ports else {}),
        **_limits(settings.build),
    }
    document = {
        "Image": image_of(settings)[0],
        "Hostname": server if site.network != HOST_NETWORK else "",
        "User": f"{site.user[0]}:{site.user[1]}",
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "OpenStdin": True,
        "Tty": True,
        "ExposedPorts": {port: {} for port in bindings},
        "Env": [f"{name}={value}" for name, value in environment(settings, site.timezone).items()],
        "Labels": {
            **{name: _text(value) for name, value in settings.labels.items()},
            "Service": "transfer-sidecar",
            KIND_LABEL: SERVER_KIND,
            SERVER_LABEL: server,
        },
        "HostConfig": host,
    }
    return Spec(document, refused)


def without_optional(document: dict[str, Any]) -> dict[str, Any] | None:
    """The same without what some kernels do not support, or None where nothing of that is in it."""
    optional = {"BlkioWeight", "OomKillDisable"} & document["HostConfig"].keys()
    if not optional:
        return None
    host = {key: value for key, value in document["HostConfig"].items() if key not in optional}
    return {**document, "HostConfig": host}


def environment(settings: Settings, timezone: str) -> dict[str, str]:
    """The variables: ours first, then the panel's in capitals, which cannot replace ours."""
    address = settings.allocations.default or Address(_LOOPBACK, 0)
    given = {name.upper(): _text(value) for name, value in settings.environment.items()}
    ours = {
        "TZ": given.get("SERVER_TIMEZONE") or settings.container.timezone or timezone,
        "SERVER_MEMORY": str(settings.build.memory_limit),
        "SERVER_IP": address.ip,
        "SERVER_PORT": str(address.port),
    }
    known = {**given, **ours}
    startup = _PLACEHOLDER.sub(lambda match: known.get(match[1].upper(), match[0]), settings.invocation)
    return {"TZ": ours["TZ"], "STARTUP": startup, **{k: v for k, v in known.items() if k not in ("TZ", "STARTUP")}}


def _text(value: Scalar) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case float() if value.is_integer():
            return str(int(value))
        case _:
            return str(value)


def _limits(build: Build) -> dict[str, Any]:
    limits: dict[str, Any] = {"PidsLimit": _PIDS}
    if build.memory_limit > 0:
        bounded = (round(build.memory_limit * _overhead(build.memory_limit)) + build.overhead_memory) * _MIB
        limits["Memory"] = bounded
        limits["MemoryReservation"] = build.memory_limit * _MIB
        limits["MemorySwap"] = -1 if build.swap < 0 else bounded + build.swap * _MIB
    if build.cpu_limit > 0:
        limits |= {"CpuQuota": build.cpu_limit * 1000, "CpuPeriod": 100_000, "CpuShares": 1024}
    if build.threads:
        limits["CpusetCpus"] = build.threads
    if build.io_weight is not None and 10 <= build.io_weight <= 1000:  # what the engine takes
        limits["BlkioWeight"] = build.io_weight
    if build.oom_disabled is True or build.oom_killer is False:
        limits["OomKillDisable"] = True
    return limits


def _overhead(memory_mib: int) -> float:
    if memory_mib <= 2048:
        return 1.15
    return 1.10 if memory_mib <= 4096 else 1.05


def _ports(settings: Settings, site: Site) -> dict[str, list[dict[str, str]]]:
    bindings: dict[str, list[dict[str, str]]] = {}
    for ip, ports in settings.allocations.mappings.items():
        host = site.gateway if ip == _LOOPBACK and site.gateway else ip
        for port in ports:
            if not 0 < port < 65536:
                continue
            for protocol in ("tcp", "udp"):
                bindings.setdefault(f"{port}/{protocol}", []).append({"HostIp": host, "HostPort": str(port)})
    return bindings


def _mounts(settings: Settings, site: Site) -> tuple[list[dict[str, Any]], list[str]]:
    mounts = [_bind(site.volume, site.data_target, read_only=False)]
    refused = []
    for extra in settings.mounts:
        source = Path(extra.source)
        is_plain = source.is_absolute() and ".." not in source.parts
        is_free = Path(extra.target) != Path(site.data_target)
        if is_plain and is_free and any(source.is_relative_to(allowed) for allowed in site.allowed_mounts):
            mounts.append(_bind(extra.source, extra.target, read_only=extra.read_only))
        else:
            refused.append(extra.source)
    return mounts, refused


def _bind(source: str, target: str, *, read_only: bool) -> dict[str, Any]:
    # a Mount, not a Bind: the engine makes a missing source of a Bind as an empty directory
    return {"Type": "bind", "Source": source, "Target": target, "ReadOnly": read_only}


def _without_empty_lists(value: Mapping[str, Any]) -> dict[str, Any]:
    """PHP writes an empty object as `[]`; left out, a field gets its default, which is the same for both."""
    return {
        key: _without_empty_lists(inner) if isinstance(inner, dict) else inner
        for key, inner in value.items()
        if inner != [] and not (inner is None and key in _NULLABLE)
    }


# null stands for "nothing" here; elsewhere it is a mistake
_NULLABLE: Final = frozenset({"labels", "mounts", "mappings", "environment", "io_weight", "threads", "overhead_memory"})
