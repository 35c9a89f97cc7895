"""The rules themselves, apart from the code: they hold, and each is needed."""

from __future__ import annotations

from typing import Final

import pytest

from tests.model import ownership_model as model

HUMAN: Final = "L waits for a human"


def _search(off: set[str], name: str, crash: int, loss: int, cancel: int, *, until_found: bool = False) -> list[str]:
    """What is found in one kind of world, but for the one case that waits for a human."""
    old_panel, destination = model.CONFIGS[name]
    first = model.FIRST._replace(crash=crash, loss=loss, cancel=cancel)
    _, found = model.check(set(model.RULES) - off, old_panel, destination, first, until_found)  # type: ignore[no-untyped-call]
    return [kind for kind in found if not kind.startswith(HUMAN)]


@pytest.mark.parametrize("name", model.CONFIGS)
def test_the_rules_hold(name: str) -> None:
    """All faults at once take 10 s: `python -m tests.model.ownership_model --faults 1,1,1`."""
    assert not _search(set(), name, 1, 0, 1)
    assert not _search(set(), name, 0, 1, 0)


# A rule, and the smallest kind of world that shows its harm: panel, destination; SIGKILLs, lost messages, cancels.
NEEDED: Final[dict[str, tuple[str, tuple[int, int, int]]]] = {
    "S1": ("new stock", (1, 0, 0)),
    "S2": ("new alone", (1, 1, 0)),
    "S3a": ("new alone", (1, 0, 0)),
    "S3b": ("new alone", (1, 0, 0)),
    "S3c": ("new stock", (1, 0, 0)),
    "S3d": ("old stock", (0, 0, 0)),
    "S4": ("old stock", (0, 0, 0)),
    "S4b": ("old stock", (0, 0, 0)),
    "S7": ("new stock", (1, 0, 0)),
    "D5": ("new beside", (1, 0, 0)),
    "D6a": ("new alone", (0, 1, 0)),
    "D4b": ("old alone", (1, 0, 0)),
    "D6b": ("new alone", (0, 1, 0)),
    "S7,D6c": ("new alone", (1, 0, 0)),  # D6c is a second fence behind S7
    "D6d": ("new alone", (1, 1, 0)),
    "D6e": ("new alone", (1, 0, 0)),
    "D6f": ("old beside", (0, 0, 0)),
    "D9": ("old alone", (0, 1, 0)),
    "H1": ("old beside", (0, 0, 0)),
    "H2": ("new beside", (1, 0, 0)),
    "H3": ("old beside", (0, 0, 0)),
}


@pytest.mark.parametrize("off", NEEDED)
def test_each_rule_is_needed(off: str) -> None:
    (panel, destination), faults = NEEDED[off][0].split(), NEEDED[off][1]
    name = f"{panel} panel, {destination} destination"
    assert _search(set(off.split(",")), name, *faults, until_found=True)


def test_every_rule_is_among_them() -> None:
    assert {rule for off in NEEDED for rule in off.split(",")} == set(model.RULES)
