"""Two processes never decide about one state directory, or about one directory of volumes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sidecar.errors import HostFailed
from sidecar.journal.lock import exclusive, exclusive_volumes

HOLD = """
import sys, time
from pathlib import Path
from sidecar.journal.lock import exclusive
with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_holder_is_refused_until_the_first_lets_go(tmp_path: Path) -> None:
    state = tmp_path / "not yet" / "there"
    with exclusive(state):
        with (
            pytest.raises(HostFailed, match="Another sidecar works with the state directory") as refused,
            exclusive(state),
        ):
            pass
        assert refused.value.code == "journal.failed"
    with exclusive(state):
        pass


def test_a_killed_process_leaves_nothing_locked(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(HostFailed, match="Another sidecar"), exclusive(tmp_path):
            pass
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
    with exclusive(tmp_path):
        pass


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(HostFailed, match=r"file/below cannot be used: Not a directory\."),
        exclusive(tmp_path / "file" / "below"),
    ):
        pass


def test_two_nodes_never_share_their_volumes(tmp_path: Path) -> None:
    with exclusive_volumes(tmp_path):
        with pytest.raises(HostFailed, match="give each node its own servers") as refused, exclusive_volumes(tmp_path):
            pass
        assert refused.value.code == "settings.invalid" and refused.value.facts == {"path": str(tmp_path)}
    with exclusive_volumes(tmp_path):
        assert list(tmp_path.iterdir()) == []


def test_missing_volumes_are_for_readiness_to_tell(tmp_path: Path) -> None:
    with exclusive_volumes(tmp_path / "missing"), exclusive_volumes(tmp_path / "missing"):
        assert not (tmp_path / "missing").exists()
