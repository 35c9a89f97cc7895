# fmt: off
"""Who owns the server: an exhaustive check of the rules S1 to H3 in docs/ARCHITECTURE.md.

One world, first on node A. Transfer 1 moves it A -> B; when that has ended at the panel, an administrator may start transfer 2 of the
same server from its owner to another node (C, or B again, or back to A). Sidecar S is on A, D on B, P is the panel, W an unmodified
node daemon on B (`--only beside`). Every interleaving of their steps is visited, with a bounded number of SIGKILLs, of lost or delayed
messages and of cancels. `world.py`, `nodes.py` and `daemon.py` check the same rules as the table has them; this adds what the table does not
know: a destination that is not ours (stock). Only journaled facts survive a SIGKILL; a request that was out may still land at the panel after it.

  python -m tests.model.ownership_model                     the rules: must find nothing but the one case that waits for a human
  python -m tests.model.ownership_model --off S3b           without one rule: shows the shortest trace that the rule prevents
  python -m tests.model.ownership_model --as-written        a first version of the rules, without those that this model led to
  python -m tests.model.ownership_model --table             every rule switched off in turn: rule -> what it prevents

Simplifications. Timers are fair choices ("60 s are over" may happen at any moment), with three promises between clocks, each named where it
is used: TIMED-1 the panel's own transaction ends within the 30 s of S4; TIMED-2 a call that its sender gave up lands within the quarantine
(S7, D9) or never; TIMED-3 the panel waits for its DELETE before it lets an administrator start transfer 2. Transfer 2 is coarse (active,
sent, ended): it is there to be hit by stray calls of transfer 1. The oracle's answer may be old when it is read.
"""
import argparse
import sys
import time
from array import array
from collections import namedtuple

RULES = {
    "S1": "the point of no return is journaled before the boundary goes out",
    "S2": "before the point: `failure` stays owed, and is journaled as owed, until the panel has answered",
    "S3a": "in doubt the server stays stopped until the panel has answered `failure`",
    "S3b": "`failure` answered 409/403/404: the oracle decides",
    "S3c": "`failure` answered 2xx: the oracle confirms before the server is started",
    "S3d": "200 is confirmed by the oracle too: a stock daemon answers 200 although the panel refused it or never heard it",
    "S4": "`failure` answered 409 within 30 s of our 202 is tried again",
    "S4b": "only the answer to a call that was sent after those 30 s decides",
    "S7": "after a failure past the point, a new transfer is refused while the old destination's `success` can still land",
    "D5": "commit: intent journaled, after a crash roll forward only",
    "D6a": "`success` answered 409/403/404/417: the oracle decides",
    "D4b": "the destination waits out the same 30 s before a 409/403 to one of its calls decides",
    "D6b": "`success` unanswered: do not start",
    "D6c": "`success` answered 2xx: the oracle confirms before the server is started (a second fence behind S7: --off S7,D6c)",
    "D6d": "`success` is sent only while the source's connection is open, never after a restart",
    "D6e": "`not listed` alone ends nothing: close the transfer with `failure`, then ask again",
    "D6f": "what the oracle does not list after that goes to trash; asking for ever is no end",
    "D9": "either end keeps its slot while a panel call of its own can still land",
    "H1": "an answer of the daemon proves nothing: the oracle decides",
    "H2": "the daemon and the volume are touched only after the daemon's answer, or after `failure` closed the transfer",
    "H3": "mending is bounded, then `failure` closes the transfer",
}
AS_WRITTEN = {"S3c", "S3d", "S4b", "D4b", "S7", "D6c", "D6d", "D6e", "D9", "H2", "H3"}

St = namedtuple("St", [
    "owner", "t1", "t2", "src2", "dst2", "dele",             # panel: owner, transfers 1 and 2, DELETE to A under way
    "s", "s_up", "s_call", "s_stray", "young", "owed",       # source: phase, call, `failure` given up but in flight, 30 s, debt
    "ls", "ld", "resp", "sent",                              # upload: S's end open, D's end open, D's answer, all bytes sent
    "d", "d_up", "d_call", "d_succ", "d_fail", "win",        # destination: phase, call, strays, may still call `success`
    "h", "w", "w_call",                                      # hand-over: asked / answered / unknown; daemon; its call
    "av", "at", "bv", "bt", "cv",                            # copies: volume and trash of A and B, volume of C: "-", old, new
    "runA", "runB", "runC",                                  # the rules let this node start the server now
    "crash", "loss", "cancel"])                              # faults left

NODES = "ABC"


def place(node):  # the field that holds a node's volume
    return node.lower() + "v"


def start(st, node):
    """The rules let `node` start the server: from now on every other copy is an old one, and so is one on its way."""
    old = {f: "old" for f in ("av", "at", "bv", "bt", "cv", "sent") if getattr(st, f) == "new" and f != place(node)}
    return st._replace(**old, **{"run" + node: 1})


def trash(st, node):
    """Move the volume to trash, never delete it. An emptier or older trash is not worth keeping in this model."""
    if node == "C": return st._replace(cv="-", runC=0)
    vol, bin_ = place(node), node.lower() + "t"
    if getattr(st, vol) == "-": return st
    best = "new" if "new" in (getattr(st, vol), getattr(st, bin_)) else "old"
    return st._replace(**{vol: "-", bin_: best, "run" + node: 0})


def panel(st, caller, what, old_panel):
    """P: one row per server, one active transfer. Returns (state, accepted). An old panel does not check who calls."""
    if st.t1 == "active" and (old_panel or what == "failure" or caller == "B"):
        if what == "failure": return st._replace(t1="failed"), True
        return st._replace(t1="success", owner="B", dele=1), True
    if st.t2 in ("active", "sent"):
        if what == "failure" and (old_panel or caller in (st.src2, st.dst2)): return t2_end(st, False), True
        if what == "success" and (old_panel or caller == st.dst2): return t2_end(st, True), True
    return st, False


def t2_end(st, success):
    arrived = st.t2 == "sent"
    st = st._replace(t2="success" if success else "failed")
    if not success: return start(trash(st, st.dst2) if arrived else st, st.src2)
    st = trash(st._replace(owner=st.dst2), st.src2)
    return start(st, st.dst2) if arrived else st


def steps(st, cfg):
    """Every step possible in `st`: (name, kind, next state); kind is ok, fault, user (cancel, transfer 2) or human."""
    on, old_panel, dest = cfg
    daemon, stock = dest in ("beside", "stock"), dest == "stock"
    out = []
    u = st._replace

    def add(name, kind, new):
        out.append((name, kind, new))

    def lose(name, new):  # a message lost, or late: the sender gives it up
        if st.loss: add(name, "fault", new._replace(loss=st.loss - 1))

    # ---- the panel ----------------------------------------------------------------------------------------------------------
    if st.t1 == "tx":
        add("P: transaction commits, transfer 1 is active", "ok", u(t1="active"))
        add("P: rolled back, its 15 s were over just before our 202", "ok", u(t1="void"))
    for field, caller, what in (("s_stray", "A", "failure"), ("d_succ", "B", "success"), ("d_fail", "B", "failure")):
        if getattr(st, field):
            new, yes = panel(u(**{field: 0}), caller, what, old_panel)
            add(f"P: a late `{what}` of {caller} lands: {'2xx' if yes else '409/403'}", "ok", new)
            add(f"P: a late `{what}` of {caller} never arrives", "ok", u(**{field: 0}))
    for field, caller in (("s_call", "A"), ("d_call", "B"), ("w_call", "B")):
        call = getattr(st, field)
        who = {"s_call": "S", "d_call": "D", "w_call": "W"}[field]
        if call in ("F?", "S?"):
            what = "failure" if call == "F?" else "success"
            new, yes = panel(st, caller, what, old_panel)
            add(f"P: `{what}` of {who}: {'2xx' if yes else '409/403'}", "ok", new._replace(**{field: call[0] + "-+"[yes]}))
        elif call in ("q", "Q"):
            listed = st.owner == caller
            add(f"P: oracle to {who}: {'listed' if listed else 'not listed'}", "ok", u(**{field: call + "-+"[listed]}))
    if st.dele:  # S5: the panel's DELETE moves the volume to trash; what is not up misses it
        if st.s_up:
            new = trash(u(dele=0), "A")
            if st.s in ("doubt", "tell"): new = new._replace(s="completed", s_call="-", s_stray=int(st.s_stray or st.s_call == "F?"))
            add("S: S5 DELETE from the panel: volume to trash", "ok", new)
            lose("P: DELETE to A is lost", u(dele=0))
        else: add("P: DELETE to A finds nobody", "ok", u(dele=0))

    # ---- transfer 2: TIMED-3 ------------------------------------------------------------------------------------------------
    if st.t2 == "-" and st.t1 in ("failed", "success", "void") and not st.dele:
        late_success = st.win or st.d_succ or "S?" in (st.d_call, st.w_call) or st.w == "busy"
        if st.owner == "A":  # S7, D9: S answers 409 to the new transfer while a call of the old one can still land (TIMED-2)
            free = st.s == "failed" and st.s_up and st.runA and not st.owed and not ("D9" in on and (st.s_stray or st.s_call != "-"))
            free = free and not ("S7" in on and st.sent != "-" and late_success)
        else:                # D9 the same at the destination that became a source
            free = st.d == "ours" and st.d_up and st.runB and not ("D9" in on and (st.d_succ or st.d_fail or st.w == "busy"))
        for dst in NODES:
            if free and dst != st.owner:
                add(f"P: transfer 2 {st.owner} -> {dst} is started", "user", u(t2="active", src2=st.owner, dst2=dst, **{"run" + st.owner: 0}))
    if st.t2 == "active":
        add("P: transfer 2 fails", "ok", t2_end(st, False))
        if {"A": st.s in ("completed", "failed") and st.s_up and not st.owed, "B": st.d == "failed" and st.d_up, "C": True}[st.dst2]:
            add("T2: all bytes arrived and committed", "ok", trash(st, st.dst2)._replace(t2="sent", **{place(st.dst2): "new"}))
    if st.t2 == "sent":
        add("P: transfer 2 succeeds", "ok", t2_end(st, True))
        add("P: transfer 2 fails", "ok", t2_end(st, False))

    # ---- the upload's connection: each end notices in its own time -----------------------------------------------------------
    if st.ls and st.ld:
        lose("link: cut, S sees it first", u(ls=0))
        lose("link: cut, D sees it first", u(ld=0, win=0 if "D6d" in on else st.win))
    elif st.ld and st.d_up: add("D: sees that the connection is gone", "ok", u(ld=0, win=0 if "D6d" in on else st.win))
    if st.win and not st.ld and "D6d" not in on: add("D: D6 60 s are over", "ok", u(win=0))

    # ---- the source ---------------------------------------------------------------------------------------------------------
    early = ("S4b" in on and st.s_call in ("F?", "F-")) or ("D4b" in on and st.d_call in ("S?", "S-", "F?", "F-"))
    if st.young and st.t1 != "tx" and not early:  # TIMED-1; a call sent early is answered early
        add("timer: S4, D6 30 s since the 202 are over", "ok", u(young=0))

    def fail_at_once():  # S2: cut, start again, owe the panel a `failure`
        return start(u(s="failed", owed=1, ls=0, s_up=1), "A")

    def in_doubt():      # S3: the outcome is unknown: ask the panel to fail it
        new = u(s="tell", ls=0, s_up=1)
        return new if "S3a" in on else start(new, "A")

    if st.s_up:
        if st.s == "send":
            if st.ls: add("S: S1 point of no return: journal it, send the boundary", "ok", u(s="doubt", sent="new"))
            if not (st.ls and st.ld) or st.resp != "-": add("S: S2 failed before the point, started again", "ok", fail_at_once())
            if st.cancel: add("S: S2 cancelled before the point, started again", "user", fail_at_once()._replace(cancel=st.cancel - 1))
        elif st.s == "doubt":
            if st.s_call == "-" and st.ls and st.resp == "200":
                add("S: S3 200", "ok", u(s_call="Q", resp="-") if "S3d" in on else u(s="completed", resp="-"))
            if st.s_call == "Q-": add("S: S3 200 and not listed: completed", "ok", u(s="completed", s_call="-"))
            if st.s_call == "Q+": add("S: S3 200 but still listed: in doubt", "ok", in_doubt()._replace(s_call="-"))
            if st.ls and st.resp == "500": add("S: S3 not 200: in doubt", "ok", in_doubt()._replace(resp="-"))
            if st.s_call == "-" and not (st.ls and st.ld): add("S: S3 connection lost: in doubt", "ok", in_doubt())
            if st.cancel and st.s_call == "-": add("S: S3 cancel after the point: in doubt", "user", in_doubt()._replace(cancel=st.cancel - 1))
        if (st.s == "tell" or st.owed) and st.s_call == "-": add("S: calls `failure`", "ok", u(s_call="F?"))
        if st.s_call in ("F?", "F+", "F-"): lose("S: `failure` or its answer is lost", u(s_call="-"))
        if st.s_call == "F?": lose("S: `failure` is late, given up", u(s_call="-", s_stray=1))
        if st.s_call == "F-" and st.young and "S4" in on: add("S: S4 409 within 30 s: again", "ok", u(s_call="-"))
        elif st.s_call in ("F+", "F-"):
            if st.s == "failed": add("S: S2 the panel knows", "ok", u(s_call="-", owed=0))
            elif (st.s_call == "F+" and "S3c" in on) or (st.s_call == "F-" and "S3b" in on): add("S: S3 asks the oracle", "ok", u(s_call="Q"))
            else: add("S: S3 takes that for: failed, ours, started", "ok", start(u(s="failed", s_call="-"), "A"))
        if st.s_call == "Q+" and st.s == "tell": add("S: S3 listed: failed, ours, started", "ok", start(u(s="failed", s_call="-"), "A"))
        if st.s_call == "Q-" and st.s == "tell": add("S: S3 not listed: completed", "ok", u(s="completed", s_call="-"))
        if st.at != "-" and st.s in ("completed", "failed"): add("S: retention over, deletes trash", "ok", u(at="-"))
        if st.crash:
            add("S: SIGKILL", "fault", u(s_up=0, ls=0, s_call="-", s_stray=int(st.s_stray or st.s_call == "F?"), crash=st.crash - 1,
                                         owed=st.owed if "S2" in on else 0))
    elif st.s == "send" or (st.s == "doubt" and "S1" not in on): add("S: restart: S2 journal says before the point", "ok", fail_at_once())
    elif st.s == "doubt": add("S: restart: S3 in doubt", "ok", in_doubt())
    else: add("S: restart", "ok", u(s_up=1))

    # ---- the destination ----------------------------------------------------------------------------------------------------
    def failing():  # D8: before commit: remove staging, tell the panel
        return u(d="failing", d_call="-", bv="-", d_up=1)

    def ours():
        new = u(d="ours", d_call="-", resp="200" if st.ld else "-")
        return new if daemon else start(new, "B")

    def not_ours():  # D8: after commit: to trash, the daemon forgets the server first
        return trash(u(d="failed", d_call="-", resp="500" if st.ld else "-", win=0, w="-", w_call="-",
                       d_succ=int(st.d_succ or st.w_call == "S?")), "B")

    if st.d_up:
        if st.d == "idle":
            if st.ld and (old_panel or st.t1 == "active"): add("D: D1, D2 slot taken, panel's configuration read", "ok", u(d="receiving"))
            if not st.ld or (not old_panel and st.t1 in ("void", "failed")): add("D: D2 refused", "ok", u(d="failed", resp="500", win=0))
        elif st.d == "receiving":
            if st.sent != "-" and st.ld: add("D: body complete and verified in staging", "ok", u(d="staged", bv=st.sent))
            if not st.ld: add("D: D8 cut inside the body", "ok", failing())
        elif st.d == "staged": add("D: D4, D5 prepared; commit: intent journaled", "ok", u(d="intent"))
        elif st.d == "intent": add("D: D5 renamed, journaled done", "ok", u(d="committed"))
        if st.d in ("receiving", "staged") and st.cancel:
            add("D: D8 cancelled, or preparing failed", "user", failing()._replace(cancel=st.cancel - 1))
        if st.d == "failing":
            if st.d_call == "-": add("D: D8 calls `failure`", "ok", u(d_call="F?"))
            if st.d_call in ("-", "F+", "F-"):
                add("D: D8 told or given up: failed", "ok", u(d="failed", d_call="-", resp="500" if st.ld else "-", win=0))
        if st.d == "committed":
            if st.d_call == "-" and not daemon and st.win: add("D: D6 calls `success`", "ok", u(d_call="S?"))
            elif st.d_call == "-" and (not st.win if not daemon else st.h in ("answered", "unknown") or (st.h == "-" and not st.win)):
                add("D: D6 asks the oracle", "ok", u(d_call="q"))
            elif st.d_call == "-" and daemon and st.h == "-" and st.owner == "B": add("D: H listed already: ours", "ok", ours())
            elif st.d_call == "-" and daemon and st.h == "-":
                if old_panel or st.t1 == "active": add("D: H hands over; the daemon calls `success`", "ok", u(h="asked", w="busy", w_call="S?"))
                else: add("D: H hands over; the panel refuses the daemon", "ok", u(h="answered"))
            if st.d_call == "S+": add("D: D6 2xx", "ok", u(d_call="Q") if "D6c" in on else ours())
            if st.d_call in ("S-", "F-") and st.young and "D4b" in on: add("D: D6 409 within 30 s: again", "ok", u(d_call="-"))
            elif st.d_call == "S-": add("D: D6 409/403", "ok", u(d_call="Q") if "D6a" in on else not_ours())
            if st.d_call in ("q+", "Q+"): add("D: D6 listed: ours", "ok", ours())
            if st.d_call == "Q-": add("D: D6 not listed, transfer closed: volume to trash, failed", "ok", not_ours())
            if st.d_call == "q-":
                mend_now = daemon and (st.h == "answered" or (st.h == "unknown" and "H2" not in on))
                if mend_now and (st.ld or st.h == "unknown" or "H3" not in on):
                    add("D: H mends: volume aside, daemon forgets, volume back", "ok",
                        u(d_call="-", h="-", w="-", w_call="-", runB=0, d_succ=int(st.d_succ or st.w_call == "S?"), win=1))
                if mend_now and "H3" not in on: pass
                elif "D6f" not in on: add("D: D6 not listed: asks again", "ok", u(d_call="-"))
                elif "D6e" not in on: add("D: D6 not listed: volume to trash, failed", "ok", not_ours())
                else: add("D: D6 not listed: closes the transfer with `failure`", "ok", u(d_call="F?"))
            if st.d_call == "F+" or (st.d_call == "F-" and not (st.young and "D4b" in on)):
                add("D: D6 answered, asks the oracle again", "ok", u(d_call="Q"))
        if st.d_call in ("S?", "S+", "S-", "F?", "F+", "F-"):
            new = u(d_call="-")
            if st.d_call[0] == "S" and "D6b" not in on: new = start(new, "B")
            lose("D: its call or the answer is lost", new)
            if st.d_call[1] == "?": lose("D: its call is late, given up", new._replace(**{"d_succ" if st.d_call == "S?" else "d_fail": 1}))
        if st.h == "asked" and st.w != "busy": add("D: H the daemon answered", "ok", ours() if stock or "H1" not in on else u(h="answered"))
        if st.bt != "-" and st.d in ("ours", "failed"): add("D: retention over, deletes trash", "ok", u(bt="-"))
        if st.crash and not stock:
            add("D: SIGKILL", "fault", u(d_up=0, ld=0, d_call="-", crash=st.crash - 1, h="unknown" if st.h == "asked" else st.h,
                                         win=int("D6d" not in on and st.d not in ("ours", "failed")),
                                         d_succ=int(st.d_succ or st.d_call == "S?"), d_fail=int(st.d_fail or st.d_call == "F?")))
    elif st.d in ("idle", "receiving", "staged") or (st.d in ("intent", "committed") and "D5" not in on):
        add("D: restart: D8 before commit: deletes staging", "ok", failing())
    else: add("D: restart: D5 rolls forward", "ok", u(d_up=1))

    # ---- the daemon on B ----------------------------------------------------------------------------------------------------
    if st.w_call == "S+": add("W: panel said 2xx: holds the server as running", "ok", start(u(w="holds", w_call="-"), "B"))
    if st.w_call == "S-": add("W: panel said 409: holds it as transferring", "ok", u(w="stuck", w_call="-"))
    if st.w == "busy":
        lose("W: `success` or its answer is lost: holds it as transferring", u(w="stuck", w_call="-"))
        if st.w_call == "S?": lose("W: `success` is late, given up: holds it as transferring", u(w="stuck", w_call="-", d_succ=1))
    if daemon and st.d == "ours" and st.w in ("-", "stuck") and st.owner == "B" and st.t2 == "-" and st.w_call == "-":
        add("W: restarted by the operator (daemon_restart_needed)", "human", start(u(w="holds"), "B"))
    return out


def broken(st, stock):
    """The invariants; None where all hold. A stock destination's verdict is not ours to keep."""
    runs = st.runA + st.runB + st.runC
    volume = getattr(st, place(st.owner))
    if runs > 1: return "I1 two nodes may run the server"
    if any(getattr(st, "run" + n) and n != st.owner for n in NODES): return "I1 a node may run what the panel gives to another"
    if any(getattr(st, "run" + n) and getattr(st, place(n)) != "new" for n in NODES): return "I4 a stale or missing copy may run"
    if "new" not in (st.av, st.at, st.bv, st.bt, st.cv): return "I2 no complete current copy is left"
    if volume != "new":
        return "I2 the panel's owner has no copy in place (only trash, or another node, has it)" if volume == "-" else \
            "I4 the panel's owner has a stale copy"
    if (st.s == "completed" and st.t1 != "success") or (st.s == "failed" and st.t1 == "success"):
        return "I5 the source's verdict contradicts the panel"
    if not stock and ((st.d == "ours" and st.t1 != "success") or (st.d == "failed" and st.t1 == "success")):
        return "I5 the destination's verdict contradicts the panel"
    return None


def settled(st):
    return (st.s in ("completed", "failed") and st.d in ("ours", "failed") and st.s_up and st.d_up and not st.owed
            and st.t1 in ("success", "failed", "void") and st.t2 in ("-", "success", "failed") and getattr(st, "run" + st.owner))


FIRST = St(owner="A", t1="tx", t2="-", src2="-", dst2="-", dele=0, s="send", s_up=1, s_call="-", s_stray=0, young=1, owed=0,
           ls=1, ld=1, resp="-", sent="-", d="idle", d_up=1, d_call="-", d_succ=0, d_fail=0, win=1, h="-", w="-", w_call="-",
           av="new", at="-", bv="-", bt="-", cv="-", runA=0, runB=0, runC=0, crash=2, loss=3, cancel=1)


def check(on, old_panel, dest, first=FIRST, until_found=False):
    """Breadth first over all states. Returns (number of states, {kind: shortest trace}). `until_found`: the first finding ends it."""
    cfg, code, values = (on, old_panel, dest), {}, []

    def pack(st):
        try:
            return bytes([code[v] for v in st])
        except KeyError:
            for v in st:
                if v not in code:
                    code[v] = len(values)
                    values.append(v)
            return pack(st)

    key = pack(first)
    number, keys, parent, via, names = {key: 0}, [key], array("L", [0]), array("H", [0]), {"start": 0}
    edges = {"ok": (array("L"), array("L")), "human": (array("L"), array("L"))}
    found, good = {}, []

    def trace(i, *last):
        label = list(names)
        lines = list(last)
        while i:
            lines.insert(0, label[via[i]])
            i = parent[i]
        return lines

    i = 0
    while i < len(keys):
        st = St(*[values[b] for b in keys[i]])
        wrong = broken(st, dest == "stock")
        if wrong:
            found.setdefault(wrong, trace(i))
            if until_found: return len(keys), found
            i += 1
            good.append(i - 1)  # reported already: not a second time as a dead end
            continue
        if settled(st): good.append(i)
        for name, kind, new in steps(st, cfg):
            node = {"S": "A", "D": "B"}.get(name[0])
            if "deletes" in name and st.owner == node and getattr(new, place(node)) != "new":
                found.setdefault("I3 a node deletes what the panel says it owns", trace(i, name))
            if "mends" in name and st.runB: found.setdefault("I3 a node moves the volume of a running server", trace(i, name))
            key = pack(new)
            j = number.get(key)
            if j is None:
                j = number[key] = len(keys)
                keys.append(key)
                parent.append(i)
                via.append(names.setdefault(name, len(names)))
            if kind in edges:
                edges[kind][0].append(i)
                edges[kind][1].append(j)
        i += 1
    for kinds, what in ((("ok",), "L waits for a human"), (("ok", "human"), "L can never end")):
        back = {}
        for kind in kinds:
            for a, b in zip(*edges[kind]): back.setdefault(b, []).append(a)
        alive, todo = bytearray(len(keys)), list(good)
        for g in good: alive[g] = 1
        while todo:
            for a in back.get(todo.pop(), ()):
                if not alive[a]:
                    alive[a] = 1
                    todo.append(a)
        for dead in (n for n in range(len(keys)) if not alive[n]):
            if any(kind.startswith(what) for kind in found): break
            st = St(*[values[b] for b in keys[dead]])
            remedy = st.owner == "B" and st.w != "holds" and dest != "alone"
            if kinds == ("ok",) and remedy: found.setdefault(what + ": B owns the server, its daemon does not hold it", trace(dead))
            elif kinds != ("ok",): found.setdefault(f"{what}: source {st.s}, destination {st.d}", trace(dead))
    return len(keys), found


CONFIGS = {f"{panel} panel, {dest} destination": (panel == "old", dest) for panel in ("new", "old") for dest in ("alone", "beside", "stock")}


def main():
    arg = argparse.ArgumentParser(description="Checks the rules of who owns a server.")
    arg.add_argument("--off", default="", help="rules to switch off, by comma")
    arg.add_argument("--as-written", action="store_true", help="a first version of the rules")
    arg.add_argument("--table", action="store_true", help="each rule switched off in turn")
    arg.add_argument("--only", default="", help="configurations whose name contains this: " + "; ".join(CONFIGS))
    arg.add_argument("--faults", default="2,2,1", help="SIGKILLs, lost messages, cancels")
    opt = arg.parse_args()
    off = AS_WRITTEN if opt.as_written else set(filter(None, opt.off.split(",")))
    if off - set(RULES): arg.error("unknown rule; known: " + ", ".join(RULES))
    crash, loss, cancel = map(int, opt.faults.split(","))
    total, safe = 0, True
    for rule in RULES if opt.table else [None]:
        seen = {}
        for name, (old_panel, dest) in CONFIGS.items():
            if opt.only not in name: continue
            began = time.monotonic()
            count, found = check(set(RULES) - off - {rule}, old_panel, dest, FIRST._replace(crash=crash, loss=loss, cancel=cancel))
            total += count
            if not opt.table: print(f"{name}: {count} states, {time.monotonic() - began:.0f} s, {len(found)} findings", flush=True)
            for kind, lines in found.items():
                if opt.table and kind.startswith("L waits"): continue
                if kind not in seen or len(lines) < len(seen[kind][1]): seen[kind] = name, lines
        if rule: print(f"\n== {rule}: {RULES[rule]}\n   {'prevents:' if seen else 'nothing found without it'}", flush=True)
        for kind, (name, lines) in seen.items():
            print(f"   {kind} [{name}]\n      " + "\n      ".join(lines), flush=True)
            safe = safe and kind.startswith("L waits")
    print(f"{total} states in all")
    return 0 if safe else 1


if __name__ == "__main__": sys.exit(main())
