"""The rendered configuration, read by the program itself: what is meant arrives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from charts.tests.rendering import CASES, Rendered, env_of, render
from sidecar.settings import Loaded, Settings, load
from sidecar.settings.values import LogFormat, Owner

NODE = "ip-10-0-0-1.compute.internal"
SECRETS = {
    "SIDECAR_NODE_TOKEN": "token-of-the-node",
    "SIDECAR_NODE_TOKEN_ID": "abcdefghijklmnop",
    "SIDECAR_NATS_PASSWORD": "password",
    "SIDECAR_NATS_TOKEN": "token",
    "SIDECAR_API_METRICS_TOKEN": "token-of-prometheus",
}
DAEMON = f"""
uuid: 12345678-1234-4234-8234-123456789012
token_id: ofTheDaemon
token: {"t" * 64}
remote: https://panel.example.com
system: {{data: /var/lib/pterodactyl/volumes, user: {{uid: 988, gid: 988}}}}
api: {{host: 127.0.0.1, port: 8081, ssl: {{enabled: true, cert: /etc/a, key: /etc/b}}}}
"""


def loaded(rendered: Rendered, directory: Path) -> Loaded:
    """As the container reads it, with its secrets in files of the test's."""
    (directory / "sidecar.toml").write_text(rendered.toml)
    daemon = directory / "config.yml"
    daemon.write_text(DAEMON)
    environ: dict[str, str] = {}
    for name, value in env_of(rendered.sidecar).items():
        text = value if isinstance(value, str) else NODE
        text = text.replace("$(SIDECAR_NODE_NAME)", NODE)
        if name.endswith("_FILE"):
            secret = directory / name
            secret.write_text(SECRETS[name.removesuffix("_FILE")])
            text = str(secret)
        environ[name] = text
    wings = daemon if "SIDECAR_WINGS_CONFIG" in environ else None
    return load(directory / "sidecar.toml", wings, environ)


@pytest.mark.parametrize("case", CASES)
def test_the_program_takes_it(case: str, tmp_path: Path) -> None:
    settings = loaded(render(case), tmp_path).settings
    is_beside = case.startswith("beside")
    assert settings.node.id == (DAEMON[7:43] if is_beside else "ip-10-0-0-1_compute_internal")
    assert settings.containers.host == "unix:///run/engine/docker.sock"
    assert settings.log.format is LogFormat.JSON
    assert bool(settings.daemon.url) == is_beside
    assert settings.api.port == (8082 if case == "beside-unprivileged" else 8080)
    assert (settings.api.tls_cert is None) == (case not in ("beside", "full"))
    if settings.panel.url:
        assert settings.node.token_id


def test_numbers_lists_and_tables_arrive_as_they_are(tmp_path: Path) -> None:
    settings = loaded(render("full"), tmp_path).settings
    assert settings.limits.max_content_bytes == 1099511627776
    assert settings.containers.stop_timeout_s == 14.5
    assert settings.transfer.allowed_destinations == ("*.example.com", "10.0.0.0/8")
    assert settings.transfer.shutdown_grace_s == 7200
    assert settings.servers.owner == Owner(988, 988)
    other = settings.servers.named["12345678-1234-4234-8234-123456789012"]
    assert (other.container, str(other.volume)) == ("other", "/srv/other/volume")
    assert settings.nats.urls == ("tls://nats-1.example.com:4222", "tls://nats-2.example.com:4222")
    assert settings.api.public_url == f"https://{NODE}:8443"
    assert str(settings.nats.creds) == "/run/transfer-sidecar/bus/creds"


@pytest.mark.parametrize(
    "text", ['"quoted" \\ back', "${HOME} {{ .Values }}", "<a&b>", "ä€😀", "# no comment", "a = 1"]
)
def test_text_arrives_as_it_is(text: str, tmp_path: Path) -> None:
    settings = loaded(render("daemonset", {"config": {"containers": {"network": text}}}), tmp_path).settings
    assert settings.containers.network == text


def test_what_is_not_set_is_the_programs_default(tmp_path: Path) -> None:
    settings = loaded(render("daemonset"), tmp_path).settings
    bare = Settings()
    assert settings.limits == bare.limits
    assert settings.websocket == bare.websocket
    assert settings.nats == bare.nats


LOGINS = [("userPassword", "PASSWORD"), ("token", "TOKEN"), ("nkey", "NKEY_SEED")]


@pytest.mark.parametrize(("auth", "secret"), LOGINS)
@pytest.mark.parametrize("per_node", [True, False])
def test_how_to_log_in_at_the_bus(auth: str, secret: str, per_node: bool) -> None:
    bus: dict[str, Any] = {
        "url": "nats://h:4222",
        "auth": auth,
        "existingSecret": "bus",
        "perNode": per_node,
        "user": "u",
    }
    container = render("daemonset", {"bus": bus}).sidecar
    path = env_of(container)[f"SIDECAR_NATS_{secret}_FILE"]
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"] if mount["name"] == "bus"}
    key = path.rpartition("/")[2]
    if per_node:
        assert mounts == {
            path: {"name": "bus", "mountPath": path, "subPathExpr": f"$(SIDECAR_NODE_NAME).{key}", "readOnly": True}
        }
    else:
        assert list(mounts) == [path.rpartition("/")[0]]
    if auth == "userPassword":
        assert env_of(container)["SIDECAR_NATS_USER"] == "u"
