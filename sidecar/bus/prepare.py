"""What an operator makes once on a NATS server: the stream of events and the bucket of the directory.

Nodes need not be allowed to make them, so that no node can choose how long the events of all are kept. What is there
already is looked at and never changed.
"""

from __future__ import annotations

from sidecar.bus.asking import NotReached, connected
from sidecar.bus.connection import BusDown
from sidecar.bus.directory import Directory, Unavailable, bucket_name
from sidecar.bus.settings import BusSettings
from sidecar.bus.stream import EventStream, Held
from sidecar.bus.subjects import Subjects

_NOBODY = "operator"  # this is no node; only the subjects of all nodes matter here


async def prepare(settings: BusSettings, *, root: str, stream: str, expiry_s: float) -> list[str]:
    """Make what is missing. Args: root of the subjects; stream, its name; expiry_s of the directory's entries.

    Returns: what to tell a person, a line each. Raises NotReached: the broker does not answer, has no JetStream, does
    not let this user make them, or has a stream of that name which does not fit.
    """
    async with connected(settings) as (connection, client):
        events = EventStream(connection, Subjects(_NOBODY, root), name=stream, may_create=True)
        directory = Directory(root=root, node=_NOBODY, may_create=True, expiry_s=expiry_s)
        directory.bind(client)
        try:
            opened = await events.open(had_stream=False)
            if not opened.is_kept:
                raise NotReached(f"{settings.shown_urls} has no JetStream: events cannot be kept there")
            if opened.differs:
                raise NotReached(f"the stream {stream} is there and does not fit: {'; '.join(opened.differs)}")
            await directory.ensure()
        except Held as held:
            raise NotReached(held.words) from held
        except (BusDown, Unavailable) as error:
            raise NotReached(str(error)) from error
    return [
        f"The stream {stream} keeps events on {root}.v1.event.>.",
        f"The bucket {bucket_name(root)} is the nodes' directory.",
    ]
