"""The engines and the image that all tests here share."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn
from uuid import uuid4

import pytest

from integration.engines import Engines, NoEngine, two_engines
from integration.game_server import GameServer, NoGame, import_image
from integration.image import NoImage, build, docker
from integration.scene import World


@pytest.fixture(scope="session")
def engines() -> Iterator[Engines]:
    # not pytest's own directory: the path of an engine's socket must be short
    directory = Path(tempfile.mkdtemp(prefix="sidecar-"))
    try:
        with two_engines(directory) as both:
            yield both
    except NoEngine as why:
        _skip_or_fail(str(why))
    finally:
        shutil.rmtree(directory)


@pytest.fixture(scope="session")
def game(engines: Engines) -> Iterator[GameServer]:
    clients = [engine.client for engine in engines.all]
    tag = uuid4().hex[:12]
    try:
        made = import_image(clients, tag)
    except NoGame as why:
        _skip_or_fail(str(why))
    if not made.answers:
        if os.environ.get("CI"):
            pytest.fail("teeworlds-server is not installed")
        print("a shell loop is moved instead of a game: teeworlds-server is not installed")
    yield made
    for client in clients:
        client.images.remove(made.image, force=True)


@pytest.fixture(scope="session")
def world(engines: Engines, game: GameServer) -> World:
    return World(engines, game)


@pytest.fixture(scope="session")
def image() -> Iterator[str]:
    """The tag of the container image of this tree; its layers stay in the engine's cache."""
    tag = f"transfer-sidecar:test-{uuid4().hex[:12]}"
    try:
        build(tag)
    except NoImage as why:
        _skip_or_fail(str(why))
    yield tag
    docker("image", "rm", "--no-prune", tag)


def _skip_or_fail(why: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)
