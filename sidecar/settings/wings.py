"""What a node daemon's own `config.yml` (Pterodactyl, Pelican or Calagopus Wings) says about this node.

Only the keys of `_MAPPING`, the TLS files and the user are read; the rest of the file is the daemon's. A file of the
panel ("auto-deploy") is shorter than one that the daemon has written back: whatever is absent keeps our default.

A token may be a reference there: `file:///path` is followed; one that the daemon would expand from its own environment
(`${NAME}`) is refused, because this process has another environment.

Where its backups and installation logs lie follows the family: the keys where the file has them, else what that family
takes when they are absent. The file does not name its family, so it is told by what only one of them writes; where
nothing tells, an absent key stays absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from sidecar.errors import HostFailed

_MAPPING: Final[dict[str, tuple[str, ...]]] = {
    "node.id": ("uuid",),
    "node.token_id": ("token_id",),
    "node.token": ("token",),
    "panel.url": ("remote",),
    "api.host": ("api", "host"),
    "api.port": ("api", "port"),
    "api.allowed_origins": ("allowed_origins",),
    "servers.volumes": ("system", "data"),
}
_FAMILY_DEFAULT: Final = "the default of that daemon"


class WingsFamily(StrEnum):
    """Whose file it is."""

    PTERODACTYL = "pterodactyl"
    PELICAN = "pelican"
    CALAGOPUS = "calagopus"


_BACKUPS: Final = {
    WingsFamily.PTERODACTYL: "/var/lib/pterodactyl/backups",
    WingsFamily.PELICAN: "/var/lib/pelican/backups",
    WingsFamily.CALAGOPUS: "/var/lib/pterodactyl/backups",
}
_LOGS: Final = {
    WingsFamily.PTERODACTYL: "/var/log/pterodactyl",
    WingsFamily.PELICAN: "/var/log/pelican",
    WingsFamily.CALAGOPUS: "/var/log/pterodactyl",
}


def read_wings(path: Path) -> tuple[dict[str, tuple[str, Any]], list[str]]:
    """The values that the file gives: our path -> (key in the file, raw value), and what is wrong with the rest.

    Raises HostFailed (`settings.invalid`) when it cannot be read or is not a YAML mapping.
    """
    document = _document(path)
    values: dict[str, tuple[str, Any]] = {}
    problems: list[str] = []
    for ours, keys in _MAPPING.items():
        value = _find(document, keys)
        if value is not None:
            values[ours] = (".".join(keys), value)
    if _find(document, ("api", "ssl", "enabled")) is True:
        for ours, key in (("api.tls_cert", "cert"), ("api.tls_key", "key")):
            value = _find(document, ("api", "ssl", key))
            if value is not None:
                values[ours] = (f"api.ssl.{key}", value)
    uid, gid = _find(document, ("system", "user", "uid")), _find(document, ("system", "user", "gid"))
    if uid is not None and gid is not None:
        values["servers.owner"] = ("system.user", f"{uid}:{gid}")
    values |= _places(document)
    for ours in ("node.token_id", "node.token"):
        if ours in values:
            key, raw = values[ours]
            try:
                values[ours] = (key, _followed(raw, path))
            except _Unusable as unusable:
                del values[ours]
                problems.append(f"{ours}: {unusable} (Wings file {path}, {key})")
    return values, problems


def family_of(document: Mapping[str, Any]) -> WingsFamily | None:
    """Whose file it is, by its own name for itself, by keys that one family alone writes, and by where servers lie."""
    name = str(document.get("app_name") or "").lower()
    for family in WingsFamily:
        if family.value in name:
            return family
    if "remote_headers" in document or _find(document, ("api", "disable_openapi_docs")) is not None:
        return WingsFamily.CALAGOPUS
    data = str(_find(document, ("system", "data")) or "")
    if _find(document, ("system", "machine_id")) is not None or data.startswith("/var/lib/pelican/"):
        return WingsFamily.PELICAN
    return WingsFamily.PTERODACTYL if data.startswith("/var/lib/pterodactyl/") else None


def _places(document: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    """Where backups and installation logs lie: `<directory>/install/<server>.log`, but at Calagopus
    `<directory>/<server>/install.log`."""
    family = family_of(document)
    found: dict[str, tuple[str, Any]] = {}
    backups, logs = (_find(document, ("system", key)) for key in ("backup_directory", "log_directory"))
    if backups is not None:
        found["servers.backups"] = ("system.backup_directory", backups)
    elif family is not None:
        found["servers.backups"] = (f"system.backup_directory: {_FAMILY_DEFAULT}", _BACKUPS[family])
    key = "system.log_directory"
    if logs is None and family is not None:
        key, logs = f"{key}: {_FAMILY_DEFAULT}", _LOGS[family]
    if isinstance(logs, str) and logs and family is not WingsFamily.CALAGOPUS:
        logs = f"{logs.rstrip('/')}/install"
    if logs is not None:
        found["servers.install_logs"] = (key, logs)
    return found


class _Unusable(Exception):
    pass


def _document(path: Path) -> Mapping[str, Any]:
    import yaml  # only where there is such a file

    try:
        document = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise HostFailed("settings.invalid", f"the Wings file {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark is not None else ""
        # the parser's own message quotes the line, which may be the one with the token: neither shown nor chained
        raise HostFailed("settings.invalid", f"the Wings file {path} is not valid YAML{where}") from None
    if not isinstance(document, dict):
        raise HostFailed("settings.invalid", f"the Wings file {path} is not a mapping")
    return document


def _find(document: Any, keys: tuple[str, ...]) -> Any:
    for key in keys:
        if not isinstance(document, dict):
            return None
        document = document.get(key)
    return document


def _followed(raw: Any, path: Path) -> Any:
    if not isinstance(raw, str):
        return raw
    if "$" in raw:
        raise _Unusable("it refers to the daemon's environment; give node.token_file or SIDECAR_NODE_TOKEN instead")
    if not raw.startswith("file://"):
        return raw
    target = Path(path.parent, raw.removeprefix("file://"))
    try:
        return target.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise _Unusable(f"the file {target} that it refers to cannot be read") from None
