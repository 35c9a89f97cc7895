"""Whatever is lost, late, refused, cut, cancelled or killed: it ends by itself, and nothing is lost or forked.

Each walk is drawn from its seed: faults of the panel's routes, then a few blows, each at a stage or after a while. The
order in which the two nodes and the panel act is the machine's, so a seed says what was tried, not every step of it.
`SIDECAR_WALKS=300` runs more of them, `SIDECAR_SEED=17` begins at that seed.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Final

import msgspec

from sidecar.demo.panel import TransferNotStarted
from sidecar.demo.panel_documents import Family
from sidecar.errors import Refused
from sidecar.lifecycle.stages import Stage
from sidecar.lifecycle.statuses import Role
from tests.engine.pair import PAIR, SENDING, Pair, running_pair
from tests.engine.relay import Relay, relay
from tests.engine.rig import SERVER, token_of

WALKS: Final = int(os.environ.get("SIDECAR_WALKS", "24"))
FIRST: Final = int(os.environ.get("SIDECAR_SEED", "0"))
AT_ONCE: Final = 6
SETTLE_S: Final = 30.0

# What a panel or the way to it does to one call. None of these is a lie: a 409 that is not true, or a 2xx for nothing,
# no rule can survive in every case; each has its own test in `test_rules_*`.
FAULTS: Final = {
    "configuration": ("500", "403", "404", "drop-before", "drop-after", "delay:0.1", "delay:1", "ok"),
    "list": ("500", "403", "429", "drop-before", "drop-after", "delay:0.1", "delay:1", "body:{}", "ok"),
    "success": ("500", "503", "429", "drop-before", "drop-after", "delay:0.1", "delay:1", "ok"),
    "failure": ("500", "503", "429", "drop-before", "drop-after", "delay:0.1", "delay:1", "ok"),
    "delete": ("drop-before", "drop-after", "delay:0.2", "ok"),
    "start": ("ok", "ok", "ok", "ok", "drop-after", "drop-before"),
}
STAGES: Final = tuple(stage.value for stage in Stage)
BLOWS: Final = ("kill a", "kill b", "kill both", "cancel a", "cancel b", "cut", "panel down", "panel up")


class Walk:
    """One seed's transfers: out, and from wherever the server is, back again."""

    def __init__(self, seed: int, pair: Pair, links: dict[str, Relay]) -> None:
        self.random = Random(seed)
        self.pair = pair
        self.links = links
        self.story: list[str] = []
        self._panel_is_up = True

    async def run(self) -> None:
        for _ in range(self.random.choice((1, 1, 2))):
            source = self.pair.panel.owner(SERVER)
            self._script()
            clicking = asyncio.create_task(self._click("b" if source == "a" else "a"))
            for _ in range(self.random.randint(0, 4)):
                await self._when()
                await self._blow(self.random.choice(BLOWS))
            if not self._panel_is_up:
                await self._panel_up()
            await clicking
            await self._settle()
            owner = self.pair.check(source)
            self.story.append(f"-- settled: {owner} owns it")

    def _script(self) -> None:
        for route, faults in FAULTS.items():
            chosen = [self.random.choice(faults) for _ in range(self.random.choice((0, 0, 1, 2, 3)))]
            self.pair.panel.script(route, *chosen)
            if chosen:
                self.story.append(f"{route}: {' '.join(chosen)}")

    async def _click(self, target: str) -> None:
        try:
            await self.pair.panel.start_transfer(SERVER, target, start_on_completion=True)
        except TransferNotStarted as error:
            self.story.append(f"not started: {error.status}")

    async def _when(self) -> None:
        if self.random.random() < 0.3:
            await asyncio.sleep(self.random.uniform(0, 0.3))
            return
        name, stage = self.random.choice("ab"), self.random.choice(STAGES)
        self.story.append(f"when {name} is {stage}:")
        with suppress(TimeoutError):
            async with asyncio.timeout(0.4):
                while (view := self.pair.rigs[name].node.view(SERVER)) is None or view.stage != stage:  # noqa: ASYNC110
                    await asyncio.sleep(0)

    async def _blow(self, blow: str) -> None:
        self.story.append(blow)
        match blow.split():
            case ["kill", "both"]:
                await self.pair.kill("a")
                await self.pair.kill("b")
                await self._up("b")
                await self._up("a")
            case ["kill", name]:
                await self.pair.kill(name)
                if self.random.random() < 0.5:
                    await asyncio.sleep(self.random.uniform(0, 0.3))
                await self._up(name)
            case ["cancel", name]:
                for role in Role:
                    with suppress(Refused):
                        await self.pair.rigs[name].node.cancel(SERVER, role)
            case ["cut"]:
                for link in self.links.values():
                    link.cut()
            case ["panel", "down"] if self._panel_is_up:
                self._panel_is_up = False
                await self.pair.server.stop()
            case ["panel", "up"] if not self._panel_is_up:
                await self._panel_up()

    async def _up(self, name: str) -> None:
        await self.pair.up(name)
        connect(self.pair, self.links)

    async def _panel_up(self) -> None:
        self._panel_is_up = True
        await self.pair.server.start()

    async def _settle(self) -> None:
        """Both ends have nothing under way and hold no slot, twice in a row."""
        calm = 0
        async with asyncio.timeout(SETTLE_S):
            while calm < 3:
                views = [view for rig in self.pair.rigs.values() for view in rig.node.views()]
                calm = calm + 1 if all(view.stage == "ended" for view in views) else 0
                await asyncio.sleep(0.02)

    def ends(self) -> str:
        views = [rig.node.view(SERVER) for rig in self.pair.rigs.values()]
        calls = [f"{c.time:.3f} {c.route} {c.node} {c.status}" for c in self.pair.panel.calls]
        return "\n".join([*self.story, *map(str, views), *calls])


def connect(pair: Pair, links: dict[str, Relay]) -> None:
    """The panel and the nodes know each other by their links."""
    for name, link in links.items():
        link.target = pair.rigs[name]
        pair.panel.add_node(name, token_id=f"id-{name}", token=token_of(name), url=link.url)


async def walk(seed: int, home: Path) -> str | None:
    """None, or what went wrong and how it came to that."""
    random = Random(seed)
    timings = msgspec.structs.replace(PAIR, young_s=0.4, quarantine_s=0.6, quarantine_calagopus_s=0.6)
    options = {"family": random.choice(list(Family)), "checks_caller": random.random() < 0.7}
    big = random.choice((1_000, 100_000, 5_000_000))
    call_s = 0.7  # less than the second that the stand-in's server gives to calls under way when it stops
    async with (
        running_pair(home, timings=timings, sending=SENDING, big_bytes=big, panel_call_s=call_s, **options) as pair,  # type: ignore[arg-type]
        relay() as to_a,
        relay() as to_b,
    ):
        links = {"a": to_a, "b": to_b}
        connect(pair, links)
        one = Walk(seed, pair, links)
        try:
            await one.run()
        except (AssertionError, TimeoutError) as error:
            return f"seed {seed} ({options}, {big} bytes): {error!r}\n{one.ends()}"
    return None


async def walks(seeds: range, home: Callable[[int], Path]) -> list[str]:
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(seed: int) -> str | None:
        async with gate:
            return await walk(seed, home(seed))

    return [found for found in await asyncio.gather(*map(one, seeds)) if found is not None]


def test_random_faults_lose_nothing_and_fork_nothing(tmp_path: Path) -> None:
    """At every instant at most one node may run or change a server, and at least one complete verified copy exists."""
    wrong = asyncio.run(walks(range(FIRST, FIRST + WALKS), lambda seed: tmp_path / str(seed)))
    assert not wrong, f"{len(wrong)} of {WALKS} walks went wrong\n\n" + "\n\n".join(wrong)
