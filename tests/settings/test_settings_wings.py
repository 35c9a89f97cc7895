"""The node daemons' own configuration files: the keys that are taken, and references that a token may be."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest
import yaml

from sidecar.errors import HostFailed
from sidecar.settings import Owner, Settings, load

TOKEN = "wings0token0that0nobody0sees"
UUID = "f0f0f0f0-0000-4000-8000-00000000000a"

PTERODACTYL = f"""
debug: false
app_name: Pterodactyl
uuid: {UUID}
token_id: abcdefghijklmnop
token: {TOKEN}
api:
  host: 0.0.0.0
  port: 8443
  ssl:
    enabled: true
    cert: /etc/letsencrypt/live/node/fullchain.pem
    key: /etc/letsencrypt/live/node/privkey.pem
  disable_remote_download: false
  upload_limit: 100
system:
  root_directory: /var/lib/pterodactyl
  data: /var/lib/pterodactyl/volumes
  username: pterodactyl
  user:
    rootless:
      enabled: false
      container_uid: 0
      container_gid: 0
    uid: 988
    gid: 987
  sftp:
    bind_port: 2022
docker:
  network:
    name: pterodactyl_nw
remote: https://panel.example.com
allowed_mounts: []
allowed_origins:
- https://front.example.com
"""

PELICAN = f"""
debug: false
app_name: Pelican
uuid: {UUID}
token_id: abcdefghijklmnop
token: {TOKEN}
api: {{host: '::', port: 8080, ssl: {{enabled: false, cert: /unused.pem, key: /unused.key}}}}
system: {{data: /var/lib/pelican/volumes, user: {{uid: 1000, gid: 1000}}, machine_id: {{enable: true}}}}
remote: http://localhost:8000/
allowed_origins: []
"""

CALAGOPUS = f"""
uuid: {UUID}
token_id: abcdefghijklmnop
token: "{TOKEN}"
api:
  host: 127.0.0.1
  port: 8081
  ssl: {{enabled: false, cert: "", key: ""}}
  disable_openapi_docs: false
system:
  data: /srv/volumes
  user: {{rootless: {{enabled: false}}, uid: 988, gid: 988}}
  backups: {{write_limit: 0}}
remote: https://calagopus.example.com
remote_headers: {{}}
allowed_origins: ["*"]
"""

AS_DEPLOYED_BY_THE_PANEL = f"""
uuid: {UUID}
token_id: abcdefghijklmnop
token: {TOKEN}
api: {{host: 0.0.0.0, port: 8080, ssl: {{enabled: false}}, upload_limit: 100}}
system: {{data: /data, sftp: {{bind_port: 2022}}}}
remote: https://panel.example.com
"""


def load_wings(directory: Path, text: str, own: str = "", environ: dict[str, str] | None = None) -> Settings:
    wings = directory / "config.yml"
    wings.write_text(text)
    config = directory / "sidecar.toml"
    config.write_text(own)
    return load(config, wings, environ or {}).settings


def test_pterodactyl(tmp_path: Path) -> None:
    settings = load_wings(tmp_path, PTERODACTYL)
    assert settings.node.id == UUID
    assert settings.node.token_id == "abcdefghijklmnop"
    assert settings.node.token.reveal() == TOKEN
    assert (settings.api.host, settings.api.port) == ("0.0.0.0", 8443)
    assert settings.api.tls_cert == Path("/etc/letsencrypt/live/node/fullchain.pem")
    assert settings.api.tls_key == Path("/etc/letsencrypt/live/node/privkey.pem")
    assert settings.api.allowed_origins == ("https://front.example.com",)
    assert settings.servers.volumes == Path("/var/lib/pterodactyl/volumes")
    assert settings.servers.owner == Owner(988, 987)
    assert settings.panel.url == "https://panel.example.com"
    assert settings.servers.backups == Path("/var/lib/pterodactyl/backups")
    assert settings.servers.install_logs == Path("/var/log/pterodactyl/install")


def test_pelican(tmp_path: Path) -> None:
    settings = load_wings(tmp_path, PELICAN)
    assert (settings.api.host, settings.api.port) == ("::", 8080)
    assert settings.api.tls_cert is None  # its TLS is off
    assert settings.api.tls_key is None
    assert settings.servers.volumes == Path("/var/lib/pelican/volumes")
    assert settings.servers.owner == Owner(1000, 1000)
    assert settings.panel.url == "http://localhost:8000/"
    assert settings.servers.backups == Path("/var/lib/pelican/backups")
    assert settings.servers.install_logs == Path("/var/log/pelican/install")


def test_calagopus(tmp_path: Path) -> None:
    settings = load_wings(tmp_path, CALAGOPUS)
    assert (settings.api.host, settings.api.port) == ("127.0.0.1", 8081)
    assert settings.api.allowed_origins == ("*",)
    assert settings.servers.volumes == Path("/srv/volumes")
    assert settings.panel.url == "https://calagopus.example.com"
    assert settings.servers.backups == Path("/var/lib/pterodactyl/backups")
    assert settings.servers.install_logs == Path("/var/log/pterodactyl")  # <server>/install.log


def test_a_file_as_the_panel_hands_it_out(tmp_path: Path) -> None:
    settings = load_wings(tmp_path, AS_DEPLOYED_BY_THE_PANEL)
    assert settings.servers.owner is None
    assert settings.servers.volumes == Path("/data")
    assert settings.servers.backups is None  # nothing tells the family
    assert settings.servers.install_logs is None


@pytest.mark.parametrize(
    ("text", "logs"),
    [
        (PTERODACTYL, "/srv/log/install"),
        (PELICAN, "/srv/log/install"),
        (CALAGOPUS, "/srv/log"),
        (AS_DEPLOYED_BY_THE_PANEL, "/srv/log/install"),
    ],
)
def test_where_backups_and_logs_lie_is_taken_from_the_file(text: str, logs: str, tmp_path: Path) -> None:
    plain = yaml.safe_load(text)
    plain["system"] |= {"backup_directory": "/srv/backups", "log_directory": "/srv/log/"}
    settings = load_wings(tmp_path, yaml.safe_dump(plain))
    assert settings.servers.backups == Path("/srv/backups")
    assert settings.servers.install_logs == Path(logs)
    own = load_wings(tmp_path, yaml.safe_dump(plain), "[servers]\nbackups = '/own'\ninstall_logs = ''\n")
    assert own.servers.backups == Path("/own")  # the lowest of all sources
    assert own.servers.install_logs is None


def test_each_place_is_shown_with_its_source(tmp_path: Path) -> None:
    (tmp_path / "config.yml").write_text(PELICAN)
    origins = load(None, tmp_path / "config.yml", {}).origins
    file = f"Wings file {tmp_path / 'config.yml'}"
    assert origins["servers.backups"] == f"{file}, system.backup_directory: the default of that daemon"
    assert origins["servers.install_logs"] == f"{file}, system.log_directory: the default of that daemon"


def test_the_order_is_environment_own_file_wings_file_defaults(tmp_path: Path) -> None:
    (tmp_path / "config.yml").write_text(PTERODACTYL)
    (tmp_path / "sidecar.toml").write_text("[api]\nport = 2\nhost = '127.0.0.2'\n")
    loaded = load(tmp_path / "sidecar.toml", tmp_path / "config.yml", {"SIDECAR_API_HOST": "127.0.0.3"})
    assert loaded.settings.api.host == "127.0.0.3"
    assert loaded.settings.api.port == 2
    assert loaded.settings.node.id == UUID
    assert loaded.settings.log.format == "text"
    assert loaded.origins["api.host"] == "environment SIDECAR_API_HOST"
    assert loaded.origins["api.port"] == f"file {tmp_path / 'sidecar.toml'}"
    assert loaded.origins["node.id"] == f"Wings file {tmp_path / 'config.yml'}, uuid"
    assert loaded.origins["log.format"] == "default"


def test_a_token_in_a_file_is_followed(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    settings = load_wings(tmp_path, PELICAN.replace(f"token: {TOKEN}", f"token: file://{tmp_path}/token"))
    assert settings.node.token.reveal() == TOKEN


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            PELICAN.replace(f"token: {TOKEN}", "token: ${WINGS_TOKEN}"),
            "node.token: it refers to the daemon's environment",
        ),
        (
            PELICAN.replace(f"token: {TOKEN}", "token: file:///does/not/exist"),
            "node.token: the file /does/not/exist that",
        ),
        (PELICAN.replace(f"token: {TOKEN}", f"token: [{TOKEN}]"), "node.token: it is not text"),
        (PELICAN.replace("8080", "eighty"), "api.port: 'eighty' is not a whole number (Wings file"),
        (PELICAN.replace("port: 8080", "port: 70000"), "api.port: 70000 is not between 0 and 65535"),
        (PELICAN.replace("uid: 1000", "uid: wings"), "servers.owner: 'wings:1000' is not a pair"),
        (PELICAN.replace("http://localhost:8000/", "localhost"), "panel.url: it must be a URL"),
        (f"uuid: [{UUID}\ntoken: {TOKEN}", "is not valid YAML (line 2, column"),
        (f"token: '{TOKEN}\n", "is not valid YAML (line"),
        (f"!!python/object:os.system {{token: {TOKEN}}}", "is not valid YAML"),
        ("- a\n", "is not a mapping"),
        ("", "is not a mapping"),
    ],
)
def test_what_cannot_be_used(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(HostFailed) as caught:
        load_wings(tmp_path, text)
    assert caught.value.code == "settings.invalid"
    assert expected in str(caught.value)
    assert TOKEN not in "".join(traceback.format_exception(caught.value))


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(HostFailed, match=r"the Wings file .* cannot be read: No such file"):
        load(None, tmp_path / "config.yml", {})
