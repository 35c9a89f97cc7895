"""The command line: what it prints, where, and with which exit code."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sidecar import __version__
from sidecar.cli.main import app
from sidecar.journal.lock import exclusive, exclusive_volumes

UUID = "12345678-1234-4234-8234-123456789012"
SECRET = "s3cretTokenThatNobodySees"
ENVIRONMENT = {"SIDECAR_NODE_ID": "node-a", "SIDECAR_NODE_TOKEN": SECRET}

runner = CliRunner()


def run(*arguments: str, environ: dict[str, str] | None = None, text: str | None = None) -> tuple[int, str, str]:
    """In this process. Returns exit code, standard output, standard error."""
    given = {name: None for name in os.environ if name.startswith("SIDECAR_")} | (ENVIRONMENT | (environ or {}))
    result = runner.invoke(app, arguments, env=given, input=text)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def spawn(*arguments: str, environ: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """As a program."""
    given = {name: value for name, value in os.environ.items() if not name.startswith("SIDECAR_")}
    return subprocess.run(
        [sys.executable, "-m", "sidecar", *arguments],
        env=given | (environ or {}),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=30,
        check=False,
    )


class _Node(BaseHTTPRequestHandler):
    """Answers as it is told, and remembers what it was asked."""

    server: _NodeServer

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.server.asked.append(
            (self.command, self.path, self.headers.get("Authorization"), self.rfile.read(length).decode())
        )
        content = self.server.content
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = _answer  # noqa: N815 - the names that the base class looks for

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _NodeServer(HTTPServer):
    status = 200
    content = b'{"status": "ok"}'

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str | None, str]] = []
        super().__init__(("127.0.0.1", 0), _Node)


@contextmanager
def node(context: ssl.SSLContext | None = None) -> Iterator[_NodeServer]:
    with _NodeServer() as server:
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


# the program


def test_it_starts_as_a_program_and_says_its_version() -> None:
    done = spawn("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"transfer-sidecar {__version__}\n", "")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from sidecar.cli.main import app; from typer.testing import CliRunner; "
        "CliRunner().invoke(app, ['--help']); "
        "print(sorted({'docker', 'httpx', 'nats', 'starlette', 'uvicorn', 'yaml', 'asyncio.runners', 'sidecar.wiring'} "
        "& set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert set(json.loads(done.stdout.replace("'", '"'))) <= {"asyncio.runners"}


@pytest.mark.parametrize(
    "command", [(), ("serve",), ("demo",), ("config",), ("config", "check"), ("healthcheck",), ("resolve",)]
)
def test_every_command_explains_itself(command: tuple[str, ...]) -> None:
    code, out, _ = run(*command, "--help")
    assert code == 0
    assert "Usage:" in out
    assert len(out) > 300


@pytest.mark.parametrize("command", ["serve", "config check", "resolve " + UUID + " failed --yes"])
def test_a_wrong_configuration_is_told_without_a_traceback(tmp_path: Path, command: str) -> None:
    config = tmp_path / "sidecar.toml"
    config.write_text(f"[node]\nid = 'a b'\ntoken = '{SECRET}'\n[transfer]\ngzip_level = 12\n")
    done = spawn(*command.split(), "--config", str(config))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "transfer-sidecar: the configuration is wrong, 2 problems:",
        f"  node.id: 'a b' does not match ^[A-Za-z0-9_-]{{1,48}}$ (file {config})",
        f"  transfer.gzip_level: 12 is not between 0 and 9 (file {config})",
    ]


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    done = spawn("serve", "--config", str(tmp_path / "none.toml"))
    assert done.returncode == 2
    assert done.stderr == (
        f"transfer-sidecar: the configuration is wrong: the file {tmp_path / 'none.toml'} cannot be read: "
        "No such file or directory\n"
    )


def test_an_address_in_use_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        environ = ENVIRONMENT | {
            "SIDECAR_API_PORT": str(port),
            "SIDECAR_CONTAINERS_RUNTIME": "none",
            "SIDECAR_SERVERS_VOLUMES": str(tmp_path),
            "SIDECAR_STATE_DIR": str(tmp_path.with_name("state")),
        }
        done = spawn("serve", environ=environ)
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert said.startswith("transfer-sidecar: the node cannot serve: ")
    assert str(port) in said
    assert "Traceback" not in done.stderr


def test_a_second_node_on_one_state_directory_is_one_line(tmp_path: Path) -> None:
    """It would take the transfers under way for those of a crash, and fail them."""
    environ = ENVIRONMENT | {
        "SIDECAR_API_PORT": "0",
        "SIDECAR_CONTAINERS_RUNTIME": "none",
        "SIDECAR_SERVERS_VOLUMES": str(tmp_path / "volumes"),
        "SIDECAR_STATE_DIR": str(tmp_path / "state"),
    }
    with exclusive(tmp_path / "state"):
        done = spawn("serve", environ=environ)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "transfer-sidecar: the node cannot serve: Another sidecar works with the state directory "
        f"{tmp_path / 'state'}; each node needs its own."
    )
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["lock"]


def test_a_second_node_on_the_same_volumes_is_one_line(tmp_path: Path) -> None:
    volumes = tmp_path / "volumes"
    volumes.mkdir()
    environ = ENVIRONMENT | {
        "SIDECAR_API_PORT": "0",
        "SIDECAR_CONTAINERS_RUNTIME": "none",
        "SIDECAR_SERVERS_VOLUMES": str(volumes),
        "SIDECAR_STATE_DIR": str(tmp_path / "state"),
    }
    with exclusive_volumes(volumes):
        done = spawn("serve", environ=environ)
    assert done.returncode == 1
    assert f"Another sidecar works with the volumes in {volumes};" in done.stderr.splitlines()[-1]


def test_an_unknown_option_is_wrong_usage() -> None:
    done = spawn("serve", "--confg", "x")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


# config


def test_config_check_prints_the_effective_configuration_masked(tmp_path: Path) -> None:
    (tmp_path / "sidecar.toml").write_text("[api]\nport = 9000\n")
    (tmp_path / "config.yml").write_text(f"token_id: wings\ntoken: {SECRET}\nremote: https://panel.example.com\n")
    code, out, err = run(
        "config", "check", "--config", str(tmp_path / "sidecar.toml"), "--wings-config", str(tmp_path / "config.yml")
    )
    assert code == 0
    assert SECRET not in out + err
    values = tomllib.loads(out)
    assert values["node"] == {"id": "node-a", "name": "", "token_id": "wings", "token": "***"}
    assert values["api"]["port"] == 9000
    assert "# environment SIDECAR_NODE_ID" in out
    assert f"# Wings file {tmp_path / 'config.yml'}, remote" in out
    assert "remark: servers.volumes:" in err


def test_the_files_can_be_named_by_variables(tmp_path: Path) -> None:
    (tmp_path / "sidecar.toml").write_text("[api]\nport = 9000\n")
    code, out, _ = run("config", "check", environ={"SIDECAR_CONFIG": str(tmp_path / "sidecar.toml")})
    assert code == 0
    assert tomllib.loads(out)["api"]["port"] == 9000


def test_config_table_is_markdown() -> None:
    code, out, _ = run("config", "table")
    assert code == 0
    assert out.startswith("| Setting | Default | Meaning |\n|---|---|---|\n")


# healthcheck


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_healthcheck_asks_the_node_of_the_configuration(host: str) -> None:
    with node() as server:
        environ = {"SIDECAR_API_HOST": host, "SIDECAR_API_PORT": str(server.server_port)}
        assert run("healthcheck", environ=environ) == (0, "healthy\n", "")
        assert run("healthcheck", "--ready", environ=environ) == (0, "healthy\n", "")
        server.status, server.content = 503, b'{"error": "the engine does not answer"}'
        assert run("healthcheck", environ=environ) == (
            1,
            "",
            "transfer-sidecar: unhealthy: /healthz answered 503: the engine does not answer\n",
        )
    assert [(method, path) for method, path, _, _ in server.asked] == [
        ("GET", "/healthz"),
        ("GET", "/readyz"),
        ("GET", "/healthz"),
    ]
    assert {authorization for _, _, authorization, _ in server.asked} == {None}
    code, out, err = run("healthcheck", environ=environ)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "Connection refused" in err


def test_healthcheck_over_tls(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with node(context) as server:
        environ = {
            "SIDECAR_API_PORT": str(server.server_port),
            "SIDECAR_API_TLS_CERT": str(certificate),
            "SIDECAR_API_TLS_KEY": str(key),
        }
        assert run("healthcheck", environ=environ) == (0, "healthy\n", "")


def test_healthcheck_of_a_wrong_configuration_is_unhealthy_and_one_line() -> None:
    code, out, err = run("healthcheck", environ={"SIDECAR_API_PORT": "a", "SIDECAR_NODE_ID": "a b"})
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "api.port" in err
    assert "node.id" in err


def test_healthcheck_with_a_port_that_nobody_knows() -> None:
    code, _, err = run("healthcheck", environ={"SIDECAR_API_PORT": "0"})
    assert code == 1
    assert "only the running node knows its port" in err


def make_certificate(directory: Path) -> tuple[Path, Path]:
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "node.example.com")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    paths = directory / "cert.pem", directory / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths


# resolve


IN_DOUBT = {"in_doubt": True, "role": "source", "peer": "https://node-b.test"}
TRANSFER_PATH = f"/api/servers/{UUID}/transfer"


@pytest.mark.parametrize(
    ("role", "outcome", "meaning"),
    [
        ("source", "completed", "will never be started on node-a again"),
        ("source", "failed", "will belong to node-a again"),
        ("destination", "completed", "will belong to node-a and may be started there"),
        ("destination", "failed", "go to the trash there"),
    ],
)
def test_resolve_tells_the_node_what_the_operator_knows(role: str, outcome: str, meaning: str) -> None:
    with node() as server:
        server.content = json.dumps(IN_DOUBT | {"role": role}).encode()
        environ = {"SIDECAR_API_PORT": str(server.server_port)}
        code, out, err = run("resolve", UUID.upper(), outcome, environ=environ, text="y\n")
        assert code == 0
        assert out.endswith(f"{UUID}: {outcome}\n")  # behind the echo of the answer
        assert f"This node is the {role}; the other end is https://node-b.test.\n" in err
        assert meaning in err
        assert run("resolve", UUID, outcome, "--yes", environ=environ)[0] == 0
    told = ("POST", f"{TRANSFER_PATH}/resolve", f"Bearer {SECRET}", json.dumps({"outcome": outcome}))
    assert server.asked == [("GET", TRANSFER_PATH, f"Bearer {SECRET}", ""), told, told]


@pytest.mark.parametrize("text", ["n\n", "\n", ""])
def test_resolve_asks_first(text: str) -> None:
    with node() as server:
        server.content = json.dumps(IN_DOUBT).encode()
        environ = {"SIDECAR_API_PORT": str(server.server_port)}
        code, _, err = run("resolve", UUID, "failed", environ=environ, text=text)
    assert code == 1
    assert "the world would exist twice" in err
    assert "nothing was decided" in err
    assert [method for method, *_ in server.asked] == ["GET"]


@pytest.mark.parametrize("found", [IN_DOUBT | {"in_doubt": False}, IN_DOUBT | {"role": "?"}, {}, []])
def test_resolve_of_what_is_not_in_doubt_asks_nothing(found: object) -> None:
    with node() as server:
        server.content = json.dumps(found).encode()
        environ = {"SIDECAR_API_PORT": str(server.server_port)}
        code, out, err = run("resolve", UUID, "failed", environ=environ, text="y\n")
    assert (code, out) == (1, "")
    assert err == "transfer-sidecar: no transfer of that server is in doubt on this node\n"


def test_resolve_tells_the_refusal_of_the_node() -> None:
    with node() as server:
        server.status, server.content = 409, b'{"error": "the server is not being transferred"}'
        environ = {"SIDECAR_API_PORT": str(server.server_port)}
        code, out, err = run("resolve", UUID, "failed", "-y", environ=environ)
    assert (code, out) == (1, "")
    assert err == "transfer-sidecar: the node refused (409): the server is not being transferred\n"


@pytest.mark.parametrize("arguments", [("one", "failed"), (UUID, "lost")])
def test_resolve_with_wrong_words(arguments: tuple[str, str]) -> None:
    code, _, err = run("resolve", *arguments, "-y")
    assert code == 2
    assert err.startswith("transfer-sidecar: ")
