"""The Docker runtime against a real engine."""

import asyncio
import os
import threading
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sidecar.adapters.container_spec import KIND_LABEL, SERVER_KIND, SERVER_LABEL
from sidecar.adapters.docker_containers import DockerRuntime, signal_name
from sidecar.adapters.no_containers import NoRuntime
from sidecar.demo.panel_documents import Allocation, Family, ServerKind, configuration
from sidecar.errors import HostFailed, PeerFailed
from sidecar.ports import Configuration, Observed, RunState, Runtime, StopHow
from sidecar.settings.values import StopPolicy
from tests.docker_engine import DATA_TARGET, PROGRAM, STUBBORN, TestEngine, _docker_image, docker_engine

__all__ = ["_docker_image", "docker_engine"]

pytestmark = pytest.mark.docker
TERM = StopHow()
CONSOLE = StopHow("command", "stop")


class Site:
    """One server on one engine."""

    def __init__(self, engine: TestEngine, volumes: Path) -> None:
        self.engine = engine
        self.volumes = volumes
        self.server = str(uuid.uuid4())
        self.volume = volumes / self.server
        self.volume.mkdir(parents=True)
        self.network = "none"

    def run(self, **options: Any) -> Any:
        return self.engine.run(options.pop("name", self.server), options.pop("volume", self.volume), **options)

    def is_running(self, name: str | None = None) -> bool:
        return bool(self.engine.document(name or self.server)["State"]["Running"])

    def policy(self) -> str:
        return str(self.engine.document(self.server)["HostConfig"]["RestartPolicy"]["Name"])

    def runtime(self, **options: Any) -> DockerRuntime:
        options = {
            "host": self.engine.host,
            "settle_s": 0.05,
            "stop_timeout_s": 5.0,
            "network": self.network,
            **options,
        }
        return DockerRuntime(volume_path=lambda server: self.volumes / server, reconnect_s=0.05, **options)

    def document(self, family: Family = Family.PELICAN, *, port: int = 0, **kind: Any) -> Configuration:
        chosen = ServerKind(**{"image": f"~{self.engine.image}", "memory_mib": 32, **kind})
        body = configuration(family, 1, self.server, chosen, Allocation("127.0.0.1", port))
        return Configuration(body["settings"], body["process_configuration"])


@pytest.fixture
def site(docker_engine: TestEngine, tmp_path: Path) -> Site:
    return Site(docker_engine, tmp_path / "volumes")


def run(runtime: Runtime, scenario: Callable[[], Awaitable[Any]]) -> Any:
    async def bounded() -> Any:
        try:
            async with asyncio.timeout(60):
                return await scenario()
        finally:
            if isinstance(runtime, DockerRuntime):
                await runtime.close()

    return asyncio.run(bounded())


def code(runtime: Runtime, scenario: Callable[[], Awaitable[Any]]) -> str:
    with pytest.raises((HostFailed, PeerFailed)) as failed:
        run(runtime, scenario)
    return failed.value.code


# ---- the contract, on every runtime ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["none", "docker"])
def test_a_server_without_a_container_is_done_at_every_step(site: Site, kind: str) -> None:
    runtime: Runtime = NoRuntime() if kind == "none" else site.runtime()

    async def scenario() -> None:
        await runtime.check()
        observed = await runtime.observe(site.server)
        assert observed == Observed(RunState.MISSING)
        for _ in range(2):
            await runtime.stop(site.server, observed, TERM)
            await runtime.verify_stopped(site.server, observed)
            await runtime.start(site.server, observed)
            await runtime.prepare(site.server, None)
            await runtime.activate(site.server, None, start=True)
            await runtime.remove(site.server)
        assert not await runtime.mounts_running(site.server)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await runtime.wait_started_outside(site.server)

    run(runtime, scenario)


# ---- stopping -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [TERM, CONSOLE, StopHow("signal", "C"), StopHow("signal", "SIGTERM")])
def test_stop_and_start_again(site: Site, how: StopHow) -> None:
    site.run()
    runtime = site.runtime()

    async def scenario() -> None:
        observed = await runtime.observe(site.server)
        assert observed.state is RunState.RUNNING
        assert await runtime.mounts_running(site.server)
        for _ in range(2):
            await runtime.stop(site.server, observed, how)
            await runtime.verify_stopped(site.server, observed)
            assert not site.is_running()
        assert not await runtime.mounts_running(site.server)
        for _ in range(2):
            await runtime.start(site.server, observed)
            assert site.is_running()

    run(runtime, scenario)


@pytest.mark.parametrize("policy", ["always", "unless-stopped"])
def test_a_console_stop_is_not_undone_by_the_restart_policy(site: Site, policy: str) -> None:
    site.run(restart_policy={"Name": policy})
    runtime = site.runtime(settle_s=0.5)

    async def scenario() -> None:
        observed = await runtime.observe(site.server)
        await runtime.stop(site.server, observed, CONSOLE)
        assert not site.is_running() and site.policy() == "no"
        await runtime.start(site.server, observed)
        assert site.is_running() and site.policy() == policy

    run(runtime, scenario)


def test_the_restart_policy_keeps_its_count(site: Site) -> None:
    site.run(restart_policy={"Name": "on-failure", "MaximumRetryCount": 7})
    runtime = site.runtime()

    async def scenario() -> None:
        observed = await runtime.observe(site.server)
        await runtime.stop(site.server, observed, TERM)
        await runtime.start(site.server, observed)

    run(runtime, scenario)
    policy = site.engine.document(site.server)["HostConfig"]["RestartPolicy"]
    assert policy == {"Name": "on-failure", "MaximumRetryCount": 7}


def test_a_server_that_ignores_the_stop_is_left_as_it_was(site: Site) -> None:
    site.run(command=STUBBORN, restart_policy={"Name": "always"})
    runtime = site.runtime(stop_timeout_s=0.5)

    async def scenario() -> None:
        await runtime.stop(site.server, await runtime.observe(site.server), TERM)

    assert code(runtime, scenario) == "server.stop_timeout"
    assert site.is_running() and site.policy() == "always"


def test_a_server_that_ignores_the_stop_is_killed_where_that_is_set(site: Site) -> None:
    site.run(command=STUBBORN, restart_policy={"Name": "always"})
    runtime = site.runtime(stop_timeout_s=0.5, stop_policy=StopPolicy.KILL)

    async def scenario() -> None:
        observed = await runtime.observe(site.server)
        await runtime.stop(site.server, observed, TERM)
        await runtime.verify_stopped(site.server, observed)

    run(runtime, scenario)
    assert not site.is_running() and site.policy() == "no"


def test_a_cancelled_stop_is_followed_by_a_start(site: Site) -> None:
    site.run(command="trap 'sleep 0.5; exit 0' TERM; while :; do sleep 0.1; done", restart_policy={"Name": "always"})
    runtime = site.runtime(stop_policy=StopPolicy.KILL)

    async def scenario() -> None:
        observed = await runtime.observe(site.server)
        with suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                await runtime.stop(site.server, observed, TERM)
        await runtime.start(site.server, observed)

    run(runtime, scenario)
    assert site.is_running() and site.policy() == "always"


def test_a_cancelled_stop_kills_nothing(site: Site) -> None:
    site.run(command=STUBBORN)
    before = site.engine.document(site.server)["State"]["StartedAt"]
    runtime = site.runtime(stop_policy=StopPolicy.KILL, stop_timeout_s=0.6)

    async def scenario() -> None:
        observed = await runtime.observe(site.server)
        with suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                await runtime.stop(site.server, observed, TERM)
        await runtime.start(site.server, observed)

    run(runtime, scenario)
    assert site.is_running() and site.engine.document(site.server)["State"]["StartedAt"] == before


def test_a_stopped_server_stays_stopped(site: Site) -> None:
    site.engine.create(site.server, site.volume, restart_policy={"Name": "always"})
    runtime = site.runtime()

    async def scenario() -> None:
        observed = await runtime.observe(site.server)
        assert observed.state is RunState.STOPPED
        await runtime.stop(site.server, observed, TERM)
        assert site.policy() == "no"  # or it would come up with the engine
        await runtime.start(site.server, observed)
        assert site.policy() == "always" and not site.is_running()

    run(runtime, scenario)


def test_a_paused_server_is_stopped(site: Site) -> None:
    site.run().pause()
    runtime = site.runtime()

    async def scenario() -> None:
        await runtime.stop(site.server, await runtime.observe(site.server), TERM)

    run(runtime, scenario)
    document = site.engine.document(site.server)
    assert not document["State"]["Running"] and document["State"]["ExitCode"] == 0


def test_a_console_stop_without_a_console_is_a_signal(site: Site) -> None:
    site.run(stdin_open=False, tty=False, command="trap 'exit 7' TERM; while :; do sleep 0.1; done")
    runtime = site.runtime()

    async def scenario() -> None:
        await runtime.stop(site.server, await runtime.observe(site.server), CONSOLE)

    run(runtime, scenario)
    assert site.engine.document(site.server)["State"]["ExitCode"] == 7


# ---- who is the server, and who else runs on its volume -------------------------------------------------------------


@pytest.mark.parametrize("beneath", [False, True])
def test_a_stranger_on_the_volume_is_not_stopped_and_not_overlooked(site: Site, beneath: bool) -> None:
    inner = site.volume / "world"
    inner.mkdir()
    stranger = f"stranger-{site.server}-backup"
    site.run(name=stranger, volume=inner if beneath else site.volume)
    runtime = site.runtime()

    async def scenario() -> None:
        observed = await runtime.observe(site.server)
        assert observed == Observed(RunState.RUNNING)
        assert await runtime.mounts_running(site.server)
        with pytest.raises(HostFailed, match="not known to be"):
            await runtime.stop(site.server, observed, TERM)
        with pytest.raises(HostFailed) as failed:
            await runtime.verify_stopped(site.server, Observed(RunState.MISSING))
        assert failed.value.code == "server.started_outside"
        with pytest.raises(HostFailed):
            await runtime.activate(site.server, site.document(), start=True)
        await runtime.start(site.server, observed)

    run(runtime, scenario)
    assert site.is_running(stranger)


def test_a_volume_mounted_under_another_path_is_the_same_volume(site: Site, tmp_path: Path) -> None:
    alias = tmp_path / "alias"
    alias.symlink_to(site.volumes)
    site.run(name=f"x-{site.server}", volume=alias / site.server)
    runtime = site.runtime()
    assert run(runtime, lambda: runtime.mounts_running(site.server)) is True


def test_a_directory_above_the_volume_says_nothing(site: Site) -> None:
    site.run(name=f"daemon-{site.server}", volume=site.volumes)
    runtime = site.runtime()
    assert run(runtime, lambda: runtime.mounts_running(site.server)) is False


def test_the_engines_paths_may_differ(site: Site, tmp_path: Path) -> None:
    site.run()
    here = tmp_path / "here"
    runtime = DockerRuntime(
        host=site.engine.host,
        volume_path=lambda server: here / server,
        engine_paths={str(here): str(site.volumes)},
    )
    assert run(runtime, lambda: runtime.mounts_running(site.server)) is True
    elsewhere = DockerRuntime(host=site.engine.host, volume_path=lambda server: here / server)
    assert code(elsewhere, lambda: elsewhere.observe(site.server)) == "engine.failed"  # not "stopped"


def test_an_id_that_begins_like_a_name_is_not_the_server(site: Site) -> None:
    other = site.run(name=f"other-{site.server}", volume=None)
    runtime = site.runtime()
    prefix = other.id[:8]
    observed = run(runtime, lambda: runtime.observe(prefix))
    assert observed.state is RunState.MISSING


@pytest.mark.parametrize(
    ("name", "labels", "is_configured"),
    [
        ("game-{}-x", {}, True),
        ("game-{}-x", {SERVER_LABEL: "{}"}, False),
        ("my-survival.{}", {KIND_LABEL: SERVER_KIND}, False),
    ],
)
def test_every_way_to_name_a_container(site: Site, name: str, labels: dict[str, str], is_configured: bool) -> None:
    name = name.format(site.server)
    labels = {key: value.format(site.server) for key, value in labels.items()}
    container = site.run(name=name, labels=labels)
    runtime = site.runtime(containers={site.server: name} if is_configured else {})

    async def scenario() -> None:
        observed = await runtime.observe(site.server)
        assert observed.container == container.id
        await runtime.stop(site.server, observed, CONSOLE)

    run(runtime, scenario)
    assert not site.is_running(name)


def test_an_installer_is_not_the_server(site: Site) -> None:
    site.run(name=f"{site.server}_installer", labels={KIND_LABEL: "server_installer", SERVER_LABEL: site.server})
    runtime = site.runtime()
    assert run(runtime, lambda: runtime.observe(site.server)) == Observed(RunState.RUNNING)


# ---- started by somebody else ---------------------------------------------------------------------------------------


def test_a_start_by_somebody_else_is_noticed(site: Site) -> None:
    container = site.run()
    runtime = site.runtime()

    async def scenario() -> None:
        observed = await runtime.observe(site.server)
        await runtime.stop(site.server, observed, TERM)
        waiting = asyncio.create_task(runtime.wait_started_outside(site.server))
        done, _ = await asyncio.wait([waiting], timeout=0.3)
        assert not done
        await asyncio.to_thread(container.start)
        await asyncio.wait_for(waiting, 5)
        with pytest.raises(HostFailed) as failed:
            await runtime.verify_stopped(site.server, observed)
        assert failed.value.code == "server.started_outside"
        await asyncio.to_thread(container.kill)
        with pytest.raises(HostFailed):  # it ran in between
            await runtime.verify_stopped(site.server, observed)
        await asyncio.wait_for(runtime.wait_started_outside(site.server), 5)

    run(runtime, scenario)


def test_a_replaced_container_is_noticed(site: Site) -> None:
    container = site.run()
    runtime = site.runtime()

    async def scenario() -> None:
        observed = await runtime.observe(site.server)
        await runtime.stop(site.server, observed, TERM)
        await asyncio.to_thread(container.remove)
        await runtime.verify_stopped(site.server, observed)
        await asyncio.to_thread(site.engine.create, site.server, site.volume)
        with pytest.raises(HostFailed, match="replaced"):
            await runtime.verify_stopped(site.server, observed)

    run(runtime, scenario)


def test_another_container_that_starts_on_the_volume_is_noticed(site: Site) -> None:
    site.run()
    runtime = site.runtime()

    async def scenario() -> None:
        observed = await runtime.observe(site.server)
        await runtime.stop(site.server, observed, TERM)
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.wait_for(runtime.wait_started_outside(site.server), 10))
            await asyncio.to_thread(site.run, name=f"new-{site.server}")

    run(runtime, scenario)


def test_cancelled_watches_leave_no_thread(site: Site) -> None:
    runtime = site.runtime()

    async def scenario() -> None:
        for _ in range(5):
            waiting = asyncio.create_task(runtime.wait_started_outside(site.server))
            await asyncio.wait([waiting], timeout=0.05)
            waiting.cancel()
            await asyncio.wait([waiting])
            assert waiting.cancelled()

    run(runtime, scenario)
    assert [thread for thread in threading.enumerate() if thread.name.startswith("docker")] == []


# ---- an engine that does not answer ---------------------------------------------------------------------------------


def test_an_engine_that_is_not_there_is_never_taken_for_a_stopped_server(tmp_path: Path) -> None:
    async def scenario(runtime: DockerRuntime) -> None:
        calls: list[Callable[[], Awaitable[Any]]] = [
            runtime.check,
            lambda: runtime.observe("x"),
            lambda: runtime.stop("x", Observed(RunState.MISSING), TERM),
            lambda: runtime.stop("x", Observed(RunState.RUNNING, "c" * 64), TERM),
            lambda: runtime.verify_stopped("x", Observed(RunState.MISSING)),
            lambda: runtime.start("x", Observed(RunState.RUNNING, "c" * 64)),
            lambda: runtime.prepare("x", None),
            lambda: runtime.activate("x", None, start=True),
            lambda: runtime.remove("x"),
            lambda: runtime.mounts_running("x"),
        ]
        for call in calls:
            with pytest.raises(HostFailed) as failed:
                await call()
            assert failed.value.code == "engine.unreachable"
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await runtime.wait_started_outside("x")

    runtime = DockerRuntime(host=f"unix://{tmp_path}/none.sock", volume_path=lambda server: tmp_path, reconnect_s=0.05)
    run(runtime, lambda: scenario(runtime))


# ---- the destination ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", list(Family))
def test_a_container_from_the_panels_configuration(site: Site, family: Family) -> None:
    site.network = "bridge"
    invocation = "echo {{GREETING}} > started; echo $STARTUP; " + "while :; do sleep 1; done"
    document = site.document(
        family,
        port=34567,
        invocation=invocation,
        environment={"GREETING": "hello", "COUNT": 3, "ON": True, "NIL": None},
    )
    runtime = site.runtime(owner=(os.getuid(), os.getgid()))

    async def scenario() -> None:
        await runtime.prepare(site.server, document)
        await runtime.activate(site.server, document, start=False)

    run(runtime, scenario)
    made = site.engine.document(site.server)
    assert not made["State"]["Running"]
    config, host = made["Config"], made["HostConfig"]
    given = dict(entry.split("=", 1) for entry in config["Env"])
    assert given["STARTUP"].startswith("echo hello > started")
    assert {name: given[name] for name in ("GREETING", "COUNT", "ON", "NIL")} == {
        "GREETING": "hello", "COUNT": "3", "ON": "true", "NIL": "",
    }  # fmt: skip
    assert given["SERVER_MEMORY"] == "32" and given["SERVER_PORT"] == "34567"
    assert given["SERVER_IP"] == "127.0.0.1" and given["TZ"] == "UTC"
    assert config["Hostname"] == site.server and config["User"] == f"{os.getuid()}:{os.getgid()}"
    assert config["Tty"] and config["OpenStdin"]
    assert config["Labels"][KIND_LABEL] == SERVER_KIND and config["Labels"][SERVER_LABEL] == site.server
    (mount,) = made["Mounts"]
    assert (mount["Source"], mount["Destination"], mount["RW"]) == (str(site.volume), DATA_TARGET, True)
    assert host["ReadonlyRootfs"] and host["SecurityOpt"] == ["no-new-privileges"]
    assert host["Tmpfs"] == {"/tmp": "rw,exec,nosuid,size=100M"}
    assert len(host["CapDrop"]) == 11 and host["PidsLimit"] == 512
    assert host["Memory"] == 37 * 1024 * 1024 and host["MemoryReservation"] == 32 * 1024 * 1024
    assert host["LogConfig"]["Type"] == "local" and host["Dns"] == ["1.1.1.1", "1.0.0.1"]
    assert set(host["PortBindings"]) == {"34567/tcp", "34567/udp"}
    gateway = site.engine.client.networks.get("bridge").attrs["IPAM"]["Config"][0].get("Gateway", "127.0.0.1")
    assert host["PortBindings"]["34567/tcp"] == [{"HostIp": gateway, "HostPort": "34567"}]


def test_activate_starts_replaces_and_repeats(site: Site) -> None:
    stale = site.engine.create(site.server, site.volume)
    document = site.document(invocation="echo {{GREETING}} > started; " + PROGRAM, environment={"GREETING": "hello"})
    runtime = site.runtime()

    async def scenario() -> None:
        await runtime.prepare(site.server, document)
        await runtime.activate(site.server, document, start=True)
        first = site.engine.document(site.server)["Id"]
        assert first != stale.id and site.is_running()
        await runtime.activate(site.server, document, start=True)
        assert site.engine.document(site.server)["Id"] == first
        with pytest.raises(HostFailed):  # it runs
            await runtime.remove(site.server)
        await runtime.stop(site.server, await runtime.observe(site.server), CONSOLE)
        for _ in range(2):
            await runtime.remove(site.server)
        assert (await runtime.observe(site.server)).state is RunState.MISSING

    run(runtime, scenario)
    assert (site.volume / "started").read_text() == "hello\n"


def test_a_server_that_ends_at_once_is_an_environment_that_failed(site: Site) -> None:
    document = site.document(invocation="exit 3")
    runtime = site.runtime(settle_s=0.5)
    with pytest.raises(HostFailed) as failed:
        run(runtime, lambda: runtime.activate(site.server, document, start=True))
    assert failed.value.code == "environment.failed" and failed.value.facts["exit_code"] == 3
    assert site.volume.exists()


def test_an_image_that_is_not_there(site: Site) -> None:
    local = site.document(image="~transfer-sidecar-none:x")
    runtime = site.runtime()
    assert code(runtime, lambda: runtime.prepare(site.server, local)) == "environment.image"
    remote = site.document(image="127.0.0.1:1/transfer-sidecar-none:x")
    again = site.runtime()
    assert code(again, lambda: again.prepare(site.server, remote)) == "environment.image"


def test_a_configuration_that_is_not_understood_and_a_network_that_is_not_there(site: Site) -> None:
    document = site.document()
    document.settings["build"]["memory_limit"] = "much"
    runtime = site.runtime()
    assert code(runtime, lambda: runtime.prepare(site.server, document)) == "panel.malformed"
    again = site.runtime()
    assert code(again, lambda: again.activate(site.server, document, start=False)) == "environment.failed"
    lost = site.runtime(network="transfer-sidecar-none")
    assert code(lost, lambda: lost.prepare(site.server, site.document())) == "environment.failed"


def test_without_a_configuration_the_existing_container_is_used(site: Site) -> None:
    container = site.engine.create(f"mine-{site.server}", site.volume)
    runtime = site.runtime(containers={site.server: f"mine-{site.server}"})

    async def scenario() -> None:
        await runtime.activate(site.server, None, start=False)
        assert not site.is_running(container.id)
        await runtime.activate(site.server, None, start=True)
        assert site.is_running(container.id)
        observed = await runtime.observe(site.server)
        await runtime.stop(site.server, observed, TERM)
        await runtime.remove(site.server)  # somebody's own: kept

    run(runtime, scenario)
    assert not site.is_running(container.id)


def test_two_nodes_on_one_engine_keep_to_their_own_volumes(site: Site, tmp_path: Path) -> None:
    """The source's container has a configured name; the destination's takes the UUID."""
    source_name = f"source-{site.server}"
    site.run(name=source_name)
    there = tmp_path / "there" / site.server
    there.mkdir(parents=True)
    runtime = site.runtime(containers={site.server: source_name})

    async def scenario() -> None:
        observed = await runtime.observe(site.server)
        await runtime.stop(site.server, observed, TERM)
        waiting = asyncio.create_task(runtime.wait_started_outside(site.server))
        await asyncio.to_thread(site.run, name=site.server, volume=there)
        done, _ = await asyncio.wait([waiting], timeout=0.5)
        waiting.cancel()
        assert not done
        await runtime.verify_stopped(site.server, observed)
        await runtime.remove(site.server)

    run(runtime, scenario)
    assert site.is_running(site.server)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("C", "SIGINT"),
        ("^C", "SIGINT"),
        ("INT", "SIGINT"),
        ("sigint", "SIGINT"),
        ("2", "SIGINT"),
        ("SIGKILL", "SIGKILL"),
        ("\\", "SIGQUIT"),
        ("X", None),
        ("99999", None),
    ],
)
def test_signals_by_every_name(given: str, name: str | None) -> None:
    assert signal_name(given) == name
