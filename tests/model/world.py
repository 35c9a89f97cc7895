"""A source, a destination and a panel joined by faulty links; the two ends are driven by the real `decide`.

The steps are in `nodes.py`; `daemon.py` adds a node daemon beside the destination.

One server, first on node A. Transfer 1 moves it from A to B, both ours; once that has ended at the panel, an
administrator may start transfer 2 of the same server from its owner to another node (C, B again, or back to A).

- **A node** is the journaled `State` and the effects under way. `decide` is durable before an effect begins; an effect
  is one or two abstract steps, and any step of anybody may come between. SIGKILL leaves the State alone; `Restarted` is
  the first event after it.
- **A call to the panel** is made, lands, is answered, is heard. It may be given up and land later, or never (a stray),
  also after its sender was killed. A call whose number is not the latest any more is not made; its answer is stale.
- **The panel** keeps one row a server and one active transfer; calls carry no transfer id. An old panel does not check
  which node calls. Its DELETE to the source follows an accepted `success`.
- **Transfer 2** is coarse (active, sent, ended): it is there to be hit by what transfer 1 left behind.

Timers are fair choices, with three promises between clocks: TIMED-1 the panel's own transaction ends within the 30 s of
S4; TIMED-2 a call that its sender gave up lands within the hold of S7 and D9 or never, and so does the `success` of a
destination whose connection was cut before the hold began; TIMED-3 the panel has sent its DELETE, and waited for the
answer as long as it cares to, before it lets an administrator start transfer 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec

from sidecar.errors import IllegalTransition
from sidecar.lifecycle import events as on
from sidecar.lifecycle.effects import CALLS, Effect
from sidecar.lifecycle.events import Event
from sidecar.lifecycle.stages import Stage
from sidecar.lifecycle.state import State
from sidecar.lifecycle.statuses import Status

Decide = Callable[[State, Event], tuple[State, tuple[Effect, ...]]]
Tasks = tuple[str, ...]  # effects under way, each with its phase after a colon; sorted

NODES: Final = "ABC"
PANEL_CLOSED: Final = ("failed", "success", "void")


class World(NamedTuple):
    """Everything there is, at one instant."""

    # the panel: the server's node, transfers 1 and 2, its DELETE to A is on its way, 30 s of S4 are not over
    owner: str = "A"
    t1: str = "asked"
    t2: str = "-"
    src2: str = "-"
    dst2: str = "-"
    dele: int = 0
    young: int = 1
    # the source: State (its number in the book), up, effects, `failure` calls that were given up but may land
    a: int = 0
    a_up: int = 1
    a_tasks: Tasks = ("stop_server:new",)
    a_stray: int = 0
    # the upload: A's end open, B's end open, the whole archive went in (and how current it is), B's answer
    ls: int = 0
    ld: int = 0
    sent: str = "-"
    resp: str = "-"
    # the destination; -1 where no upload has come
    b: int = -1
    b_up: int = 1
    b_tasks: Tasks = ()
    b_succ: int = 0
    b_fail: int = 0
    # the node daemon on B: what the server is to it (-, busy, stuck, holds), its call to the panel, it has given
    # one up; it has forgotten the server and is yet to delete what it finds in the volume's place
    w: str = "-"
    w_call: str = "-"
    w_slow: int = 0
    w_wipe: int = 0
    # copies: volume and trash of A, staging, volume, trash and "aside" of B, volume of C: "-", old, new
    av: str = "new"
    at: str = "-"
    bs: str = "-"
    bv: str = "-"
    bt: str = "-"
    ba: str = "-"
    cv: str = "-"
    # this node may run the server now
    run_a: int = 1
    run_b: int = 0
    run_c: int = 0
    # faults and whims left: SIGKILLs, lost messages, what users and failing disks do
    crash: int = 0
    loss: int = 0
    user: int = 0
    wrong: str = ""  # a rule was broken by the very step that led here


class Step(NamedTuple):
    label: str
    kind: str  # ok, fault, user
    world: World


class Faults(NamedTuple):
    crash: int
    loss: int
    user: int


class Decided(NamedTuple):
    state: int
    effects: tuple[Effect, ...]
    is_new_call: bool
    wrong: str


COPIES: Final = ("av", "at", "bs", "bv", "bt", "ba", "cv", "sent")
_VOLUME: Final = {"A": "av", "B": "bv", "C": "cv"}
_TRASH: Final = {"A": "at", "B": "bt"}
_RUN: Final = {"A": "run_a", "B": "run_b", "C": "run_c"}
_ORDER: Final = {Status.PENDING: 0, Status.PROCESSING: 1, Status.CANCELLING: 2}

EVENTS: Final[dict[str, Event]] = {event.__name__: event() for event in on.EVENTS} | {
    "AdmissionFailed, silent": on.AdmissionFailed(tell_panel=False),
    "HandedOver, slow": on.HandedOver(slow=True),
    "CancelRequested, for good": on.CancelRequested(restart=False),
    "Resolved completed": on.Resolved(outcome="completed"),
    "Resolved failed": on.Resolved(outcome="failed"),
}


class Book:
    """States by number, and every decision made once. Words for people are left out, and call numbers are 0 or 1."""

    def __init__(self, decide: Decide) -> None:
        self._decide = decide
        self.states: list[State] = []
        self._numbers: dict[State, int] = {}
        self._decided: dict[tuple[int, str], Decided] = {}
        self.pairs: set[tuple[Stage, str]] = set()  # what was asked of the table

    def number(self, state: State) -> int:
        plain = msgspec.structs.replace(state, reason=None, message=None, needs=None, call=min(state.call, 1))
        if plain not in self._numbers:
            self._numbers[plain] = len(self.states)
            self.states.append(plain)
        return self._numbers[plain]

    def decide(self, number: int, name: str) -> Decided:
        decided = self._decided.get((number, name))
        if decided is None:
            decided = self._decided[number, name] = self._make(self.states[number], EVENTS[name], number)
        return decided

    def _make(self, old: State, event: Event, number: int) -> Decided:
        self.pairs.add((old.stage, type(event).__name__))
        if isinstance(event, on.Outcome):
            event = msgspec.structs.replace(event, call=old.call)  # stale outcomes are dropped by the steps
        try:
            new, effects = self._decide(old, event)
        except IllegalTransition as error:
            return Decided(number, (), False, f"bug: {error}")
        wrong = ""
        if old.is_final and new.status is not old.status:
            wrong = "a final status changed"
        elif not new.is_final and _ORDER[new.status] < _ORDER[old.status]:
            wrong = "a status went back"
        elif CALLS.intersection(effects) and new.call == old.call:
            wrong = "a call without a number of its own"
        return Decided(self.number(new), effects, new.call != old.call, wrong)


def start(w: World, node: str) -> World:
    """`node` may run the server from now on: every other copy is an old one, and so is one on its way."""
    old = {name: "old" for name in COPIES if getattr(w, name) == "new" and name != _VOLUME[node]}
    return w._replace(**old, **{_RUN[node]: 1})  # type: ignore[arg-type]


def trash(w: World, node: str) -> World:
    """Move the volume to trash. An emptier or older trash is not worth keeping here."""
    if node == "C":
        return w._replace(cv="-", run_c=0)
    volume, bin_ = _VOLUME[node], _TRASH[node]
    if getattr(w, volume) == "-":
        return w
    best = "new" if "new" in (getattr(w, volume), getattr(w, bin_)) else "old"
    return w._replace(**{volume: "-", bin_: best, _RUN[node]: 0})  # type: ignore[arg-type]


def end_second(w: World, success: bool) -> World:
    arrived = w.t2 == "sent"
    w = w._replace(t2="success" if success else "failed")
    if not success:
        return start(trash(w, w.dst2) if arrived else w, w.src2)
    w = trash(w._replace(owner=w.dst2), w.src2)
    return start(w, w.dst2) if arrived else w


def land(w: World, caller: str, what: str, old_panel: bool) -> tuple[World, bool]:
    """The panel handles a call: the new world, and whether it was accepted."""
    if w.t1 == "active" and (old_panel or what == "failure" or caller == "B"):
        if what == "failure":
            return w._replace(t1="failed"), True
        return w._replace(t1="success", owner="B", dele=1), True
    if w.t2 in ("active", "sent"):
        if what == "failure" and (old_panel or caller in (w.src2, w.dst2)):
            return end_second(w, False), True
        if what == "success" and (old_panel or caller == w.dst2):
            return end_second(w, True), True
    return w, False


def broken(w: World) -> str | None:
    """The invariants of who owns the server; None where all hold."""
    if w.wrong:
        return w.wrong
    running = [node for node in NODES if getattr(w, _RUN[node])]
    if len(running) > 1:
        return "two nodes may run the server"
    if running and w.t1 != "asked" and running[0] != w.owner:
        return "a node may run what the panel gives to another"
    if any(getattr(w, _VOLUME[node]) != "new" for node in running):
        return "a stale or missing copy may run"
    if "new" not in (w.av, w.at, w.bs, w.bv, w.bt, w.ba, w.cv):
        return "no complete current copy is left"
    volume = getattr(w, _VOLUME[w.owner])
    if volume != "new":
        return "the panel's owner has no copy in place" if volume == "-" else "the panel's owner has a stale copy"
    return None
