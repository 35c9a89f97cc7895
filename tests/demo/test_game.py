"""The demo's container on a real engine: it runs, it stops when told, and nothing of it stays."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from sidecar.demo.game import Game, NoContainer, is_static


@pytest.fixture
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="transfer-sidecar-test-"))
    yield path
    shutil.rmtree(path)


@pytest.mark.docker
def test_it_runs_stops_and_leaves_nothing(directory: Path) -> None:
    try:
        game = Game.find(directory)
    except NoContainer as reason:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(reason))
    volume = directory / "volume"
    volume.mkdir()
    with contextlib.closing(docker.DockerClient(base_url=game.engine_url)) as engine:
        try:
            game.make_image()
            name = f"{directory.name}-game"
            container = engine.containers.get(game.run(name, volume, "/home/container"))
            assert game.containers_on(volume) == {name: "running"}
            container.stop(timeout=10)
            container.reload()
            assert container.attrs["State"]["ExitCode"] == 0  # it was asked, not killed
            assert game.containers_on(volume) == {name: "exited"}
        finally:
            game.remove_all()
        assert engine.containers.list(all=True, filters={"name": directory.name}) == []
        assert engine.images.list(game.image) == []


def test_an_engine_elsewhere_is_not_used(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    with pytest.raises(NoContainer, match="not this machine's"):
        Game.find(directory)


def test_no_engine_is_one_line(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{directory}/none.sock")
    with pytest.raises(NoContainer, match=r"no Docker engine answers|static busybox"):
        Game.find(directory)


def test_what_is_static(directory: Path) -> None:
    script = directory / "script"
    script.write_text("#!/bin/sh\n" + "x" * 100)
    assert not is_static(script)
    assert not is_static(Path("/bin/sh").resolve()) or "busybox" in str(Path("/bin/sh").resolve())
