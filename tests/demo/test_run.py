"""The whole demo as a program: it ends well, and whatever ends it, nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from sidecar.demo.game import Game, NoContainer
from sidecar.demo.node import NodeFailed, free_port, run_node
from sidecar.demo.run import run


@contextmanager
def demo(tmp_path: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`transfer-sidecar demo`, with a directory of its own for what is temporary."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sidecar", "demo", *arguments],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def read_until(process: subprocess.Popen[str], beginning: str) -> None:
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith(beginning):
            return
    raise AssertionError("".join(said))


def test_a_server_moves_and_nothing_is_left(tmp_path: Path) -> None:
    with demo(tmp_path, "--size", "5", "--no-docker") as process:
        said, _ = process.communicate(timeout=100)
    assert process.returncode == 0, said
    assert "Containers: none, as asked" in said
    assert "source       completed" in said
    assert "destination  completed" in said
    assert "Verified: " in said
    assert list(tmp_path.iterdir()) == []


def test_beside_daemons_the_server_is_handed_over_and_nothing_is_left(tmp_path: Path) -> None:
    with demo(tmp_path, "--size", "5", "--no-docker", "--mode", "beside") as process:
        said, _ = process.communicate(timeout=100)
    assert process.returncode == 0, said
    assert "Containers: none, as asked; the daemons run the server in name only" in said
    assert "handing the server over to the node daemon" in said
    assert "saw no crash to mend and has forgotten it; that of node-b knows the server, lists it once" in said
    assert "Verified: " in said
    assert list(tmp_path.iterdir()) == []


def test_beside_daemons_no_crash_handler_brings_the_container_back(tmp_path: Path) -> None:
    try:
        game = Game.find(tmp_path)
    except NoContainer as reason:
        pytest.skip(str(reason))
    with demo(tmp_path, "--size", "5", "--docker", "--mode", "beside") as process:
        said, _ = process.communicate(timeout=100)
    game.remove_all()  # what a failed demo left, and the connection
    assert process.returncode == 0, said
    assert "that of node-a stopped the server, saw no crash to mend" in said
    assert "Container: stopped and removed on node-a, runs as " in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", ["standalone", "beside"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_nothing(tmp_path: Path, number: signal.Signals, mode: str) -> None:
    with demo(
        tmp_path, "--size", "60", "--no-docker", "--keep", "--mode", mode
    ) as process:  # which never ends by itself
        read_until(process, "Running:")
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 3  # the broker and both nodes
        process.send_signal(number)
        process.send_signal(number)  # impatience does not disturb the cleaning up
        said, _ = process.communicate(timeout=100)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert not any(child.is_running() for child in children)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_is_told_in_words_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    assert run(size_mb=1, use_docker=True) == 1
    assert "The demo failed: the Docker engine tcp://127.0.0.1:1 is not this machine's" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


async def _start(tmp_path: Path) -> None:
    sections = {"transfer": {"gzip_level": 12}}
    async with run_node(tmp_path, "node-a", sections, port=free_port(), token_id="i", token="t"):
        raise AssertionError("it runs")


def test_a_node_that_does_not_start_says_why(tmp_path: Path) -> None:
    import asyncio

    with pytest.raises(NodeFailed, match=r"(?s)exit code 2.*transfer\.gzip_level: 12 is not between 0 and 9"):
        asyncio.run(_start(tmp_path))
