"""Tables without a rule, to show what the rule is good for."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from sidecar.lifecycle.effects import Effect
from sidecar.lifecycle.events import Event
from sidecar.lifecycle.rules import Decision, Rule
from sidecar.lifecycle.stages import Stage
from sidecar.lifecycle.state import State
from sidecar.lifecycle.table import TABLE, decide
from tests.model.world import Decide


def changed(*changes: tuple[Stage, type[Event], Rule]) -> Decide:
    table = {**TABLE, **{(stage, event): rule for stage, event, rule in changes}}
    return lambda state, event: decide(state, event, table)


def without_hold(applies: Callable[[State], bool]) -> Decide:
    def decide_without(state: State, event: Event) -> Decision:
        new, effects = decide(state, event)
        if new.stage is Stage.COOLING and state.stage is not Stage.COOLING and applies(new):
            new = msgspec.structs.replace(new, stage=Stage.ENDED)
            effects = tuple(effect for effect in effects if effect is not Effect.HOLD_SLOT)
        return new, effects

    return decide_without


def owing_nothing(rule: Rule) -> Rule:
    def without(state: State, event: Event) -> Decision:
        new, effects = rule(state, event)
        new = msgspec.structs.replace(new, owes_failure=False)
        if new.stage is Stage.SETTLING and not (new.owes_restore or new.owes_cleanup):
            new = msgspec.structs.replace(new, stage=Stage.ENDED)
        return new, tuple(effect for effect in effects if effect is not Effect.TELL_FAILURE)

    return without


def minus(rule: Rule, *unwanted: Effect, **changes: object) -> Rule:
    def without(state: State, event: Event) -> Decision:
        new, effects = rule(state, event)
        return msgspec.structs.replace(new, **changes), tuple(effect for effect in effects if effect not in unwanted)

    return without


def same_call(rule: Rule) -> Rule:
    def without(state: State, event: Event) -> Decision:
        new, effects = rule(state, event)
        return msgspec.structs.replace(new, call=state.call), effects

    return without
