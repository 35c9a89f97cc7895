"""Writes docs/LIFECYCLE.md from the table: `python -m tests.lifecycle.draw`.

What a rule does is found by asking it about every state of the stage, so the page cannot say more than the code does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

from sidecar.lifecycle.effects import Effect
from sidecar.lifecycle.events import EVENTS, Event
from sidecar.lifecycle.rules import bug, ignore, refuse
from sidecar.lifecycle.stages import DESTINATION_STAGES, IN_DOUBT, SHARED_STAGES, SOURCE_STAGES, Stage, stages_of
from sidecar.lifecycle.statuses import Role
from sidecar.lifecycle.table import TABLE
from tests.lifecycle.states import states_in, variants_of

PAGE: Final = Path(__file__).parents[2] / "docs" / "LIFECYCLE.md"

HEAD: Final = """\
# The lifecycle of a transfer

Written from the table in `sidecar/lifecycle/table.py` by `python -m tests.lifecycle.draw`; a test holds it current.

A transfer is a state that is told events. `decide` answers with the new state and the effects; the state is on disk
before an effect begins, and the end of each effect comes back as an event. Every pair of a stage and an event is in the
table: it goes somewhere, is ignored (it may come late), is refused (the caller gets 409) or cannot come (a bug: the
transfer stops, its data is kept). An answer to any but the latest call to the panel is stale and changes nothing.

In the tables an effect in brackets is done where the state asks for it: a debt, a cancel, a deletion. A stage with a
star is in doubt: nothing is started and nothing is deleted. Labels such as S1 and D6 name the rules of ownership in
`ARCHITECTURE.md`; `tests/model` checks by every interleaving that the table keeps them.
"""


class Does(NamedTuple):
    """What an event does in a stage, over all its states."""

    stages: tuple[Stage, ...]
    always: tuple[Effect, ...]
    sometimes: tuple[Effect, ...]


def does(stage: Stage, event: type[Event], role: Role | None = None) -> Does:
    stages: set[Stage] = set()
    seen: list[set[Effect]] = []
    rule = TABLE[stage, event]
    for state in states_in(stage):
        if role is None or state.role is role:
            for variant in variants_of(event):
                new, effects = rule(state, variant)
                if (new, effects) != (state, ()):
                    stages.add(new.stage)
                    seen.append(set(effects))
    always = set.intersection(*seen) if seen else set()
    sometimes = set.union(*seen) - always if seen else set()
    return Does(
        tuple(one for one in Stage if one in stages),
        tuple(one for one in Effect if one in always),
        tuple(one for one in Effect if one in sometimes),
    )


def events_by_rule(stage: Stage, *rules: object) -> list[str]:
    return [event.__name__ for event in EVENTS if TABLE[stage, event] in rules]


def moves(stage: Stage) -> list[type[Event]]:
    return [event for event in EVENTS if TABLE[stage, event] not in (ignore, refuse, bug)]


def _names(stage: Stage) -> str:
    return f"{stage.value}{'*' if stage in IN_DOUBT else ''}"


def _table(stage: Stage) -> list[str]:
    lines = ["", f"### {_names(stage)}", "", "| told | goes to | does |", "|---|---|---|"]
    rows: dict[tuple[str, str], list[str]] = {}
    for event in moves(stage):
        what = does(stage, event)
        goes = " or ".join("stays" if one is stage else one.value for one in what.stages) or "stays"
        effects = ", ".join([*(one.value for one in what.always), *(f"[{one.value}]" for one in what.sometimes)])
        rows.setdefault((goes, effects), []).append(event.__name__)
    lines += [f"| {', '.join(names)} | {goes} | {effects} |" for (goes, effects), names in rows.items()]
    lines.append("")
    for word, rule in (("Ignored", ignore), ("Refused", refuse)):
        if names := events_by_rule(stage, rule):
            lines.append(f"- {word}: {', '.join(names)}.")
    return lines


def _diagram(role: Role) -> list[str]:
    lines = ["", "```mermaid", "stateDiagram-v2", "    direction TB"]
    first = Stage.STOPPING if role is Role.SOURCE else Stage.ADMITTING
    lines.append(f"    [*] --> {first.value}")
    for stage in Stage:
        if stage not in stages_of(role):
            continue
        edges: dict[Stage, list[str]] = {}
        for event in moves(stage):
            for target in does(stage, event, role).stages:
                if target is not stage:
                    edges.setdefault(target, []).append(event.__name__)
        lines += [f"    {stage.value} --> {target.value}: {', '.join(names)}" for target, names in edges.items()]
    return [*lines, f"    {Stage.ENDED.value} --> [*]", "```"]


def page() -> str:
    """The whole page."""
    lines = [HEAD, "## The source", *_diagram(Role.SOURCE)]
    lines += ["", "## The destination", *_diagram(Role.DESTINATION)]
    for title, stages in (
        ("Stages of the source", SOURCE_STAGES),
        ("Stages of the destination", DESTINATION_STAGES),
        ("Stages of both", SHARED_STAGES),
    ):
        lines += ["", f"## {title}"]
        for stage in Stage:
            if stage in stages:
                lines += _table(stage)
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
