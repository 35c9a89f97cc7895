"""The image of this tree for tests, built as `make image` does it, and containers of it.

Everything is read-only, without capabilities, and on no network of the engine's unless a test says otherwise.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

ROOT: Final = Path(__file__).parents[1]
USER: Final = 988  # of the image, and its group
_BUILD_S: Final = 420  # the first time the base is made, too
_RUN_S: Final = 60
_LACKING: Final = 3  # docker/build: the machine has not what it takes
CONFINED: Final = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges")


class NoImage(Exception):
    """Why none can be built on this machine; one line for a person."""


class Ended(msgspec.Struct, frozen=True):
    """A program that has ended."""

    code: int
    said: str  # on standard output and standard error


def build(tag: str) -> None:
    """Raises NoImage; fails the test where the build itself fails. Tests that run side by side build one by one."""
    with (ROOT / "docker/build").open("rb") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        _build(tag)


def _build(tag: str) -> None:
    for command in (["make", "tools"], ["docker/build", tag]):
        done = run(command, timeout_s=_BUILD_S)
        if done.code == _LACKING:
            raise NoImage(done.said.strip().rpartition("\n")[2])
        assert done.code == 0, done.said


def run(command: list[str], *, timeout_s: float = _RUN_S, environ: Mapping[str, str] | None = None) -> Ended:
    """A program in the root of this tree, without standard input."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **(environ or {})},
        timeout=timeout_s,
        check=False,
    )
    return Ended(done.returncode, done.stdout.decode("utf-8", "replace"))


def docker(*arguments: str, timeout_s: float = _RUN_S) -> Ended:
    """The engine's command line."""
    return run(["docker", *arguments], timeout_s=timeout_s)
