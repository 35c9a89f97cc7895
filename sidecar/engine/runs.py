"""Which runs of the program were on this state directory before this one.

The directory of nodes on the bus tells two processes of one id apart by their epoch, a word that each run has for
itself. A run that was killed has left its entry there; the next run on the same state directory knows its epoch and
takes the entry over at once, because the directory's lock (`journal/lock.py`) proves that the former is gone. A run of
another state directory has to wait until the entry has aged.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from sidecar.archive.durable import write_file_durably
from sidecar.errors import HostFailed

REMEMBERED: Final = 16  # an entry ages within a minute: enough for a program that is restarted all the time
_NAME: Final = "epochs"
_EPOCH: Final = re.compile(r"[0-9a-f]{8,64}", re.ASCII)


def remember_run(state_directory: Path, epoch: str) -> frozenset[str]:
    """Note this run, durably. Returns the epochs of earlier ones. Blocking; call it with the directory's lock held.

    Raises HostFailed (`journal.failed`). A damaged file is an empty one: it costs a restarted node half a minute.
    """
    path = state_directory / _NAME
    try:
        lines = path.read_text("ascii", "replace").split()
    except FileNotFoundError:
        lines = []
    except OSError as error:
        message = f"The file {path} cannot be read: {error.strerror}."
        raise HostFailed("journal.failed", message, path=str(path)) from error
    former = [line for line in lines if _EPOCH.fullmatch(line)][-REMEMBERED:]
    try:
        write_file_durably(path, "".join(f"{line}\n" for line in [*former, epoch]).encode())
    except HostFailed as error:
        raise HostFailed("journal.failed", error.message, **error.facts) from error
    return frozenset(former)
