"""Where each value comes from, and what is said about one that cannot be used."""

from __future__ import annotations

import hashlib
import re
import traceback
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import HostFailed
from sidecar.settings import (
    Deletion,
    Dialect,
    Loaded,
    LogLevel,
    Owner,
    RuntimeKind,
    Secret,
    ServerOverride,
    Settings,
    StopPolicy,
    load,
)
from sidecar.settings.load import id_of_host
from sidecar.settings.values import HOST_NAME_PATTERN, NODE_ID_PATTERN

UUID = "12345678-1234-4234-8234-123456789012"
SECRET = "s3cretTokenThatNobodySees"
NEEDED = {"SIDECAR_NODE_ID": "node-a", "SIDECAR_NODE_TOKEN": SECRET}


def load_text(directory: Path, text: str, environ: dict[str, str] | None = None) -> Loaded:
    path = directory / "sidecar.toml"
    path.write_text(text, "utf-8")
    return load(path, environ=NEEDED | (environ or {}))


def problems(directory: Path, text: str = "", environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(HostFailed) as caught:
        load_text(directory, text, environ)
    assert caught.value.code == "settings.invalid"
    whole = "".join(traceback.format_exception(caught.value)) + repr(caught.value.facts)
    assert SECRET not in whole
    return str(caught.value).splitlines()


def test_defaults_are_those_of_the_values() -> None:
    loaded = load(environ=NEEDED)
    bare = Settings()
    for section in bare.__struct_fields__:
        if section != "node":
            assert getattr(loaded.settings, section) == getattr(bare, section)
    assert loaded.settings.node.token.reveal() == SECRET
    assert loaded.origins["node.token"] == "environment SIDECAR_NODE_TOKEN"
    assert loaded.origins["api.port"] == "default"


def test_every_kind_of_value_from_a_file(tmp_path: Path) -> None:
    settings = load_text(
        tmp_path,
        f"""
        [api]
        port = 9000
        tls_cert = "tls/cert.pem"
        tls_key = "/etc/key.pem"
        allowed_origins = ["https://panel.example.com", "*"]
        [panel]
        require_scope = true
        call_timeout_s = 2
        [servers]
        volumes = "volumes"
        owner = "988:989"
        deletion = "refuse"
        [servers.{UUID.upper()}]
        volume = "/srv/one"
        container = "game-one"
        [containers]
        runtime = "none"
        stop_policy = "kill"
        stop_timeout_s = 1.5
        [websocket]
        dialects = ["daemon"]
        [log]
        level = "debug"
        """,
    ).settings
    assert settings.api.port == 9000
    assert settings.api.tls_cert == tmp_path / "tls/cert.pem"  # relative to the file
    assert settings.api.tls_key == Path("/etc/key.pem")
    assert settings.api.allowed_origins == ("https://panel.example.com", "*")
    assert settings.panel.require_scope is True
    assert settings.panel.call_timeout_s == 2.0
    assert isinstance(settings.panel.call_timeout_s, float)
    assert settings.servers.volumes == tmp_path / "volumes"
    assert settings.servers.owner == Owner(988, 989)
    assert settings.servers.deletion is Deletion.REFUSE
    assert settings.servers.named == {UUID: ServerOverride(volume=Path("/srv/one"), container="game-one")}
    assert settings.containers.runtime is RuntimeKind.NONE
    assert settings.containers.stop_policy is StopPolicy.KILL
    assert settings.containers.stop_timeout_s == 1.5
    assert settings.websocket.dialects == (Dialect.DAEMON,)
    assert settings.log.level is LogLevel.DEBUG


def test_every_kind_of_value_from_the_environment(tmp_path: Path) -> None:
    loaded = load_text(
        tmp_path,
        "[api]\nport = 1\nallowed_origins = ['https://a']\n[transfer]\nrespond_async = true\n",
        {
            "SIDECAR_API_PORT": "9001",
            "SIDECAR_API_ALLOWED_ORIGINS": " https://b ,https://c,",
            "SIDECAR_TRANSFER_RESPOND_ASYNC": "off",
            "SIDECAR_TRANSFER_STALL_TIMEOUT_S": "2.5",
            "SIDECAR_TRANSFER_ALLOWED_DESTINATIONS": "",
            "SIDECAR_SERVERS_OWNER": "0:0",
            "SIDECAR_SERVERS_12345678_1234_4234_8234_123456789012_CONTAINER": "mine",
            "SIDECAR_WEBSOCKET_DIALECTS": "documented",
            "SIDECAR_LOG_LEVEL": "error",
        },
    )
    settings = loaded.settings
    assert settings.api.port == 9001
    assert settings.api.allowed_origins == ("https://b", "https://c")
    assert settings.transfer.respond_async is False
    assert settings.transfer.stall_timeout_s == 2.5
    assert settings.transfer.allowed_destinations == ()
    assert settings.servers.owner == Owner(0, 0)
    assert settings.servers.named[UUID].container == "mine"
    assert settings.websocket.dialects == (Dialect.DOCUMENTED,)
    assert settings.log.level is LogLevel.ERROR
    assert loaded.origins["api.port"] == "environment SIDECAR_API_PORT"
    assert loaded.origins[f"servers.{UUID}.container"].startswith("environment SIDECAR_SERVERS_1234")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[transfer]\ngzip_level = 12", "transfer.gzip_level: 12 is not between 0 and 9"),
        ("[transfer]\ngzip_level = 1.5", "transfer.gzip_level: 1.5 is not a whole number"),
        ("[transfer]\ngzip_level = true", "transfer.gzip_level: true is not a whole number"),
        ("[transfer]\ngzip_level = '1'", "transfer.gzip_level: '1' is not a whole number"),
        ("[transfer]\nretain_s = 99999999999999999999", "transfer.retain_s: the number is too large"),
        ("[transfer]\nretain_s = -1", "transfer.retain_s: -1 is not at least 0"),
        ("[transfer]\nstall_timeout_s = 0", "transfer.stall_timeout_s: 0 is not above 0 and at most 86400"),
        ("[transfer]\nstall_timeout_s = inf", "transfer.stall_timeout_s: inf is not a finite number"),
        ("[transfer]\nstall_timeout_s = nan", "transfer.stall_timeout_s: nan is not a finite number"),
        ("[transfer]\nstall_timeout_s = '1'", "transfer.stall_timeout_s: '1' is not a number"),
        ("[transfer]\nrespond_async = 1", "transfer.respond_async: 1 is not true or false"),
        ("[transfer]\nallowed_destinations = 'a'", "transfer.allowed_destinations: 'a' is not a list"),
        ("[transfer]\nallowed_destinations = [1]", "transfer.allowed_destinations: 1 is not text"),
        (
            "[transfer]\nallowed_destinations = ['10.0.0.1/8']",
            "transfer.allowed_destinations: '10.0.0.1/8' is not a host",
        ),
        ("[transfer]\nallowed_destinations = ['ftp://x']", "transfer.allowed_destinations: 'ftp://x' is not a host"),
        ("[transfr]\na = 1", "transfr: there is no such section; did you mean transfer?"),
        ("[transfer]\ngzip = 1", "transfer.gzip: there is no such setting"),
        ("[log]\nlevl = 'info'", "log.levl: there is no such setting; did you mean level?"),
        ("[log]\nlevel = 'loud'", "log.level: 'loud' is not one of debug, info, warning, error"),
        ("[log]\nlevel = {a = 1}", "log.level: a table is not text"),
        ("transfer = 1", "transfer: it must be a section, [transfer]"),
        ("[websocket]\ndialects = []", "websocket.dialects: at least one is needed"),
        ("[websocket]\ndialects = ['both']", "websocket.dialects: 'both' is not one of documented, daemon"),
        ("[api]\nport = 65536", "api.port: 65536 is not between 0 and 65535"),
        ("[api]\nhost = ''", "api.host: it must not be empty"),
        ('[api]\nhost = "a\\nb"', "api.host: control characters are not allowed"),
        ("[api]\ntls_cert = 'c'", "api.tls_key: it must be set together with api.tls_cert"),
        ("[api]\ntls_key = 'c'", "api.tls_cert: it must be set together with api.tls_key"),
        ("[api]\nallowed_origins = ['panel']", "api.allowed_origins: 'panel' is not an origin"),
        (
            "[node]\ntoken_id = 'i'\n[panel]\nurl = 'panel.example.com'",
            "panel.url: it must be a URL that begins with http://, https://",
        ),
        ("[node]\ntoken_id = 'i'\n[panel]\nurl = 'https://p/?a=1'", "panel.url: it must not have a query"),
        ("[node]\ntoken_id = 'i'\n[panel]\nurl = 'https://p:x'", "panel.url: it is not a URL"),
        ("[panel]\nurl = 'https://p'", "node.token_id: it must be set where panel.url is"),
        ("[servers]\nowner = 'root'", "servers.owner: 'root' is not a pair of numeric ids"),
        ("[servers]\nowner = '1:4294967295'", "servers.owner: '1:4294967295' is not a pair of numeric ids"),
        ("[servers]\nvolumes = ''", "servers.volumes: it must not be empty"),
        ("[servers]\nvolumes = '/'", "servers.volumes: it must be a directory of its own"),
        ("[servers]\nvolumes = '/v'\n[state]\ndir = '/v/state'", "state.dir: it must not be inside servers.volumes"),
        ("[servers]\nvolumes = '/v'\nbackups = '/v/b'", "servers.backups: it must not be inside servers.volumes"),
        ("[servers]\nbackups = '/b'\ninstall_logs = '/b'", "servers.install_logs: it must be another directory"),
        ("[servers.one]\nvolume = '/a'", "servers.one: the UUID of a server is needed"),
        (f"[servers.{UUID}]\nvolum = '/a'", f"servers.{UUID}.volum: there is no such setting; did you mean volume?"),
        (
            f"[servers.{UUID}]\n[servers.{UUID[:-1]}A]\n[servers.{UUID[:-1]}a]",
            f"servers.{UUID[:-1]}a: this server is there twice",
        ),
        (
            f"[servers.{UUID}]\nvolume = '/a'\n[servers.{UUID[:-1]}3]\nvolume = '/a'",
            f"servers.{UUID[:-1]}3.volume: it is the volume of {UUID}",
        ),
        ("[containers]\nhost = 'docker'", "containers.host: it must be unix:///"),
        ("[containers]\ndata_target = 'home'", "containers.data_target: 'home' does not match ^/.*$"),
        ("[nats]\nroot = 'a.*'", "nats.root: 'a.*' does not match"),
        ("[nats]\nurl = 'nats://a:4222,http://b'", "nats.url: it must be a URL that begins with nats://"),
        (
            "[nats]\nurl = 'nats://a,tls://b'",
            "nats.url: servers with TLS (tls://) and without (nats://) must not be mixed",
        ),
        ("[nats]\nurl = 'nats://a'\ntls_ca = 'ca'", "nats.url: it must begin with tls://"),
        ("[nats]\nuser = 'a'", "nats.password: it must be set together with nats.user"),
        ("[nats]\ntoken = 'a'\ncreds = 'b'", "nats.creds: one way to log in is enough, and nats.token is set as well"),
        ("[node]\ntoken_file = '/does/not/exist'", "node.token_file: the file /does/not/exist cannot be read"),
        ("[node]\ntoken_file = 1", "node.token_file: it must be the path of a file"),
        ("[api]\nport_file = 'x'", "api.port_file: there is no such setting; did you mean port?"),
        ("[api\n", "is not valid TOML (at line 1, column 5)"),
    ],
)
def test_what_cannot_be_used_is_named_by_its_path(tmp_path: Path, text: str, expected: str) -> None:
    found = problems(tmp_path, text)
    assert len(found) == 1
    assert expected in found[0]


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("SIDECAR_NODE_ID", "a b", "node.id: 'a b' does not match"),
        ("SIDECAR_NODE_ID", "x" * 49, "node.id: 'xxx"),
        ("SIDECAR_API_PORT", "", "api.port: '' is not a whole number"),
        ("SIDECAR_API_PORT", "0x10", "api.port: '0x10' is not a whole number"),
        (
            "SIDECAR_API_PROT",
            "1",
            "api.prot: there is no such setting; did you mean port? (environment SIDECAR_API_PROT)",
        ),
        ("SIDECAR_TRANSFR_GZIP_LEVEL", "1", "did you mean SIDECAR_TRANSFER_GZIP_LEVEL?"),
        ("SIDECAR_TRANSFER_STALL_TIMEOUT_S", "nan", "transfer.stall_timeout_s: 'nan' is not a number"),
        ("SIDECAR_TRANSFER_RESPOND_ASYNC", "maybe", "transfer.respond_async: 'maybe' is not true or false"),
        ("SIDECAR_SERVERS_NAMED", "x", "servers.named: there is no such setting"),
    ],
)
def test_what_cannot_be_used_in_the_environment(tmp_path: Path, variable: str, value: str, expected: str) -> None:
    found = problems(tmp_path, environ={variable: value})
    assert len(found) == 1
    assert expected in found[0]


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        "[transfer]\ngzip_level = 12\nretain_s = 'long'\n[api]\ntls_cert = 'x'\n[nope]\n",
        {"SIDECAR_API_PORT": "a"},
    )
    assert [line.split(":")[0] for line in found] == [
        "api.port",
        "transfer.gzip_level",
        "transfer.retain_s",
        "nope",
        "api.tls_key",
    ]


def test_a_node_without_id_or_token_is_told() -> None:
    with pytest.raises(HostFailed, match=r"(?s)node\.id: it must be set.*node\.token: it must be set"):
        load(environ={})


def test_the_environment_of_a_pod_beside_a_service_is_not_taken_for_settings() -> None:
    links = {
        "SIDECAR_PORT": "tcp://10.0.0.1:8080",
        "SIDECAR_PORT_8080_TCP_ADDR": "10.0.0.1",
        "SIDECAR_SERVICE_HOST": "10.0.0.1",
        "SIDECAR_SERVICE_PORT_HTTP": "8080",
    }
    assert load(environ=NEEDED | links).settings.api.port == 8080
    assert load(environ=NEEDED | {"SIDECAR_CONFIG": "x", "SIDECAR_WINGS_CONFIG": "y"})


def test_a_missing_or_unreadable_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(HostFailed, match="cannot be read: No such file"):
        load(tmp_path / "none.toml", environ=NEEDED)
    (tmp_path / "latin.toml").write_bytes(b"[node]\nid = '\xff'")
    with pytest.raises(HostFailed, match="is not UTF-8 text"):
        load(tmp_path / "latin.toml", environ=NEEDED)


# secrets


def test_a_secret_comes_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{SECRET}\n")
    (tmp_path / "password").write_text("pass")
    text = "[node]\nid = 'a'\ntoken_file = 'token'\n[nats]\nuser = 'u'\n"
    (tmp_path / "sidecar.toml").write_text(text)
    environ = {"SIDECAR_NATS_PASSWORD_FILE": str(tmp_path / "password")}
    loaded = load(tmp_path / "sidecar.toml", environ=environ)
    assert loaded.settings.node.token == Secret(SECRET)
    assert loaded.settings.nats.password.reveal() == "pass"
    assert SECRET not in repr(loaded)
    other = load(tmp_path / "sidecar.toml", environ=environ | {"SIDECAR_NODE_TOKEN": "other"})
    assert other.settings.node.token.reveal() == "other"  # the stronger source wins, whichever key it uses


def test_the_id_of_a_token_comes_from_a_file_too(tmp_path: Path) -> None:
    (tmp_path / "id").write_text("abcdefghijklmnop\n")
    loaded = load_text(tmp_path, "[node]\ntoken_id_file = 'id'")
    assert loaded.settings.node.token_id == "abcdefghijklmnop"
    assert loaded.origins["node.token_id"] == f"file {tmp_path / 'sidecar.toml'}"
    assert problems(tmp_path, "[node]\ntoken_id_file = 'gone'") == [
        f"node.token_id_file: the file {tmp_path / 'gone'} cannot be read: No such file or directory "
        f"(file {tmp_path / 'sidecar.toml'})"
    ]


# the id of a node that is only known by its host's name

LONG = "ip-10-0-0-1." + "a" * 40 + ".compute.internal"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("worker-1", "worker-1"),
        ("ip-10-0-0-1.eu-central-1.compute.internal", "ip-10-0-0-1_eu-central-1_compute_internal"),
        ("a" * 48, "a" * 48),
        ("a" * 49, "a" * 30 + "__" + hashlib.sha256(b"a" * 49).hexdigest()[:16]),
        (LONG, "ip-10-0-0-1_" + "a" * 18 + "__" + hashlib.sha256(LONG.encode()).hexdigest()[:16]),
    ],
)
def test_an_id_is_made_from_the_host_name(name: str, expected: str) -> None:
    environ = {"SIDECAR_NODE_NAME": name, "SIDECAR_NODE_TOKEN": SECRET}
    loaded = load(environ=environ)
    assert loaded.settings.node.id == expected
    assert re.fullmatch(NODE_ID_PATTERN, expected)
    assert loaded.origins["node.id"] == "made from node.name, environment SIDECAR_NODE_NAME"
    assert load(environ=environ | {"SIDECAR_NODE_ID": "mine"}).settings.node.id == "mine"
    assert load(environ=environ | {"SIDECAR_NODE_ID": ""}).settings.node.id == expected


@pytest.mark.parametrize("name", ["Worker", "a..b", ".a", "a.", "-a", "a-", "a_b", "a/b", "a" * 64, "ä", "a.b" * 85])
def test_what_is_no_host_name_makes_no_id(tmp_path: Path, name: str) -> None:
    found = problems(tmp_path, environ={"SIDECAR_NODE_NAME": name})
    assert len(found) == 1
    assert found[0].startswith("node.name: ")


@given(
    st.lists(
        st.lists(st.sampled_from(["a", "b", "a-b", "a" * 29]), min_size=1, max_size=3), min_size=2, unique_by=tuple
    )
)
def test_two_hosts_never_have_one_id(names: list[list[str]]) -> None:
    hosts = {".".join(labels) for labels in names}
    assert all(re.fullmatch(HOST_NAME_PATTERN, host) for host in hosts)
    assert len({id_of_host(host) for host in hosts}) == len(hosts)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty, or more than one line"),
        (b"one\ntwo", "is empty, or more than one line"),
        (b"\xff", "is not UTF-8 text"),
        (b"x" * 65537, "is larger than 65536 bytes"),
    ],
)
def test_a_secret_file_that_holds_no_secret(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "token").write_bytes(content)
    with pytest.raises(HostFailed, match=rf"^node\.token_file: the file .* {expected}"):
        load(environ={"SIDECAR_NODE_ID": "a", "SIDECAR_NODE_TOKEN_FILE": str(tmp_path / "token")})


def test_a_secret_is_given_once_in_one_source(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("x")
    found = problems(tmp_path, environ={"SIDECAR_NODE_TOKEN_FILE": str(tmp_path / "token")})
    assert found == [
        "node.token_file: token is set as well; give one of them (environment SIDECAR_NODE_TOKEN_FILE)",
    ]


@pytest.mark.parametrize(
    "text",
    [
        f"[node]\ntoken = ['{SECRET}']",
        f"[node]\ntoken = ' {SECRET}'",
        f'[node]\ntoken = "{SECRET}\\u0000"',
        f"[node]\ntoken = {SECRET}",
        f"[nats]\nurl = 'nats://user:{SECRET}@host:4222'",
        f"[panel]\nurl = 'https://{SECRET}@host'",
        f"[containers]\nhost = 'tcp://user:{SECRET}@host:1'",
        f"[log]\nlevel = 'user:{SECRET}@host'",
        f"[node]\ntoken_file = 'a'\ntoken = '{SECRET}'",
        f"[node]\ntokn = '{SECRET}'",
    ],
)
def test_no_error_shows_a_secret(tmp_path: Path, text: str) -> None:
    assert problems(tmp_path, text)  # which looks for the secret in message, facts and traceback


def test_no_repr_shows_a_secret() -> None:
    loaded = load(environ=NEEDED)
    assert SECRET not in repr(loaded) + str(loaded.settings.node) + f"{loaded.settings.node.token}"
    assert repr(loaded.settings.node.token) == "Secret(***)"
    assert not Secret()
    assert {Secret("a"), Secret("a")} == {Secret("a")}
    assert Secret("a") != "a"
