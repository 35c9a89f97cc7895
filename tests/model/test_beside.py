"""The same beside a node daemon: the hand-over is in doubt too, and H1 to H3 are needed.

More faults at once: `python -m tests.model --beside --faults 1,1,1`.
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
from sidecar.lifecycle.table import TABLE, decide
from tests.model.daemon import Beside, Minds
from tests.model.search import search, walk
from tests.model.without import changed, minus
from tests.model.world import Decide, Faults, World

ROUNDS: Final = 60
STEPS: Final = 170

NONE: Final = Faults(crash=0, loss=0, user=0)
CRASH: Final = Faults(crash=1, loss=0, user=0)
LOSS: Final = Faults(crash=0, loss=1, user=0)
USER: Final = Faults(crash=0, loss=0, user=1)


@pytest.mark.parametrize(
    ("panel", "faults"),
    [("new", CRASH), ("new", LOSS), ("new", USER), ("old", CRASH), ("old", LOSS)],
)
def test_the_table_holds_a_world_with_a_daemon_together(panel: str, faults: Faults) -> None:
    model = Beside(old_panel=panel == "old")
    found = search(model, faults)
    assert not found.wrong
    assert found.worlds > 10_000
    if faults.user:
        assert {stage for stage, _ in model.book.pairs} == set(Stage) - {Stage.ANNOUNCING}
        assert not any(TABLE[stage, getattr(on, name)] is bug for stage, name in model.book.pairs)


@pytest.mark.parametrize("panel", ["new", "old"])
def test_walks_with_many_faults(panel: str) -> None:
    model = Beside(old_panel=panel == "old")

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
class Without(NamedTuple):
    """A rule left out of the table, or a look left out of an effect, and which faults it takes to see the harm."""

    decide: Decide
    faults: Faults
    old_panel: bool = False
    minds: Minds = Minds()


_HANDING_OVER: Final = Stage.HANDING_OVER
_CONFIRMING: Final = Stage.CONFIRMING_HANDOVER
_AGAIN: Final = TABLE[Stage.HANDING_OVER, on.HandOverUnsent]
_CHECK: Final = TABLE[Stage.HANDING_OVER, on.Restarted]
_SLOW: Final = TABLE[Stage.HANDING_OVER, on.HandedOver]
_MENDED: Final = TABLE[Stage.MENDING, on.Mended]
_OURS: Final = TABLE[Stage.CONFIRMING_ARRIVAL, on.OwnerListed]
_NOT_OURS: Final = TABLE[Stage.CONFIRMING_ARRIVAL, on.OwnerNotListed]
_MEND: Final = go(Stage.MENDING, Effect.MEND)

WITHOUT: Final[dict[str, Without]] = {
    "H1 an answer is taken for: ours": Without(changed((_HANDING_OVER, on.HandedOver, _OURS)), NONE, old_panel=True),
    "H1 `not listed` after an answer is taken for: not ours": Without(
        changed((_CONFIRMING, on.OwnerNotListed, _NOT_OURS)), LOSS
    ),
    "H2 mended without an answer": Without(changed((_HANDING_OVER, on.HandOverUnanswered, _MEND)), CRASH),
    "H2 handed over again without an answer": Without(
        changed((_HANDING_OVER, on.HandOverUnanswered, _AGAIN)), CRASH, old_panel=True
    ),
    "H2 handed over again after a restart": Without(
        changed((_HANDING_OVER, on.Restarted, _AGAIN)), CRASH, minds=Minds(source=False)
    ),
    "H2 to trash after a restart, the transfer not closed": Without(
        changed((_HANDING_OVER, on.Restarted, _NOT_OURS)), CRASH
    ),
    "H2 mended where it should be closed": Without(changed((Stage.CHECKING_OWNER, on.OwnerNotListed, _MEND)), CRASH),
    "H2 no quarantine for a daemon that did not answer": Without(
        changed((_HANDING_OVER, on.HandOverUnanswered, minus(_CHECK, stray=False))),
        Faults(crash=0, loss=2, user=0),
        old_panel=True,
    ),
    "H3 mended for ever": Without(changed((Stage.MENDING, on.Mended, minus(_MENDED, mends=0))), NONE, old_panel=True),
    "H3 handed over again, not mended": Without(
        changed((_CONFIRMING, on.OwnerNotListed, go(_HANDING_OVER, Effect.HAND_OVER))), NONE, old_panel=True
    ),
    "H3 a restart forgets the volume that is aside": Without(
        changed((Stage.MENDING, on.Restarted, _CHECK)), CRASH, old_panel=True
    ),
    "H3 the volume is aside while a call of the daemon can land": Without(decide, LOSS, minds=Minds(strays=False)),
    "H3 the volume is back before the daemon's deletion is over": Without(
        decide, NONE, old_panel=True, minds=Minds(wipe=False)
    ),
    "D6d handed over without the source": Without(decide, CRASH, old_panel=True, minds=Minds(source=False)),
    "D9 a slow daemon's call is forgotten": Without(
        changed((_HANDING_OVER, on.HandedOver, minus(_SLOW, stray=False))), LOSS
    ),
}


@pytest.mark.parametrize("name", WITHOUT)
def test_it_finds_what_a_rule_prevents(name: str) -> None:
    rule = WITHOUT[name]
    model = Beside(old_panel=rule.old_panel, decide=rule.decide, minds=rule.minds)
    found = search(model, rule.faults, until_wrong=True)
    assert found.wrong, f"nothing in {found.worlds} worlds"
