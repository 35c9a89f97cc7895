"""What a node daemon's own `config.yml` (Pterodactyl, Pelican or Calagopus Wings) says about this node.

Only the keys of `_MAPPING`, the TLS files and the user are read; the rest of the file is the daemon's. A file of the
panel ("auto-deploy") is shorter than one that the daemon has written back: whatever is absent keeps our default.

A token may be a reference there: `file:///path` is followed; one that the daemon would expand from its own environment
(`${NAME}`) is refused, because this process has another environment.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    for ours in ("node.token_id", "node.token"):
        if ours in values:
            key, raw = values[ours]
            try:
                values[ours] = (key, _followed(raw, path))
            except _Unusable as unusable:
                del values[ours]
                problems.append(f"{ours}: {unusable} (Wings file {path}, {key})")
    return values, problems


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
