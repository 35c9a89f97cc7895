"""One process at a time decides about one state directory.

Recovery takes every transfer that it finds unfinished for one that a crash cut short. A second process on the same
directory (a service and a hand-started `serve`, two replicas on one disk) would so fail what the first one is doing: it
would start a server whose files are leaving, tell the panel, and remove staging under the writer. An address that is
taken comes too late to stop it, and two nodes may well have two ports.

The lock belongs to the open file and goes with the process, however that ends: nothing is left to be cleaned up, and a
process id in a file, which another process may have by then, decides nothing.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from sidecar.errors import HostFailed

_log = logging.getLogger(__name__)

_NAME: Final = "lock"


@contextmanager
def exclusive(state_directory: Path) -> Iterator[None]:
    """Hold the directory; it is made where it is missing. Never waits.

    Raises HostFailed (`journal.failed`): another process holds it, or it cannot be made or written to.
    """
    path = state_directory / _NAME
    try:
        state_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        message = f"The state directory {state_directory} cannot be used: {error.strerror}."
        raise HostFailed("journal.failed", message, path=str(path), errno=error.errno or 0) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            message = f"Another sidecar works with the state directory {state_directory}; each node needs its own."
            raise HostFailed("journal.failed", message, path=str(path)) from error
        except OSError as error:
            message = f"The state directory {state_directory} cannot be locked: {error.strerror}."
            raise HostFailed("journal.failed", message, path=str(path), errno=error.errno or 0) from error
        yield
    finally:
        os.close(descriptor)


@contextmanager
def exclusive_volumes(volumes: Path) -> Iterator[None]:
    """Hold the directory of the servers' volumes against a node with another state directory. Never waits.

    Two of them would receive into, and move away, one server's volume without seeing each other's slots. The directory
    itself is locked, so nothing is left in it. One that is missing cannot be held (readiness says that it is missing);
    nor can one on a filesystem without such locks, which is logged.
    Raises HostFailed (`settings.invalid`): another process holds it.
    """
    try:
        descriptor = os.open(volumes, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        yield
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            message = (
                f"Another sidecar works with the volumes in {volumes}; give each node its own servers.volumes, "
                "or the other node's state.dir after that has ended."
            )
            raise HostFailed("settings.invalid", message, path=str(volumes)) from error
        except OSError as error:
            _log.warning("%s cannot be locked (%s): see that no other sidecar uses it", volumes, error.strerror)
        yield
    finally:
        os.close(descriptor)
