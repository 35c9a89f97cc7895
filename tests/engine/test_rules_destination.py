"""The rules of ownership at the destination (D1 to D9), each in a test that names it: a real node, strangers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sidecar.engine.services import Receiving
from sidecar.errors import HostFailed
from sidecar.lifecycle.statuses import Role
from tests.engine.pair import PAIR, Pair, forget_after, running_pair, soon
from tests.engine.rig import SERVER, api, grow_world, token_of, tree_of
from tests.engine.strangers import ARCHIVE, FILES, Stranger, body_of, raw_upload, stranger

IN_DOUBT = ("announcing", "checking_owner", "withdrawing", "confirming_arrival")


@asynccontextmanager
async def from_a_stranger(
    tmp_path: Path, *, delete_status: str = "204 No Content", **options: Any
) -> AsyncIterator[tuple[Pair, Stranger]]:
    """A real b, and an a that only the panel takes for a node; the transfer is active at the panel."""
    async with stranger(delete_status=delete_status) as a, running_pair(tmp_path, nodes=("b",), **options) as pair:
        pair.panel.add_node("a", token_id="id-a", token=token_of("a"), url=a.url)
        pair.panel.assume_transfer(SERVER, "b")
        yield pair, a


def has_arrived(pair: Pair) -> None:
    came = pair.b.node.view(SERVER)
    assert came is not None and came.status == "completed"
    assert pair.panel.owner(SERVER) == "b" and is_whole(pair.b.volume())
    assert pair.b.staging() == []


def is_gone(pair: Pair, reason: str, *, trash: int = 0, told: bool = True) -> None:
    """Failed: nothing in place, nothing in staging, the panel told."""
    came = pair.b.node.view(SERVER)
    assert came is not None and (came.status, came.reason) == ("failed", reason)
    assert not pair.b.volume().exists() and pair.b.staging() == [] and len(pair.b.trash()) == trash
    assert all(is_whole(item) for item in pair.b.trash())
    assert pair.panel.owner(SERVER) == "a" and SERVER not in pair.b.runtime.running
    assert (pair.panel.transfer(SERVER) is None) is told


def is_whole(volume: Path) -> bool:
    return {str(p.relative_to(volume)): p.read_bytes() for p in volume.rglob("*") if p.is_file()} == FILES


def told(pair: Pair, route: str) -> list[int | None]:
    return [call.status for call in pair.panel.calls_of(route, "b")]


def test_d1_a_second_post_of_the_same_server_is_409_and_silent(tmp_path: Path) -> None:
    """D1: one transfer per server on this node, either direction. Only the holder of the slot ever tells the panel
    anything: a second POST gets 409 and stays silent."""

    async def scenario() -> None:
        async with from_a_stranger(tmp_path) as (pair, _):
            pair.b.runtime.gates["prepare"] = gate = asyncio.Event()
            async with raw_upload(pair.b, body_of()) as first:
                await pair.b.stage("preparing")
                for body in (body_of(), b"rubbish"):
                    async with raw_upload(pair.b, body) as second:
                        assert await second.status() == 409
                assert pair.silent()
                assert len(pair.b.node.views()) == 1
                gate.set()
                assert await first.status() == 200
            await pair.b.settled()
            has_arrived(pair)
            assert told(pair, "success") == [204] and told(pair, "failure") == []

    asyncio.run(scenario())


@pytest.mark.parametrize("status", ["403", "404", "500", "drop-before"])
def test_d2_a_panel_that_does_not_know_the_transfer_yet_is_asked_again(tmp_path: Path, status: str) -> None:
    """D2: panel's configuration: 403/404 is tried again for 10 s (the panel's transaction), then refused."""

    async def scenario() -> None:
        async with from_a_stranger(tmp_path) as (pair, _):
            pair.panel.script("configuration", status, status)
            async with raw_upload(pair.b, body_of()) as upload:
                assert await upload.status() == 200
            await pair.b.settled()
            has_arrived(pair)
            assert len(pair.panel.calls_of("configuration")) >= 3

    asyncio.run(scenario())


@pytest.mark.parametrize("status", ["403", "404"])
def test_d2_then_it_is_refused_in_silence(tmp_path: Path, status: str) -> None:
    """D2: ... then refused. Symptom: panic when the panel refuses the server look-up (403, 500, time-out)."""

    async def scenario() -> None:
        async with from_a_stranger(tmp_path) as (pair, _):
            pair.panel.script("configuration", *[status] * 100)
            async with raw_upload(pair.b, body_of()) as upload:
                assert await upload.status() == 500
            await pair.b.settled()
            assert pair.silent()
            is_gone(pair, "panel.refused", told=False)

    asyncio.run(scenario())


@pytest.mark.parametrize("answer", ["body:{}", "body:[]", "body:<html>", "401"])
def test_d2_an_answer_that_is_no_configuration_fails_the_transfer(tmp_path: Path, answer: str) -> None:
    """D2: nothing is received before the panel's configuration is understood."""

    async def scenario() -> None:
        async with from_a_stranger(tmp_path) as (pair, _):
            pair.panel.script("configuration", answer)
            async with raw_upload(pair.b, body_of()) as upload:
                assert await upload.status() == 500
            came = await pair.b.settled()
            assert came.reason in ("panel.malformed", "panel.refused") and not pair.b.volume().exists()

    asyncio.run(scenario())


@pytest.mark.parametrize("why", ["listed", "running"])
def test_d3_a_live_volume_is_never_touched(tmp_path: Path, why: str) -> None:
    """D3: an existing volume: 409 if the oracle lists it as ours, or if a container that mounts it runs."""

    async def scenario() -> None:
        async with from_a_stranger(tmp_path) as (pair, _):
            grow_world(pair.b.volume())
            before = tree_of(pair.b.volume())
            if why == "listed":
                pair.panel.end_transfer(SERVER)
                pair.panel.remove_server(SERVER)
                pair.panel.add_server(SERVER, "b")
            else:
                pair.b.runtime.add(SERVER, running=True)
            async with raw_upload(pair.b, body_of()) as upload:
                assert await upload.status() == 409
            came = await pair.b.settled()
            assert came.reason == "volume.exists"
            assert tree_of(pair.b.volume()) == before and pair.b.trash() == [] and pair.b.staging() == []

    asyncio.run(scenario())


def test_d3_an_oracle_that_does_not_answer_permits_nothing(tmp_path: Path) -> None:
    """D3: whether the old volume is ours is not guessed."""

    async def scenario() -> None:
        async with from_a_stranger(tmp_path) as (pair, _):
            grow_world(pair.b.volume())
            before = tree_of(pair.b.volume())
            pair.panel.script("list", *["500"] * 9)
            async with raw_upload(pair.b, body_of()) as upload:
                assert await upload.status() == 500
            assert (await pair.b.settled()).reason == "panel.unreachable"
            assert tree_of(pair.b.volume()) == before and pair.b.trash() == []

    asyncio.run(scenario())


def test_d3_what_is_not_ours_goes_to_trash_and_is_never_merged_into(tmp_path: Path) -> None:
    """D3: else it is moved to trash, never merged into, never deleted."""

    async def scenario() -> None:
        async with from_a_stranger(tmp_path) as (pair, _):
            grow_world(pair.b.volume())
            before = tree_of(pair.b.volume())
            async with raw_upload(pair.b, body_of()) as upload:
                assert await upload.status() == 200
            await pair.b.settled()
            has_arrived(pair)
            assert [tree_of(item) for item in pair.b.trash()] == [before]

    asyncio.run(scenario())


@pytest.mark.parametrize("code", ["engine.unreachable", "environment.image", "engine.failed"])
def test_d4_a_failure_to_prepare_is_a_failed_transfer(tmp_path: Path, code: str) -> None:
    """D4: engine or daemon reachable, image present or pulled, configuration understood. A failure here is a failed
    transfer, 500."""

    async def scenario() -> None:
        async with from_a_stranger(tmp_path) as (pair, _):
            pair.b.runtime.trouble["prepare"] = [HostFailed(code, "no")]
            async with raw_upload(pair.b, body_of()) as upload:
                assert await upload.status() == 500
            await pair.b.settled()
            is_gone(pair, code)
            assert told(pair, "success") == []

    asyncio.run(scenario())


@pytest.mark.parametrize("status", ["409", "403"])
def test_d4b_a_refusal_within_the_panels_transaction_decides_nothing(tmp_path: Path, status: str) -> None:
    """D4b: the 30 s of S4, counted from the POST, also apply to our own calls: a 409 or 403 to a call sent before they
    are over decides nothing."""

    async def scenario() -> None:
        timings = msgspec.structs.replace(PAIR, young_s=0.7)
        async with from_a_stranger(tmp_path, timings=timings) as (pair, _):
            pair.panel.script("success", status)
            async with raw_upload(pair.b, body_of()) as upload:
                assert await upload.status() == 200
            await pair.b.settled()
            has_arrived(pair)
            assert told(pair, "success") == [int(status), 204]

    asyncio.run(scenario())


def test_d4b_a_failure_that_is_refused_early_is_told_again(tmp_path: Path) -> None:
    """D4b: ... a 409 to a call sent before they are over decides nothing: our `failure` too."""

    async def scenario() -> None:
        timings = msgspec.structs.replace(PAIR, young_s=0.7)
        async with from_a_stranger(tmp_path, timings=timings) as (pair, _):
            pair.panel.script("failure", "409")
            async with raw_upload(pair.b, body_of(checksum="0" * 64)) as upload:
                assert await upload.status() == 400
            await pair.b.settled()
            is_gone(pair, "archive.checksum")
            assert told(pair, "failure") == [409, 204]

    asyncio.run(scenario())


@pytest.mark.parametrize("moment", ["before the rename", "after the rename"])
def test_d5_a_commit_is_only_rolled_forward(tmp_path: Path, moment: str) -> None:
    """D5: journal the intent with the staging directory's identity, rename, fsync the parent, journal it done. After a
    crash: roll forward only."""

    async def scenario() -> None:
        async with from_a_stranger(tmp_path) as (pair, _):
            if moment == "before the rename":  # the old volume cannot be moved aside: the commit waits
                grow_world(pair.b.volume())
                (pair.b.volumes / ".sidecar-trash").write_bytes(b"")
            else:
                pair.panel.script("success", "hold")
            async with raw_upload(pair.b, body_of()):
                await pair.b.stage("committing" if moment == "before the rename" else "announcing")
                rig = pair.b
                await pair.kill("b")
            if moment == "before the rename":
                assert len(rig.staging()) == 1
                (rig.volumes / ".sidecar-trash").unlink()
            else:
                assert is_whole(rig.volume())
                forget_after(rig, "committing")
            await pair.up("b")
            await pair.b.stage("withdrawing", "confirming_arrival", "discarding", "cooling", "ended")
            await pair.b.settled()
            # D6d: `success` is not sent after a restart; the panel was told `failure`, and the volume is in the trash.
            assert pair.panel.owner(SERVER) == "a" and pair.panel.transfer(SERVER) is None
            assert told(pair, "failure") == [204]
            assert any(is_whole(item) for item in pair.b.trash()) and not pair.b.volume().exists()
            assert pair.b.staging() == []

    asyncio.run(scenario())


def test_d5_a_note_that_cannot_be_written_is_not_acted_on(tmp_path: Path) -> None:
    """D5: a disk that takes no record while the commit begins: nothing is renamed that a restart would take for old."""

    async def scenario() -> None:
        async with from_a_stranger(tmp_path) as (pair, _):
            grow_world(pair.b.volume())
            trash = pair.b.volumes / ".sidecar-trash"
            trash.write_bytes(b"")
            async with raw_upload(pair.b, body_of()) as upload:
                await pair.b.stage("committing")
                journal = pair.b.services.journal
                (path,) = (pair.b.home / "state" / "transfers").glob("*.journal")
                journal.release(path.stem)
                kept = path.rename(path.with_suffix(".kept"))
                path.mkdir()  # nothing can be appended
                trash.unlink()
                await soon(pair.b.trash)
                await asyncio.sleep(0.1)
                assert not pair.b.volume().exists() and len(pair.b.staging()) == 1
                path.rmdir()
                kept.rename(path)
                assert await upload.status() == 200
            await pair.b.settled()
            has_arrived(pair)
            assert len(pair.b.trash()) == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("status", ["403", "404", "409", "417"])
def test_d6a_a_success_that_is_refused_is_followed_by_the_oracle(tmp_path: Path, status: str) -> None:
    """D6a: 409, 403, 404, 417: ask the oracle. Listed: ours."""

    async def scenario() -> None:
        async with from_a_stranger(tmp_path) as (pair, _):
            pair.panel.script("success", "drop-after", *[status] * 9)
            async with raw_upload(pair.b, body_of()) as upload:
                assert await upload.status() == 200
            await pair.b.settled()
            has_arrived(pair)
            assert told(pair, "failure") == []

    asyncio.run(scenario())


def test_d6a_a_transfer_that_ended_meanwhile_is_not_ours(tmp_path: Path) -> None:
    """D6a: 409 and not listed: the volume goes to trash, failed, 500."""

    async def scenario() -> None:
        async with from_a_stranger(tmp_path) as (pair, _):
            pair.b.runtime.gates["prepare"] = gate = asyncio.Event()
            async with raw_upload(pair.b, body_of()) as upload:
                await pair.b.stage("preparing")
                pair.panel.end_transfer(SERVER)
                gate.set()
                assert await upload.status() == 500
            await pair.b.settled()
            is_gone(pair, "transfer.disowned", trash=1)

    asyncio.run(scenario())


@pytest.mark.parametrize("fault", ["500", "drop-before", "body:oops"])
def test_d6b_no_answer_keeps_everything_and_starts_nothing(tmp_path: Path, fault: str) -> None:
    """D6b: no answer or 5xx: keep everything, do not start."""

    async def scenario() -> None:
        async with from_a_stranger(tmp_path) as (pair, _):
            pair.panel.script("success", *[fault] * 3, "hold")
            if fault == "body:oops":  # a 2xx that moved nothing is asked about, and the oracle has no answer
                pair.panel.script("list", *["500"] * 3, "hold")
            async with raw_upload(pair.b, body_of(), headers={"Sidecar-Start": "true"}) as upload:
                route = "list" if fault == "body:oops" else "success"
                await soon(lambda: len(pair.panel.calls_of(route, "b")) >= 3)
                came = pair.b.node.view(SERVER)
                assert came is not None and came.in_doubt and came.stage in IN_DOUBT
                assert SERVER not in pair.b.runtime.running and is_whole(pair.b.volume()) and pair.b.trash() == []
                pair.panel.release()
                status = await upload.status()
            await pair.b.settled()
            if fault == "body:oops":
                assert status == 500
                is_gone(pair, "transfer.disowned", trash=1, told=False)
            else:
                assert status == 200
                has_arrived(pair)

    asyncio.run(scenario())


def test_d6c_a_2xx_is_confirmed_by_the_oracle(tmp_path: Path) -> None:
    """D6c: a 2xx is confirmed by the oracle too: it may have come from somebody else's transfer."""

    async def scenario() -> None:
        async with from_a_stranger(tmp_path) as (pair, _):
            pair.panel.script("success", "body:{}")
            async with raw_upload(pair.b, body_of()) as upload:
                assert await upload.status() == 500
            await pair.b.settled()
            is_gone(pair, "transfer.disowned", trash=1, told=False)
            assert ("activate", SERVER) not in pair.b.runtime.calls

    asyncio.run(scenario())


@pytest.mark.parametrize("when", ["before", "between"])
def test_d6d_success_is_not_sent_when_the_source_is_gone(tmp_path: Path, when: str) -> None:
    """D6d: `success` is sent only while the source's connection is open (looked at before each call). A late one could
    hit a newer transfer. D6e: then `failure` closes the transfer, and the volume goes to trash."""

    async def scenario() -> None:
        async with from_a_stranger(tmp_path) as (pair, _):
            if when == "before":
                grow_world(pair.b.volume())  # the commit waits for the trash
                trash = pair.b.volumes / ".sidecar-trash"
                trash.write_bytes(b"")
            else:
                pair.panel.script("success", *["drop-before"] * 99)
            async with raw_upload(pair.b, body_of()) as upload:
                if when == "before":
                    await pair.b.stage("committing")
                    upload.reset()
                    await asyncio.sleep(0.02)
                    trash.unlink()
                else:
                    await soon(lambda: pair.panel.calls_of("success"))
                    upload.reset()
            await pair.b.settled()
            tries = len(told(pair, "success"))
            assert tries == 0 if when == "before" else tries >= 1
            assert told(pair, "failure") == [204]
            is_gone_but_old(pair) if when == "before" else is_gone(pair, "transfer.disowned", trash=1)

    asyncio.run(scenario())


def is_gone_but_old(pair: Pair) -> None:
    came = pair.b.node.view(SERVER)
    assert came is not None and came.reason == "transfer.disowned"
    assert len(pair.b.trash()) == 2 and not pair.b.volume().exists() and pair.panel.owner(SERVER) == "a"


def test_d6d_success_is_never_sent_after_a_restart(tmp_path: Path) -> None:
    """D6d: ... never after a restart."""

    async def scenario() -> None:
        async with from_a_stranger(tmp_path) as (pair, _):
            pair.panel.script("success", "drop-before", "hold")
            async with raw_upload(pair.b, body_of()):
                await soon(lambda: pair.panel.calls_of("success"))
                await pair.restart("b")
                sent = len(told(pair, "success"))
                await pair.b.settled()
            assert len(told(pair, "success")) == sent
            is_gone(pair, "transfer.disowned", trash=1)

    asyncio.run(scenario())


def test_d6e_listed_when_success_may_no_longer_be_sent_is_ours(tmp_path: Path) -> None:
    """D6e: when it may no longer be sent: ask the oracle. Listed: ours."""

    async def scenario() -> None:
        async with from_a_stranger(tmp_path) as (pair, _):
            pair.panel.script("success", "drop-after")
            pair.panel.script("list", "500", "drop-before")
            pair.panel.script("delete", "drop-before")
            async with raw_upload(pair.b, body_of()) as upload:
                await soon(lambda: pair.panel.calls_of("success"))
                upload.reset()
            await pair.b.settled()
            has_arrived(pair)
            assert told(pair, "failure") == []

    asyncio.run(scenario())


@pytest.mark.parametrize("stage", ["announcing", "checking_owner", "withdrawing", "confirming_arrival", "activating"])
def test_d6e_a_restart_at_any_stage_after_the_commit_finds_the_owner(tmp_path: Path, stage: str) -> None:
    """D6e: after a restart: ask the oracle. Listed: ours; it is started, once."""

    async def scenario() -> None:
        async with running_pair(tmp_path) as pair:
            await pair.move()
            await pair.settled()
            rig = pair.b
            await pair.kill("b")
            pair.b.runtime.running.clear()
            if stage in ("checking_owner", "withdrawing"):
                forget_after(rig, "announcing")
            else:
                forget_after(rig, stage)
            await pair.up("b")
            await pair.b.settled()
            assert pair.check() == "b" and SERVER in pair.b.runtime.running
            assert len(pair.panel.calls_of("success")) == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("fault", ["500", "drop-before", "drop-after"])
def test_d6f_not_listed_after_the_failure_was_answered_goes_to_trash(tmp_path: Path, fault: str) -> None:
    """D6e, f: not listed: send `failure` until answered, then ask again: not listed, the volume goes to trash."""

    async def scenario() -> None:
        async with from_a_stranger(tmp_path) as (pair, _):
            pair.panel.script("success", "drop-before")
            pair.panel.script("failure", fault, fault, "hold")
            async with raw_upload(pair.b, body_of()) as upload:
                await soon(lambda: pair.panel.calls_of("success"))
                upload.reset()
                await soon(lambda: len(told(pair, "failure")) >= 2)
                assert is_whole(pair.b.volume()) and pair.b.trash() == []  # nothing is given up before the answer
                pair.panel.release()
            await pair.b.settled()
            is_gone(pair, "transfer.disowned", trash=1)

    asyncio.run(scenario())


def test_d6f_listed_after_the_failure_was_answered_is_ours_after_all(tmp_path: Path) -> None:
    """D6f: ... then ask again: listed, ours after all (a `success` that was given up landed late)."""

    async def scenario() -> None:
        async with from_a_stranger(tmp_path) as (pair, _):
            pair.panel.script("success", "delay:1.5")
            pair.panel.script("failure", *["hold"] * 6)
            async with raw_upload(pair.b, body_of()) as upload:
                await pair.b.stage("announcing")
                await asyncio.sleep(0.05)
                upload.reset()
                await pair.b.stage("withdrawing")
                await soon(lambda: pair.panel.owner(SERVER) == "b")
                pair.panel.release()
            await pair.b.settled()
            has_arrived(pair)

    asyncio.run(scenario())


@pytest.mark.parametrize("code", ["environment.failed", "engine.unreachable"])
def test_d7_a_failure_to_activate_changes_no_owner(tmp_path: Path, code: str) -> None:
    """D7: a failure here is reported loudly but changes no owner: the answer is 200."""

    async def scenario() -> None:
        async with running_pair(tmp_path) as pair:
            pair.b.runtime.trouble["activate"] = [HostFailed(code, "no port is free")]
            await pair.move()
            left, came = await pair.settled()
            assert pair.check() == "b"
            assert (left.status, came.status, came.reason) == ("completed", "completed", code)
            assert came.needs is not None and came.needs in pair.b.lines()
            assert "no port is free" in (came.message or "")

    asyncio.run(scenario())


def test_d7_the_configuration_is_read_anew(tmp_path: Path) -> None:
    """D7: activate: read the configuration anew (now with our allocations)."""

    async def scenario() -> None:
        async with running_pair(tmp_path) as pair:
            await pair.move()
            await pair.settled()
            routes = [call.route for call in pair.panel.calls if call.node == "b"]
            assert routes.count("configuration") == 2 and routes.index("success") < len(routes) - 1
            assert routes[-1] == "configuration"

    asyncio.run(scenario())


ARCHIVE_ONLY = body_of()[: body_of().index(b'--B\r\nContent-Disposition: form-data; name="checksum')] + b"--B--\r\n"
BAD = [
    ("checksum", body_of(checksum="0" * 64), 400, "archive.checksum"),
    ("no checksum", ARCHIVE_ONLY, 400, "upload.missing_part"),
    ("damaged", body_of(ARCHIVE[:-9]), 500, "archive.damaged"),
    ("garbage", body_of(b"\x00garbage" * 99), 500, "archive.format"),
]


@pytest.mark.parametrize(
    ("body", "status", "reason", "failure"),
    [pytest.param(*BAD[0][1:], failure, id=failure) for failure in ("500", "drop-before")]
    + [pytest.param(*case[1:], "ok", id=case[0]) for case in BAD],
)
def test_d8_a_failure_before_the_commit_leaves_nothing(
    tmp_path: Path, body: bytes, status: int, reason: str, failure: str
) -> None:
    """D8: a failure before commit: staging removed, panel told `failure`, documented status. Symptom: partial files
    left on the destination, cleaned only if the callback also fails; receiver accepted a missing checksum."""

    async def scenario() -> None:
        async with from_a_stranger(tmp_path) as (pair, _):
            pair.panel.script("failure", failure)
            async with raw_upload(pair.b, body) as upload:
                assert await upload.status() == status
            await pair.b.settled()
            is_gone(pair, reason)
            assert pair.b.statuses() == ["pending", "processing", "failed"]  # never `success` after `failure`

    asyncio.run(scenario())


@pytest.mark.parametrize("cut", [0, 1, 60, 100, len(body_of()) - 30, len(body_of()) - 1])
def test_d8_a_body_that_ends_early_leaves_nothing(tmp_path: Path, cut: int) -> None:
    """D8: a cut anywhere in the body: staging removed, panel told."""

    async def scenario() -> None:
        async with from_a_stranger(tmp_path) as (pair, _):
            async with raw_upload(pair.b, body_of()[:cut], size=len(body_of())) as upload:
                await pair.b.stage("receiving", "settling", "cooling", "ended")
                upload.reset()
            await pair.b.settled()
            is_gone(pair, "upload.truncated")
            assert told(pair, "failure") == [204] and told(pair, "success") == []

    asyncio.run(scenario())


def test_d8_a_panel_that_never_answers_the_failure_does_not_hold_the_slot_for_ever(tmp_path: Path) -> None:
    """D8, D9: the source tells it too: after a few tries, and one call's time-out, the slot is free. A fault at every
    stage clears the flag "transferring"."""

    async def scenario() -> None:
        async with from_a_stranger(tmp_path) as (pair, _):
            pair.panel.script("failure", *["drop-before"] * 9)
            async with raw_upload(pair.b, body_of(checksum="0" * 64)) as upload:
                assert await upload.status() == 400
            await pair.b.settled()
            assert told(pair, "failure") == [None] * PAIR.refused_caller_tries

    asyncio.run(scenario())


def test_d8_a_delete_of_the_server_that_is_arriving_cancels_it(tmp_path: Path) -> None:
    """D8: the panel of Calagopus deletes the server on the destination when the source reports a failure."""

    async def scenario() -> None:
        async with from_a_stranger(tmp_path) as (pair, _), raw_upload(pair.b, body_of()[:300], size=9999) as upload:
            await pair.b.stage("receiving")
            assert (await api(pair.b, "DELETE", f"/api/servers/{SERVER}")).status_code == 204
            assert await upload.status() == 409
            came = await pair.b.settled()
            assert came.status == "cancelled" and pair.b.staging() == [] and not pair.b.volume().exists()

    asyncio.run(scenario())


def test_d8_a_delete_after_the_commit_deletes_nothing_that_may_be_ours(tmp_path: Path) -> None:
    """D8: after commit nothing is deleted, only moved to trash, and only by D6 e, f."""

    async def scenario() -> None:
        async with from_a_stranger(tmp_path) as (pair, _):
            pair.panel.script("success", "hold-after")
            async with raw_upload(pair.b, body_of()) as upload:
                await soon(lambda: pair.panel.calls_of("success"))
                assert (await api(pair.b, "DELETE", f"/api/servers/{SERVER}")).status_code == 204
                assert is_whole(pair.b.volume())
                pair.panel.release()
                assert await upload.status() == 200
            await pair.b.settled()
            has_arrived(pair)

    asyncio.run(scenario())


def test_d9_the_destination_keeps_its_slot_while_a_call_it_gave_up_can_land(tmp_path: Path) -> None:
    """D9: either end keeps its slot while a panel call that it gave up can still land (one call's time-out)."""

    async def scenario() -> None:
        async with from_a_stranger(tmp_path) as (pair, _):
            pair.panel.script("failure", "drop-before")
            async with raw_upload(pair.b, body_of(checksum="0" * 64)) as upload:
                assert await upload.status() == 400
            await pair.b.stage("cooling")
            async with raw_upload(pair.b, body_of()) as second:
                assert await second.status() == 409
            await pair.b.settled()
            is_gone(pair, "archive.checksum")

    asyncio.run(scenario())


def test_an_operator_may_decide_what_the_panel_never_answers(tmp_path: Path) -> None:
    """S3a's command on this end: completed activates, failed moves the volume to trash; a human answers for it."""

    async def scenario(outcome: str) -> None:
        async with from_a_stranger(tmp_path / outcome) as (pair, _):
            pair.panel.script("success", *["drop-before"] * 999)
            async with raw_upload(pair.b, body_of()):
                await soon(lambda: len(told(pair, "success")) >= 2)
                await pair.b.node.resolve(SERVER, "completed" if outcome == "completed" else "failed")
                came = await pair.b.settled()
            assert came.status == outcome
            assert pair.b.volume().exists() is (outcome == "completed")
            assert len(pair.b.trash()) == (outcome == "failed")

    for outcome in ("completed", "failed"):
        (tmp_path / outcome).mkdir()
        asyncio.run(scenario(outcome))


def test_a_cancel_past_the_commit_closes_the_window_and_tells_the_truth(tmp_path: Path) -> None:
    """S3, D6d: after a cancel no other `success` is sent; how it ends is what the panel says."""

    async def scenario() -> None:
        async with from_a_stranger(tmp_path) as (pair, _):
            pair.panel.script("success", "drop-after")
            async with raw_upload(pair.b, body_of()) as upload:
                await pair.b.stage("announcing")
                await pair.b.node.cancel(SERVER, Role.DESTINATION)
                assert await upload.status() in (200, 409)
            came = await pair.b.settled()
            assert (came.status == "completed") is (pair.panel.owner(SERVER) == "b")

    asyncio.run(scenario())


@pytest.mark.parametrize("headers", [{"Multiplex-Stream-Count": "2"}, {"Multiplex-Stream": "1"}])
def test_a_share_of_a_server_is_never_taken_for_the_whole(tmp_path: Path, headers: dict[str, str]) -> None:
    """Strangers: a Calagopus source may deal its files out over several requests; where one of them does not come it
    gets no answer, and nothing is committed: a part that was taken for the whole would lose the rest."""

    async def scenario() -> None:
        timings = msgspec.structs.replace(PAIR, join_s=0.05)
        receiving = Receiving(stall_timeout_s=0.2, reserve_bytes=0, reserve_inodes=0)
        async with from_a_stranger(tmp_path, timings=timings, receiving=receiving) as (pair, _):
            async with raw_upload(pair.b, body_of(), headers=headers) as upload:
                assert await upload.status() == 0
            has_begun = "Multiplex-Stream-Count" in headers
            assert [view.status for view in pair.b.node.views()] == ["failed"] * has_begun
            assert pair.silent() is not has_begun
            assert not pair.b.volume().exists() and pair.b.staging() == []

    asyncio.run(scenario())


@pytest.mark.parametrize("at", ["success", "checksum"])
def test_a_calagopus_source_gets_an_answer_only_to_a_success(tmp_path: Path, at: str) -> None:
    """Strangers: a CA source takes any complete answer for success: fail it by closing without an answer."""

    async def scenario() -> None:
        async with from_a_stranger(tmp_path) as (pair, _):
            body = body_of(checksum="0" * 64) if at == "checksum" else body_of()
            async with raw_upload(pair.b, body, headers={"Multiplex-Stream-Count": "0"}) as upload:
                assert await upload.status() == (200 if at == "success" else 0)
            await pair.b.settled()
            has_arrived(pair) if at == "success" else is_gone(pair, "archive.checksum")

    asyncio.run(scenario())
