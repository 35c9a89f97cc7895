"""The image that the rendered containers are started from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn
from uuid import uuid4

import pytest

from integration.image import NoImage, build, docker

SOCKET = Path("/var/run/docker.sock")


@pytest.fixture(scope="session")
def image() -> Iterator[str]:
    """Built from this tree; where nothing has changed the engine's cache has it. Needs root, to give files away."""
    if os.geteuid() != 0:
        skip_or_fail("root is needed to make directories as a node has them")
    if not SOCKET.is_socket():
        skip_or_fail(f"no Docker engine listens on {SOCKET}")
    tag = f"transfer-sidecar:chart-{uuid4().hex[:12]}"
    try:
        build(tag)
    except NoImage as why:
        skip_or_fail(str(why))
    yield tag
    docker("image", "rm", "--no-prune", tag)


def skip_or_fail(why: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)
