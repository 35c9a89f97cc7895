"""The restricted Docker socket: everything that the sidecar does works through it, and nothing else does."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.socket_proxy import NoProxy, socket_proxy
from sidecar.ports import RunState, StopHow
from sidecar.settings.values import StopPolicy
from tests.adapters.test_docker_containers import Site, run
from tests.docker_engine import STUBBORN, TestEngine, _docker_image, docker_engine

__all__ = ["_docker_image", "docker_engine"]

pytestmark = pytest.mark.docker
ID = "0" * 64  # no container has it: what gets through is answered 404 by the engine
POLICY = '{"RestartPolicy": {"Name": "no"}}'
HOST_ROOT = '{"Image": "busybox", "HostConfig": {"Privileged": true, "Binds": ["/:/host"]}}'


class Proxied(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("docker", timeout=20)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20)
        self.sock.connect(str(self._path))


@pytest.fixture(scope="module")
def both(_docker_image: TestEngine) -> Iterator[tuple[Path, Path]]:
    """Sockets: the whole one, and the one that only looks."""
    directory = Path(tempfile.mkdtemp(prefix="sidecar-"))
    try:
        with (
            socket_proxy(directory / "a", _docker_image.host) as whole,
            socket_proxy(directory / "b", _docker_image.host, watch_only=True) as looking,
        ):
            yield whole, looking
    except NoProxy as why:
        if os.environ.get("CI"):
            pytest.fail(str(why))
        pytest.skip(str(why))
    finally:
        shutil.rmtree(directory)


@pytest.fixture
def proxy(both: tuple[Path, Path]) -> Path:
    return both[0]


@pytest.fixture
def site(docker_engine: TestEngine, proxy: Path, tmp_path: Path) -> Site:
    """As the runtime's own tests use it, with the proxy between."""
    through = TestEngine(docker_engine.client, f"unix://{proxy}", docker_engine.image)
    through.run_label = docker_engine.run_label
    return Site(through, tmp_path / "volumes")


@pytest.mark.parametrize("how", [StopHow(), StopHow("command", "stop"), StopHow("signal", "C")])
def test_a_server_is_stopped_and_started(site: Site, how: StopHow) -> None:
    site.run(restart_policy={"Name": "on-failure", "MaximumRetryCount": 3})
    runtime = site.runtime()

    async def scenario() -> None:
        await runtime.check()
        observed = await runtime.observe(site.server)
        assert observed.state is RunState.RUNNING
        await runtime.stop(site.server, observed, how)
        await runtime.verify_stopped(site.server, observed)
        assert not site.is_running()
        assert site.policy() in ("", "no")
        await runtime.start(site.server, observed)
        assert site.is_running()
        assert site.policy() == "on-failure"

    run(runtime, scenario)


def test_a_stubborn_server_is_killed(site: Site) -> None:
    site.run(command=STUBBORN)
    runtime = site.runtime(stop_timeout_s=0.5, stop_policy=StopPolicy.KILL)

    async def scenario() -> None:
        observed = await runtime.observe(site.server)
        await runtime.stop(site.server, observed, StopHow())
        assert not site.is_running()

    run(runtime, scenario)


def test_a_start_from_outside_is_heard(site: Site) -> None:
    """The engine's events come through as they happen."""
    container = site.run()
    runtime = site.runtime()

    async def scenario() -> None:
        observed = await runtime.observe(site.server)
        await runtime.stop(site.server, observed, StopHow())
        watching = asyncio.create_task(runtime.wait_started_outside(site.server))
        done, _ = await asyncio.wait({watching}, timeout=0.5)
        assert not done
        await asyncio.to_thread(container.start)
        async with asyncio.timeout(20):
            await watching

    run(runtime, scenario)


ALLOWED = [
    ("GET", "/_ping", ""),
    ("HEAD", "/_ping", ""),
    ("GET", "/version", ""),
    ("GET", "/v1.41/info", ""),
    ("GET", "/v1.41/containers/json?all=1", ""),
    ("GET", f"/v1.41/containers/{ID}/json", ""),
    ("POST", f"/v1.41/containers/{ID}/start", ""),
    ("POST", f"/containers/{ID}/wait", ""),
    ("POST", f"/v1.41/containers/{ID}/kill?signal=SIGTERM", ""),
    ("POST", f"/v1.41/containers/{ID}/update", POLICY),
]
REFUSED = [
    # what is root on the host, and what reads or changes it
    ("POST", "/v1.41/containers/create?name=x", HOST_ROOT),
    ("POST", "/containers/create", HOST_ROOT),
    ("POST", f"/v1.41/containers/{ID}/exec", '{"Cmd": ["sh"]}'),
    ("POST", f"/v1.41/exec/{ID}/start", "{}"),
    ("DELETE", f"/v1.41/containers/{ID}?force=1&v=1", ""),
    ("DELETE", f"/v1.41/containers/{ID}", ""),
    ("DELETE", "/v1.41/images/busybox", ""),
    ("GET", "/v1.41/images/json", ""),
    ("POST", "/v1.41/images/create?fromImage=busybox", ""),
    ("POST", "/v1.41/build", ""),
    ("POST", "/v1.41/commit", ""),
    ("POST", "/v1.41/volumes/create", "{}"),
    ("POST", "/v1.41/networks/create", "{}"),
    ("GET", "/v1.41/secrets", ""),
    ("POST", "/v1.41/swarm/init", "{}"),
    ("POST", "/v1.41/plugins/pull?remote=x", ""),
    ("POST", "/session", ""),
    ("POST", "/grpc", ""),
    ("GET", f"/v1.41/containers/{ID}/logs?stdout=1", ""),
    ("GET", f"/v1.41/containers/{ID}/archive?path=/etc/shadow", ""),
    ("PUT", f"/v1.41/containers/{ID}/archive?path=/", "x"),
    ("GET", f"/v1.41/containers/{ID}/export", ""),
    ("POST", f"/v1.41/containers/{ID}/rename?name=x", ""),
    ("POST", f"/v1.41/containers/{ID}/restart", ""),
    ("POST", f"/v1.41/containers/{ID}/stop", ""),
    # what is allowed, with something more
    ("POST", f"/v1.41/containers/{ID}/update", '{"RestartPolicy": {"Name": "no"}, "Memory": 1}'),
    ("POST", f"/v1.41/containers/{ID}/update", '{"Memory": 1, "RestartPolicy": {"Name": "no"}}'),
    ("POST", f"/v1.41/containers/{ID}/update", POLICY + POLICY),
    ("POST", f"/v1.41/containers/{ID}/update", POLICY + " " * 20_000 + '{"Devices": []}'),
    ("POST", f"/v1.41/containers/{ID}/update", ""),
    ("POST", f"/v1.41/containers/{ID}/update?x=1", POLICY),
    ("POST", f"/v1.41/containers/{ID}/start", '{"Privileged": true}'),
    ("POST", f"/v1.23/containers/{ID}/start", ""),  # took a host configuration
    ("POST", f"/v1.9/containers/{ID}/start", ""),
    ("POST", f"/v1.41/containers/{ID}/attach?stdin=1&stream=1&stdout=1", ""),
    ("POST", f"/v1.41/containers/{ID}/attach?stdin=1&stream=1", ""),  # without asking for the raw protocol
    ("GET", f"/v1.41/containers/{ID}/attach/ws?stdin=1&stream=1", ""),
    ("POST", f"/v1.41/containers/{ID}/kill?signal=SIGTERM&signal=SIGKILL", ""),
    ("POST", f"/v1.41/containers/{ID}/kill?signal=%53IGTERM", ""),
    ("POST", "/v1.41/containers/json", ""),
    ("DELETE", f"/v1.41/containers/{ID}/json", ""),
    # what another reader might take for something allowed, or the engine for something else
    ("GET", f"/v1.41/containers/{ID}/%2e%2e/create", ""),
    ("GET", f"/v1.41/containers/{ID}/../json", ""),
    ("GET", f"/v1.41/containers/{ID}%2fjson", ""),
    ("GET", "/v1.41/%63ontainers/json", ""),
    ("GET", "//v1.41/containers/json", ""),
    ("GET", "/v1.41//containers/json", ""),
    ("GET", "/v1.41/containers/json/", ""),
    ("GET", "/v1.41/containers/json/../create", ""),
    ("GET", "/v1.41/v1.41/containers/json", ""),
    ("GET", f"/v1.41/containers/{ID}/json;/create", ""),
    ("GET", f"/v1.41/containers/{ID.upper()}x/json", ""),
    ("GET", "/V1.41/containers/json", ""),
    ("POST", f"/v1.41/containers/{ID[:-1]}/start", ""),
    ("OPTIONS", "/v1.41/containers/json", ""),
    ("GETS", "/v1.41/containers/json", ""),
    ("get", "/v1.41/containers/json", ""),
]


@pytest.mark.parametrize(("method", "target", "body"), ALLOWED)
def test_what_the_sidecar_asks_gets_through(proxy: Path, method: str, target: str, body: str) -> None:
    assert ask(proxy, method, target, body) == (404 if ID in target else 200)


@pytest.mark.parametrize(("method", "target", "body"), REFUSED)
def test_nothing_else_does(proxy: Path, method: str, target: str, body: str) -> None:
    assert ask(proxy, method, target, body) in (403, 400)


@pytest.mark.parametrize(("method", "target", "body"), ALLOWED)
def test_beside_a_daemon_it_only_looks(both: tuple[Path, Path], method: str, target: str, body: str) -> None:
    looks = method != "POST"
    assert ask(both[1], method, target, body) == ((404 if ID in target else 200) if looks else 403)


def test_a_body_of_unsaid_length_is_refused(proxy: Path) -> None:
    request = f"POST /v1.41/containers/{ID}/update HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\n"
    chunk = f"{len(POLICY):x}\r\n{POLICY}\r\n0\r\n\r\n"
    assert raw(proxy, f"{request}Transfer-Encoding: chunked\r\n\r\n{chunk}") == 403
    both = f"{request}Transfer-Encoding: chunked\r\nContent-Length: {len(POLICY)}\r\n\r\n{chunk}"
    assert raw(proxy, both) in (400, 403)


def test_no_other_protocol_begins_behind_an_allowed_call(proxy: Path) -> None:
    upgrade = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
    assert raw(proxy, f"GET /v1.41/version HTTP/1.1\r\nHost: docker\r\n{upgrade}\r\n") == 200
    other = upgrade.replace("h2c", "websocket")
    attach = f"POST /v1.41/containers/{ID}/attach?stdin=1&stream=1 HTTP/1.1\r\nHost: docker\r\n{other}\r\n"
    assert raw(proxy, attach) in (400, 403)


def test_the_second_request_of_a_connection_is_looked_at_too(proxy: Path) -> None:
    connection = Proxied(proxy)
    try:
        connection.request("GET", "/version")
        first = connection.getresponse()
        assert first.status == 200
        assert json.loads(first.read())["ApiVersion"]
        connection.request("POST", "/v1.41/containers/create", HOST_ROOT, {"Content-Type": "application/json"})
        assert connection.getresponse().status == 403
    finally:
        connection.close()


def ask(path: Path, method: str, target: str, body: str) -> int:
    """The status."""
    connection = Proxied(path)
    try:
        headers = {"Content-Type": "application/json"} if body else {}
        with contextlib.suppress(BrokenPipeError):  # it may refuse before it has read the body
            connection.request(method, target, body or None, headers)
        return connection.getresponse().status
    finally:
        connection.close()


def raw(path: Path, request: str) -> int:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(path))
        connection.sendall(request.encode())
        return int(connection.recv(4096).split()[1])
