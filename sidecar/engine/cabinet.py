"""Where the files go that came behind a server's archive: backups and its installation log.

They are in staging until the transfer has ended, and from the commit on in their places too (`archive.filing`). What
the panel is told with `success` is what was filed. A transfer that fails leaves nothing; one that is disowned after its
commit takes its files back and moves them to the trash.

Beside a node daemon that takes them with the hand-over, it is the daemon that files them and tells the panel. They stay
in staging meanwhile: mending lets the daemon forget the server, and one family deletes its backups then. When the
server is ours, a file counts as kept if the daemon said that all went well and, where its directory is known, the file
lies there. What it does not have is filed for it, or goes to the trash where no directory is known.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from sidecar.archive.filing import Filing, filing_layout, sha256_of
from sidecar.archive.staging import remove_staging
from sidecar.engine.attachments import Attachments
from sidecar.engine.daemon_folder import DaemonFolder
from sidecar.errors import HostFailed
from sidecar.ports import ArrivedFile, CarriedFile, Carries, FilePlace

log = logging.getLogger(__name__)

CARRYING_NAME: Final = ".sidecar-files"  # beside the volumes: for what has no directory of its own on this node


NOTHING: Final = Carries()


class Settled(msgspec.Struct, frozen=True):
    """What became of the files of a server that is ours."""

    files: tuple[ArrivedFile, ...]
    lines: tuple[str, ...] = ()  # for the transfer's log


class Cabinet:
    """The places of one incoming transfer's files. Blocking, but for `attachments`.

    Args: `directories` of this node; `carrying` where files wait that have none there and go to the node daemon.
    """

    def __init__(
        self,
        directories: dict[FilePlace, Path],
        transfer: str,
        *,
        owner: tuple[int, int] | None = None,
        carrying: Path | None = None,
    ) -> None:
        waiting = {} if carrying is None else dict.fromkeys(FilePlace, carrying)
        self._own = frozenset(directories)
        self._directories = waiting | directories
        self._transfer = transfer
        self._filings = {
            place: Filing(directory, transfer, owner=owner) for place, directory in self._directories.items()
        }

    def attachments(
        self, *, server: str, most_bytes: int, say: Callable[[str], None], carries: Carries = NOTHING
    ) -> Attachments:
        """What receives them. `say` is called in the receipt's thread."""
        places = {place: filing for place, filing in self._filings.items() if place in self._own | carries.places}
        return Attachments(places, server=server, most_bytes=most_bytes, say=say, carries=carries)

    def place(self, files: Sequence[ArrivedFile]) -> list[ArrivedFile]:
        """Give the files their own names; again after a crash is fine. Returns all but those of which something else
        has the name, and stays. What a daemon is to file is left to it. Raises HostFailed (`disk.failed`)."""
        return [f for f in files if f.is_carried or self._filing(f).place(f.name, f.sha256_hex, f.folder)]

    def carried(self, files: Sequence[ArrivedFile], server: str) -> list[CarriedFile]:
        """Those for the daemon, which overwrites what has their names: its folder of that server is set aside until the
        end, and what would replace a file with other content is left out. Raises HostFailed (`disk.failed`)."""
        for folder in self._folders(files, server):
            folder.set_aside()
        found = []
        for file in files:
            if file.is_carried and not self._would_replace(file, server):
                found.append(CarriedFile(file, self._filing(file).staged(file.name)))
        for each in found:
            if not each.path.is_file():
                raise HostFailed("disk.failed", f"{each.path} is gone.")
        return found

    def _would_replace(self, file: ArrivedFile, server: str) -> bool:
        if file.place not in self._own:
            return False
        target = self._filing(file).target(file.name, file.folder)
        if file.folder is not None:  # the daemon's folder is aside by now; what stands there is from a hand-over
            target = DaemonFolder(self._directories[file.place], server).aside(file.name)
        return os.path.lexists(target) and sha256_of(target) != file.sha256_hex

    def put_back(self, files: Sequence[ArrivedFile], server: str) -> None:
        """What the daemon had of that server before, when it has been handed over or forgotten. Idempotent.

        Raises HostFailed (`disk.failed`).
        """
        for folder in self._folders(files, server):
            folder.put_back()

    def _folders(self, files: Sequence[ArrivedFile], server: str) -> list[DaemonFolder]:
        places = {file.place for file in files if file.folder is not None} & self._own
        return [DaemonFolder(self._directories[place], server) for place in places]

    def discard(self, files: Sequence[ArrivedFile], server: str, label: str, now_s: float) -> None:
        """Take the files back and move them to the trash. Idempotent. Raises HostFailed (`disk.failed`)."""
        for file in files:
            if file.place in self._filings:
                self._filing(file).take_back(file.name)
            else:  # nothing here can reach it, and the slot must not wait for that
                log.warning("%s stays where it is: servers.%s is not set any more", file.name, file.place)
        for place in {file.place for file in files} & self._filings.keys():
            self._filings[place].trash(server, label, now_s)

    def remove_staging(self) -> None:
        """What has a name of its own keeps it. Missing is fine. Raises HostFailed (`disk.failed`)."""
        for directory in set(self._directories.values()):
            remove_staging(filing_layout(directory, self._transfer), self._transfer)

    def finish(self, files: Sequence[ArrivedFile], server: str, now_s: float, *, taken: bool) -> Settled:
        """The server is ours: every file is filed somewhere, then staging goes. Again after a crash is fine.

        Args: `taken`: the daemon said that it has those that it was given. Raises nothing: what cannot be filed stays
        in staging or goes to the trash, and a line says so.
        """
        settled: list[ArrivedFile] = []
        lines: list[str] = []
        doubtful: set[FilePlace] = set()
        try:
            self.put_back(files, server)
        except HostFailed as error:
            lines.append(f"{error.message} It is tried again when this node is started.")
        for file in files:
            try:
                file, line = self._settle(file, taken=taken)
            except HostFailed as error:
                line = f"{file.name} could not be filed ({error.message})"
                doubtful.add(file.place)
            settled.append(file)
            if line:
                lines.append(line)
            if file.is_carried and not file.is_kept and file.place not in self._own:
                doubtful.add(file.place)
        try:
            for place in doubtful & self._filings.keys():
                self._filings[place].trash(server, f"not-taken-{self._transfer}", now_s)
            self.remove_staging()
        except HostFailed as error:
            lines.append(f"What came with the server stays in staging: {error.message}")
        return Settled(tuple(settled), tuple(lines))

    def _settle(self, file: ArrivedFile, *, taken: bool) -> tuple[ArrivedFile, str]:
        """The file and what is to be said of it. Raises HostFailed."""
        filing = self._filing(file)
        if not file.is_carried:
            filing.place(file.name, file.sha256_hex, file.folder)
            return file, ""
        if file.is_kept:
            return file, ""
        if file.place not in self._own:
            line = "" if taken else f"The node daemon is not known to have {file.name}: it waits in the trash."
            return msgspec.structs.replace(file, is_kept=taken), line
        if filing.has(file.name, file.sha256_hex, file.folder):
            return msgspec.structs.replace(file, is_kept=taken), ""
        if file.place is FilePlace.INSTALL_LOGS:  # it may have been cut, and each family files it in another way
            if not taken:
                filing.place(file.name, file.sha256_hex)
            return msgspec.structs.replace(file, is_kept=taken), ""
        target = filing.target(file.name, file.folder)
        if filing.place(file.name, file.sha256_hex, file.folder):
            return file, f"The node daemon has not filed {file.name}: it is {target} now."
        return file, f"Left out, for this node has another file of that name: {target}."

    def _filing(self, file: ArrivedFile) -> Filing:
        filing = self._filings.get(file.place)
        if filing is None:  # the settings have changed since it came
            raise HostFailed(
                "disk.failed", f"This node has no directory for {file.name} any more (servers.{file.place})."
            )
        return filing
