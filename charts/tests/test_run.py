"""Render and run: the containers of the chart, started as a kubelet would, do what the program does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
import yaml

from charts.tests.conftest import SOCKET
from charts.tests.kubelet import Kubelet
from charts.tests.rendering import Object, Rendered, render
from charts.tests.test_nats import broker, logged_in, passwords
from sidecar.demo.daemon import StandInDaemon
from sidecar.demo.node import free_port
from sidecar.demo.panel import PanelServer
from sidecar.demo.panel_documents import Family

pytestmark = [pytest.mark.docker, pytest.mark.root, pytest.mark.timeout(600)]

USER = 988
NODE = "worker-1.example.com"
TOKEN = "token-of-worker-1-0123456789abcdef0123"
DAEMONS_TOKEN = "token-of-the-daemon-0123456789abcdef01"
UUID_OF_DAEMON = "0e0f0a0b-0000-4000-8000-000000000001"
TOKENS = {"node-tokens": {f"{NODE}.token": TOKEN, f"{NODE}.token-id": "tokenIdOfWorker1", "worker-2.token": "other"}}
PATIENCE_S = 30.0


def node_values(directory: Path, port: int, **more: Any) -> Object:
    """Of a node on this machine: its own directories, an address that nobody else has."""
    config = {"limits": {"reserve_bytes": 1048576}, "transfer": {"progress_interval_s": 0.5}}
    return {
        "listen": {"host": "127.0.0.1", "port": port},
        "servers": {"volumes": str(directory / "volumes"), "backups": ""},
        "state": {"hostPath": str(directory / "state")},
        "docker": {"socketPath": str(SOCKET), "groupId": SOCKET.stat().st_gid},
        "config": {**config, **more.pop("config", {})},
        **more,
    }


def make_directories(directory: Path, user: int = USER) -> None:
    """What NOTES tell an administrator to do."""
    for name in ("volumes", "state"):
        (directory / name).mkdir(parents=True)
        os.chown(directory / name, user, user)
    (directory / "state").chmod(0o700)


@contextlib.contextmanager
def running(rendered: Rendered, directory: Path, image: str, **options: Any) -> Iterator[Kubelet]:
    kubelet = Kubelet(
        rendered,
        name=options.pop("name", NODE),
        directory=directory / "kubelet",
        image=image,
        secrets=options.pop("secrets", TOKENS),
        emptied=options.pop("emptied", None),
    )
    for there, here in options.pop("edits", []):
        kubelet.edit(there, here)
    try:
        kubelet.start()
        yield kubelet
    finally:
        kubelet.remove()


def get(port: int, path: str, **options: Any) -> httpx.Response | None:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"http://127.0.0.1:{port}{path}", timeout=10, trust_env=False, **options)
    return None


def status(port: int, path: str) -> int:
    answer = get(port, path)
    return answer.status_code if answer is not None else 0


def test_a_pod_of_the_daemonset(image: str, tmp_path: Path) -> None:
    """Non-root, without capabilities, on a read-only root, it reaches the engine and its directories."""
    port = free_port()
    rendered = render("daemonset", node_values(tmp_path, port))
    make_directories(tmp_path)
    with running(rendered, tmp_path, image) as kubelet:
        kubelet.until(lambda: status(port, "/healthz") == 200, "/healthz")
        kubelet.until(lambda: status(port, "/readyz") == 200, "/readyz")
        assert get(port, "/api/transfers", headers={"Authorization": "Bearer other"}).status_code == 403  # type: ignore[union-attr]
        shown = kubelet.exec("transfer-sidecar", "config", "check")
        assert 'id = "worker-1_example_com"' in shown.said
        assert TOKEN not in shown.said
        assert 'token_id = "tokenIdOfWorker1"' in shown.said
        listed = kubelet.exec("sh", "-c", "ls /run/transfer-sidecar/node; cat /proc/1/status; touch /x")
        assert "token\ntoken-id\nName:" in listed.said, "and no token of another node"
        assert "CapEff:\t0000000000000000" in listed.said
        assert "NoNewPrivs:\t1" in listed.said
        assert "Seccomp:\t2" in listed.said
        assert "Read-only file system" in listed.said
        hook = kubelet.run_test_hook()
        assert (hook.code, hook.said.strip()) == (0, "healthy")
        assert kubelet.stop() == 0
        hook = kubelet.run_test_hook()
        assert hook.code == 1
        assert "unhealthy" in hook.said


def test_a_pod_whose_node_has_no_token_says_so(image: str, tmp_path: Path) -> None:
    rendered = render("daemonset", node_values(tmp_path, free_port()))
    make_directories(tmp_path)
    with running(rendered, tmp_path, image, name="worker-9") as kubelet:
        assert kubelet.exit_code(PATIENCE_S) == 2
        assert (
            "node.token_file: the file /run/transfer-sidecar/node/token cannot be read: Is a directory"
            in kubelet.logs()
        )


def test_directories_are_prepared(image: str, tmp_path: Path) -> None:
    port = free_port()
    rendered = render("standalone", node_values(tmp_path, port, nats={"enabled": False}))
    secrets = {"token": {"token": TOKEN}}
    kubelet = Kubelet(rendered, name=NODE, directory=tmp_path / "kubelet", image=image, secrets=secrets)
    for _ in range(2):  # the second time it is there already
        prepared = kubelet.prepare()
        assert prepared.code == 0, prepared.said
        for name in ("volumes", "state"):
            assert (tmp_path / name).stat().st_uid == USER
    with running(rendered, tmp_path, image, secrets=secrets) as started:
        started.until(lambda: status(port, "/readyz") == 200, "/readyz")


def test_the_sidecar_of_a_dind_pod(image: str, tmp_path: Path) -> None:
    """Beside an engine in a pod; its socket is this machine's here, and the pod's volume a directory."""
    port = free_port()
    values = {"listen": {"host": "127.0.0.1", "port": port}, "nats": {"enabled": False}}
    rendered = render("dind", values | {"runAs": {"supplementalGroups": [SOCKET.stat().st_gid]}})
    pod = "sidecar-transfer-sidecar-0"
    make_directories(tmp_path / "data")
    secrets = {"node-tokens": {f"{pod}.token": TOKEN, f"{pod}.token-id": "id"}}
    emptied = {"data": tmp_path / "data", "engine": SOCKET.resolve().parent}
    with running(rendered, tmp_path, image, name=pod, secrets=secrets, emptied=emptied) as kubelet:
        kubelet.until(lambda: status(port, "/readyz") == 200, "/readyz")
        assert f'id = "{pod}"' in kubelet.exec("transfer-sidecar", "config", "check").said
        assert list((tmp_path / "data" / "state").iterdir())
        assert kubelet.stop() == 0


def test_a_server_moves_from_a_daemonset_to_one_beside_a_daemon(image: str, tmp_path: Path) -> None:
    """Over the bus of the chart's own NATS server one hears of it; the files become the daemon's user's."""
    asyncio.run(_moves(image, tmp_path))


async def _moves(image: str, directory: Path) -> None:
    server = str(uuid4())
    source, destination = directory / "a", directory / "b"
    ports = free_port(), free_port()
    make_directories(source)
    make_directories(destination, user=0)
    os.chown(destination / "volumes", USER, USER)
    (destination / "volumes").chmod(0o700)
    await asyncio.to_thread(_make_world, source / "volumes" / server)
    async with contextlib.AsyncExitStack() as stack:
        panel = (await stack.enter_async_context(PanelServer())).panel
        panel.add_node(NODE, token_id="tokenIdOfWorker1", token=TOKEN, url=f"http://127.0.0.1:{ports[0]}")
        panel.add_node("b", token_id="ofTheDaemon", token=DAEMONS_TOKEN, url=f"http://127.0.0.1:{ports[1]}")
        daemon = await stack.enter_async_context(_daemon(destination, panel.url, ports[1]))
        values = node_values(
            source, ports[0], config={"panel": {"url": panel.url}}, nats={"enabled": True, "nodes": [NODE]}
        )
        first = render("daemonset", values)
        nats = await stack.enter_async_context(broker(first, directory))
        watch, _ = await stack.enter_async_context(logged_in(nats, first, "watch", "_INBOX_watch"))
        heard = await watch.subscribe("transfer.v1.event.*.*.status.>")
        await watch.flush()
        secrets = {**TOKENS, "sidecar-nats": {f"{name}.password": text for name, text in passwords(first).items()}}
        beside = {"configFile": str(destination / "config.yml"), "url": daemon.url}
        plain = {"tls": {"hostDirectory": ""}, "bus": {"url": "", "auth": "none", "existingSecret": ""}}
        second = render("beside", node_values(destination, ports[1], beside=beside, **plain))
        edits = [("nats://sidecar-nats:4222", nats)]
        a = stack.enter_context(running(first, source, image, secrets=secrets, edits=edits))
        b = stack.enter_context(running(second, destination, image, name="worker-2"))
        await asyncio.to_thread(a.until, lambda: status(ports[0], "/readyz") == 200, "/readyz")
        await asyncio.to_thread(b.until, lambda: status(ports[1], "/readyz") == 200, "/readyz")
        await asyncio.to_thread(a.until, lambda: _are_all_well(ports[0]), "the bus with its stream and its directory")
        bearer = {"Authorization": f"Bearer {DAEMONS_TOKEN}"}
        passed_on = await asyncio.to_thread(get, ports[1], "/api/servers", headers=bearer)  # the daemon is in this loop
        assert passed_on is not None
        assert passed_on.json() == [], "the daemon's own answer"
        panel.add_server(server, NODE)
        await panel.start_transfer(server, "b")
        await asyncio.to_thread(b.until, lambda: panel.owner(server) == "b", "the server to arrive")
        await asyncio.to_thread(
            a.until, lambda: _transfer(ports[0], server)["status"] == "completed", "the source to know"
        )
        told = ""
        while told != "completed":
            message = await heard.next_msg(timeout=PATIENCE_S)
            assert message.subject.startswith("transfer.v1.event.worker-1_example_com.outgoing.status.")
            told = json.loads(message.data)["status"]
        arrived = destination / "volumes" / server
        assert (arrived / "world" / "level.dat").read_bytes() == bytes(range(256)) * 4096
        assert str((arrived / "latest").readlink()) == "world/level.dat"
        assert {(p.lstat().st_uid, p.lstat().st_gid) for p in (arrived, *arrived.rglob("*"))} == {(USER, USER)}
        assert await asyncio.to_thread(a.stop) == 0
        assert await asyncio.to_thread(b.stop) == 0


def _checks(port: int) -> dict[str, Any]:
    answer = get(port, "/readyz")
    checks: dict[str, Any] = answer.json()["checks"] if answer is not None else {}
    return checks


def _are_all_well(port: int) -> bool:
    checks = _checks(port)
    return bool(checks) and all(check["status"] == "ok" for check in checks.values())


def _transfer(port: int, server: str) -> dict[str, Any]:
    answer = get(port, f"/api/servers/{server}/transfer", headers={"Authorization": f"Bearer {TOKEN}"})
    shown: dict[str, Any] = answer.json() if answer is not None else {}
    return shown


def _make_world(volume: Path) -> None:
    (volume / "world").mkdir(parents=True)
    (volume / "world" / "level.dat").write_bytes(bytes(range(256)) * 4096)
    (volume / "server.properties").write_text("motd=hello\n")
    (volume / "latest").symlink_to("world/level.dat")
    for path in (volume, *volume.rglob("*")):
        os.chown(path, USER, USER, follow_symlinks=False)


@contextlib.asynccontextmanager
async def _daemon(directory: Path, panel_url: str, public_port: int) -> AsyncIterator[StandInDaemon]:
    """A node daemon, and its file as it has it: root's, readable by nobody else."""
    async with StandInDaemon(
        Family.PTERODACTYL,
        token_id="ofTheDaemon",
        token=DAEMONS_TOKEN,
        volumes=directory / "volumes",
        panel_url=panel_url,
    ) as daemon:
        document = {
            "uuid": UUID_OF_DAEMON,
            "token_id": "ofTheDaemon",
            "token": DAEMONS_TOKEN,
            "remote": panel_url,
            "api": {"host": "127.0.0.1", "port": public_port, "ssl": {"enabled": False}},
            "system": {"data": str(directory / "volumes"), "user": {"uid": USER, "gid": USER}},
        }
        config = directory / "config.yml"
        config.write_text(yaml.safe_dump(document))
        config.chmod(0o600)
        yield daemon
