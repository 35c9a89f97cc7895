"""What the stand-in panel sends: configurations as each family of panels writes them, pages, errors, transfer tokens.

The families differ where a node has to be tolerant: names of fields, `[]` for an empty object, a page's `uuid`, the
body of an error. Source: docs/PROTOCOL.md, the panel's remote API.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Final

import jwt
import msgspec

Document = dict[str, Any]

_TOKEN_S: Final = 900
_TOKEN_CALAGOPUS_S: Final = 600
_SKEW_S: Final = 300


class Family(StrEnum):
    PTERODACTYL = "pterodactyl"
    PELICAN = "pelican"
    CALAGOPUS = "calagopus"


class Allocation(msgspec.Struct, frozen=True):
    """An address of a node that a server is given."""

    ip: str = "127.0.0.1"
    port: int = 0  # 0: none, so the mappings are empty


class ServerKind(msgspec.Struct, frozen=True, kw_only=True):
    """What a server is, whatever node owns it."""

    name: str = "Survival"
    image: str = "~transfer-sidecar-demo"
    invocation: str = "java -Xmx{{SERVER_MEMORY}}M -jar {{SERVER_JARFILE}}"
    environment: dict[str, str | int | bool | None] = msgspec.field(
        default_factory=lambda: {"SERVER_JARFILE": "server.jar", "EULA": True, "MAX_PLAYERS": 20}
    )
    memory_mib: int = 128
    stop: tuple[str, str] = ("command", "stop")  # type and value; the panel makes `signal`, `C` of an egg's `^C`
    mounts: tuple[tuple[str, str, bool], ...] = ()  # source, target, read-only


def configuration(family: Family, number: int, server: str, kind: ServerKind, allocation: Allocation) -> Document:
    """`GET /api/remote/servers/{uuid}`."""
    return {
        "settings": _settings(family, number, server, kind, allocation),
        "process_configuration": {
            "startup": {"done": [")! For help, type "], "user_interaction": [], "strip_ansi": False},
            "stop": {"type": kind.stop[0], "value": kind.stop[1]},
            "configs": [],
        },
    }


def list_item(family: Family, server: str, document: Document) -> Document:
    """One server of the list. Calagopus names its UUID in the settings only."""
    return document if family is Family.CALAGOPUS else {"uuid": server, **document}


def list_page(family: Family, items: Sequence[Document], total: int, page: int, per_page: int, base: str) -> Document:
    """One page of `GET /api/remote/servers`."""
    last = math.ceil(total / per_page)
    if family is Family.CALAGOPUS:
        # it counts by a column of the rows themselves: a page without rows says that there are none at all
        seen = total if items else 0
        return {
            "data": items,
            "meta": {"current_page": page, "last_page": math.ceil(seen / per_page), "total": seen},
        }
    last = max(1, last)
    path = f"{base}/api/remote/servers"
    first = (page - 1) * per_page + 1 if items else None
    return {
        "data": items,
        "links": {
            "first": f"{path}?page=1",
            "last": f"{path}?page={last}",
            "prev": f"{path}?page={page - 1}" if page > 1 else None,
            "next": f"{path}?page={page + 1}" if page < last else None,
        },
        "meta": {
            "current_page": page,
            "from": first,
            "last_page": last,
            "path": path,
            "per_page": per_page,
            "to": first + len(items) - 1 if first is not None else None,
            "total": total,
        },
    }


_EXCEPTIONS: Final = {
    400: "BadRequestHttpException",
    401: "HttpException",
    403: "HttpForbiddenException",
    404: "NotFoundHttpException",
    409: "ConflictHttpException",
}


def error_body(family: Family, status: int, detail: str) -> Document:
    """The body of an error; the sentences differ only in capitals and the full stop."""
    if family is Family.CALAGOPUS:
        return {"error": detail.rstrip(".").lower()}
    return {"errors": [{"code": _EXCEPTIONS.get(status, "HttpException"), "status": str(status), "detail": detail}]}


def transfer_token(
    family: Family, *, server: str, source: str, panel_url: str, node_url: str, key: str, now_s: int, scope: str | None
) -> str:
    """A transfer's JWT, signed with the destination's token. `scope` None: an older panel."""
    if family is Family.CALAGOPUS:
        claims: Document = {"iss": "panel", "aud": [], "jti": source, "exp": now_s + _TOKEN_CALAGOPUS_S}
        headers = None
    else:
        jti = hashlib.sha256(server.encode()).hexdigest()
        claims = {
            "iss": panel_url,
            "aud": [node_url],
            "jti": jti,
            "nbf": now_s - _SKEW_S,
            "exp": now_s + _TOKEN_S,
            "unique_id": secrets.token_hex(8),
        }
        headers = {"jti": jti, "sub": server}
    claims |= {"sub": server, "iat": now_s}
    if scope is not None:
        claims["scope"] = scope
    return jwt.encode(claims, key, algorithm="HS256", headers=headers)


def transfer_request(
    family: Family,
    *,
    server: str,
    url: str,
    token: str,
    start_on_completion: bool,
    backups: Sequence[str] = (),
    delete_backups: bool = False,
) -> Document:
    """The body of `POST /api/servers/{uuid}/transfer` at the source; Pterodactyl's panel names no backups."""
    body: Document = {"url": url, "token": f"Bearer {token}"}
    wanted = {"uuid": server, "start_on_completion": start_on_completion}
    match family:
        case Family.PTERODACTYL:
            return {"server_id": server, **body, "server": wanted}
        case Family.PELICAN:
            return {**body, "backups": list(backups), "server": wanted}
        case Family.CALAGOPUS:
            return {
                **body,
                "backups": list(backups),
                "delete_backups": delete_backups,
                "archive_format": "tar_gz",
                "compression_level": None,
                "multiplex_streams": 0,
            }


def _settings(family: Family, number: int, server: str, kind: ServerKind, allocation: Allocation) -> Document:
    is_php = family is not Family.CALAGOPUS
    mappings: Any = {allocation.ip: [allocation.port]} if allocation.port else [] if is_php else {}
    default: Document | None = {"ip": allocation.ip, "port": allocation.port}
    if not allocation.port and not is_php:
        default = None
    environment: Document = dict(kind.environment)
    build: Document = {
        "memory_limit": kind.memory_mib,
        "swap": 0,
        "io_weight": 500,
        "cpu_limit": 0,
        "threads": None,
        "disk_space": 10240,
    }
    settings: Document = {
        "uuid": server,
        "meta": {"name": kind.name, "description": ""},
        "suspended": False,
        "environment": environment,
        "invocation": kind.invocation,
        "skip_egg_scripts": False,
        "build": build,
        "container": {"image": kind.image, "requires_rebuild": False},
        "allocations": {"force_outgoing_ip": False, "default": default, "mappings": mappings},
        "egg": {"id": "5f3c1c0e-7d0a-4d53-9d2b-6a5f6e1c7a11", "file_denylist": []},
    }
    mounts = [{"source": source, "target": target, "read_only": only} for source, target, only in kind.mounts]
    match family:
        case Family.PTERODACTYL:
            environment |= {
                "STARTUP": kind.invocation,
                "P_SERVER_LOCATION": "home",
                "P_SERVER_UUID": server,
                "P_SERVER_ALLOCATION_LIMIT": 0,
            }
            build["oom_disabled"] = True
            settings["container"]["oom_disabled"] = True
            settings["mounts"] = mounts
        case Family.PELICAN:
            build["oom_killer"] = False
            settings["id"] = number
            settings["egg"]["features"] = {}
            if mounts:
                settings["mounts"] = mounts
        case Family.CALAGOPUS:
            build |= {"oom_disabled": True, "overhead_memory": 0}
            settings["container"] |= {"timezone": None, "seccomp": {"remove_allowed": []}}
            settings |= {"labels": {}, "backups": [], "schedules": [], "mounts": mounts}
            settings |= {"auto_kill": {"enabled": False, "seconds": 30}, "auto_start_behavior": "unless_stopped"}
    return settings
