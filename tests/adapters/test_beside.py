"""The runtime beside a node daemon: each family's stand-in, and Docker where the engine has to prove something."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from sidecar.adapters.beside import BesideRuntime
from sidecar.adapters.daemon_containers import DaemonContainers
from sidecar.adapters.daemon_http import HttpDaemon, PowerAction
from sidecar.adapters.docker_containers import DockerRuntime
from sidecar.demo.daemon_containers import EngineContainers
from sidecar.demo.panel_documents import Family, ServerKind
from sidecar.errors import HostFailed
from sidecar.ports import Observed, RunState, Runtime, StopHow
from sidecar.settings.values import StopPolicy
from tests.adapters.beside_scene import TOKEN, Scene, run, scene, until
from tests.docker_engine import LABEL, PROGRAM, STUBBORN, TestEngine, _docker_image, docker_engine

__all__ = ["_docker_image", "docker_engine"]

FAMILIES = pytest.mark.parametrize("family", list(Family))
HOW = StopHow()


class Beside:
    """A scene with the runtime that is under test."""

    def __init__(self, at: Scene, runtime: BesideRuntime, engine: TestEngine | None) -> None:
        self.at = at
        self.runtime = runtime
        self.engine = engine
        self.server = at.server

    async def code(self, call: Any) -> str:
        with pytest.raises(HostFailed) as failed:
            await call
        return failed.value.code

    async def running(self, command: str = PROGRAM, stop: tuple[str, str] = ("command", "stop")) -> Observed:
        """The daemon's own server, running; as the runtime observes it."""
        image = f"~{self.engine.image}" if self.engine is not None else "~none"
        await self.at.owned(ServerKind(image=image, invocation=command, stop=stop))
        await self.at.http.power(self.server, PowerAction.START)
        await self.at.until_state("running")
        observed = await self.runtime.observe(self.server)
        assert observed.state is RunState.RUNNING
        return observed

    def container(self) -> Any:
        assert self.engine is not None
        return self.engine.client.containers.get(self.server)

    def is_running(self) -> bool:
        assert self.engine is not None
        rows = self.engine.client.api.containers(filters={"name": self.server})
        return bool(rows)


@asynccontextmanager
async def beside(
    family: Family, directory: Path, engine: TestEngine | None = None, *, crash_delay_s: float = 0.1, **options: Any
) -> AsyncIterator[Beside]:
    containers = None if engine is None else EngineContainers(engine.host, labels={LABEL: engine.run_label})
    daemon_options = {"crash_delay_s": crash_delay_s}
    async with scene(family, directory, containers=containers, daemon_options=daemon_options) as at:
        looked = (
            None
            if engine is None
            else DaemonContainers(host=engine.host, volume_path=lambda server: at.volumes / server, reconnect_s=0.05)
        )
        options = {"settle_s": 0.05, "stop_timeout_s": 5, "start_timeout_s": 5, "poll_s": 0.02, **options}
        runtime = BesideRuntime(at.http, looked, **options)
        try:
            yield Beside(at, runtime, engine)
        finally:
            await runtime.close()


# ---- the contract of a runtime --------------------------------------------------------------------------------------


@pytest.mark.docker
@pytest.mark.parametrize("family", [Family.PTERODACTYL])
def test_an_unknown_server_is_done_at_every_step(family: Family, docker_engine: TestEngine, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with beside(family, tmp_path, docker_engine) as node:
            runtime, server = node.runtime, node.server
            await runtime.check()
            observed = await runtime.observe(server)
            assert observed == Observed(RunState.MISSING)
            for _ in range(2):
                await runtime.stop(server, observed, HOW)
                await runtime.verify_stopped(server, observed)
                await runtime.start(server, observed)
                await runtime.prepare(server, None)
                await runtime.remove(server)
            assert not await runtime.mounts_running(server)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await runtime.wait_started_outside(server)

    run(scenario)


@pytest.mark.docker
@pytest.mark.parametrize(
    ("family", "stop"),
    [
        (Family.PTERODACTYL, ("command", "stop")),
        (Family.PELICAN, ("signal", "C")),
        (Family.CALAGOPUS, ("command", "stop")),
    ],
)
def test_stop_and_start_again(family: Family, stop: tuple[str, str], docker_engine: TestEngine, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with beside(family, tmp_path, docker_engine) as node:
            runtime, server = node.runtime, node.server
            observed = await node.running(stop=stop)
            assert observed.container == node.container().id and await runtime.mounts_running(server)
            for _ in range(2):
                await runtime.stop(server, observed, HOW)
                await runtime.verify_stopped(server, observed)
                assert not node.is_running()
            assert not await runtime.mounts_running(server)
            for _ in range(2):
                await runtime.start(server, observed)
                await node.at.until_state("running")
                assert node.is_running()
            assert node.container().id != observed.container  # a new one each time
            assert len(node.at.daemon.calls_of("power")) == 3  # start, stop, start

    run(scenario)


@pytest.mark.docker
@FAMILIES
def test_a_stop_behind_the_daemons_back_is_undone_and_one_through_it_is_not(
    family: Family, docker_engine: TestEngine, tmp_path: Path
) -> None:
    """The crash handler: straight to Docker, a new container runs a moment later."""

    async def brings_it_back(node: Beside, runtime: Runtime) -> bool:
        """Stop the server with `runtime`; whether the daemon starts it again, once it has seen its end."""
        server = node.at.daemon.find(node.server)
        assert server is not None
        observed, container = await runtime.observe(node.server), server.container
        with suppress(HostFailed):  # where it has been brought back already
            await runtime.stop(node.server, observed, HOW)
        await until(lambda: server.container != container)
        if server.last_crash is None:
            return False
        await until(lambda: server.container is not None)
        return True

    async def scenario() -> None:
        async with beside(family, tmp_path, docker_engine) as node:
            await node.running()
            assert not await brings_it_back(node, node.runtime)
            await node.runtime.start(node.server, Observed(RunState.RUNNING))
            await node.at.until_state("running")
            direct = DockerRuntime(
                host=docker_engine.host, volume_path=lambda server: node.at.volumes / server, settle_s=0
            )
            try:
                assert await brings_it_back(node, direct)
            finally:
                await direct.close()
            assert node.is_running()

    run(scenario)


@pytest.mark.docker
def test_a_server_that_is_started_while_its_stop_settles_is_noticed(docker_engine: TestEngine, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with beside(Family.PELICAN, tmp_path, docker_engine, settle_s=20) as node:
            observed = await node.running()
            stopping = asyncio.create_task(node.runtime.stop(node.server, observed, HOW))
            await node.at.until_state("offline")
            await until(lambda: not node.is_running())
            asked = len(node.at.daemon.calls_of("server"))
            await until(lambda: len(node.at.daemon.calls_of("server")) > asked + 2)  # it has seen both down
            await node.at.http.power(node.server, PowerAction.START)
            assert await node.code(stopping) == "server.started_outside"

    run(scenario)


@pytest.mark.docker
@pytest.mark.parametrize("family", [Family.PTERODACTYL, Family.CALAGOPUS])
def test_a_server_that_ignores_the_stop_fails_or_is_killed_by_policy(
    family: Family, docker_engine: TestEngine, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with beside(family, tmp_path, docker_engine, stop_timeout_s=0.4) as node:
            observed = await node.running(STUBBORN)
            assert await node.code(node.runtime.stop(node.server, observed, HOW)) == "server.stop_timeout"
            await node.runtime.start(node.server, observed)  # it runs on, as it did
            assert node.is_running() and node.container().id == observed.container
            killing = BesideRuntime(
                node.at.http,
                node.runtime._containers,
                stop_timeout_s=0.4,
                stop_policy=StopPolicy.KILL,
                settle_s=0.05,
                poll_s=0.02,
            )
            await killing.stop(node.server, observed, HOW)
            assert not node.is_running()
            actions = [call.route for call in node.at.daemon.calls if call.route == "power"]
            assert len(actions) == 3  # start, one stop, kill: no second stop behind the first

    run(scenario)


@pytest.mark.docker
@pytest.mark.parametrize("family", [Family.PELICAN])
def test_a_cancelled_stop_is_followed_by_a_start(family: Family, docker_engine: TestEngine, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with beside(family, tmp_path, docker_engine) as node:
            slow = "trap 'sleep 0.5; exit 0' TERM; while :; do sleep 0.1; done"
            observed = await node.running(slow, stop=("signal", "TERM"))
            with suppress(TimeoutError):
                async with asyncio.timeout(0.2):
                    await node.runtime.stop(node.server, observed, HOW)
            await node.runtime.start(node.server, observed)
            await node.at.until_state("running")
            assert node.is_running() and node.container().id != observed.container

    run(scenario)


@pytest.mark.docker
def test_a_stopped_server_stays_stopped(docker_engine: TestEngine, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with beside(Family.PTERODACTYL, tmp_path, docker_engine) as node:
            await node.at.owned()
            observed = await node.runtime.observe(node.server)
            assert observed.state is RunState.STOPPED
            await node.runtime.stop(node.server, observed, HOW)
            await node.runtime.start(node.server, observed)
            assert node.at.daemon.calls_of("power") == []

    run(scenario)


@pytest.mark.docker
def test_a_stranger_on_the_volume_is_not_stopped_and_not_overlooked(docker_engine: TestEngine, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with beside(Family.PELICAN, tmp_path, docker_engine) as node:
            await node.at.owned()
            await asyncio.to_thread(docker_engine.run, f"stranger-{node.server}", node.at.volume)
            observed = await node.runtime.observe(node.server)
            assert observed == Observed(RunState.RUNNING) and await node.runtime.mounts_running(node.server)
            assert await node.code(node.runtime.stop(node.server, observed, HOW)) == "server.stop_failed"
            stopped = Observed(RunState.STOPPED)
            assert await node.code(node.runtime.verify_stopped(node.server, stopped)) == "server.started_outside"

    run(scenario)


@pytest.mark.docker
def test_a_container_that_the_daemon_does_not_know_is_not_taken_for_stopped(
    docker_engine: TestEngine, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with beside(Family.CALAGOPUS, tmp_path, docker_engine) as node:
            node.at.volume.mkdir()
            await asyncio.to_thread(docker_engine.run, node.server, node.at.volume)
            observed = await node.runtime.observe(node.server)
            assert observed.state is RunState.RUNNING
            assert await node.code(node.runtime.stop(node.server, observed, HOW)) == "server.stop_failed"

    run(scenario)


@FAMILIES
def test_a_stop_and_a_start_wait_for_the_action_before_them(family: Family, tmp_path: Path) -> None:
    """A crash handler starts the server at the same moment: two families drop what does not say that it can wait."""

    async def scenario() -> None:
        async with beside(family, tmp_path) as node:
            observed = await node.running()
            server = node.at.daemon.find(node.server)
            assert server is not None
            for act, state in (
                (node.runtime.stop(node.server, observed, HOW), "offline"),
                (node.runtime.start(node.server, observed), "running"),
            ):
                await server.power.acquire()
                asked = len(node.at.daemon.calls_of("power"))
                acting = asyncio.create_task(act)
                while len(node.at.daemon.calls_of("power")) == asked:  # noqa: ASYNC110 - a record, not an event
                    await asyncio.sleep(0.01)
                server.power.release()
                await acting
                await node.at.until_state(state)

    run(scenario)


@pytest.mark.docker
def test_a_stop_that_meets_the_crash_handler_is_seen_to_its_end(docker_engine: TestEngine, tmp_path: Path) -> None:
    """It waits behind the crash handler's start: refused before it has come, it would end the server after all."""

    async def scenario() -> None:
        async with beside(Family.PELICAN, tmp_path, docker_engine) as node:
            observed = await node.running()
            server = node.at.daemon.find(node.server)
            assert server is not None
            await asyncio.to_thread(node.container().kill)
            await node.at.until_state("starting")
            assert await node.code(node.runtime.stop(node.server, observed, HOW)) == "server.started_outside"
            assert not node.is_running()
            await node.runtime.start(node.server, observed)
            await node.at.until_state("running")
            assert not server.power.locked() and node.is_running()  # nothing is on its way any more

    run(scenario)


@FAMILIES
def test_a_stop_that_a_daemon_lost_is_repeated(family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calagopus drops one of a server that has no container yet, though it answers 202."""

    async def scenario() -> None:
        async with beside(family, tmp_path, stop_again_s=0.05) as node:
            observed = await node.running()
            node.at.daemon.script("power", "202")
            await node.runtime.stop(node.server, observed, HOW)
            await node.at.until_state("offline")
            assert len(node.at.daemon.calls_of("power")) == 3  # the start, and the stop twice

    run(scenario)


# ---- started from outside -------------------------------------------------------------------------------------------


@pytest.mark.docker
@pytest.mark.parametrize("family", [Family.PTERODACTYL, Family.CALAGOPUS])
def test_a_start_through_the_daemon_is_noticed(family: Family, docker_engine: TestEngine, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with beside(family, tmp_path, docker_engine) as node:
            observed = await node.running()
            await node.runtime.stop(node.server, observed, HOW)
            waiting = asyncio.create_task(node.runtime.wait_started_outside(node.server))
            done, _ = await asyncio.wait([waiting], timeout=0.3)
            assert not done
            await node.at.http.power(node.server, PowerAction.START)
            await asyncio.wait_for(waiting, 5)
            await node.at.until_state("running")
            assert await node.code(node.runtime.verify_stopped(node.server, observed)) == "server.started_outside"

    run(scenario)


@pytest.mark.docker
def test_a_run_that_has_ended_again_is_noticed(docker_engine: TestEngine, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with beside(Family.PTERODACTYL, tmp_path, docker_engine) as node:
            observed = await node.running()
            await node.runtime.stop(node.server, observed, HOW)
            await node.at.http.power(node.server, PowerAction.START)
            await node.at.until_state("running")
            await node.at.http.power(node.server, PowerAction.STOP)
            await node.at.until_state("offline")
            assert await node.code(node.runtime.verify_stopped(node.server, observed)) == "server.started_outside"
            await asyncio.wait_for(node.runtime.wait_started_outside(node.server), 5)

    run(scenario)


@pytest.mark.docker
def test_a_run_that_ends_before_it_is_looked_at_is_noticed_by_its_event(
    docker_engine: TestEngine, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with beside(Family.CALAGOPUS, tmp_path, docker_engine) as node:
            node.at.volume.mkdir()
            waiting = asyncio.create_task(node.runtime.wait_started_outside(node.server))
            done, _ = await asyncio.wait([waiting], timeout=0.3)
            assert not done
            await asyncio.to_thread(docker_engine.run, f"my-survival.{node.server}", None, "true")
            await asyncio.wait_for(waiting, 5)

    run(scenario)


@pytest.mark.docker
def test_cancelled_watches_leave_no_thread(docker_engine: TestEngine, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with beside(Family.PELICAN, tmp_path, docker_engine) as node:
            for _ in range(3):
                waiting = asyncio.create_task(node.runtime.wait_started_outside(node.server))
                await asyncio.wait([waiting], timeout=0.05)
                waiting.cancel()
                await asyncio.wait([waiting])

    run(scenario)
    assert [thread for thread in threading.enumerate() if thread.name.startswith("daemon-")] == []


# ---- without an engine ----------------------------------------------------------------------------------------------


@FAMILIES
def test_without_an_engine_the_daemons_word_stands(family: Family, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with beside(family, tmp_path) as node:
            runtime, server = node.runtime, node.server
            observed = await node.running()
            # It has a container, or the server would count as busy with something that is not the server.
            assert observed.state is RunState.RUNNING and observed.container is not None
            assert await runtime.mounts_running(server)
            await runtime.stop(server, observed, HOW)
            await runtime.verify_stopped(server, observed)
            waiting = asyncio.create_task(runtime.wait_started_outside(server))
            await asyncio.wait([waiting], timeout=0.1)
            node.at.daemon.script("server", "drop-before", "500")  # a daemon in trouble starts nothing
            await asyncio.wait([waiting], timeout=0.1)
            assert not waiting.done()
            await runtime.start(server, observed)
            await asyncio.wait_for(waiting, 5)
            assert await node.code(runtime.verify_stopped(server, observed)) == "server.started_outside"

    run(scenario)


def test_without_an_engine_a_crash_handler_is_still_noticed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with beside(Family.PTERODACTYL, tmp_path) as node:
            observed = await node.running()
            await node.at.fake.crash(node.server)
            await until(lambda: len(node.at.fake.starts) == 2)
            await node.at.until_state("running")
            await node.runtime.stop(node.server, observed, HOW)
            assert node.at.fake.lines == [(node.server, "stop")]

    run(scenario)


# ---- a daemon or an engine in trouble -------------------------------------------------------------------------------


@pytest.mark.parametrize(("fault", "code"), [("drop-before", "daemon.unreachable"), ("500", "daemon.refused")])
def test_a_daemon_in_trouble_is_never_taken_for_a_stopped_server(fault: str, code: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with beside(Family.PELICAN, tmp_path) as node:
            runtime, server, running = node.runtime, node.server, Observed(RunState.RUNNING)
            calls: list[Callable[[], Awaitable[Any]]] = [
                lambda: runtime.observe(server),
                lambda: runtime.stop(server, running, HOW),
                lambda: runtime.verify_stopped(server, running),
                lambda: runtime.start(server, running),
                lambda: runtime.prepare(server, None),
                lambda: runtime.mounts_running(server),
            ]
            for call in calls:
                node.at.daemon.script("server", fault)
                assert await node.code(call()) == code
            if code == "daemon.refused":
                node.at.daemon.script("server", fault)
                assert await node.code(runtime.activate(server, None, start=True)) == code
            node.at.daemon.script("system", fault)
            assert await node.code(runtime.check()) in (code, "daemon.strange")

    run(scenario)


def test_an_engine_that_is_not_there_is_an_error_of_its_own(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with scene(Family.PELICAN, tmp_path) as at:
            none = DaemonContainers(host=f"unix://{tmp_path}/none.sock", volume_path=lambda server: tmp_path)
            runtime = BesideRuntime(at.http, none, settle_s=0)
            try:
                for call in (runtime.check(), runtime.observe("x"), runtime.mounts_running("x")):
                    with pytest.raises(HostFailed) as failed:
                        await call
                    assert failed.value.code == "engine.unreachable"
                assert await runtime.engine_info() is None
            finally:
                await runtime.close()

    run(scenario)


# ---- the destination ------------------------------------------------------------------------------------------------


@FAMILIES
def test_prepare_wants_a_daemon_that_does_not_know_the_server(family: Family, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with beside(family, tmp_path) as node:
            await node.runtime.prepare(node.server, None)
            await node.at.owned()
            assert await node.code(node.runtime.prepare(node.server, None)) == "daemon.refused"

    run(scenario)


def test_prepare_names_what_is_wrong_with_the_daemon(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with HttpDaemon("http://127.0.0.1:1", token=TOKEN) as away:
            with pytest.raises(HostFailed) as failed:
                await BesideRuntime(away, None).prepare("x", None)
            assert failed.value.code == "daemon.unreachable"

    run(scenario)


@FAMILIES
@pytest.mark.parametrize("start", [False, True])
def test_activate_starts_where_it_is_asked(family: Family, start: bool, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with beside(family, tmp_path) as node:
            node.at.arriving()
            await node.at.http.hand_over(node.server)
            for _ in range(2):
                await node.runtime.activate(node.server, None, start=start)
            await node.at.until_state("running" if start else "offline")
            assert len(node.at.fake.starts) == int(start)

    run(scenario)


@pytest.mark.parametrize("family", [Family.PTERODACTYL, Family.PELICAN])
def test_a_server_that_the_daemon_holds_waits_for_a_restart(family: Family, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with beside(family, tmp_path) as node:
            node.at.arriving()
            node.at.panel.script("success", "drop-after")
            await node.at.http.hand_over(node.server)
            assert await node.code(node.runtime.activate(node.server, None, start=True)) == "daemon.restart_needed"
            await node.at.daemon.restart()
            await node.runtime.activate(node.server, None, start=True)
            await node.at.until_state("running")

    run(scenario)


@FAMILIES
def test_a_daemon_that_is_just_restarting_is_waited_for(family: Family, tmp_path: Path) -> None:
    """The server is this node's already: giving up at once would leave it without its environment."""

    async def scenario() -> None:
        async with beside(family, tmp_path) as node:
            node.at.arriving()
            await node.at.http.hand_over(node.server)
            await node.at.daemon.stop()
            activating = asyncio.create_task(node.runtime.activate(node.server, None, start=True))
            await until(lambda: node.at.http.absences >= 2)
            await node.at.daemon.start()
            await activating
            await node.at.until_state("running")

    run(scenario)


def test_a_server_that_the_daemon_lost_waits_for_a_restart(tmp_path: Path) -> None:
    """The daemon died before it told the panel, which was told by other means."""

    async def scenario() -> None:
        async with beside(Family.CALAGOPUS, tmp_path) as node:
            node.at.arriving()
            node.at.panel.end_transfer(node.server)
            assert await node.code(node.runtime.activate(node.server, None, start=True)) == "daemon.restart_needed"

    run(scenario)


def test_a_server_that_the_daemon_cannot_start_is_an_environment_that_failed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with beside(Family.PELICAN, tmp_path, start_timeout_s=0.3) as node:
            await node.at.owned()
            node.at.fake.cannot_create.add(node.server)
            assert await node.code(node.runtime.activate(node.server, None, start=True)) == "environment.failed"
            assert node.at.volume.exists()

    run(scenario)
