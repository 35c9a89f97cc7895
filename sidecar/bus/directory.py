"""The directory of nodes: a key-value bucket with one entry a node, renewed by a heartbeat, gone when that ends.

A hint for whoever looks for a node, and the ground of the fence (`fence.py`); nothing of a transfer is decided by it.
A node looks at its own entry only, by direct gets: no watcher and no list of keys, each of which would leave a consumer
on the broker.
"""

from __future__ import annotations

import logging
from typing import Any, Final

import msgspec
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.js.api import StorageType
from nats.js.kv import KeyValue

from sidecar.bus.fence import Found
from sidecar.bus.messages import NodeEntry

_log = logging.getLogger(__name__)

CALL_S: Final = 2.0  # a broker answers within milliseconds
MAX_ENTRY_BYTES: Final = 16 * 1024
_UNAVAILABLE: Final = (nats.errors.Error, nats.js.errors.Error, OSError, TimeoutError)

_encode = msgspec.json.Encoder().encode


class Unavailable(Exception):
    """There is no directory at the moment; the text says why. Never leaves this package."""


class Moved(Exception):
    """The entry is not at the revision that was expected: somebody else has written it."""


class _Whose(msgspec.Struct):
    epoch: str


def bucket_name(root: str) -> str:
    return f"{root.replace('.', '_')}_nodes"


class Directory:
    """This node's entry, on one connection after the other.

    Args: root of the subjects; node; may_create, whether a missing bucket is made; expiry_s of its entries.
    """

    def __init__(self, *, root: str, node: str, may_create: bool, expiry_s: float) -> None:
        self._bucket = bucket_name(root)
        self._node = node
        self._may_create = may_create
        self._expiry_s = expiry_s
        self._client: Client | None = None
        self._entries: KeyValue | None = None

    def bind(self, client: Client) -> None:
        """Use this connection from now on."""
        self._client = client
        self._entries = None

    async def ensure(self) -> None:
        """See that there is a bucket, and make it where that is allowed. Raises Unavailable."""
        await self._open()

    async def look(self) -> Found | None:
        """Who has this node's entry. Raises Unavailable."""
        entries = await self._open()
        try:
            entry = await entries.get(self._node)
        except nats.js.errors.KeyNotFoundError as missing:
            gone = getattr(missing, "entry", None)
            return Found(None, gone.revision) if gone is not None and gone.revision else None
        except _UNAVAILABLE as error:
            raise self._lost(error) from error
        assert entry.revision is not None
        try:
            whose = msgspec.json.decode(entry.value or b"", type=_Whose).epoch
        except msgspec.DecodeError:
            whose = "unreadable"  # not ours: it ages like any other
        return Found(whose, entry.revision)

    async def put(self, entry: NodeEntry, revision: int) -> int:
        """Write the entry over `revision` (0: over none). Returns its own. Raises Moved, Unavailable."""
        entries = await self._open()
        try:
            return await entries.update(self._node, _encode(entry), last=revision)
        except nats.js.errors.KeyWrongLastSequenceError as error:
            raise Moved from error
        except _UNAVAILABLE as error:
            raise self._lost(error) from error

    async def leave(self, revision: int) -> None:
        """Give the entry up, so that nobody has to wait until it has aged. Raises Moved, Unavailable."""
        entries = await self._open()
        try:
            await entries.delete(self._node, last=revision)
        except nats.js.errors.APIError as error:
            raise Moved from error
        except _UNAVAILABLE as error:
            raise self._lost(error) from error

    async def _open(self) -> KeyValue:
        if self._entries is not None:
            return self._entries
        if self._client is None:
            raise Unavailable("not connected")
        stream = self._client.jetstream(timeout=CALL_S)
        try:
            try:
                self._entries = await stream.key_value(self._bucket)
            except nats.js.errors.BucketNotFoundError:
                if not self._may_create:
                    raise
                options: dict[str, Any] = {"ttl": self._expiry_s, "history": 1, "max_value_size": MAX_ENTRY_BYTES}
                self._entries = await stream.create_key_value(
                    bucket=self._bucket, storage=StorageType.FILE, direct=True, description="transfer nodes", **options
                )
                _log.info("bus: made the bucket %s", self._bucket)
        except _UNAVAILABLE as error:
            raise self._lost(error) from error
        return self._entries

    def _lost(self, error: BaseException) -> Unavailable:
        self._entries = None  # it may have vanished with its broker: looked for anew
        match error:
            case nats.js.errors.BucketNotFoundError():
                return Unavailable(f"there is no bucket {self._bucket}")
            case nats.js.errors.ServiceUnavailableError() | nats.errors.NoRespondersError():
                return Unavailable("the broker has no JetStream")
            case _:
                return Unavailable(f"{type(error).__name__}: {error}"[:200])
