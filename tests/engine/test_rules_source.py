"""The rules of ownership at the source (S1 to S7), each in a test that names it: a real node, a panel, strangers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sidecar.adapters.panel_http import HttpPanel
from sidecar.demo.panel import TransferNotStarted
from sidecar.engine.contract import StartTransfer
from sidecar.engine.services import Sending
from sidecar.errors import HostFailed, Refused
from sidecar.lifecycle.statuses import Role
from sidecar.ports import Verdict
from tests.engine.pair import PAIR, Pair, forget_after, journal_of, records_of, running_pair, soon
from tests.engine.rig import SERVER, api, token_of, transfer_token, tree_of
from tests.engine.strangers import Behaviour, Received, Stranger, answering, stranger

END_OF_PART = b"\r\n--"
IMPATIENT = Sending(stall_timeout_s=0.3, connect_timeout_s=0.5, answer_timeout_s=0.3)


@asynccontextmanager
async def to_a_stranger(
    tmp_path: Path, behave: Behaviour | None = None, *, probe: bytes = b"", **options: Any
) -> AsyncIterator[tuple[Pair, Stranger]]:
    """A real a, and a b that only the panel takes for a node."""
    async with stranger(behave, probe=probe) as b, running_pair(tmp_path, nodes=("a",), **options) as pair:
        pair.panel.add_node("b", token_id="id-b", token=token_of("b"), url=b.url)
        yield pair, b


def is_ours_again(pair: Pair, reason: str | None = None, status: str = "failed") -> None:
    """The server is on a, whole and running, and the panel knows of no transfer."""
    left = pair.a.node.view(SERVER)
    assert left is not None and left.status == status and left.reason in (reason, left.reason if reason is None else "")
    assert pair.panel.owner(SERVER) == "a" and pair.panel.transfer(SERVER) is None
    assert SERVER in pair.a.runtime.running and tree_of(pair.a.volume()) == pair.world and pair.a.trash() == []


def is_in_doubt(pair: Pair) -> None:
    """S3: the server stays stopped, its files untouched, and whoever looks sees it."""
    left = pair.a.node.view(SERVER)
    assert left is not None and left.in_doubt and not left.status.is_final
    assert SERVER not in pair.a.runtime.running and tree_of(pair.a.volume()) == pair.world


def test_s1_the_point_is_on_disk_before_the_boundary_goes_out(tmp_path: Path) -> None:
    """S1: the point is journaled and fsynced, and only then do the end-of-archive blocks and the boundary go out."""
    seen: list[bool] = []

    async def scenario() -> None:
        async def behave(upload: Received) -> None:
            await upload.read_to(END_OF_PART, skip=200)
            seen.append(any(record.state.past_point for record in records_of(pair.a)))
            await upload.read_all()
            await upload.answer("500 no")

        async with to_a_stranger(tmp_path, behave) as (pair, _):
            await pair.move()
            await pair.a.settled()
            assert seen == [True]
            is_ours_again(pair, "peer.status")

    asyncio.run(scenario())


@pytest.mark.parametrize("how", ["verify_stopped", "cancel"])
def test_s1_what_is_given_up_before_the_point_is_cut_inside_the_part(tmp_path: Path, how: str) -> None:
    """S1: to give up before the point: cut the connection inside the part, never end the body politely."""

    async def scenario() -> None:
        async def behave(upload: Received) -> None:
            await upload.read_all()
            await upload.answer("200 OK")

        async with to_a_stranger(tmp_path, behave, big_bytes=40_000_000 if how == "cancel" else 100_000) as (pair, b):
            if how == "verify_stopped":
                pair.a.runtime.trouble[how] = [HostFailed("server.started_outside", "it runs")]
            await pair.move()
            if how == "cancel":
                await soon(lambda: b.uploads and b.uploads[0].body)
                await pair.a.node.cancel(SERVER, Role.SOURCE)
            await pair.a.settled()
            await soon(lambda: b.uploads[0].is_cut)
            assert bytes(b.uploads[0].body).count(END_OF_PART) <= 1  # the boundary that opens the part
            assert b'name="checksum' not in b.uploads[0].body
            assert not any(record.state.past_point for record in records_of(pair.a))
            is_ours_again(pair, None, "cancelled" if how == "cancel" else "failed")

    asyncio.run(scenario())


def test_s1_a_server_that_is_started_while_it_is_sent_fails_the_transfer(tmp_path: Path) -> None:
    """S1: before the point the container is verified not running and not replaced."""

    async def scenario() -> None:
        async with to_a_stranger(tmp_path, answering("200 OK"), big_bytes=40_000_000) as (pair, b):
            await pair.move()
            await soon(lambda: b.uploads and b.uploads[0].body)
            pair.a.runtime.start_from_outside(SERVER)
            await pair.a.settled()
            is_ours_again(pair, "server.started_outside")
            assert b'name="checksum' not in b.uploads[0].body

    asyncio.run(scenario())


@pytest.mark.parametrize("fault", ["500", "503", "drop-before", "delay:1"])
def test_s2_a_failure_is_owed_until_the_panel_has_answered(tmp_path: Path, fault: str) -> None:
    """S2: before the point a failure is final at once: the server runs again; the debt is retried until answered, and
    the slot is held until then. Symptom: server locked "transferring" for ever after a failed panel callback."""

    async def scenario() -> None:
        async def behave(upload: Received) -> None:
            upload.reset()

        async with to_a_stranger(tmp_path, behave, big_bytes=20_000_000) as (pair, b):
            pair.panel.script("failure", *[fault] * 3, "hold")
            await pair.move()
            await soon(lambda: SERVER in pair.a.runtime.running, "the start")
            view = await pair.a.stage("settling")
            assert view.status == "failed"
            with pytest.raises(Refused):
                await pair.a.node.start(_request(b), caller=None, respond_async=False)
            assert pair.panel.transfer(SERVER) is not None
            await soon(lambda: len(pair.panel.calls_of("failure")) >= 3)
            pair.panel.release()
            await soon(lambda: pair.panel.transfer(SERVER) is None)
            await pair.a.settled()
            is_ours_again(pair)

    asyncio.run(scenario())


def test_s2_the_debt_survives_a_restart(tmp_path: Path) -> None:
    """S2: the debt is journaled and retried until answered, across restarts."""

    async def scenario() -> None:
        async def behave(upload: Received) -> None:
            upload.reset()

        async with to_a_stranger(tmp_path, behave, big_bytes=20_000_000) as (pair, b):
            pair.panel.script("failure", "drop-before", "500")
            await pair.move()
            await soon(lambda: len(pair.panel.calls_of("failure")) == 2)
            await pair.server.stop()
            await pair.restart("a")
            await pair.a.stage("settling")
            with pytest.raises(Refused):
                await pair.a.node.start(_request(b), caller=None, respond_async=False)
            await pair.server.start()
            await pair.a.settled()
            is_ours_again(pair)

    asyncio.run(scenario())


async def _never(upload: Received) -> None:
    await upload.read_all()
    await upload.wait_hang_up()


async def _reset(upload: Received) -> None:
    await upload.read_all()
    upload.reset()


async def _close(upload: Received) -> None:
    await upload.read_all()


DOUBTS: list[tuple[str, Behaviour, str]] = [
    ("reset", _reset, "peer.reset"),
    ("closed", _close, "peer.reset"),
    ("never", _never, "peer.no_answer"),
    *[
        (status, answering(status), reason)
        for status, reason in [
            ("204 No Content", "peer.status"),
            ("302 Found", "peer.redirect"),
            ("401 Unauthorized", "peer.status"),
            ("409 Conflict", "peer.status"),
            ("413 Payload Too Large", "peer.proxy"),
            ("417 Expectation Failed", "peer.status"),
            ("500 Internal Server Error", "peer.status"),
            ("502 Bad Gateway", "peer.proxy"),
            ("524 A Timeout Occurred", "peer.proxy"),
        ]
    ],
]


@pytest.mark.parametrize(("behave", "reason"), [pytest.param(b, r, id=name) for name, b, r in DOUBTS])
def test_s3a_anything_but_a_200_is_in_doubt_until_the_panel_has_answered(
    tmp_path: Path, behave: Behaviour, reason: str
) -> None:
    """S3a: anything but a 200 (other status, EOF, reset, stall): tell the panel `failure`, and stay stopped until it
    has answered. Symptom: the source ignored the destination's status code; 413, 502, 524 name the proxy."""

    async def scenario() -> None:
        async with to_a_stranger(tmp_path, behave, sending=IMPATIENT) as (pair, _):
            pair.panel.script("failure", "drop-before", "500", "hold")
            await pair.move()
            await soon(lambda: len(pair.panel.calls_of("failure")) == 2)
            is_in_doubt(pair)
            pair.panel.release()
            await pair.a.settled()
            is_ours_again(pair, reason)

    asyncio.run(scenario())


@pytest.mark.parametrize("how", ["cancel", "restart"])
def test_s3a_a_cancel_and_our_own_restart_are_in_doubt_too(tmp_path: Path, how: str) -> None:
    """S3a: anything but a 200 (... cancel, our restart): tell the panel `failure`, and stay stopped until answered."""

    async def scenario() -> None:
        async with to_a_stranger(tmp_path, _never, sending=Sending(answer_timeout_s=30)) as (pair, _):
            await pair.move()
            await pair.a.stage("awaiting_verdict")
            await pair.server.stop()
            if how == "cancel":
                await pair.a.node.cancel(SERVER, Role.SOURCE)
            else:
                await pair.restart("a")
            await pair.a.stage("reporting_failure")
            is_in_doubt(pair)
            await pair.server.start()
            await pair.a.settled()
            is_ours_again(pair, None, "cancelled" if how == "cancel" else "failed")

    asyncio.run(scenario())


@pytest.mark.parametrize("how", ["at once", "after a restart", "slowly"])
def test_s3_a_server_that_is_started_in_doubt_is_stopped_again(tmp_path: Path, how: str) -> None:
    """S3: after the point the server stays stopped. A daemon that is restarted brings back what ran, so it is stopped
    again, also by a node that was restarted, and killed where it does not obey; the outcome is as if nothing had been.
    """

    async def scenario() -> None:
        async with to_a_stranger(tmp_path, _never, sending=Sending(answer_timeout_s=30)) as (pair, _):
            await pair.move()
            await pair.a.stage("awaiting_verdict")
            await pair.server.stop()
            if how == "after a restart":
                await pair.restart("a")
                await pair.a.stage("reporting_failure")
            if how == "slowly":
                pair.a.runtime.trouble["stop"] = [HostFailed("server.stop_timeout", "it saves")]
            pair.a.runtime.start_from_outside(SERVER)
            await soon(lambda: SERVER in pair.a.runtime.stopped)
            is_in_doubt(pair)
            if how != "after a restart":
                await pair.a.node.cancel(SERVER, Role.SOURCE)
            await pair.server.start()
            await pair.a.settled()
            is_ours_again(pair, None, "failed" if how == "after a restart" else "cancelled")

    asyncio.run(scenario())


def test_s3a_unreachable_for_ever_until_an_operator_decides(tmp_path: Path) -> None:
    """S3a: unreachable: for ever, shown as such everywhere; an operator can decide by an explicit command."""

    async def scenario() -> None:
        async with to_a_stranger(tmp_path, answering("500 no")) as (pair, _):
            pair.panel.script("failure", *["drop-before"] * 1000)
            await pair.move()
            await soon(lambda: (v := pair.a.node.view(SERVER)) and v.needs)
            is_in_doubt(pair)
            view = (await api(pair.a, "GET", f"/api/servers/{SERVER}/transfer")).json()
            assert "resolve" in view["needs"] and view["in_doubt"]
            path = f"/api/servers/{SERVER}/transfer/resolve"
            assert (await api(pair.a, "POST", path, json={"outcome": "failed"})).status_code < 300
            await soon(lambda: SERVER in pair.a.runtime.running)
            assert (await pair.a.settled()).status == "failed"
            assert (await api(pair.a, "POST", path, json={"outcome": "failed"})).status_code == 409

    asyncio.run(scenario())


async def _success_by_b(pair: Pair) -> None:
    """The destination's own `success`, which the panel accepts; its DELETE is lost."""
    pair.panel.script("delete", "drop-before")
    async with HttpPanel(pair.panel.url, token_id="id-b", token=token_of("b")) as b:
        assert await b.report_success(SERVER) is Verdict.ACCEPTED


def test_s3b_a_failure_that_is_refused_is_followed_by_the_oracle(tmp_path: Path) -> None:
    """S3b: `failure` answered 409/403/404: the oracle decides. Not listed: completed, never start it."""

    async def scenario() -> None:
        async def behave(upload: Received) -> None:
            await upload.read_all()
            await _success_by_b(pair)
            upload.reset()

        async with to_a_stranger(tmp_path, behave) as (pair, _):
            await pair.move()
            left = await pair.a.settled()
            assert [call.status for call in pair.panel.calls_of("failure", "a")][-1] == 409
            assert left.status == "completed" and left.reason is None
            assert SERVER not in pair.a.runtime.running and ("start", SERVER) not in pair.a.runtime.calls
            assert tree_of(pair.a.volume()) == pair.world  # S5: no DELETE came

    asyncio.run(scenario())


def test_s3c_a_failure_that_is_accepted_is_followed_by_the_oracle(tmp_path: Path) -> None:
    """S3c: after any answer to `failure`, 2xx included, ask the oracle. Only "listed" permits a start: a 2xx may have
    ended somebody else's transfer."""

    async def scenario() -> None:
        async def behave(upload: Received) -> None:
            await upload.read_all()
            await _success_by_b(pair)
            pair.panel.assume_transfer(SERVER, "a")  # another transfer, which an old panel lets a's `failure` end
            upload.reset()

        async with to_a_stranger(tmp_path, behave, checks_caller=False) as (pair, _):
            await pair.move()
            left = await pair.a.settled()
            assert [call.status for call in pair.panel.calls_of("failure", "a")] == [204]
            assert left.status == "completed"
            assert SERVER not in pair.a.runtime.running and ("start", SERVER) not in pair.a.runtime.calls

    asyncio.run(scenario())


@pytest.mark.parametrize("oracle", ["500", "drop-before", "403", "body:{}", 'body:{"data":[]}'])
def test_s3c_an_oracle_that_does_not_answer_permits_nothing(tmp_path: Path, oracle: str) -> None:
    """S3c: only "listed" permits a start; an answer that is no answer is asked again."""

    async def scenario() -> None:
        async with to_a_stranger(tmp_path, answering("500 no")) as (pair, _):
            pair.panel.script("list", oracle, oracle, "hold")
            await pair.move()
            await soon(lambda: len(pair.panel.calls_of("list")) == 2)
            await pair.a.stage("asking_owner")
            is_in_doubt(pair)
            pair.panel.release()
            await pair.a.settled()
            is_ours_again(pair, "peer.status")

    asyncio.run(scenario())


def test_s3d_a_200_that_the_panel_does_not_confirm_is_in_doubt(tmp_path: Path) -> None:
    """S3d: 200: ask the oracle too. 200 but listed: in doubt, as S3a (PT and PE answer 200 although the panel refused
    or never heard their `success`)."""

    async def scenario() -> None:
        async with to_a_stranger(tmp_path, answering("200 OK")) as (pair, _):
            pair.panel.script("failure", "hold")
            await pair.move()
            await pair.a.stage("reporting_failure")
            is_in_doubt(pair)
            pair.panel.release()
            await pair.a.settled()
            is_ours_again(pair, "panel.refused")

    asyncio.run(scenario())


def test_s3d_a_200_that_the_panel_confirms_is_completed(tmp_path: Path) -> None:
    """S3d: 200, and not listed: completed; no `failure` is told."""

    async def scenario() -> None:
        async def behave(upload: Received) -> None:
            await upload.read_all()
            await _success_by_b(pair)
            await upload.answer("200 OK")

        async with to_a_stranger(tmp_path, behave) as (pair, _):
            pair.panel.script("list", "500", "drop-before")
            await pair.move()
            left = await pair.a.settled()
            assert left.status == "completed" and pair.panel.calls_of("failure") == []
            assert SERVER not in pair.a.runtime.running

    asyncio.run(scenario())


def test_s3d_a_delete_in_doubt_is_confirmed_by_the_oracle(tmp_path: Path) -> None:
    """S3d: the panel's DELETE of the server: ask the oracle too. Listed: the files stay, in doubt as before."""

    async def scenario() -> None:
        async with to_a_stranger(tmp_path, _never, sending=Sending(answer_timeout_s=30)) as (pair, b):
            await pair.move()
            await pair.a.stage("awaiting_verdict")
            assert (await api(pair.a, "DELETE", f"/api/servers/{SERVER}")).status_code == 204
            await pair.a.settled()
            is_ours_again(pair)
            assert b.uploads[0].is_cut is False  # it had all of it, and was cut while it should have answered

    asyncio.run(scenario())


def test_s4_a_409_within_the_panels_transaction_decides_nothing(tmp_path: Path) -> None:
    """S4: `failure` answered 409 within 30 s of our 202 is tried again; only the answer to a call sent after the 30 s
    decides (panels know of the transfer only after our 202)."""

    async def scenario() -> None:
        async def behave(upload: Received) -> None:
            upload.reset()

        timings = msgspec.structs.replace(PAIR, young_s=0.6)
        async with to_a_stranger(tmp_path, behave, big_bytes=20_000_000, timings=timings) as (pair, b):
            await pair.a.node.start(_request(b), caller=None, respond_async=False)  # the panel is still writing
            await soon(lambda: pair.panel.calls_of("failure"))
            accepted = pair.panel.calls_of("failure")[0].time
            pair.panel.assume_transfer(SERVER, "b")  # now it is in the database
            await pair.a.settled()
            calls = pair.panel.calls_of("failure")
            assert [call.status for call in calls] == [409, 204]
            assert calls[1].time - accepted > 0.3
            is_ours_again(pair)

    asyncio.run(scenario())


def test_s4_a_stranger_hears_of_the_transfer_when_the_panel_has_it(tmp_path: Path) -> None:
    """S4: panels know of the transfer only after our 202. A daemon asks its panel once, as an upload begins, and fails
    on a no: `403 Requesting node does not have permission` where the source was faster than the panel."""

    async def scenario() -> None:
        seen: list[float] = []

        async def behave(upload: Received) -> None:
            seen.append(asyncio.get_running_loop().time())
            await upload.read_all()
            await upload.answer("500 no")

        timings = msgspec.structs.replace(PAIR, panel_commit_s=0.4)
        async with to_a_stranger(tmp_path, behave, timings=timings) as (pair, _):
            await pair.move()
            answered = asyncio.get_running_loop().time()
            await pair.a.settled()
            assert seen[0] - answered > 0.2

    asyncio.run(scenario())


def test_s5_a_delete_before_the_point_cancels_first(tmp_path: Path) -> None:
    """S5: a DELETE before the point is an operator's deletion: it cancels the transfer first."""

    async def scenario() -> None:
        async def behave(upload: Received) -> None:
            await upload.wait_hang_up()

        async with to_a_stranger(tmp_path, behave, big_bytes=40_000_000) as (pair, b):
            await pair.move()
            await soon(lambda: b.uploads)
            assert (await api(pair.a, "DELETE", f"/api/servers/{SERVER}")).status_code == 204
            left = await pair.a.settled()
            assert left.status == "cancelled"
            assert SERVER not in pair.a.runtime.running and not pair.a.volume().exists()
            assert [tree_of(item) for item in pair.a.trash()] == [pair.world]  # the source deletes nothing
            assert pair.panel.transfer(SERVER) is None

    asyncio.run(scenario())


def test_s5_a_delete_while_the_server_is_started_again_leaves_nothing_running(tmp_path: Path) -> None:
    """S5: an operator deletes the server just as a failed transfer starts it again: it is deleted all the same."""

    async def scenario() -> None:
        async def behave(upload: Received) -> None:
            upload.reset()

        async with to_a_stranger(tmp_path, behave, big_bytes=20_000_000) as (pair, _):
            pair.a.runtime.gates["start"] = gate = asyncio.Event()
            await pair.move()
            await soon(lambda: (v := pair.a.node.view(SERVER)) and v.status == "failed")
            deleting = asyncio.create_task(pair.a.node.delete_server(SERVER))
            await asyncio.sleep(0.05)
            gate.set()
            await deleting
            await pair.a.settled()
            assert SERVER not in pair.a.runtime.running | pair.a.runtime.stopped
            assert [tree_of(item) for item in pair.a.trash()] == [pair.world]

    asyncio.run(scenario())


def test_s5_where_the_setting_refuses_deletion_it_is_409(tmp_path: Path) -> None:
    """S5: DELETE answers 204; where the setting refuses it, 409."""

    async def scenario() -> None:
        async with running_pair(tmp_path, refuse_deletion=True) as pair:
            await pair.move()
            left, came = await pair.settled()
            assert (left.status, came.status) == ("completed", "completed")
            assert [call.status for call in pair.panel.calls_of("delete")] == [409]
            assert tree_of(pair.a.volume()) == pair.world and pair.a.trash() == []
            assert pair.check() == "b"

    asyncio.run(scenario())


def test_s5_a_delete_is_done_once(tmp_path: Path) -> None:
    """Symptom: source not deleted, or deleted twice, after success: exactly once, only after success."""

    async def scenario() -> None:
        async with running_pair(tmp_path) as pair:
            await pair.move()
            await pair.settled()
            for _ in range(2):
                assert (await api(pair.a, "DELETE", f"/api/servers/{SERVER}")).status_code == 404
            assert len(pair.a.trash()) == 1
            (pair.a.volume()).mkdir()  # whatever lies there later is not what left
            assert not (await pair.a.node.server(SERVER)).transferred

    asyncio.run(scenario())


@pytest.mark.parametrize("daemon", ["unknown", "calagopus"])
def test_s7_after_a_failure_past_the_point_the_server_is_quarantined(tmp_path: Path, daemon: str) -> None:
    """S7: after a failure past the point, a new transfer of that server is refused (409) for the quarantine: longer
    for CA, which retries for minutes. Counted anew after a restart."""

    async def scenario() -> None:
        probe = b'{"error":"route not found"}' if daemon == "calagopus" else b""
        timings = msgspec.structs.replace(PAIR, quarantine_s=1.0, quarantine_calagopus_s=2.0)
        async with to_a_stranger(tmp_path, answering("500 no"), probe=probe, timings=timings) as (pair, b):
            await pair.move()
            await pair.a.stage("cooling")
            is_ours_again(pair, "peer.status")
            loop = asyncio.get_running_loop()
            with pytest.raises(TransferNotStarted) as caught:
                await pair.move()
            assert caught.value.status == 409 and "can still land" in caught.value.body
            await asyncio.sleep(0.3)
            began = loop.time()
            await pair.restart("a")
            await pair.a.settled()
            wanted = 2.0 if daemon == "calagopus" else 1.0
            assert wanted - 0.1 < loop.time() - began < wanted + 2.0
            await pair.move()
            await soon(lambda: len(b.uploads) == 2)

    asyncio.run(scenario())


def test_d9_the_source_keeps_its_slot_while_a_call_it_gave_up_can_land(tmp_path: Path) -> None:
    """D9: either end keeps its slot while a panel call that it gave up can still land (one call's time-out)."""

    async def scenario() -> None:
        async def behave(upload: Received) -> None:
            upload.reset()

        async with to_a_stranger(tmp_path, behave, big_bytes=20_000_000) as (pair, b):
            pair.panel.script("failure", "drop-before")
            await pair.move()
            await pair.a.stage("cooling")
            with pytest.raises(Refused) as caught:
                await pair.a.node.start(_request(b), caller=None, respond_async=False)
            assert caught.value.code == "transfer.quarantine"
            await pair.a.settled()
            is_ours_again(pair)

    asyncio.run(scenario())


def test_a_journal_whose_end_is_damaged_is_read_as_the_worst(tmp_path: Path) -> None:
    """S1, S3: a decision that is lost to the disk may have been the point of no return: ask before any start."""

    async def scenario() -> None:
        async with to_a_stranger(tmp_path, _never, sending=Sending(answer_timeout_s=30)) as (pair, _):
            await pair.move()
            await pair.a.stage("awaiting_verdict")
            rig = pair.a
            await pair.kill("a")
            await _success_by_b(pair)
            last = journal_of(rig).read_bytes().splitlines(keepends=True)[-1]
            forget_after(rig, "stopping")
            with journal_of(rig).open("ab") as journal:
                journal.write(b"00000000" + last[8:])
            await pair.up("a")
            left = await pair.a.settled()
            assert left.status == "completed"
            assert SERVER not in pair.a.runtime.running and ("start", SERVER) not in pair.a.runtime.calls

    asyncio.run(scenario())


def test_a_file_name_of_any_bytes_in_a_reason_is_written_down(tmp_path: Path) -> None:
    """Symptom: an opaque failure. A name that is not UTF-8 reaches the journal, the log and REST, escaped."""

    async def scenario() -> None:
        async with to_a_stranger(tmp_path, answering("200 OK")) as (pair, _):
            error = HostFailed("volume.changed", "the file b\udcff\x1b[2J kept changing")
            pair.a.runtime.trouble["verify_stopped"] = [error]
            await pair.move()
            left = await pair.a.settled()
            assert left.status == "failed" and left.message == "the file b\\xff\\x1b[2J kept changing"
            is_ours_again(pair, "volume.changed")
            assert (await api(pair.a, "GET", f"/api/servers/{SERVER}/transfer")).json()["message"] == left.message

    asyncio.run(scenario())


def _request(b: Stranger) -> StartTransfer:
    return StartTransfer(server=SERVER, url=f"{b.url}/api/transfers", token=transfer_token(token_of("b")))
