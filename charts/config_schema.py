"""The part of the chart's values.schema.json that is about `config`, made from the program's own settings.

    python charts/config_schema.py           says whether it is current; exit code 1 where it is not
    python charts/config_schema.py --write   writes it anew

Left out are secrets, which do not belong into a ConfigMap, and what other values of the chart set.
"""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, get_args, get_origin

from sidecar.settings.reading import FIELDS, SERVER_FIELDS, Field

SCHEMA: Final = Path(__file__).parent / "transfer-sidecar" / "values.schema.json"
ELSEWHERE: Final = frozenset(
    {
        "node.id", "node.name", "node.token_id",
        "api.host", "api.port", "api.tls_cert", "api.tls_key", "api.front", "api.public_url",
        "servers.volumes", "servers.backups", "servers.install_logs",
        "daemon.url",
        "containers.host",
        "nats.url", "nats.user", "nats.creds", "nats.tls_ca", "nats.tls_cert", "nats.tls_key",
        "state.dir",
    }
)  # fmt: skip
_UUID: Final = "^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$"


def config_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of the value `config`."""
    sections: dict[str, Any] = {}
    for section, fields in FIELDS.items():
        schema = _table(field for field in fields.values() if not field.is_secret and field.path not in ELSEWHERE)
        if section == "servers":
            schema["patternProperties"] = {_UUID: _table(SERVER_FIELDS.values())}
        if schema["properties"]:
            sections[section] = schema
    return {"type": "object", "additionalProperties": False, "properties": sections}


def _table(fields: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {field.name: _one(field) for field in fields},
    }


def _one(field: Field) -> dict[str, Any]:
    schema: dict[str, Any] = {"description": field.description}
    if get_origin(field.type) is tuple:
        schema |= {"type": "array", "items": _kind(get_args(field.type)[0])}
    else:
        schema |= _kind(field.type)
    meta = field.meta
    bounds = {"minimum": meta.ge, "exclusiveMinimum": meta.gt, "maximum": meta.le, "minLength": meta.min_length}
    schema |= {name: bound for name, bound in bounds.items() if bound is not None}
    return schema


def _kind(kind: Any) -> dict[str, Any]:
    if kind is bool:
        return {"type": "boolean"}
    if kind is int:
        return {"type": "integer"}
    if kind is float:
        return {"type": "number"}
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return {"enum": list(kind)}
    return {"type": "string"}  # paths and owners, too; the program looks at what is in them


def main(arguments: list[str]) -> int:
    written = SCHEMA.read_text("utf-8")
    schema = json.loads(written)
    schema["properties"]["config"] = config_schema()
    current = json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
    if arguments == ["--write"]:
        SCHEMA.write_text(current, "utf-8")
    elif current != written:
        print(f"{SCHEMA.name} does not agree with the program's settings; run: make chart-write", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
