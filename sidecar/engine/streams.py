"""The requests that carry one server: one, or with a Calagopus source a main one and several beside it.

Such a source deals the files out from one queue: a file may come on one stream and its directory on another. Each
stream is an archive with its own checksum, received in a thread of its own into the same staging directory. Nothing of
it counts before all of them are whole and verified: one that fails, is missing, comes twice or was not announced fails
the transfer. Backups and the install log come with the main one only.

Streams may arrive before the main request, and while it is still being admitted; their bodies wait until it is. A
stream that nobody waits for is refused after `Timings.join_s`. They are answered together with the main one: a source
that takes any answer for success gets none before the server has moved.

Memory: each stream costs what one upload costs (docs/ARCHITECTURE.md); `Receiving.max_multiplex_streams` bounds them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

import msgspec

from sidecar.archive.entries import Notice
from sidecar.archive.extract import Extracted, TreeState, seal
from sidecar.archive.meter import Meter
from sidecar.archive.staging import Staging
from sidecar.engine.attachments import Attachments
from sidecar.engine.contract import IncomingUpload
from sidecar.engine.receipt import Receipt, Received
from sidecar.engine.services import Services
from sidecar.errors import PeerFailed, Refused


class Streams:
    """All requests of one incoming transfer. Lives in the event loop."""

    def __init__(
        self, services: Services, main: IncomingUpload, meter: Meter, notice: Callable[[Notice], None]
    ) -> None:
        """`meter` is counted up to the sum of all streams by `count`; `notice` is called in the streams' threads."""
        self._services = services
        self._main = main
        self._meter = meter
        self._notice = notice
        self._extra: dict[int, IncomingUpload] = {}
        self._staging: Staging | None = None
        self._attachments: Attachments | None = None
        self._tree = TreeState(streams=1 + main.multiplex_streams) if main.multiplex_streams else None
        self._meters: list[Meter] = []
        self._receipts: list[Receipt] = []
        self._working: list[asyncio.Future[Received]] = []
        self._refusal: Refused | None = None
        self._changed = asyncio.Event()
        self._given_up = False
        self.is_open = main.multiplex_streams > 0  # takes further streams

    @property
    def is_calagopus(self) -> bool:
        """An archive part said so."""
        return any(receipt.is_calagopus for receipt in self._receipts)

    def join(self, upload: IncomingUpload) -> None:
        """One more stream. Raises Refused (`upload.multiplex`), which also fails the streams that are still open."""
        number, announced = upload.multiplex_stream, self._main.multiplex_streams
        if not self.is_open:
            raise Refused("upload.multiplex", "The stream came when its transfer was over.")
        if number is None or number >= announced or number in self._extra:
            how = "came twice" if number in self._extra else "was not announced"
            self._refusal = Refused("upload.multiplex", f"Stream {number} of {announced} {how}.")
            self._changed.set()
            raise self._refusal
        self._extra[number] = upload
        if self._staging is not None:
            self._begin(upload, None)
        self._changed.set()

    async def receive(self, staging: Staging, attachments: Attachments) -> Received:
        """Receive every stream into `staging`; all of it is durable on return.

        Raises what `Receipt.run` raises, and Refused (`upload.multiplex`): a stream is missing, came twice, or was not
        announced. Then, and if cancelled, every thread has ended.
        """
        self._staging, self._attachments = staging, attachments
        try:
            self._begin(self._main, attachments)
            for upload in self._extra.values():
                self._begin(upload, None)
            await self._until_whole()
            self.is_open = False
            received = _sum([working.result() for working in self._working])
            await self._services.in_thread(self._complete, staging, attachments)
        except BaseException:
            self.is_open = False
            self.give_up()
            await _ended(self._working)
            raise
        finally:
            self.count()
        return received

    def give_up(self) -> None:
        """End what is being received; the connections stay. `receive` raises soon."""
        self._given_up = True
        self._changed.set()
        for receipt in self._receipts:
            self._services.executor.submit(receipt.give_up)  # it waits for its threads, and they for the disk

    def close(self) -> None:
        """Break every connection."""
        self.give_up()
        for upload in (self._main, *self._extra.values()):
            upload.connection.abort()

    def count(self) -> None:
        """Bring the transfer's meter up to date."""
        if len(self._meters) > 1:
            self._meter.content_bytes = sum(meter.content_bytes for meter in self._meters)
            self._meter.files = sum(meter.files for meter in self._meters)
            self._meter.wire_bytes = sum(meter.wire_bytes for meter in self._meters)

    def _begin(self, upload: IncomingUpload, attachments: Attachments | None) -> None:
        assert self._staging is not None
        receiving = self._services.receiving
        meter = self._meter if self._tree is None else Meter()
        receipt = Receipt(
            upload.connection.take_body(stall_timeout_s=receiving.stall_timeout_s),
            upload.boundary,
            self._staging.path,
            limits=self._services.extract_limits,
            owner=receiving.owner,
            meter=meter,
            notice=self._notice,
            max_parts=receiving.max_parts,
            max_part_header_bytes=receiving.max_part_header_bytes,
            tree=self._tree,
            attachments=attachments,
        )
        if self._given_up:
            receipt.give_up()
        self._meters.append(meter)
        self._receipts.append(receipt)
        working = asyncio.ensure_future(self._services.in_thread(receipt.run))
        working.add_done_callback(lambda _: self._changed.set())
        self._working.append(working)

    async def _until_whole(self) -> None:
        """Wait until every announced stream has been received. Raises the first failure."""
        loop = asyncio.get_running_loop()
        expected = 1 + self._main.multiplex_streams
        deadline: float | None = None
        while True:
            self._changed.clear()
            if self._refusal is not None:
                raise self._refusal
            for working in self._working:
                if working.done():
                    working.result()
            if self._given_up:
                raise PeerFailed("transfer.cancelled", "The transfer was cancelled.")
            missing = expected - len(self._working)
            if not missing and all(working.done() for working in self._working):
                return
            if missing and deadline is None and self._working[0].done():
                deadline = loop.time() + self._services.receiving.stall_timeout_s
            try:
                async with asyncio.timeout_at(deadline if missing else None):
                    await self._changed.wait()
            except TimeoutError:
                message = f"{missing} of {expected - 1} announced streams of the upload never came."
                raise Refused("upload.multiplex", message) from None

    def _complete(self, staging: Staging, attachments: Attachments) -> None:
        """In a thread."""
        if self._tree is not None:
            seal(staging.path, self._tree, owner=self._services.receiving.owner)
        staging.sync()
        attachments.sync()


async def _ended(working: list[asyncio.Future[Received]]) -> None:
    """Wait for threads that were told to end, also while this task is being cancelled."""
    cancelled: asyncio.CancelledError | None = None
    while any(not future.done() for future in working):
        try:
            await asyncio.wait(working)
        except asyncio.CancelledError as error:
            cancelled = error
    for future in working:
        with suppress(Exception, asyncio.CancelledError):
            future.result()
    if cancelled is not None:
        raise cancelled


def _sum(received: list[Received]) -> Received:
    """The main stream comes first; the digest is its own."""
    main, parts = received[0], [each.extracted for each in received]
    names = ("wire_bytes", "content_bytes", "files", "directories", "symlinks", "removed")
    totals = {name: sum(getattr(part, name) for part in parts) for name in names}
    extracted: Extracted = msgspec.structs.replace(main.extracted, **totals)
    return msgspec.structs.replace(main, extracted=extracted, streams=len(received))
