"""The table holds a world together: every interleaving of two ends, a panel, faults and users, with the real `decide`.

More faults at once: `python -m tests.model --faults 1,1,1`.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.lifecycle import events as on
from sidecar.lifecycle.effects import Effect
from sidecar.lifecycle.rules import bug, go
from sidecar.lifecycle.stages import Stage
from sidecar.lifecycle.statuses import Role, Status
from sidecar.lifecycle.table import TABLE
from tests.model.nodes import Model
from tests.model.search import search, walk
from tests.model.without import changed, minus, owing_nothing, same_call, without_hold
from tests.model.world import Decide, Faults, World

BESIDE: Final = {Stage.HANDING_OVER, Stage.CONFIRMING_HANDOVER, Stage.MENDING}
ROUNDS: Final = 100  # walks of one kind of world
STEPS: Final = 160  # the longest way from the request to the end of transfer 2, faults and all


@pytest.mark.parametrize("old_panel", [False, True], ids=["new panel", "old panel"])
@pytest.mark.parametrize(
    ("respond_async", "faults"),
    [
        (False, Faults(crash=1, loss=1, user=0)),
        (False, Faults(crash=0, loss=0, user=1)),
        (True, Faults(crash=1, loss=0, user=0)),
        (True, Faults(crash=0, loss=1, user=0)),
    ],
)
def test_the_table_holds_a_world_together(old_panel: bool, respond_async: bool, faults: Faults) -> None:
    model = Model(old_panel=old_panel, respond_async=respond_async)
    found = search(model, faults)
    assert not found.wrong
    assert found.worlds > 5_000
    if faults.user:
        assert {stage for stage, _ in model.book.pairs} == set(Stage) - BESIDE, "a search is worth what it visits"
        assert len(model.book.pairs) > 80
        assert not any(TABLE[stage, getattr(on, name)] is bug for stage, name in model.book.pairs)


@pytest.mark.parametrize("respond_async", [False, True], ids=["202 after the stop", "202 at once"])
@pytest.mark.parametrize("old_panel", [False, True], ids=["new panel", "old panel"])
def test_walks_with_many_faults(old_panel: bool, respond_async: bool) -> None:
    model = Model(old_panel=old_panel, respond_async=respond_async)

    @settings(max_examples=ROUNDS, derandomize=True, deadline=None, database=None)
    @given(st.lists(st.integers(0, 27), min_size=STEPS // 2, max_size=STEPS))
    def paths(choices: list[int]) -> None:
        way: list[str] = []

        def look(world: World, label: str) -> None:
            way.append(label)
            assert model.broken(world) is None, "\n".join(way)

        walk(model, Faults(crash=3, loss=4, user=3), choices, look)

    paths()


# -- the check has teeth: without a rule it finds what the rule prevents -----------------------------------------------
_STILL_OURS: Final = TABLE[Stage.ASKING_OWNER, on.OwnerListed]
_DEPARTED: Final = TABLE[Stage.ASKING_OWNER, on.OwnerNotListed]
_NOT_OURS: Final = TABLE[Stage.CONFIRMING_ARRIVAL, on.OwnerNotListed]
_OURS: Final = TABLE[Stage.CONFIRMING_ARRIVAL, on.OwnerListed]
_BEFORE_THE_POINT: Final = TABLE[Stage.SENDING, on.Restarted]
_BEFORE_THE_COMMIT: Final = TABLE[Stage.PREPARING, on.Restarted]
_ASK_SOURCE: Final = go(Stage.ASKING_OWNER, Effect.ASK_OWNER)
_ASK_DESTINATION: Final = go(Stage.CONFIRMING_ARRIVAL, Effect.ASK_OWNER)

CRASH: Final = Faults(crash=1, loss=0, user=0)
LOSS: Final = Faults(crash=0, loss=1, user=0)
USER: Final = Faults(crash=0, loss=0, user=1)
NONE: Final = Faults(crash=0, loss=0, user=0)


class Without(NamedTuple):
    """A rule left out: how, and which faults it takes to see the harm."""

    decide: Decide
    faults: Faults
    old_panel: bool = False
    minds_source: bool = True


WITHOUT: Final[dict[str, Without]] = {
    "S1 the point is not journaled": Without(changed((Stage.AWAITING_VERDICT, on.Restarted, _BEFORE_THE_POINT)), CRASH),
    "S2 `failure` is not owed": Without(
        changed((Stage.SENDING, on.Restarted, owing_nothing(_BEFORE_THE_POINT))), CRASH
    ),
    "S2 the debt is not journaled": Without(
        changed((Stage.SETTLING, on.Restarted, owing_nothing(TABLE[Stage.SETTLING, on.Restarted]))),
        Faults(crash=2, loss=0, user=0),
    ),
    "S3a started in doubt": Without(changed((Stage.AWAITING_VERDICT, on.UploadUnsure, _STILL_OURS)), LOSS),
    "S3b 409 is taken for: ours": Without(changed((Stage.REPORTING_FAILURE, on.FailureRefused, _STILL_OURS)), LOSS),
    "S3c 2xx is taken for: ours": Without(changed((Stage.REPORTING_FAILURE, on.FailureAccepted, _STILL_OURS)), CRASH),
    "S3d a DELETE is believed": Without(changed((Stage.AWAITING_VERDICT, on.ServerDeleted, _DEPARTED)), USER),
    "S3d the upload stays open": Without(
        changed(
            (
                Stage.CONFIRMING_DEPARTURE,
                on.OwnerListed,
                minus(TABLE[Stage.CONFIRMING_DEPARTURE, on.OwnerListed], Effect.CUT_UPLOAD),
            )
        ),
        USER,
    ),
    "S4 an early 409 ends the debt": Without(
        changed((Stage.SETTLING, on.FailureRefusedEarly, TABLE[Stage.SETTLING, on.FailureRefused])), CRASH
    ),
    "S4b an early 409 decides": Without(changed((Stage.REPORTING_FAILURE, on.FailureRefusedEarly, _ASK_SOURCE)), CRASH),
    "S5 trash in doubt": Without(
        changed(
            (
                Stage.REPORTING_FAILURE,
                on.ServerDeleted,
                lambda state, event: (state, (Effect.TRASH_DEPARTED,)),
            )
        ),
        CRASH,
    ),
    "S5 the slot is free while the volume goes to trash": Without(
        changed((Stage.ENDED, on.ServerDeleted, minus(TABLE[Stage.ENDED, on.ServerDeleted], owes_cleanup=False))),
        NONE,
    ),
    "S7 no quarantine": Without(without_hold(lambda state: state.role is Role.SOURCE and not state.stray), CRASH),
    "D4b an early 409 decides": Without(
        changed((Stage.ANNOUNCING, on.SuccessRefusedEarly, _ASK_DESTINATION)), LOSS, old_panel=True
    ),
    "D5 rolled back after the commit": Without(changed((Stage.ANNOUNCING, on.Restarted, _BEFORE_THE_COMMIT)), CRASH),
    "D6a 409 is taken for: not ours": Without(changed((Stage.ANNOUNCING, on.SuccessRefused, _NOT_OURS)), LOSS),
    "D6b started without an answer": Without(changed((Stage.ANNOUNCING, on.SuccessUnanswered, _OURS)), LOSS),
    "D6d `success` after a restart": Without(
        changed((Stage.ANNOUNCING, on.Restarted, TABLE[Stage.ANNOUNCING, on.SuccessRefusedEarly])),
        CRASH,
        minds_source=False,
    ),
    "D6e `not listed` alone ends it": Without(changed((Stage.CHECKING_OWNER, on.OwnerNotListed, _NOT_OURS)), CRASH),
    "D6f asked for ever": Without(
        changed((Stage.CONFIRMING_ARRIVAL, on.OwnerNotListed, go(Stage.CHECKING_OWNER, Effect.ASK_OWNER))), CRASH
    ),
    "D8 staging stays for ever": Without(
        changed((Stage.SETTLING, on.CleanedUp, lambda state, event: (state, ()))), NONE
    ),
    "D9 no hold for calls of our own": Without(without_hold(lambda state: state.stray), LOSS, old_panel=True),
    "D9 a call outlives an operator's word": Without(
        changed((Stage.REPORTING_FAILURE, on.Resolved, same_call(TABLE[Stage.REPORTING_FAILURE, on.Resolved]))), USER
    ),
    "a final status changes": Without(
        changed((Stage.ENDED, on.ServerDeleted, minus(TABLE[Stage.ENDED, on.ServerDeleted], status=Status.FAILED))),
        NONE,
    ),
}


@pytest.mark.parametrize("name", WITHOUT)
def test_it_finds_what_a_rule_prevents(name: str) -> None:
    rule = WITHOUT[name]
    model = Model(old_panel=rule.old_panel, decide=rule.decide, minds_source=rule.minds_source)
    found = search(model, rule.faults, until_wrong=True)
    assert found.wrong, f"nothing in {found.worlds} worlds"
