"""Today's program on what the release before it left behind: its journals, and its words on the wire.

A journal of that release is cut at every decision of either node, as if both had been killed there and upgraded; then
the panel's truth decides who has the server. Recorded by `upgrades/record.py`.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import zlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from sidecar.demo.panel import PanelServer
from sidecar.engine.peer import PROTOCOL
from sidecar.journal.records import VERSION
from tests.engine.pair import PAIR, SENDING, Pair
from tests.engine.replays import send
from tests.engine.rig import SERVER, Rig, api, grow_world, request_to, running_node, token_of, transfer_token, tree_of

RELEASE: Final = Path(__file__).parent / "upgrades/0.1.0"
COMMITTED: Final = ("announcing", "confirming_arrival", "activating", "ended")
BIG_BYTES: Final = 600_000  # as the recorder's
SMALL_BYTES: Final = 20_000


class Moment(msgspec.Struct, frozen=True):
    """What both journals held at some time; `decided`: the panel has given the server to the destination."""

    scene: str
    source: list[bytes]
    destination: list[bytes]
    decided: bool

    @property
    def is_answered(self) -> bool:
        """Whether the source's 202 has gone out; before that the panel knows of no transfer."""
        return any(read(line)["state"]["stage"] != "stopping" for line in self.source)

    @property
    def name(self) -> str:
        stages = [
            read(lines[-1])["state"]["stage"] if lines else "nothing" for lines in (self.source, self.destination)
        ]
        counts = f"{len(self.source)}-{len(self.destination)}"
        return f"{self.scene}-{counts}-{'-'.join(stages)}-{'decided' if self.decided else 'open'}"


def read(line: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(line[9:])
    return found


def written(record: dict[str, Any]) -> bytes:
    """A line as any release writes it: shapes and fields are the record's own."""
    body = json.dumps(record, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def lines_of(scene: str, node: str) -> list[bytes]:
    (path,) = (RELEASE / scene / f"node-{node}").glob("*.journal")
    return path.read_bytes().splitlines(keepends=True)


def moments(scene: str) -> list[Moment]:
    """Every moment between two decisions, and where the panel may or may not have decided yet, both."""
    source, destination = lines_of(scene, "a"), lines_of(scene, "b")
    found = []
    for time in sorted(read(line)["time"] for line in [*source, *destination]):
        left, came = ([line for line in lines if read(line)["time"] <= time] for lines in (source, destination))
        stage = read(came[-1])["state"]["stage"] if came else ""
        knows = stage in COMMITTED[1:] or (bool(left) and read(left[-1])["state"]["delete_requested"])
        decided = [True] if knows else [False, True] if stage == "announcing" else [False]
        found += [Moment(scene, left, came, is_decided) for is_decided in decided]
    return found


def ends(scene: str) -> list[Moment]:
    return [Moment(scene, lines_of(scene, "a"), lines_of(scene, "b"), decided=False)]


@asynccontextmanager
async def upgraded(home: Path, moment: Moment) -> AsyncIterator[Pair]:
    """Both nodes as they were left, with the volumes that belong to it, started as today's program."""
    async with AsyncExitStack() as stack, PanelServer() as server:
        pair = Pair(home, server, stack, {})
        volume = home / "a" / "volumes" / SERVER
        grow_world(volume, big_bytes=BIG_BYTES)
        pair.world = tree_of(volume)
        server.panel.add_server(SERVER, "b" if moment.decided else "a")
        if not moment.decided and moment.is_answered:
            server.panel.assume_transfer(SERVER, "b")
        write_journal(home / "a", moment.source)
        write_journal(home / "b", put_files(home / "b" / "volumes", volume, moment.destination))
        try:
            for name in ("a", "b"):
                await pair.up(name)
            yield pair
        finally:
            await pair.close()


def put_files(volumes: Path, world: Path, lines: list[bytes]) -> list[bytes]:
    """The destination's disk at that moment; its journal, with the identity of the staging directory that is made."""
    volumes.mkdir(parents=True)
    if not lines:
        return lines
    last = read(lines[-1])
    if last["state"]["stage"] in COMMITTED:
        copy(world, volumes / SERVER)
        return lines
    staging = volumes / ".sidecar-staging" / last["facts"]["transfer"]
    staging.parent.mkdir(mode=0o700)
    if last["state"]["stage"] == "committing":
        copy(world, staging)
    else:
        staging.mkdir(mode=0o700)
        (staging / "half").write_bytes(b"of a file")
    info = staging.stat()
    records = [read(line) for line in lines]
    for record in records:
        if record["facts"]["staging"] is not None:
            record["facts"]["staging"] = [info.st_dev, info.st_ino]
    return [written(record) for record in records]


def copy(world: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", str(world), str(target)], check=True)


def write_journal(home: Path, lines: list[bytes]) -> Path | None:
    directory = home / "state" / "transfers"
    directory.mkdir(mode=0o700, parents=True)
    if not lines:
        return None
    path = directory / f"{read(lines[0])['facts']['transfer']}.journal"
    path.write_bytes(b"".join(lines))
    return path


# -- its journals -----------------------------------------------------------------------------------------------------


def test_the_recordings_are_of_another_release() -> None:
    """Lines of every stage are there, written with the byte for byte form that this release reads."""
    stages = {read(line)["state"]["stage"] for node in ("a", "b") for line in lines_of("completed", node)}
    assert stages >= {"stopping", "sending", "awaiting_verdict", "receiving", "preparing", "committing", "announcing"}
    assert {read(line)["version"] for line in lines_of("completed", "a")} == {1}


@pytest.mark.parametrize(
    "moment",
    [*moments("completed"), *ends("sending"), *ends("undecided"), *ends("owing")],
    ids=lambda moment: moment.name,
)
def test_a_transfer_of_the_release_before_ends_rightly(tmp_path: Path, moment: Moment) -> None:
    async def scenario() -> None:
        async with upgraded(tmp_path, moment) as pair:
            if moment.source:
                await pair.a.settled()
            if moment.destination:
                await pair.b.settled()
            if moment.is_answered and not moment.destination:  # nobody else can tell the panel
                assert pair.panel.calls_of("failure", "a")
            assert pair.check() == ("b" if moment.decided else "a")

    asyncio.run(scenario())


def test_without_a_panel_the_destination_is_asked(tmp_path: Path) -> None:
    """Its journal is the arbiter: the source was past its point, the destination had committed."""

    async def scenario() -> None:
        volume = tmp_path / "a" / "volumes" / SERVER
        grow_world(volume, big_bytes=BIG_BYTES)
        world = tree_of(volume)
        (tmp_path / "b" / "volumes").mkdir(parents=True)
        copy(volume, tmp_path / "b" / "volumes" / SERVER)
        write_journal(tmp_path / "b", lines_of("standalone", "b"))
        async with running_node(tmp_path / "b", "b", timings=PAIR, sending=SENDING) as b:
            records = [read(line) for line in lines_of("standalone", "a")]
            past = next(n for n, record in enumerate(records) if record["state"]["past_point"])
            for record in records:
                record["facts"] |= {"url": f"{b.url}/api/transfers", "token": transfer_token(b.token)}
            write_journal(tmp_path / "a", [written(record) for record in records[: past + 1]])
            async with running_node(tmp_path / "a", "a", timings=PAIR, sending=SENDING) as a:
                left, came = await a.settled(), await b.settled()
                assert (left.status, came.status, left.transfer) == ("completed", "completed", came.transfer)
                assert tree_of(b.volume()) == tree_of(a.volume()) == world
                assert (await a.node.server(SERVER)).transferred
                assert (await api(a, "DELETE", f"/api/servers/{SERVER}")).status_code == 204

    asyncio.run(scenario())


def test_a_journal_of_the_release_after_is_left_alone(tmp_path: Path) -> None:
    """Going back: what a newer program wrote is neither read nor cleaned up, nor is what it has staged."""
    records = [read(line) for line in lines_of("undecided", "b")]
    records[-1]["version"] = VERSION + 1
    journal = write_journal(tmp_path / "b", [written(record) for record in records])
    assert journal is not None
    before = journal.read_bytes()
    staging = tmp_path / "b" / "volumes" / ".sidecar-staging" / journal.stem
    staging.mkdir(parents=True)

    async def scenario() -> None:
        async with running_node(tmp_path / "b", "b", timings=PAIR) as b:
            assert b.node.view(SERVER) is None
            assert (await api(b, "GET", "/api/transfers")).json() == []

    asyncio.run(scenario())
    assert journal.read_bytes() == before
    assert staging.is_dir()


def test_fields_that_a_later_release_adds_do_no_harm(tmp_path: Path) -> None:
    """The version stays the same as long as an older program may ignore what was added."""
    moment = ends("undecided")[0]
    source, destination = ([read(line) for line in lines] for lines in (moment.source, moment.destination))
    for record in [*source, *destination]:
        record["added"] = {"some": ["thing"]}
        record["state"]["added"] = record["facts"]["added"] = 1
    later = Moment("later", [written(r) for r in source], [written(r) for r in destination], decided=True)

    async def scenario() -> None:
        async with upgraded(tmp_path, later) as pair:
            await pair.settled()
            assert pair.check() == "b"

    asyncio.run(scenario())


# -- its words --------------------------------------------------------------------------------------------------------


def spoken(name: str) -> bytes:
    return (RELEASE / "conversation" / f"{name}.http").read_bytes()


def upload_for(rig: Rig, *more: str) -> bytes:
    """The recorded upload, with a token that `rig` takes, and further header lines."""
    head, _, body = spoken("2-request").partition(b"\r\n\r\n")
    token = transfer_token(rig.token)
    head, count = re.subn(rb"(\r\nAuthorization: )[^\r]*", lambda found: found[1] + token.encode(), head)
    assert count == 1
    return head + "".join(f"\r\n{line}" for line in more).encode() + b"\r\n\r\n" + body


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("more", [(), ("Sidecar-Later: 1",)], ids=["as it is", "with a header of later"])
def test_its_source_sends_to_this_destination(tmp_path: Path, seed: int, more: tuple[str, ...]) -> None:
    async def scenario() -> None:
        async with running_node(tmp_path / "b", "b") as b:
            probe = await send(b, spoken("1-request"))
            assert probe.startswith(b"HTTP/1.1 200 OK")
            told = json.loads(probe.partition(b"\r\n\r\n")[2])
            assert 1 in told["protocol"], "the release before speaks version 1 alone"
            assert isinstance(told["sidecar"], str), "by this it knows one of its own"
            answer = await send(b, upload_for(b, *more), seed)
            assert answer.startswith(b"HTTP/1.1 200 OK"), answer
            assert (await b.settled()).status == "completed"
            grow_world(tmp_path / "expected", big_bytes=SMALL_BYTES)
            assert without_times(tree_of(b.volume())) == without_times(tree_of(tmp_path / "expected"))
            question = re.sub(
                rb"(\r\nAuthorization: )[^\r]*", rb"\1" + transfer_token(b.token).encode(), spoken("3-request")
            )
            assert (await send(b, question)).partition(b"\r\n\r\n")[2] == spoken("3-answer").partition(b"\r\n\r\n")[2]

    asyncio.run(scenario())


def without_times(tree: dict[str, tuple[object, ...]]) -> dict[str, tuple[object, ...]]:
    return {name: tuple(value for value in entry if not _is_time(value)) for name, entry in tree.items()}


def _is_time(value: object) -> bool:
    return isinstance(value, int) and value > 10**15  # nanoseconds since 1970


@pytest.mark.parametrize("protocol", [[1], [1, 2], [2, 1, 99]], ids=str)
def test_this_source_sends_to_its_destination(tmp_path: Path, protocol: list[int]) -> None:
    """The recorded answers, and those of a later release that still speaks ours and says more."""

    async def scenario() -> None:
        async with (
            recorded_destination(protocol) as (url, asked),
            running_node(tmp_path / "a", "a", timings=PAIR, sending=SENDING) as a,
        ):
            grow_world(a.volume(), big_bytes=SMALL_BYTES)
            token = transfer_token(token_of("b"))
            request = msgspec.structs.replace(request_to(a), url=f"{url}/api/transfers", token=token)
            await a.node.start(request, caller=None, respond_async=False)
            assert (await a.settled()).status == "completed"
        _, upload, _ = asked
        head, _, body = upload.partition(b"\r\n\r\n")
        assert b"\r\nSidecar-Protocol: %d\r\n" % PROTOCOL in head, "it was taken for one of our own"
        # nothing that the release before would not have understood
        recorded, _, recorded_body = spoken("2-request").partition(b"\r\n\r\n")
        assert header_names(head) == header_names(recorded)
        assert parts(body) == parts(recorded_body)

    asyncio.run(scenario())


@asynccontextmanager
async def recorded_destination(protocol: list[int]) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Its address, and what it was asked: each request is read to its end and answered with what was recorded."""
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(asked) + 1
        asked.append(b"")
        head = await reader.readuntil(b"\r\n\r\n")
        body = b""
        if b"chunked" in head:
            body = await reader.readuntil(b"\r\n0\r\n\r\n")
        elif length := re.search(rb"(?i)content-length: (\d+)", head):
            body = await reader.readexactly(int(length[1]))
        asked[number - 1] = head + body
        answer = spoken(f"{number}-answer")
        if number == 1:
            head, _, said = answer.partition(b"\r\n\r\n")
            told = json.loads(said) | {"protocol": protocol}
            if protocol != [1]:
                told |= {"later": {"a": 1}, "codecs": ["gzip", "later"]}
            answer = with_body(head, json.dumps(told).encode())
        writer.write(answer)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=1 << 20)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", asked
    finally:
        server.close()
        await server.wait_closed()


def with_body(head: bytes, body: bytes) -> bytes:
    return re.sub(rb"content-length: \d+", b"content-length: %d" % len(body), head) + b"\r\n\r\n" + body


def header_names(head: bytes) -> set[bytes]:
    return {line.partition(b":")[0].lower() for line in head.split(b"\r\n")[1:] if line}


def parts(body: bytes) -> list[bytes]:
    return re.findall(rb'form-data; name="([a-z_]+)"', body)
