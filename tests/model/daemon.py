"""A destination beside a node daemon: the daemon that adopts the volume, its own calls to the panel, and its mending.

**The daemon** does not know the server, is busy with a hand-over, holds the server, or is stuck with it (it answered,
whatever it said, and its panel call was refused or not heard: it holds the server as transferring). It tells the panel
`success` itself, or `failure` where it cannot adopt it; a call that it gives up may land later. It is restarted at any
moment, and then holds exactly what the panel lists. Where it is told to forget a server it says so first and deletes
what it finds in the volume's place some time later, as the real ones do.

**The destination's effects** are as the table needs them. HAND_OVER is sent only to a daemon that does not know the
server, with a look at the oracle and at the source before. MEND moves the volume aside only when no call of the daemon
can land any more (D9) and the oracle has said so again, and moves it back only when the daemon has deleted what it
deletes; what was begun is ended first after a restart. DISCARD has the daemon forget what went to trash, and ends when
that deletion is over too. TIMED-2 also holds for a daemon that is busy with a hand-over of which no answer came.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, NamedTuple

from sidecar.lifecycle import table
from sidecar.lifecycle.effects import Effect
from sidecar.lifecycle.stages import Stage
from sidecar.lifecycle.state import State
from sidecar.lifecycle.statuses import Status
from tests.model.nodes import Model, swap
from tests.model.world import Decide, Step, World, land, start

_STRAY = {"success": "b_succ", "failure": "b_fail"}


class Minds(NamedTuple):
    """What the destination's effects look at. Each is there to show that the look is needed."""

    source: bool = True  # HAND_OVER and MEND: whether the source is connected (D6d)
    strays: bool = True  # MEND: whether a call of the daemon can still land
    wipe: bool = True  # MEND and DISCARD: whether the daemon's deletion is over


class Beside(Model):
    """The rules of a world whose destination works beside a daemon."""

    beside: ClassVar[bool] = True

    def __init__(
        self,
        *,
        old_panel: bool,
        respond_async: bool = False,
        decide: Decide = table.decide,
        minds: Minds = Minds(),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__(old_panel=old_panel, respond_async=respond_async, decide=decide)
        self.minds = minds

    def broken(self, w: World) -> str | None:
        wrong = super().broken(w)
        b = self.destination(w)
        if wrong is None and b is not None and b.stage is Stage.ENDED and w.ba != "-":
            return "a volume stays aside for ever"
        return wrong

    def is_settled(self, w: World) -> bool:
        return super().is_settled(w) and w.w != "busy" and not w.w_wipe

    def steps(self, w: World) -> Iterator[Step]:
        yield from super().steps(w)
        yield from self._daemon(w)

    # -- the daemon ----------------------------------------------------------------------------------------------------
    def _daemon(self, w: World) -> Iterator[Step]:
        if w.w == "busy":
            yield from self._busy(w)
        if w.w_wipe:
            yield Step("W: deletes what is in the volume's place", "ok", w._replace(w_wipe=0, bv="-", run_b=0))
        if w.crash and w.t2 == "-" and (w.w != "-" or w.w_wipe):
            yield Step("W: killed and started", "fault", self._boot(w._replace(crash=w.crash - 1)))
        b = self.destination(w)
        remedy = b is not None and b.status is Status.COMPLETED and w.owner == "B" and w.t2 == "-"
        if remedy and w.w in ("-", "stuck"):
            yield Step("W: an operator restarts the daemon", "ok", self._boot(w))

    def _boot(self, w: World) -> World:
        """It knows what the panel lists. A hand-over that was under way gets no answer."""
        tasks = tuple("hand_over:reset" if task == "hand_over:sent" and w.w == "busy" else task for task in w.b_tasks)
        w = self._drop(w)._replace(w="-", w_wipe=0, b_tasks=tuple(sorted(tasks)))
        return start(w._replace(w="holds"), "B") if w.owner == "B" else w

    def _drop(self, w: World) -> World:
        """Its call is given up; if it is out it may still land."""
        if w.w_call.endswith(" out"):
            stray = _STRAY[w.w_call.split()[0]]
            w = w._replace(**{stray: getattr(w, stray) + 1})
        return w._replace(w_call="-")

    def _busy(self, w: World) -> Iterator[Step]:
        what, phase = w.w_call.split()
        less = w._replace(loss=w.loss - 1, w_slow=1) if w.loss else w
        if phase == "out":
            new, yes = land(w, "B", what, self.old_panel)
            answer = "yes" if yes else "no"
            yield Step(f"P: `{what}` of W: {'2xx' if yes else '409'}", "ok", new._replace(w_call=f"{what} {answer}"))
            if w.user and what == "success":
                yield Step("W: cannot adopt it", "user", w._replace(user=w.user - 1, w_call="failure out"))
        elif what == "failure":
            yield Step("W: gives the server up", "ok", w._replace(w="-", w_call="-"))
        elif phase == "yes":
            yield Step("W: heard 2xx, holds the server", "ok", start(w._replace(w="holds", w_call="-"), "B"))
        else:
            yield Step("W: heard 409, holds it as transferring", "ok", w._replace(w="stuck", w_call="-"))
        if w.loss:
            stuck = self._drop(less)._replace(w="stuck" if what == "success" else "-", w_slow=1)
            yield Step(f"W: `{what}` is given up for good", "fault", stuck)
            again = self._drop(less)._replace(w_call=f"{what} out", w_slow=1)
            yield Step(f"W: `{what}` is given up, made again", "fault", again)

    def _forget(self, w: World) -> World:
        return self._drop(w)._replace(w="-", w_wipe=1)

    # -- effects -------------------------------------------------------------------------------------------------------
    def _destination_effect(self, w: World, task: str) -> Iterator[Step]:
        effect, phase = task.split(":", 1)
        state = self.destination(w)
        assert state is not None
        match Effect(effect):
            case Effect.HAND_OVER:
                yield from self._hand_over(w, task, phase, state)
            case Effect.MEND:
                yield from self._mend(w, task, phase, state)
            case Effect.DISCARD if phase != "new":
                yield from self._discard(w, task)
            case Effect.ACTIVATE:
                if w.w == "holds":
                    yield Step("D: D7 the daemon holds it", "ok", self.done(w, "B", task, "Activated"))
                elif w.w != "busy":
                    yield Step("D: D7 needs a restart", "ok", self.done(w, "B", task, "ActivationFailed"))
            case Effect.TELL_SUCCESS:
                yield Step("D: calls `success`", "ok", w._replace(wrong="two tell the panel `success`"))
            case _:
                yield from super()._destination_effect(w, task)

    def _hand_over(self, w: World, task: str, phase: str, state: State) -> Iterator[Step]:
        less = w._replace(loss=w.loss - 1) if w.loss else w
        if phase == "new":
            if self.minds.source and not w.ld:
                yield Step("D: D6d the source is gone", "ok", self.done(w, "B", task, "SourceGone"))
            elif w.owner == "B":
                yield Step("D: listed before the hand-over", "ok", self.done(w, "B", task, "OwnerListed"))
            elif state.cancel_requested or w.w in ("stuck", "holds"):
                yield Step("D: not handed over", "ok", self.done(w, "B", task, "HandOverUnsent"))
            elif w.w == "busy":
                yield Step("D: hands over", "ok", w._replace(wrong="the server is handed over twice at once"))
            else:
                known = self.old_panel or w.t1 == "active"
                busy = w._replace(w="busy", w_call="success out") if known else w
                sent = busy._replace(w_slow=0, b_tasks=swap(w.b_tasks, task, "hand_over:sent"))
                yield Step(f"D: hands over; the panel {'knows' if known else 'refuses'} it", "ok", sent)
            if w.loss:
                yield Step("D: the daemon is away", "fault", self.done(less, "B", task, "HandOverUnsent"))
            return
        if phase == "sent" and w.w != "busy":
            slow = ", slow" if w.w_slow else ""
            yield Step("D: the daemon answers", "ok", self.done(w._replace(w_slow=0), "B", task, f"HandedOver{slow}"))
        if phase == "reset":
            yield Step("D: no answer", "ok", self.done(w, "B", task, "HandOverUnanswered"))
        elif w.loss:
            yield Step("D: no answer", "fault", self.done(less, "B", task, "HandOverUnanswered"))

    def _mend(self, w: World, task: str, phase: str, state: State) -> Iterator[Step]:
        def to(world: World, phase: str) -> World:
            return world._replace(b_tasks=swap(world.b_tasks, task, f"mend:{phase}"))

        if phase == "new" and w.ba == "-":
            strays = state.stray and self.minds.strays
            if (self.minds.source and not w.ld) or w.w == "holds" or (strays and w.owner == "B"):
                yield Step("D: H3 nothing to mend", "ok", self.done(w, "B", task, "MendAbandoned"))
            elif not (strays and (w.b_succ or w.b_fail)):
                if w.run_b:
                    w = w._replace(wrong="the volume of a running server is moved")
                yield Step("D: H3 the volume aside", "ok", to(w._replace(ba=w.bv, bv="-"), "aside"))
        elif phase == "back":
            name = "Mended" if w.ld or not self.minds.source else "MendAbandoned"
            yield Step(f"D: H3 {name}", "ok", self.done(w, "B", task, name))
        elif w.w != "-":
            yield Step("W: H3 forgets the server", "ok", self._forget(w))
        elif not (w.w_wipe and self.minds.wipe):
            yield Step("D: H3 the volume back", "ok", to(w._replace(bv=w.ba, ba="-"), "back"))
        if w.loss:
            failed = self.done(w._replace(loss=w.loss - 1), "B", task, "MendFailed")
            yield Step("D: H3 the daemon or the disk fails", "fault", failed)

    def _discard(self, w: World, task: str) -> Iterator[Step]:
        if w.w != "-":
            yield Step("W: forgets the server", "ok", self._forget(w))
        if w.w in ("-", "busy") and not (w.w_wipe and self.minds.wipe):  # busy: it may not know the server yet
            yield Step("D: discard is done", "ok", self.done(w, "B", task, "Discarded"))
        if w.loss:
            failed = self.done(w._replace(loss=w.loss - 1), "B", task, "DiscardFailed")
            yield Step("D: the daemon does not forget", "fault", failed)
