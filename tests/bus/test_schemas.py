"""The schemas are those of the code, and what is said fits them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sidecar.bus import schemas
from sidecar.calls.transfers import shown
from sidecar.views import TransferView
from tests.api.fake_transfers import view

SHIPPED = Path(__file__).parents[2] / "docs" / "schemas"


def test_the_shipped_schemas_are_current() -> None:
    files = schemas.files()
    assert {path.name for path in SHIPPED.glob("*.json")} == set(files)
    for name, content in files.items():
        assert (SHIPPED / name).read_text() == content, "write them anew: transfer-sidecar schemas docs/schemas"


def test_every_field_of_a_shown_transfer_is_in_its_schema() -> None:
    schema = schemas.schema(TransferView, "x")["$defs"]
    body = shown(view())
    assert set(body) == set(schema["TransferView"]["properties"])
    assert set(body["progress"]) == set(schema["Progress"]["properties"])


def test_schemas_stand_by_themselves() -> None:
    for name, schema in schemas.all_schemas().items():
        for reference in _references(schema):
            assert reference.removeprefix("#/$defs/") in schema["$defs"], name
    assert "uuid" in schemas.all_schemas()["start.request"]["$defs"]["CommandServer"]["required"]


def test_what_an_endpoint_shows_is_small() -> None:
    for word in schemas.COMMANDS:
        metadata = schemas.metadata(word)
        assert sum(len(value) for value in metadata.values()) < 16_384
        assert json.loads(metadata["reply"]) == json.loads(schemas.files()[f"{word}.reply.json"])


def _references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if "$ref" in value else []
        return own + [found for part in value.values() for found in _references(part)]
    if isinstance(value, list):
        return [found for part in value for found in _references(part)]
    return []
