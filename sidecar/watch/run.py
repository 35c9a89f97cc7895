"""`transfer-sidecar watch`: everything of the bus's events goes into a board, and one of three outputs shows it.

    live    a terminal: the table, drawn anew some times a second on the terminal's other screen, left behind at the end
    plain   anything else: a line whenever a transfer changes its status or stage, and some of its progress
    json    a line per event, as it came, for scripts

Nothing here decides anything, and nothing is sent to a node. What is wrong with the bus is said on standard error, or
above the table.
"""

from __future__ import annotations

import asyncio
import io
import json
import signal
import sys
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol

import msgspec
from rich.console import Console
from rich.live import Live

from sidecar.bus.events import NoEvent, read_body
from sidecar.bus.settings import BusSettings
from sidecar.bus.stream import DEFAULT_STREAM
from sidecar.bus.subjects import event_filter
from sidecar.bus.watch import Heard, Watch
from sidecar.views import EventKind
from sidecar.watch.board import Board, Row
from sidecar.watch.shown import clean, duration
from sidecar.watch.table import draw, plain, route, stages

FIRST_ANSWER_S: Final = 15.0  # `--once` waits so long for the broker and for all that it has
_DRAW_EVERY_S: Final = 0.2
_PLAIN_PROGRESS_S: Final = 5.0
_MAX_SEEN: Final = 65_536  # ids of events, to drop repeats by
_GONE_S: Final = 0.5  # a connection that is away for less is not worth a word


class WatchFailed(Exception):
    """What was asked for cannot be shown; the text says why."""


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be shown. servers: UUIDs, nodes: ids; empty: all."""

    root: str
    stream: str | None = DEFAULT_STREAM  # None: there is none, only the present is heard
    servers: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    active_only: bool = False
    once: bool = False
    as_json: bool = False

    def subjects(self) -> list[str]:
        """Filters of the bus. Both ends of a transfer are needed to show it, so nodes narrow only single events."""
        nodes: tuple[str | None, ...] = (self.nodes or (None,)) if self.as_json else (None,)
        servers: tuple[str | None, ...] = self.servers or (None,)
        return [event_filter(self.root, node=node, server=server) for node in nodes for server in servers]


class _Output(Protocol):
    def take(self, heard: Heard) -> None:
        """One event."""

    def tick(self, watch: Watch) -> None:
        """Some times a second."""

    def finish(self) -> None:
        """After all that is known, or at the end."""


def watch(settings: BusSettings, wanted: Wanted) -> int:
    """Show transfers until Ctrl-C or SIGTERM, or once. Returns the signal that ended it, or 0. Raises WatchFailed."""
    return asyncio.run(_interruptible(_watch(settings, wanted)))


async def _interruptible(work: Coroutine[Any, Any, None]) -> int:
    task = asyncio.ensure_future(work)
    ended_by: list[int] = []
    loop = asyncio.get_running_loop()

    def end(number: int) -> None:
        ended_by.append(number)
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end, number)
    try:
        await task
    except asyncio.CancelledError:
        if not ended_by:
            raise
    return ended_by[0] if ended_by else 0


async def _watch(settings: BusSettings, wanted: Wanted) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # where the terminal has no arrows
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    events = Watch(settings, wanted.subjects(), stream=wanted.stream, resumes=wanted.as_json)
    output: _Output
    if wanted.as_json:
        output = _Json(wanted)
    elif wanted.once:
        output = _Once(console, wanted, settings.shown_urls)
    elif console.is_terminal:
        output = _Live(console, wanted, settings.shown_urls)
    else:
        output = _Plain(wanted)
    async with events:
        if wanted.once:
            await _feed_once(events, output)
            return
        try:
            async with _ticking(lambda: output.tick(events)):
                while True:
                    output.take(await events.next_heard())
        finally:
            output.finish()


async def _feed_once(events: Watch, output: _Output) -> None:
    """All that is kept. Raises WatchFailed."""

    async def take() -> None:
        while True:
            output.take(await events.next_heard())

    taking = asyncio.ensure_future(take())
    try:
        async with asyncio.timeout(FIRST_ANSWER_S):
            await events.wait_connected()
            if events.live_only:
                raise WatchFailed(f"the present state is not kept: {events.live_only}")
            await events.wait_caught_up()
    except TimeoutError:
        raise WatchFailed(events.last_error or events.live_only or "the broker does not answer") from None
    finally:
        taking.cancel()
        await asyncio.gather(taking, return_exceptions=True)
    output.finish()


@asynccontextmanager
async def _ticking(tick: Callable[[], None]) -> AsyncIterator[None]:
    """While the scope lasts; an error of `tick` ends the scope."""

    async def run() -> None:
        while True:
            tick()
            await asyncio.sleep(_DRAW_EVERY_S)

    async with asyncio.TaskGroup() as group:
        task = group.create_task(run(), name="watch: draw")
        yield
        task.cancel()


class _Bus:
    """What is to be said about the connection at this moment; says a change once."""

    def __init__(self) -> None:
        self._away_since: float | None = time.monotonic()

    def words(self, watch: Watch) -> str:
        """Empty while everything is heard."""
        if watch.is_connected:
            self._away_since = None
            return f"live only, {watch.live_only}" if watch.live_only else ""
        now = time.monotonic()
        if self._away_since is None:
            self._away_since = now
        if now - self._away_since < _GONE_S:
            return ""
        doing, known = ("reconnecting", "; below is what was known then") if watch.connections else ("connecting", "")
        because = f" ({watch.last_error})" if watch.last_error else ""
        return f"{doing} since {duration(now - self._away_since)}{because}{known}"


class _Said:
    """The connection's state on standard error, a line per change."""

    def __init__(self) -> None:
        self._bus = _Bus()
        self._last = ""

    def tick(self, watch: Watch) -> None:
        words = self._bus.words(watch)
        kind = words.partition(" ")[0]
        if kind == self._last:
            return
        if words or self._last:
            line = words.partition(";")[0] if words else "connected"
            print(f"transfer-sidecar: {clean(line)}", file=sys.stderr, flush=True)
        self._last = kind


class _Live:
    def __init__(self, console: Console, wanted: Wanted, urls: str) -> None:
        self._console = console
        self._wanted = wanted
        self._urls = urls
        self._board = Board(wanted.servers, wanted.nodes)
        self._bus = _Bus()
        self._live = Live(console=console, screen=True, auto_refresh=False)
        self._live.start()

    def take(self, heard: Heard) -> None:
        self._board.feed(heard.event)

    def tick(self, watch: Watch) -> None:
        size = self._console.size
        drawn = draw(
            self._board.rows(active_only=self._wanted.active_only),
            columns=size.width,
            lines=size.height,
            now=time.time(),
            headline=self._urls,
            warning=self._bus.words(watch),
        )
        self._live.update(drawn, refresh=True)

    def finish(self) -> None:
        self._live.stop()
        rows = self._board.rows(active_only=self._wanted.active_only)
        size = self._console.size
        self._console.print(draw(rows, columns=size.width, lines=size.height, now=time.time(), headline=self._urls))


class _Once:
    def __init__(self, console: Console, wanted: Wanted, urls: str) -> None:
        self._console = console
        self._wanted = wanted
        self._urls = urls
        self._board = Board(wanted.servers, wanted.nodes)

    def take(self, heard: Heard) -> None:
        self._board.feed(heard.event)

    def tick(self, watch: Watch) -> None:
        pass

    def finish(self) -> None:
        rows = self._board.rows(active_only=self._wanted.active_only)
        now = time.time()
        if not self._console.is_terminal:
            for row in rows:
                print(plain(row, now))
            return
        self._console.print(draw(rows, columns=self._console.width, lines=None, now=now, headline=self._urls))


class _Plain:
    """The present first, then what changes."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._board = Board(wanted.servers, wanted.nodes)
        self._said: OrderedDict[tuple[str, str], tuple[str, float]] = OrderedDict()
        self._bus = _Said()
        self._is_present = False

    def take(self, heard: Heard) -> None:
        row = self._board.feed(heard.event)
        if row is None or not self._is_present:
            return
        words, at = self._said.get((row.transfer, row.server), ("", 0.0))
        if self._wanted.active_only and not row.is_active and not words:
            return
        is_due = heard.event.kind is EventKind.PROGRESS and time.monotonic() - at >= _PLAIN_PROGRESS_S
        if words != _state(row) or (is_due and row.is_active):
            self._say(row)

    def tick(self, watch: Watch) -> None:
        self._bus.tick(watch)
        if not self._is_present and (watch.is_caught_up or (watch.is_connected and watch.live_only)):
            self._is_present = True
            for row in reversed(self._board.rows(active_only=self._wanted.active_only)):
                self._say(row)

    def finish(self) -> None:
        pass

    def _say(self, row: Row) -> None:
        key = (row.transfer, row.server)
        self._said[key] = (_state(row), time.monotonic())
        self._said.move_to_end(key)
        if len(self._said) > _MAX_SEEN:
            self._said.popitem(last=False)
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(row.heard_at))
        print(f"{at}  {plain(row, time.time())}", flush=True)


def _state(row: Row) -> str:
    """What is worth a line when it changes."""
    return f"{row.status.value} {route(row)} {stages(row)} {row.why[0]}"


class _Json:
    """ASCII only: what a terminal would obey stands escaped."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._seen: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._bus = _Said()

    def take(self, heard: Heard) -> None:
        event = heard.event
        if self._wanted.active_only and event.status.is_final:
            return
        event_id = heard.headers.get("ce-id", "")
        if event_id and self._is_repeated((event.node, event_id)):
            return
        try:
            body = read_body(heard.body)
        except NoEvent:
            return
        print(json.dumps(body | {"id": event_id[:200] or None}), flush=True)

    def tick(self, watch: Watch) -> None:
        self._bus.tick(watch)

    def finish(self) -> None:
        pass

    def _is_repeated(self, key: tuple[str, str]) -> bool:
        if key in self._seen:
            return True
        self._seen[key] = None
        if len(self._seen) > _MAX_SEEN:
            self._seen.popitem(last=False)
        return False
