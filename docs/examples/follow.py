"""Follows all transfers across restarts of the broker and of itself. Needs nats-py; NATS_URL and perhaps NATS_INBOX."""

import asyncio
import json
import os

import nats
from nats.js.api import ConsumerConfig

seen, newest = {}, {}  # ids of events; (node, transfer) -> the newest seq


def take(event_id, event):
    key, seq = (event["node"], event["transfer"]), event["seq"]
    if event["event"] != "transfer.progress":  # which has the seq of the event before it
        if seq > newest.setdefault(key, seq) + 1:
            print("missing so far: seq", newest[key] + 1, "to", seq - 1, "of", *key, flush=True)
        newest[key] = max(seq, newest[key])
    print(event_id, json.dumps(event), flush=True)


async def follow(url, inbox):
    client = await nats.connect(url, inbox_prefix=inbox, max_reconnect_attempts=-1)
    place = ConsumerConfig(ack_wait=10, inactive_threshold=7 * 86400)  # seconds: the broker keeps it for a week
    subscribe, events = client.jetstream().pull_subscribe, None
    while not client.is_closed:  # as after a changed password: whoever started this starts it again
        try:
            events = events or await subscribe("transfer.v1.event.>", "follow", "TRANSFER_EVENTS", place)
            messages = await events.fetch(100, timeout=1)
        except TimeoutError:  # nothing new
            messages = []
        except (nats.errors.Error, OSError):  # the broker is away, or the stream was made anew and lacks this consumer
            events, messages = None, await asyncio.sleep(0.5, [])
        for message in messages:
            event_id = next((value for name, value in (message.headers or {}).items() if name.lower() == "ce-id"), "")
            if event_id and event_id not in seen:  # not a repeated one
                seen[event_id] = True
                try:
                    take(event_id, json.loads(message.data))
                except (ValueError, KeyError, TypeError, RecursionError):
                    print("no event of this protocol:", ascii(event_id), flush=True)
            await message.ack()  # only now: what is not acknowledged comes again
        for kept in (seen, newest):
            for old in list(kept)[:-10_000]:
                del kept[old]


asyncio.run(follow(os.environ.get("NATS_URL", "nats://127.0.0.1:4222"), os.environ.get("NATS_INBOX", "_INBOX")))
