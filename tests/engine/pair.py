"""Two real nodes and a stand-in panel that moves a server from a to b; nodes can be killed and come back.

A node that leaves its block decides nothing on leaving, as after a kill; entered again with the same home it is the
same node after a restart. (A kill in the middle of a system call is `integration/test_sigkill.py`.)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from sidecar.adapters.panel_http import HttpPanel
from sidecar.demo.panel import PanelServer, StandInPanel
from sidecar.demo.panel_documents import Family
from sidecar.engine.services import Sending, Timings
from sidecar.journal.records import Record, decode
from sidecar.views import TransferView
from tests.engine.rig import SERVER, Rig, differences, grow_world, running_node, token_of, tree_of
from tests.engine.runtime import FakeRuntime

PAIR = Timings(
    young_s=0.1,
    quarantine_s=0.15,
    quarantine_calagopus_s=0.3,
    call_timeout_s=0.75,  # a busy machine loses no call that is not to be lost
    panel_commit_s=0.0,
    admission_s=1.8,
    retry_first_s=0.02,
    retry_cap_s=0.05,
    progress_event_s=0.02,
    progress_interval_s=0.05,
    panel_stop_lookup_s=0.3,
    late_exit_s=0.1,
)
SENDING = Sending(stall_timeout_s=2, connect_timeout_s=2, answer_timeout_s=3)
NAMES = ("a", "b")


class Pair:
    """Use `running_pair`. `a` owns the server; `world` is what its volume held."""

    def __init__(self, home: Path, server: PanelServer, stack: AsyncExitStack, node_options: dict[str, Any]) -> None:
        self.home = home
        self.server = server
        self.panel = server.panel
        self.world: dict[str, tuple[object, ...]] = {}
        self.runtimes = {name: FakeRuntime() for name in NAMES}
        self.rigs: dict[str, Rig] = {}
        self.had_departed = False  # old files that the panel's DELETE did not reach may lie on the other node
        self._stack = stack
        self._stacks: dict[str, AsyncExitStack] = {}
        self._options = node_options

    @property
    def a(self) -> Rig:
        return self.rigs["a"]

    @property
    def b(self) -> Rig:
        return self.rigs["b"]

    async def up(self, name: str) -> Rig:
        """Start a node, or start it again: what it wrote down is all that it knows."""
        stack = AsyncExitStack()
        options = {"timings": PAIR, "sending": SENDING, **self._options}
        panel = await stack.enter_async_context(
            HttpPanel(
                self.panel.url or self.server.url,
                token_id=f"id-{name}",
                token=token_of(name),
                call_timeout_s=options["timings"].call_timeout_s,
                transport=httpx.AsyncHTTPTransport(verify=False),  # loading certificates takes longer than a transfer
            )
        )
        rig = await stack.enter_async_context(
            running_node(self.home / name, name, panel=panel, runtime=self.runtimes[name], **options)
        )
        self._stacks[name], self.rigs[name] = stack, rig
        self.panel.add_node(name, token_id=f"id-{name}", token=token_of(name), url=rig.url)
        return rig

    async def kill(self, name: str) -> None:
        await self._stacks.pop(name).aclose()

    async def restart(self, name: str) -> Rig:
        await self.kill(name)
        return await self.up(name)

    async def close(self) -> None:
        for name in list(self._stacks):
            await self.kill(name)

    async def move(self, *, start: bool = True) -> None:
        """An administrator's click."""
        await self.panel.start_transfer(SERVER, "b", start_on_completion=start)

    async def settled(self, source: str = "a") -> tuple[TransferView, TransferView]:
        """The source's end and the destination's, when both have ended and both slots are free.

        In this order: once the source's has ended, the destination's newest transfer is the same, if it heard of it.
        """
        left = await self.rigs[source].settled()
        return left, await self.rigs["b" if source == "a" else "a"].settled()

    def check(self, source: str = "a") -> str:
        """What must hold whenever all is settled; returns the owner.

        The panel's owner has the complete volume in place and nobody else one that is not to be deleted; only the owner
        may run the server; the statuses of both ends agree with the panel; no staging is left, nothing is purged.
        """
        panel, owner = self.panel, self.panel.owner(SERVER)
        rig, other = self.rigs[owner], self.rigs["b" if owner == "a" else "a"]
        assert panel.transfer(SERVER) is None, "the panel still waits for this transfer"
        wrong = differences(rig.volume(), self.world)
        assert not wrong, f"{owner} owns the server and does not have it: {wrong}"
        assert SERVER not in other.runtime.running, f"{other.name} runs a server that it does not own"
        assert self.a.staging() == [] and self.b.staging() == []
        for trashed in [*self.a.trash(), *self.b.trash()]:
            assert not differences(trashed, self.world), f"{trashed} is not whole"
        moved = owner != source
        left = self.rigs[source].node.view(SERVER)
        came = self.rigs["b" if source == "a" else "a"].node.view(SERVER)
        if other.volume().is_dir():
            assert other.name == source or self.had_departed, f"{other.name} has a volume that is not its own"
            assert not differences(other.volume(), self.world)
        elif moved:
            assert other.trash(), "the old copy was purged"
        if left is not None and left.role == "source":
            assert (left.status == "completed") is moved, (left, "owner", owner)
        if came is not None and came.role == "destination":
            assert (came.status == "completed") is moved, (came, "owner", owner)
        self.had_departed = self.had_departed or moved
        return owner

    def silent(self, node: str = "b") -> bool:
        """Whether that node has told the panel nothing."""
        return not self.panel.calls_of("success", node) and not self.panel.calls_of("failure", node)


@asynccontextmanager
async def running_pair(
    home: Path,
    *,
    family: Family = Family.PTERODACTYL,
    checks_caller: bool = True,
    big_bytes: int = 100_000,
    nodes: tuple[str, ...] = NAMES,
    panel_call_s: float = 2.0,
    **node_options: Any,
) -> AsyncIterator[Pair]:
    """Panel and nodes on loopback; the server is running on a. `nodes`: those that are real, see `strangers`."""
    panel = StandInPanel(family=family, checks_caller=checks_caller, call_timeout_s=panel_call_s)
    async with AsyncExitStack() as stack, PanelServer(panel) as server:
        pair = Pair(home, server, stack, node_options)
        try:
            for name in nodes:
                await pair.up(name)
            panel.add_server(SERVER, "a")
            volume = home / "a" / "volumes" / SERVER
            grow_world(volume, big_bytes=big_bytes)
            pair.world = tree_of(volume)
            pair.runtimes["a"].add(SERVER, running=True)
            yield pair
        finally:
            panel.release()
            await pair.close()


def journal_of(rig: Rig) -> Path:
    """The journal of the one transfer that this node has had."""
    (path,) = (rig.home / "state" / "transfers").glob("*.journal")
    return path


def records_of(rig: Rig) -> list[Record]:
    return [decode(line) for line in journal_of(rig).read_bytes().splitlines()]


def forget_after(rig: Rig, stage: str) -> None:
    """Of a node that is down: its journal ends with the last record of that stage, as if it had been killed there."""
    lines = journal_of(rig).read_bytes().splitlines(keepends=True)
    stages = [decode(line.rstrip(b"\n")).state.stage for line in lines]
    last = max(i for i, found in enumerate(stages) if found == stage)
    journal_of(rig).write_bytes(b"".join(lines[: last + 1]))


async def soon(condition: Any, what: str = "it") -> None:
    """Wait for something that only a look can tell. Bounded."""
    try:
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110 - the fakes have no wait
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"{what} did not come true") from None
