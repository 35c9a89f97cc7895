"""Decisions on disk: one file a transfer, appended and fsynced before anything is done about the decision.

`<state>/transfers/<transfer>.journal` (see `records`). When `append` has returned, the record survives a power
loss, as far as the disk keeps what it acknowledges; when it has raised, the record is not in the file. A crash in
between leaves a torn last line: its decision was never acted on, and `replay` cuts it off. A line that is whole but
damaged is another matter: its decision may have been acted on, so `replay` says so and recovery assumes the worse.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec

from sidecar.errors import HostFailed
from sidecar.journal.records import NewerVersion, Record, Unreadable, decode, encode
from sidecar.lifecycle.state import State
from sidecar.lifecycle.statuses import Role, Status

log = logging.getLogger(__name__)

PROBE_BYTES = 16 * 1024  # some ten decisions
_NAME = re.compile(r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\.journal$")


class Recovered(msgspec.Struct, frozen=True):
    """One transfer as its file left it."""

    record: Record
    is_damaged: bool = False  # a later decision may be missing
    statuses: tuple[Record, ...] = ()  # those that changed the status, oldest first


class Journal:
    """The files. Blocking: call it from a thread. `append` may be called for different transfers at once."""

    def __init__(self, state_directory: Path) -> None:
        self._directory = state_directory / "transfers"
        self._open: dict[str, int] = {}
        self._lock = threading.Lock()

    def prepare(self) -> None:
        """Make the directory. Raises HostFailed (`journal.failed`)."""
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            _sync_directory(self._directory.parent)
        except OSError as error:
            raise _failed(self._directory, error) from error

    def check(self) -> None:
        """Readiness: raise HostFailed (`journal.failed`) unless decisions can be written down."""
        probe = self._directory / ".probe"
        try:
            descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                os.write(descriptor, b"\0" * PROBE_BYTES)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
                probe.unlink()
        except OSError as error:
            raise _failed(self._directory, error) from error

    def append(self, record: Record) -> None:
        """Write one record durably, or not at all.

        Raises HostFailed (`journal.failed`): disk full, read-only, I/O error. Nothing is left of the record then.
        """
        line = encode(record)
        path = self._path(record.facts.transfer)
        try:
            descriptor = self._descriptor(record.facts.transfer, path)
            length = os.fstat(descriptor).st_size
            try:
                written = 0
                while written < len(line):
                    written += os.write(descriptor, line[written:])
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, length)
                raise
        except OSError as error:
            raise _failed(path, error) from error

    def replay(self) -> list[Recovered]:
        """The last good record of every transfer. Cuts torn ends off; names what it cannot read and leaves it alone.

        Raises HostFailed (`journal.failed`) if the directory cannot be read.
        """
        try:
            paths = sorted(path for path in self._directory.iterdir() if _NAME.match(path.name))
            found = [recovered for path in paths if (recovered := self._last(path)) is not None]
        except OSError as error:
            raise _failed(self._directory, error) from error
        return sorted(found, key=lambda recovered: recovered.record.facts.accepted_at)

    def known(self) -> set[str]:
        """The transfers that have a file, readable or not. Raises HostFailed (`journal.failed`)."""
        try:
            return {path.stem for path in self._directory.iterdir() if _NAME.match(path.name)}
        except OSError as error:
            raise _failed(self._directory, error) from error

    def forget(self, transfer: str) -> None:
        """Remove a transfer's file. Missing is fine."""
        self.release(transfer)
        self._path(transfer).unlink(missing_ok=True)

    def release(self, transfer: str) -> None:
        """Close the file of a transfer that has ended; a later append opens it again."""
        with self._lock:
            descriptor = self._open.pop(transfer, None)
        if descriptor is not None:
            os.close(descriptor)

    def close(self) -> None:
        for transfer in list(self._open):
            self.release(transfer)

    def _path(self, transfer: str) -> Path:
        return self._directory / f"{transfer}.journal"

    def _descriptor(self, transfer: str, path: Path) -> int:
        with self._lock:
            descriptor = self._open.get(transfer)
            if descriptor is None:
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
                descriptor = os.open(path, flags, 0o600)
                self._open[transfer] = descriptor
                _sync_directory(self._directory)
            return descriptor

    def _last(self, path: Path) -> Recovered | None:
        content = path.read_bytes()
        last: Record | None = None
        statuses: list[Record] = []
        is_damaged, whole = False, content.rfind(b"\n") + 1
        for start, end in _lines(content):
            try:
                before, last, is_damaged = last, decode(content[start:end]), False
                if before is None or last.state.status is not before.state.status:
                    statuses.append(last)
            except NewerVersion as error:
                log.error("journal %s: %s; left alone", path.name, error)
                return None
            except Unreadable as error:
                log.error("journal %s: bytes %d to %d are damaged (%s)", path.name, start, end, error)
                is_damaged = True
        if whole < len(content):
            log.warning("journal %s: cutting %d torn bytes off its end", path.name, len(content) - whole)
            with path.open("r+b") as file:
                file.truncate(whole)
                os.fsync(file.fileno())
        if last is None:
            log.error("journal %s: no decision in it; left where it is", path.name)
            return None
        return Recovered(last, is_damaged, tuple(statuses))


def worth_keeping(state: State) -> bool:
    """Whether history must not forget such a transfer: work is left, or the panel's DELETE is still to come."""
    departed = state.role is Role.SOURCE and state.status is Status.COMPLETED and not state.delete_requested
    return state.holds_slot or state.owes_cleanup or departed


def _lines(content: bytes) -> Iterator[tuple[int, int]]:
    start = 0
    while (end := content.find(b"\n", start)) >= 0:
        yield start, end
        start = end + 1


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _failed(path: Path, error: OSError) -> HostFailed:
    return HostFailed(
        "journal.failed",
        f"The journal {path} cannot be used: {error.strerror}.",
        path=str(path),
        errno=error.errno or 0,
    )
