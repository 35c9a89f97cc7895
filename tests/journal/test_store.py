"""Kill a real process after each append; cut the file at every byte; what is read back is a decision that was taken."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sidecar.errors import HostFailed
from sidecar.journal.records import OutgoingFacts, Record, decode, encode
from sidecar.journal.store import Journal, worth_keeping
from sidecar.lifecycle.stages import Stage
from sidecar.lifecycle.state import first
from sidecar.lifecycle.statuses import Role, Status
from sidecar.ports import Observed, RunState

TRANSFER = "11111111-2222-4333-8444-555555555555"


def record(seq: int) -> Record:
    facts = OutgoingFacts(
        transfer=TRANSFER,
        server="66666666-7777-4888-9999-000000000000",
        url="http://127.0.0.1:1/api/transfers",
        token="",
        accepted_at=1.5,
        observed=Observed(RunState.RUNNING, "c" * 64, {"Name": "always"}, 2),
    )
    return Record(seq=seq, time=float(seq), event="ServerStopped", state=first(Role.SOURCE), facts=facts)


def journal_at(directory: Path) -> Journal:
    journal = Journal(directory)
    journal.prepare()
    return journal


def test_a_record_reads_back_as_it_was_written() -> None:
    assert decode(encode(record(3)).rstrip(b"\n")) == record(3)


def test_replay_gives_the_last_decision_of_each_transfer(tmp_path: Path) -> None:
    journal = journal_at(tmp_path)
    for seq in (1, 2, 3):
        journal.append(record(seq))
    journal.close()
    (recovered,) = journal_at(tmp_path).replay()
    assert recovered.record == record(3) and not recovered.is_damaged


def test_cut_at_every_byte_recovers_a_decision_that_was_taken(tmp_path: Path) -> None:
    lines = [encode(record(seq)) for seq in (1, 2, 3)]
    whole = b"".join(lines)
    path = tmp_path / "transfers" / f"{TRANSFER}.journal"
    journal_at(tmp_path)
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        found = journal_at(tmp_path).replay()
        complete = sum(cut >= sum(map(len, lines[: n + 1])) for n in range(3))
        assert [r.record.seq for r in found] == ([complete] if complete else [])
        assert all(not r.is_damaged for r in found)
        journal = journal_at(tmp_path)
        journal.append(record(4))  # what follows a torn end is readable again
        journal.close()
        assert [r.record.seq for r in journal_at(tmp_path).replay()] == [4]


def test_a_damaged_last_decision_is_said_to_be_missing(tmp_path: Path) -> None:
    first_line, second = encode(record(1)), bytearray(encode(record(2)))
    second[30] ^= 1
    path = tmp_path / "transfers" / f"{TRANSFER}.journal"
    journal_at(tmp_path)
    path.write_bytes(first_line + bytes(second))
    (recovered,) = journal_at(tmp_path).replay()
    assert recovered.record.seq == 1 and recovered.is_damaged
    path.write_bytes(first_line + bytes(second) + encode(record(3)))
    (recovered,) = journal_at(tmp_path).replay()
    assert recovered.record.seq == 3 and not recovered.is_damaged


def test_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    import zlib

    body = b'{"version":99}'
    path = tmp_path / "transfers" / f"{TRANSFER}.journal"
    journal_at(tmp_path)
    content = encode(record(1)) + b"%08x %s\n" % (zlib.crc32(body), body)
    path.write_bytes(content)
    assert journal_at(tmp_path).replay() == []
    assert path.read_bytes() == content


def test_forgetting_removes_the_file(tmp_path: Path) -> None:
    journal = journal_at(tmp_path)
    journal.append(record(1))
    journal.forget(TRANSFER)
    journal.forget(TRANSFER)
    assert journal.replay() == []
    journal.close()


def test_files_are_private(tmp_path: Path) -> None:
    journal = journal_at(tmp_path)
    journal.append(record(1))
    journal.close()
    assert (tmp_path / "transfers" / f"{TRANSFER}.journal").stat().st_mode & 0o777 == 0o600


def test_a_departed_server_is_kept_until_the_panel_deletes_it() -> None:
    import msgspec

    ended = msgspec.structs.replace(record(1).state, stage=Stage.ENDED, status=Status.COMPLETED)
    assert worth_keeping(ended)
    deleted = msgspec.structs.replace(ended, delete_requested=True)
    assert not worth_keeping(deleted)


def test_a_full_disk_leaves_nothing_of_the_record(tmp_path: Path) -> None:
    """RLIMIT_FSIZE makes the kernel refuse the write in the middle of a line."""
    script = """
import resource, signal, sys
from pathlib import Path
from tests.journal.test_store import journal_at, record
from sidecar.errors import HostFailed
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
journal = journal_at(Path(sys.argv[1]))
journal.append(record(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    journal.append(record(2))
except HostFailed as error:
    print(error.code)
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "journal.failed"
    (recovered,) = journal_at(tmp_path).replay()
    assert recovered.record.seq == 1 and not recovered.is_damaged


@pytest.mark.parametrize("appended", [1, 2, 5])
def test_killed_after_an_append_it_is_still_there(tmp_path: Path, appended: int) -> None:
    script = """
import os, signal, sys
from pathlib import Path
from tests.journal.test_store import journal_at, record
journal = journal_at(Path(sys.argv[1]))
for seq in range(1, int(sys.argv[2]) + 1):
    journal.append(record(seq))
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path), str(appended)], env={**os.environ}, check=False)
    assert done.returncode == -signal.SIGKILL
    (recovered,) = journal_at(tmp_path).replay()
    assert recovered.record.seq == appended


def test_an_unusable_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HostFailed, match="cannot be used") as caught:
        Journal(tmp_path / "file" / "below").prepare()
    assert caught.value.code == "journal.failed"
