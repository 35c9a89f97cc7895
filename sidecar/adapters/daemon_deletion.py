"""Deleting a server at a node daemon, and knowing when that is over: the dangerous call.

Every family answers it, and no longer knows the server, *before* its files are gone: the removal runs in the
background, at Calagopus after the container's own removal. A volume that is moved back too early would be deleted. So
an empty directory stands at the volume's place while the daemon deletes, and the deletion is over when that is gone;
with anything else standing there nothing is asked for at all.

A daemon that ends in the middle leaves that directory for ever, for none of them takes a deletion up again. Time alone
never says so: an engine that hangs may hold a removal up for long. It takes proof that the process that was asked has
ended: nobody listened at its port since, or it refuses a console's token as older than its own start, which was issued
when the deletion began. Then the directory is taken away, if it is still as it was a while later.

Source: docs/PROTOCOL.md; read in the three daemons and tried against them.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

import msgspec

from sidecar.errors import HostFailed

log = logging.getLogger(__name__)

_NOT_FOUND: Final = 404


class Mark(msgspec.Struct, frozen=True):
    """The empty directory that stands at a volume's place, as it is."""

    inode: int
    changed_ns: int

    @classmethod
    def of(cls, place: Path) -> Mark | None:
        """None where there is none."""
        with suppress(OSError):
            if not place.is_symlink() and place.is_dir() and not any(place.iterdir()):
                found = place.stat()
                return cls(found.st_ino, found.st_ctime_ns)
        return None


class Answers(Protocol):
    """What is needed of a daemon."""

    async def knows_server(self, server: str) -> bool:
        """Raises HostFailed (`daemon.*`)."""

    async def delete(self, server: str) -> int | HostFailed:
        """Its status, or what its refusal is. Raises HostFailed (`daemon.*`): not known."""

    async def was_started_after(self, time_s: float) -> bool:
        """Whether it proves that it was. False: it does not."""

    @property
    def absences(self) -> int:
        """How often nobody listened at its port."""


class Deletions:
    """Of one daemon. `forget_s` how long one may take; `idle_s` how long the directory of one that cannot go on must
    have been left alone."""

    def __init__(self, daemon: Answers, *, forget_s: float, idle_s: float, poll_s: float) -> None:
        self._daemon = daemon
        self._forget_s = forget_s
        self._idle_s = idle_s
        self._poll_s = poll_s
        self._asked: dict[str, int] = {}  # not seen to be over -> the daemon's absences before

    async def forget(self, server: str, place: Path) -> None:
        """As `ports.Daemon.forget`; returns when the daemon's removal of files is over, too.

        Raises HostFailed (`daemon.*`; `daemon.refused` also where something stands at the volume's place, and where
        the daemon does not end: then an empty directory is left there, and the daemon may still delete what replaces
        it). If cancelled: as where the daemon does not end.
        """
        if await self._daemon.knows_server(server):
            await asyncio.to_thread(_stand_in, place, server)
            self._asked[server] = self._daemon.absences
            answer = await self._daemon.delete(server)
            if isinstance(answer, HostFailed):
                del self._asked[server]
                await asyncio.to_thread(_take_away, place)
                raise answer
        # After a restart only the directory tells of a deletion that was asked for before.
        if server in self._asked or await asyncio.to_thread(Mark.of, place) is not None:
            await self._wait_deleted(server, place)
            self._asked.pop(server, None)

    async def _wait_deleted(self, server: str, place: Path) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._forget_s
        seen: Mark | None = None
        idle_since = loop.time()
        while True:
            mark = await asyncio.to_thread(Mark.of, place)
            is_known = await self._daemon.knows_server(server)
            if not is_known and mark is None and not await asyncio.to_thread(place.exists):
                return
            if is_known or mark is None or mark != seen:
                seen, idle_since = mark, loop.time()
            elif loop.time() - idle_since >= self._idle_s:
                if await self._cannot_go_on(server, mark) and await asyncio.to_thread(_take_away, place):
                    log.warning("the node daemon was restarted in the middle of deleting server %s", server)
                    return
                idle_since = loop.time()
            if loop.time() >= deadline:
                raise HostFailed(
                    "daemon.refused",
                    f"the node daemon did not finish deleting server {server} within {self._forget_s:g} s (where it "
                    f"was restarted meanwhile it never will: remove the empty directory {place})",
                    timeout_s=self._forget_s,
                )
            await asyncio.sleep(self._poll_s)

    async def _cannot_go_on(self, server: str, mark: Mark) -> bool:
        """Whether the process that was asked has ended. A death that was seen costs no question."""
        if server in self._asked and self._daemon.absences > self._asked[server]:
            return True
        return await self._daemon.was_started_after(mark.changed_ns / 1e9)


def _stand_in(place: Path, server: str) -> None:
    """Put an empty directory at a volume's place; one that is there from before will do."""
    try:
        place.mkdir(mode=0o700)
    except FileExistsError:
        if Mark.of(place) is None:
            raise HostFailed(
                "daemon.refused", f"server {server} is not deleted at the node daemon: its files are at their place"
            ) from None
    except OSError as error:
        raise HostFailed("disk.failed", f"the volume's place cannot be marked: {error.strerror}") from error


def _take_away(place: Path) -> bool:
    """Only an empty directory goes."""
    try:
        place.rmdir()
    except OSError:
        return False
    return True
