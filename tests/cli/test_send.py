"""`send`: a server goes from one real node to another without a panel, and every refusal is told."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner, Result

from sidecar.cli.main import app
from sidecar.demo.compare import compare
from sidecar.demo.node import free_port, write_config
from sidecar.demo.world import make_world

SERVER = "12345678-1234-4234-8234-123456789012"
TOKENS = {"a": "token-of-a-0123456789abcdef", "b": "token-of-b-0123456789abcdef"}
PATIENCE_S = 60


class Pair:
    """Two nodes that run."""

    def __init__(self, home: Path, ports: dict[str, int]) -> None:
        self.home = home
        self.url = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}

    def volume(self, name: str) -> Path:
        return self.home / name / "volumes" / SERVER

    def send(self, *arguments: str, node: str = "a", key: str = "b") -> subprocess.CompletedProcess[str]:
        (self.home / "key").write_text(f"{TOKENS[key]}\n")
        config = ("--config", str(self.home / node / "sidecar.toml"))
        return spawn("send", *arguments, "--token-file", str(self.home / "key"), *config)


def spawn(*arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("SIDECAR_")}
    command = [sys.executable, "-m", "sidecar", *arguments]
    return subprocess.run(
        command,
        env=environ,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=PATIENCE_S * 2,
        check=False,
    )


@contextmanager
def pair(home: Path, *, panel_url: str = "") -> Iterator[Pair]:
    ports = {name: free_port() for name in TOKENS}
    with ExitStack() as stack:
        for name, token in TOKENS.items():
            (home / name / "volumes").mkdir(parents=True)
            sections: dict[str, dict[str, object]] = {
                "node": {"id": name, "token_id": "tokenId", "token": token},
                "api": {"port": ports[name]},
                "panel": {"url": panel_url},
                "servers": {"volumes": home / name / "volumes"},
                "containers": {"runtime": "none"},
                "limits": {"reserve_bytes": 0, "reserve_inodes": 0},
                "state": {"dir": home / name / "state"},
            }
            write_config(home / name / "sidecar.toml", sections)
            log = stack.enter_context((home / name / "log").open("wb"))
            command = [sys.executable, "-m", "sidecar", "serve", "--config", str(home / name / "sidecar.toml")]
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            stack.callback(process.wait, PATIENCE_S)
            stack.callback(process.terminate)
        for port in ports.values():
            _wait_ready(f"http://127.0.0.1:{port}/readyz")
        yield Pair(home, ports)


def _wait_ready(url: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        with suppress(httpx.TransportError):
            if httpx.get(url, trust_env=False).status_code == 200:
                return
        time.sleep(0.05)
    raise AssertionError(f"{url} does not get ready")


def test_a_server_goes_there_and_comes_back(tmp_path: Path) -> None:
    with pair(tmp_path) as nodes:
        make_world(nodes.volume("a"), 2)
        done = nodes.send(SERVER, nodes.url["b"])
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"completed; {nodes.url['b']} has it" in done.stdout
        found = compare(nodes.volume("a"), nodes.volume("b"))
        assert found.entries > 20
        assert found.is_equal

        refused = nodes.send(SERVER, nodes.url["b"])
        assert (refused.returncode, "has left this node" in refused.stderr) == (1, True), refused.stderr
        done = nodes.send(SERVER, nodes.url["a"], "--no-start", node="b", key="a")
        assert done.returncode == 0, done.stdout + done.stderr


def test_what_cannot_be_sent_is_said(tmp_path: Path) -> None:
    with pair(tmp_path) as nodes:
        unknown = nodes.send(SERVER, nodes.url["b"])
        assert (unknown.returncode, "(404)" in unknown.stderr) == (1, True), unknown.stderr
        make_world(nodes.volume("a"), 2)
        wrong = nodes.send(SERVER, nodes.url["b"], key="a")  # not the destination's token
        assert wrong.returncode == 1
        assert "failed: " in wrong.stderr and "(peer." in wrong.stderr, wrong.stderr
        assert not nodes.volume("b").exists()


def test_a_node_with_a_panel_refuses(tmp_path: Path) -> None:
    write_config(
        tmp_path / "sidecar.toml",
        {"node": {"id": "a", "token_id": "t", "token": TOKENS["a"]}, "panel": {"url": "https://panel.example.com"}},
    )
    (tmp_path / "key").write_text(TOKENS["b"])
    options = ("--token-file", str(tmp_path / "key"), "--config", str(tmp_path / "sidecar.toml"))
    done = run("send", SERVER, "https://node-b:8080", *options)
    assert (done.exit_code, "has a panel" in done.stderr) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("no-uuid", "https://b", "--token-file", os.devnull), "not the UUID"),
        ((SERVER, "https://b", "--token-file", os.devnull), "holds no token"),
        ((SERVER, "https://b", "--token-file", "/nowhere/at/all"), "cannot be read"),
    ],
)
def test_wrong_usage_is_named(arguments: tuple[str, ...], said: str) -> None:
    done = run("send", *arguments)
    assert (done.exit_code, said in done.stderr) == (2, True), done.stderr


def run(*arguments: str) -> Result:
    """In this process."""
    environ = {name: None for name in os.environ if name.startswith("SIDECAR_")}
    return CliRunner().invoke(app, arguments, env=environ)
