"""The settings, shown: the README's table, and the effective configuration as TOML with its secrets masked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from sidecar.settings.load import DEFAULT, Loaded
from sidecar.settings.reading import FIELDS, SECTIONS, SERVER_FIELDS, Field, bounds
from sidecar.settings.values import Owner, Secret

MASK: Final = "***"
TABLE_HEAD: Final = "| Setting | Default | Meaning |\n|---|---|---|"


def table() -> str:
    """The settings as one Markdown table; ends without a newline."""
    rows = [TABLE_HEAD]
    for section, fields in FIELDS.items():
        doc = (SECTIONS[section].__doc__ or "").split("\n", 1)[0]
        rows.append(f"| **`[{section}]`** | | *{doc}* |")
        rows += [_row(field) for field in fields.values()]
        if section == "servers":
            rows.append("| **`[servers.<uuid>]`** | | *One server that is not where `[servers]` would look for it.* |")
            rows += [_row(field) for field in SERVER_FIELDS.values()]
    return "\n".join(rows)


def _row(field: Field) -> str:
    meaning = field.description
    if (
        isinstance(field.default, (int, float))
        and not isinstance(field.default, bool)
        and (bound := bounds(field.meta))
    ):
        meaning += f" {bound[0].upper()}{bound[1:]}."
    if field.is_secret:
        meaning += f" Secret; or a file: `{field.name}_file`."
    elif field.may_be_file:
        meaning += f" Or a file: `{field.name}_file`."
    return f"| `{field.name}` | `{toml(field.default)}` | {meaning.replace('|', chr(92) + '|')} |"


def toml(value: Any) -> str:
    """A value as TOML; a secret that is set as `"***"`."""
    if isinstance(value, Secret):
        return json.dumps(MASK if value else "")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{int(value)}" if value.is_integer() else repr(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, tuple):
        return f"[{', '.join(toml(item) for item in value)}]"
    if value is None:
        return '""'
    if isinstance(value, (str, Path, Owner)):
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    raise TypeError(f"no TOML for {type(value)}")


def effective(loaded: Loaded) -> str:
    """The effective configuration: TOML that can be loaded again, but for its secrets; with each value's source."""
    return "\n".join(_lines(loaded)) + "\n"


def _lines(loaded: Loaded) -> Iterator[str]:
    for section, fields in FIELDS.items():
        if section != next(iter(FIELDS)):
            yield ""
        yield f"[{section}]"
        values = getattr(loaded.settings, section)
        yield from _aligned((name, getattr(values, name), loaded.origins[f"{section}.{name}"]) for name in fields)
    for uuid, override in loaded.settings.servers.named.items():
        yield ""
        yield f"[servers.{uuid}]"
        yield from _aligned(
            (name, getattr(override, name), loaded.origins.get(f"servers.{uuid}.{name}", DEFAULT))
            for name in SERVER_FIELDS
        )


def _aligned(values: Iterator[tuple[str, Any, str]]) -> Iterator[str]:
    lines = [(f"{name} = {toml(value)}", origin) for name, value, origin in values]
    width = max((len(line) for line, _ in lines if len(line) <= 60), default=0)
    for line, origin in lines:
        yield f"{line:<{width}}  # {_one_line(origin)}"


def _one_line(origin: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in origin)
