"""What is shown of the settings: the table and the effective configuration."""

from __future__ import annotations

import tomllib
from pathlib import Path

from sidecar.settings import Secret, Settings, load
from sidecar.settings.checks import remarks
from sidecar.settings.reading import FIELDS, SECTIONS, SERVER_FIELDS, read
from sidecar.settings.render import effective, table, toml

UUID = "12345678-1234-4234-8234-123456789012"
SECRET = "s3cretTokenThatNobodySees"
README = Path(__file__).parents[2] / "README.md"


def test_every_setting_has_a_meaning_and_a_default_that_its_own_bounds_allow() -> None:
    for fields in (*FIELDS.values(), SERVER_FIELDS):
        for field in fields.values():
            assert field.description, field.path
            assert field.description.endswith("."), field.path
            if field.default not in ("", None, (), Secret()):
                raw = tomllib.loads(f"x = {toml(field.default)}")["x"]
                assert read(field, raw, is_text=False, base=Path("/")) == field.default


def test_the_sections_are_those_of_the_settings() -> None:
    assert list(FIELDS) == list(SECTIONS) == list(Settings.__struct_fields__)


def test_the_readme_has_the_table_that_is_made_from_the_settings() -> None:
    assert table() in README.read_text("utf-8"), "put the output of `transfer-sidecar config table` into README.md"


def test_the_effective_configuration_is_masked_and_can_be_loaded_again(tmp_path: Path) -> None:
    first = tmp_path / "first.toml"
    first.write_text(
        f"""
        [node]
        id = "a"
        token = "{SECRET}"
        [api]
        allowed_origins = ["https://a", "https://b"]
        [servers]
        owner = "1:2"
        [servers.{UUID}]
        volume = "/srv/\\"quoted\\" ä"
        [nats]
        token = "{SECRET}"
        """
    )
    loaded = load(first)
    text = effective(loaded)
    assert SECRET not in text
    assert 'token = "***"' in text
    assert f"# file {first}" in text
    assert "# default" in text
    second = tmp_path / "second.toml"
    second.write_text(text)
    again = load(second)
    masked = tomllib.loads(text)
    assert masked["servers"][UUID]["volume"] == '/srv/"quoted" ä'
    for section in ("api", "servers", "transfer", "limits", "containers", "websocket", "log"):
        assert getattr(again.settings, section) == getattr(loaded.settings, section)


def test_an_origin_cannot_break_out_of_its_comment(tmp_path: Path) -> None:
    strange = tmp_path / "a\nb.toml"
    strange.write_text("[node]\nid = 'a'\ntoken = 'b'\n")
    assert tomllib.loads(effective(load(strange)))["node"]["id"] == "a"


def test_what_works_but_deserves_a_word(tmp_path: Path) -> None:
    environ = {"SIDECAR_NODE_ID": "a", "SIDECAR_NODE_TOKEN": "b", "SIDECAR_SERVERS_VOLUMES": str(tmp_path)}
    assert list(remarks(load(environ=environ).settings)) == []
    environ |= {
        "SIDECAR_SERVERS_VOLUMES": str(tmp_path / "none"),
        "SIDECAR_CONTAINERS_STOP_TIMEOUT_S": "30",
        "SIDECAR_CONTAINERS_HOST": "tcp://127.0.0.1:2375",
        "SIDECAR_API_HOST": "0.0.0.0",
    }
    found = [remark.split(":")[0] for remark in remarks(load(environ=environ).settings)]
    assert found == ["servers.volumes", "containers.stop_timeout_s", "api.tls_cert", "containers.host"]
