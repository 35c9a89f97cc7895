"""Every world that can be reached, breadth first: the shortest way to each thing that is wrong."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import NamedTuple

from tests.model.nodes import Model
from tests.model.world import Faults, World


class Found(NamedTuple):
    worlds: int
    wrong: dict[str, list[str]]  # what -> the labels of the steps that lead there


def search(model: Model, faults: Faults, *, until_wrong: bool = False) -> Found:
    """Visit every world.

    Args: `faults` bounds what may go wrong. `until_wrong` ends at the first finding.
    Memory: about 0.6 KB a world.
    """
    number = {model.first(faults): 0}
    worlds = [model.first(faults)]
    parent, via = array("L", [0]), array("H", [0])
    labels: dict[str, int] = {"start": 0}
    sources, targets = array("L"), array("L")
    wrong: dict[str, list[str]] = {}
    settled: list[int] = []

    def trace(at: int) -> list[str]:
        names = list(labels)
        lines: list[str] = []
        while at:
            lines.insert(0, names[via[at]])
            at = parent[at]
        return lines

    at = 0
    while at < len(worlds):
        world = worlds[at]
        what = model.broken(world)
        if what is not None:
            wrong.setdefault(what, trace(at))
            if until_wrong:
                return Found(len(worlds), wrong)
            settled.append(at)  # reported already: not a second time as a dead end
            at += 1
            continue
        if model.is_settled(world):
            settled.append(at)
        for label, kind, new in model.steps(world):
            to = number.get(new)
            if to is None:
                to = number[new] = len(worlds)
                worlds.append(new)
                parent.append(at)
                via.append(labels.setdefault(label, len(labels)))
            if kind == "ok":
                sources.append(at)
                targets.append(to)
        at += 1
    dead = _dead_end(len(worlds), sources, targets, settled)
    if dead is not None:
        world = worlds[dead]
        destination = model.destination(world)
        ends = f"source {model.source(world).stage}, destination {destination.stage if destination else 'idle'}"
        wrong[f"it can never end: {ends}"] = trace(dead)
    return Found(len(worlds), wrong)


def _dead_end(count: int, sources: array[int], targets: array[int], settled: list[int]) -> int | None:
    """The first world from which no way leads to a settled one without further faults."""
    before: list[list[int]] = [[] for _ in range(count)]
    for source, target in zip(sources, targets, strict=True):
        before[target].append(source)
    alive = bytearray(count)
    todo = list(settled)
    for one in settled:
        alive[one] = 1
    while todo:
        for one in before[todo.pop()]:
            if not alive[one]:
                alive[one] = 1
                todo.append(one)
    return next((one for one in range(count) if not alive[one]), None)


def walk(model: Model, faults: Faults, choices: list[int], look: Callable[[World, str], None]) -> World:
    """One path: each number chooses a step. `look` sees every world and the step that led there."""
    world = model.first(faults)
    look(world, "start")
    for choice in choices:
        steps = list(model.steps(world))
        if not steps:
            break
        label, _, world = steps[choice % len(steps)]
        look(world, label)
    return world
