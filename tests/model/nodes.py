"""Every step that is possible in a world: what the two ends, the panel, the links, users and faults may do next."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Final

from sidecar.lifecycle import table
from sidecar.lifecycle.effects import Effect
from sidecar.lifecycle.stages import Stage
from sidecar.lifecycle.state import State, first
from sidecar.lifecycle.statuses import Role, Status
from tests.model.world import (
    EVENTS,
    NODES,
    PANEL_CLOSED,
    Book,
    Decide,
    Faults,
    Step,
    Tasks,
    World,
    broken,
    end_second,
    land,
    start,
    trash,
)

_CALLER: Final = {"A": "S", "B": "D"}
_RECEIPT: Final = ("admit:", "receive:", "prepare:")


def _without(tasks: Tasks, task: str) -> Tasks:
    at = tasks.index(task)
    return tasks[:at] + tasks[at + 1 :]


def swap(tasks: Tasks, task: str, new: str) -> Tasks:
    return tuple(sorted((*_without(tasks, task), new)))


class Model:
    """The rules of one kind of world.

    `decide` is the table under test. `minds_source=False` makes the destination send `success` without a look at the
    source's connection: only there to show that the look is needed (D6d).
    """

    beside: ClassVar[bool] = False  # B's daemon runs the server, not the destination

    def __init__(
        self,
        *,
        old_panel: bool,
        respond_async: bool = False,
        decide: Decide = table.decide,
        minds_source: bool = True,
    ) -> None:
        self.old_panel = old_panel
        self.respond_async = respond_async
        self.minds_source = minds_source
        self.book = Book(decide)

    def first(self, faults: Faults) -> World:
        number = self.book.number(first(Role.SOURCE, respond_async=self.respond_async))
        t1 = "tx" if self.respond_async else "asked"
        return World(a=number, t1=t1, crash=faults.crash, loss=faults.loss, user=faults.user)

    def source(self, w: World) -> State:
        return self.book.states[w.a]

    def destination(self, w: World) -> State | None:
        return self.book.states[w.b] if w.b >= 0 else None

    # -- what is to hold -----------------------------------------------------------------------------------------------
    def broken(self, w: World) -> str | None:
        """What is wrong with this world; None where all is well."""
        wrong = broken(w)
        if wrong is not None:
            return wrong
        a, b = self.source(w), self.destination(w)
        if a.is_final and (a.status is Status.COMPLETED) != (w.t1 == "success"):
            return "the source's verdict contradicts the panel"
        if b is not None and b.is_final and (b.status is Status.COMPLETED) != (w.t1 == "success"):
            return "the destination's verdict contradicts the panel"
        return None

    def is_settled(self, w: World) -> bool:
        """Everything has come to its end, and the owner may run the server."""
        a, b = self.source(w), self.destination(w)
        ended = a.stage is Stage.ENDED and (b is None or b.stage is Stage.ENDED) and not (w.a_tasks or w.b_tasks)
        panel = w.t1 in PANEL_CLOSED and w.t2 in ("-", "success", "failed")
        return ended and panel and bool(w.a_up and w.b_up) and bool({"A": w.run_a, "B": w.run_b, "C": w.run_c}[w.owner])

    # -- telling an end something --------------------------------------------------------------------------------------
    def tell(self, w: World, node: str, name: str) -> World:
        """`node` decides on an event; its State is durable, its effects have not begun."""
        old = w.a if node == "A" else w.b
        decided = self.book.decide(old, name)
        if decided.wrong:
            return w._replace(wrong=decided.wrong)
        tasks, stray = (w.a_tasks, w.a_stray) if node == "A" else (w.b_tasks, w.b_fail)
        succ = w.b_succ
        if decided.is_new_call:  # an earlier call is stale; if it is out it may still land
            stray += sum(task.startswith("tell_failure:out") for task in tasks)
            succ += sum(task.startswith("tell_success:out") for task in tasks)
            tasks = tuple(task for task in tasks if not task.startswith(("tell_", "ask_", "hand_")))
        if decided.effects:
            tasks = tuple(sorted((*tasks, *(f"{effect.value}:new" for effect in decided.effects))))
        if Effect.CUT_UPLOAD in decided.effects:  # at once: nothing of the archive goes out after the decision
            w = w._replace(ls=0)
        was, now = self.book.states[old], self.book.states[decided.state]
        if node == "A":
            w = w._replace(a=decided.state, a_tasks=tasks, a_stray=stray)
            if was.stage is Stage.STOPPING and now.stage is not Stage.STOPPING:
                if now.stage is Stage.SENDING:
                    w = w._replace(ls=1, ld=1)
                if w.t1 == "asked":  # the answer: 202, or an error that makes the panel roll back
                    w = w._replace(t1="tx" if now.stage is Stage.SENDING else "void")
        else:
            w = w._replace(b=decided.state, b_tasks=tasks, b_fail=stray, b_succ=succ)
            if now.is_final and not was.is_final and w.ld:
                w = w._replace(resp="200" if now.status is Status.COMPLETED else "500")
        starts = now.may_run_server and not was.may_run_server and not (self.beside and node == "B")
        return start(w, node) if starts else w

    def done(self, w: World, node: str, task: str, name: str) -> World:
        """An effect has ended; its outcome is told."""
        if node == "A":
            return self.tell(w._replace(a_tasks=_without(w.a_tasks, task)), node, name)
        return self.tell(w._replace(b_tasks=_without(w.b_tasks, task)), node, name)

    # -- steps ---------------------------------------------------------------------------------------------------------
    def steps(self, w: World) -> Iterator[Step]:
        yield from self._panel(w)
        yield from self._second(w)
        yield from self._link(w)
        if w.a_up:
            for task in dict.fromkeys(w.a_tasks):
                yield from self._source_effect(w, task)
            yield from self._whims(w, "A", self.source(w))
            if w.crash:
                out = sum(task.startswith("tell_failure:out") for task in w.a_tasks)
                down = w._replace(a_up=0, a_tasks=(), a_stray=w.a_stray + out, ls=0, crash=w.crash - 1)
                if w.t1 == "asked":
                    down = down._replace(t1="void")  # the panel's request ends without an answer
                yield Step("S: SIGKILL", "fault", down)
        else:
            yield Step("S: restart", "ok", self.tell(w._replace(a_up=1), "A", "Restarted"))
        b = self.destination(w)
        if b is None:
            return
        if w.b_up:
            for task in dict.fromkeys(w.b_tasks):
                yield from self._destination_effect(w, task)
            yield from self._whims(w, "B", b)
            if w.crash:
                succ = sum(task.startswith("tell_success:out") for task in w.b_tasks)
                fail = sum(task.startswith("tell_failure:out") for task in w.b_tasks)
                down = w._replace(b_up=0, b_tasks=(), ld=0, crash=w.crash - 1)
                yield Step("D: SIGKILL", "fault", down._replace(b_succ=w.b_succ + succ, b_fail=w.b_fail + fail))
        else:
            yield Step("D: restart", "ok", self.tell(w._replace(b_up=1), "B", "Restarted"))

    def _panel(self, w: World) -> Iterator[Step]:
        if w.t1 == "tx":
            yield Step("P: transaction commits, transfer 1 is active", "ok", w._replace(t1="active"))
            yield Step("P: rolled back, its 15 s were over just before our 202", "ok", w._replace(t1="void"))
        for count, field, caller, what in (
            (w.a_stray, "a_stray", "A", "failure"),
            (w.b_succ, "b_succ", "B", "success"),
            (w.b_fail, "b_fail", "B", "failure"),
        ):
            if count:
                less = w._replace(**{field: count - 1})  # type: ignore[arg-type]
                new, yes = land(less, caller, what, self.old_panel)
                yield Step(f"P: a late `{what}` of {caller} never arrives", "ok", less)
                if yes:
                    yield Step(f"P: a late `{what}` of {caller} lands: 2xx", "ok", new)
        if w.dele:
            if w.a_up:
                yield Step("S: DELETE from the panel", "ok", self.tell(w._replace(dele=0), "A", "ServerDeleted"))
                if w.loss:
                    yield Step("P: DELETE to A is lost", "fault", w._replace(dele=0, loss=w.loss - 1))
            else:
                yield Step("P: DELETE to A finds nobody", "ok", w._replace(dele=0))
        if w.young and w.t1 not in ("asked", "tx"):  # TIMED-1
            yield Step("timer: the 30 s since the 202 are over", "ok", w._replace(young=0))

    def _second(self, w: World) -> Iterator[Step]:
        """TIMED-3: not before the DELETE was sent."""
        a, b = self.source(w), self.destination(w)
        if w.t2 == "-" and w.t1 in PANEL_CLOSED and not w.dele:
            if w.owner == "A":
                free = w.a_up and w.run_a and not a.holds_slot
            else:
                free = w.b_up and w.run_b and b is not None and not b.holds_slot
            for dst in NODES:
                if free and dst != w.owner:
                    new = w._replace(t2="active", src2=w.owner, dst2=dst)
                    new = new._replace(run_a=0) if w.owner == "A" else new._replace(run_b=0)
                    yield Step(f"P: transfer 2 {w.owner} -> {dst} is started", "user", new)
        if w.t2 == "active":
            yield Step("P: transfer 2 fails", "ok", end_second(w, False))
            free_b = (not w.ld if b is None else not b.holds_slot) and w.b_up and w.w == "-"
            if {"A": w.a_up and not a.holds_slot, "B": free_b, "C": True}[w.dst2]:
                new = trash(w, w.dst2)._replace(t2="sent")
                new = new._replace(**{{"A": "av", "B": "bv", "C": "cv"}[w.dst2]: "new"})  # type: ignore[arg-type]
                yield Step("T2: all bytes arrived and committed", "ok", new)
        if w.t2 == "sent":
            yield Step("P: transfer 2 succeeds", "ok", end_second(w, True))
            yield Step("P: transfer 2 fails", "ok", end_second(w, False))

    def _link(self, w: World) -> Iterator[Step]:
        """Each end notices in its own time that the connection is gone."""
        if w.ls and w.ld and w.loss:
            yield Step("link: cut, S sees it first", "fault", w._replace(ls=0, loss=w.loss - 1))
            yield Step("link: cut, D sees it first", "fault", w._replace(ld=0, loss=w.loss - 1))
        if w.ld and not w.ls and w.b_up:
            yield Step("D: sees that the connection is gone", "ok", w._replace(ld=0))
        if w.ld and w.b < 0 and w.b_up:
            number = self.book.number(first(Role.DESTINATION, beside=self.beside))
            new = w._replace(b=number, b_tasks=("admit:new",))
            yield Step("D: the upload begins, the slot is taken", "ok", new)

    def _whims(self, w: World, node: str, state: State) -> Iterator[Step]:
        """What users do. An operator who resolves knows what the panel says and that it is closed."""
        if not w.user or state.stage is Stage.ENDED:
            return
        less = w._replace(user=w.user - 1)
        who = _CALLER[node]
        if not table.refuses(state, EVENTS["CancelRequested"]):
            yield Step(f"{who}: cancelled", "user", self.tell(less, node, "CancelRequested"))
            if node == "A" and not state.past_point:
                gone = self.tell(less, node, "CancelRequested, for good")
                yield Step("S: DELETE before the point: cancelled for good", "user", gone)
        if node == "A" and state.past_point and not state.is_final:
            yield Step("S: a DELETE that the panel did not mean", "user", self.tell(less, node, "ServerDeleted"))
        if w.t1 in PANEL_CLOSED and state.in_doubt and not table.refuses(state, EVENTS["Resolved failed"]):
            truth = "completed" if w.t1 == "success" else "failed"
            yield Step(f"{who}: an operator resolves: {truth}", "user", self.tell(less, node, f"Resolved {truth}"))

    # -- effects -------------------------------------------------------------------------------------------------------
    def _source_effect(self, w: World, task: str) -> Iterator[Step]:
        effect, phase = task.split(":", 1)
        state = self.source(w)
        whim = w._replace(user=w.user - 1) if w.user else w
        match Effect(effect):
            case Effect.STOP_SERVER:
                stopped = w._replace(run_a=0)
                yield Step("S: the server is stopped", "ok", self.done(stopped, "A", task, "ServerStopped"))
                if w.user:
                    yield Step("S: the server cannot be stopped", "user", self.done(whim, "A", task, "StopFailed"))
                    gone = self.done(whim._replace(run_a=0), "A", task, "CallerGone")
                    yield Step("S: the caller hung up", "user", gone)
            case Effect.SEND_ARCHIVE:
                if w.ls or state.stage is Stage.CUTTING:
                    yield Step("S: S1 all but the end is sent", "ok", self.done(w, "A", task, "ArchiveSent"))
                if not (w.ls and w.ld) or w.resp == "500":
                    yield Step(
                        "S: S2 failed before the point", "ok", self.done(w._replace(ls=0), "A", task, "SendFailed")
                    )
            case Effect.FINISH_UPLOAD:
                if phase == "new" and w.ls:
                    tasks = swap(w.a_tasks, task, "finish_upload:sent")
                    if w.run_a:
                        w = w._replace(wrong="an archive was finished while the server may run")
                    yield Step("S: the boundary goes out", "ok", w._replace(sent="new", a_tasks=tasks))
                elif w.ls and w.resp == "200":
                    yield Step("S: 200", "ok", self.done(w._replace(ls=0, resp="-"), "A", task, "UploadAccepted"))
                if (w.ls and w.resp == "500") or not (w.ls and w.ld):
                    yield Step("S: anything but a 200", "ok", self.done(w._replace(ls=0), "A", task, "UploadUnsure"))
            case Effect.CUT_UPLOAD:
                if not any(other.startswith("send_archive") for other in w.a_tasks):
                    yield Step("S: the upload is gone", "ok", self.done(w, "A", task, "UploadCut"))
            case Effect.RESTORE_SERVER:
                yield Step("S: starts the server again", "ok", self.done(start(w, "A"), "A", task, "ServerRestored"))
            case Effect.TRASH_DEPARTED:
                yield from self._trashing(w, "A", task, "CleanedUp", state)
            case Effect.HOLD_SLOT:  # TIMED-2
                may_land = "tell_success:out" in " ".join(w.b_tasks) or w.b_succ or w.ld or w.w == "busy"
                promised = state.past_point and state.status is not Status.COMPLETED and not w.ls
                if not w.a_stray and not (promised and may_land):
                    yield Step("S: nothing can land any more", "ok", self.done(w, "A", task, "HoldOver"))
            case Effect.TELL_FAILURE | Effect.ASK_OWNER:
                yield from self._call(w, "A", task, state)
            case other:
                yield Step(f"S: {other}", "ok", w._replace(wrong=f"the source is to {other}"))

    def _destination_effect(self, w: World, task: str) -> Iterator[Step]:
        effect, phase = task.split(":", 1)
        state = self.destination(w)
        assert state is not None
        whim = w._replace(user=w.user - 1) if w.user else w
        less = w._replace(loss=w.loss - 1) if w.loss else w
        match Effect(effect):
            case Effect.ADMIT:
                if self.old_panel or w.t1 == "active":
                    yield Step("D: D2 admitted", "ok", self.done(w, "B", task, "Admitted"))
                elif w.t1 in ("failed", "void"):
                    silent = self.done(w, "B", task, "AdmissionFailed, silent")
                    yield Step("D: D2 the panel does not know the transfer", "ok", silent)
                if not w.ld:
                    yield Step("D: D8 gone before it was admitted", "ok", self.done(w, "B", task, "AdmissionFailed"))
                elif w.user:
                    yield Step("D: D8 no room", "user", self.done(whim, "B", task, "AdmissionFailed"))
            case Effect.RECEIVE:
                if w.sent != "-" and w.ld:
                    staged = self.done(w._replace(bs=w.sent), "B", task, "BodyVerified")
                    yield Step("D: the body is verified and in staging", "ok", staged)
                if not w.ld:
                    yield Step("D: D8 cut inside the body", "ok", self.done(w, "B", task, "ReceiptFailed"))
                elif w.user:
                    yield Step("D: D8 a bad body", "user", self.done(whim, "B", task, "ReceiptFailed"))
            case Effect.STOP_RECEIPT:
                tasks = tuple(other for other in w.b_tasks if not other.startswith(_RECEIPT))
                stopped = self.done(w._replace(b_tasks=tasks), "B", task, "ReceiptStopped")
                yield Step("D: the receipt is stopped", "ok", stopped)
            case Effect.PREPARE:
                yield Step("D: D4 prepared", "ok", self.done(w, "B", task, "Prepared"))
                if w.user:
                    yield Step("D: D4 not prepared", "user", self.done(whim, "B", task, "PrepareFailed"))
            case Effect.COMMIT:
                if phase == "new":
                    new = w._replace(b_tasks=swap(w.b_tasks, task, "commit:renamed"))
                    if w.bs != "-":
                        new = trash(new, "B")._replace(bv=w.bs, bs="-")
                    yield Step("D: D5 renamed", "ok", new)
                else:
                    yield Step("D: D5 committed", "ok", self.done(w, "B", task, "Committed"))
                if w.loss:
                    yield Step("D: D5 the disk refuses", "fault", self.done(less, "B", task, "CommitFailed"))
            case Effect.ACTIVATE:
                yield Step("D: D7 active", "ok", self.done(start(w, "B"), "B", task, "Activated"))
            case Effect.DISCARD:
                yield from self._trashing(w, "B", task, "Discarded", state)
                if w.loss:
                    yield Step("D: the disk refuses", "fault", self.done(less, "B", task, "DiscardFailed"))
            case Effect.REMOVE_STAGING:
                if state.in_doubt:
                    w = w._replace(wrong="staging is removed while in doubt")
                yield Step("D: D8 staging removed", "ok", self.done(w._replace(bs="-"), "B", task, "CleanedUp"))
            case Effect.HOLD_SLOT:  # TIMED-2
                if not (w.b_succ or w.b_fail or w.w == "busy"):
                    yield Step("D: nothing can land any more", "ok", self.done(w, "B", task, "HoldOver"))
            case Effect.TELL_FAILURE | Effect.TELL_SUCCESS | Effect.ASK_OWNER:
                yield from self._call(w, "B", task, state)
            case other:
                yield Step(f"D: {other}", "ok", w._replace(wrong=f"the destination is to {other}"))

    def _trashing(self, w: World, node: str, task: str, outcome: str, state: State) -> Iterator[Step]:
        effect, phase = task.split(":", 1)
        who = _CALLER[node]
        if phase == "moved":
            yield Step(f"{who}: {effect} is done", "ok", self.done(w, node, task, outcome))
            return
        if state.in_doubt:
            w = w._replace(wrong="a volume goes to trash while in doubt")
        new = trash(w, node)
        tasks = swap(w.a_tasks if node == "A" else w.b_tasks, task, f"{effect}:moved")
        new = new._replace(a_tasks=tasks) if node == "A" else new._replace(b_tasks=tasks)
        yield Step(f"{who}: volume to trash", "ok", new)

    def _call(self, w: World, node: str, task: str, state: State) -> Iterator[Step]:
        """One call to the arbiter: made, landed, answered, heard; given up when late."""
        effect, phase = task.split(":", 1)
        who = _CALLER[node]
        what = effect.removeprefix("tell_")

        def to(world: World, phase: str) -> World:
            if node == "A":
                return world._replace(a_tasks=swap(world.a_tasks, task, f"{effect}:{phase}"))
            return world._replace(b_tasks=swap(world.b_tasks, task, f"{effect}:{phase}"))

        less = w._replace(loss=w.loss - 1) if w.loss else w
        if effect == Effect.ASK_OWNER:
            if phase == "new":
                answer = "listed" if w.owner == node else "not listed"
                yield Step(f"P: oracle to {who}: {answer}", "ok", to(w, answer))
                if w.loss:
                    yield Step(f"{who}: the oracle is silent", "fault", self.done(less, node, task, "OwnerUnanswered"))
            else:
                name = "OwnerListed" if phase == "listed" else "OwnerNotListed"
                yield Step(f"{who}: reads {phase}", "ok", self.done(w, node, task, name))
            return
        early = " early" if w.young else ""
        if phase == "new":
            if state.stage in (Stage.COOLING, Stage.ENDED):
                w = w._replace(wrong="the panel is told something when nothing may be told any more")
            if effect == Effect.TELL_SUCCESS and self.minds_source and not w.ld:
                yield Step("D: D6d the source is gone", "ok", self.done(w, node, task, "SourceGone"))
            else:
                yield Step(f"{who}: calls `{what}`", "ok", to(w, "out" + early))
            return
        kind = what.capitalize()
        if phase.startswith("out"):
            new, yes = land(w, node, what, self.old_panel)
            answer = "yes" if yes else "no" + phase.removeprefix("out")
            yield Step(f"P: `{what}` of {who}: {'2xx' if yes else '409/403'}", "ok", to(new, answer))
            if w.loss:
                stray = {"A": "a_stray", "B": "b_succ" if what == "success" else "b_fail"}[node]
                late = less._replace(**{stray: getattr(w, stray) + 1})
                yield from self._unanswered(late, node, task, kind, state)
            return
        heard = {"yes": "Accepted", "no": "Refused", "no early": "RefusedEarly"}[phase]
        yield Step(f"{who}: hears {heard}", "ok", self.done(w, node, task, kind + heard))
        if w.loss:
            yield from self._unanswered(less, node, task, kind, state)

    def _unanswered(self, w: World, node: str, task: str, kind: str, state: State) -> Iterator[Step]:
        who = _CALLER[node]
        yield Step(f"{who}: `{kind}` is given up", "fault", self.done(w, node, task, f"{kind}Unanswered"))
        if node == "B" and state.stage is Stage.SETTLING:  # D8: a bounded number of tries
            yield Step("D: D8 gives up telling", "fault", self.done(w, node, task, "FailureGivenUp"))
