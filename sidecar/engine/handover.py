"""Beside a node daemon: the arrived server is handed over to it, and mended where the daemon got stuck (H1 to H3).

The daemon adopts the files that lie in their place and tells the panel itself. Nothing that it answers proves anything;
the oracle decides. Mending means: the volume aside, the daemon forgets the server, the volume back; it is journaled on
both sides, for the daemon deletes whatever it finds at the volume's place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

import msgspec

from sidecar.archive.staging import Identity, LayoutKind, commit
from sidecar.engine.cabinet import Cabinet
from sidecar.engine.transfer import Transfer
from sidecar.errors import HostFailed, PeerFailed, Refused
from sidecar.journal.records import IncomingFacts
from sidecar.lifecycle import events as on
from sidecar.lifecycle.events import Event
from sidecar.ports import CarriedFile, Daemon, Delivery

IsConnected = Callable[[], bool]


async def hand_over(transfer: Transfer, cabinet: Cabinet, daemon: Daemon, is_source_connected: IsConnected) -> Event:
    """Send it once, with what came behind the archive, if the oracle does not list it yet and the panel answers."""
    call, server = transfer.state.call, transfer.facts.server
    listed = await transfer.arbiter().is_ours(server)
    if listed:
        return on.OwnerListed(call=call)
    if transfer.state.call != call or listed is None:
        return on.HandOverUnsent(call=call)
    if not is_source_connected():
        return on.SourceGone(call=call)
    files = await _carried(transfer, cabinet)
    loop = asyncio.get_running_loop()
    began = loop.time()
    match delivery := await daemon.hand_over(server, files):
        case Delivery.ANSWERED | Delivery.ACCEPTED:
            if files and delivery is Delivery.ACCEPTED:
                with suppress(HostFailed):  # not knowing it costs little: the files are not called kept then
                    await transfer.learn(has_taken_files=True)
            # One that took longer than a call to the panel may have given one up that can still land (D9).
            return on.HandedOver(call=call, slow=loop.time() - began >= transfer.services.timings.call_timeout_s)
        case Delivery.UNANSWERED:
            return on.HandOverUnanswered(call=call)
        case Delivery.UNSENT:
            return on.HandOverUnsent(call=call)


async def _carried(transfer: Transfer, cabinet: Cabinet) -> list[CarriedFile]:
    """What goes along; a file that cannot is left out, for it is worth less than the server."""
    facts = _facts(transfer)
    files = [file for file in facts.files if file.is_carried]
    if not files:
        return []
    try:
        found = await transfer.services.in_thread(cabinet.carried, files, facts.server)
    except HostFailed as error:
        transfer.say(f"The server is handed over without its backups: {error.message}")
        return []
    if left := [file.name for file in files if file not in [each.file for each in found]]:
        transfer.say(f"Left out, for this node has other files of those names: {', '.join(left)}.")
    return found


async def mend(transfer: Transfer, daemon: Daemon, is_source_connected: IsConnected) -> Event:
    """H3: only while the source is connected, only a daemon that is stuck. What was begun is finished first.

    Raises HostFailed (`disk.*`, `daemon.*`): the volume may be aside then; to be tried again.
    """
    facts = _facts(transfer)
    if not facts.is_aside and not await _is_stuck(transfer, daemon, is_source_connected):
        return on.MendAbandoned()
    services = transfer.services
    identity = _identity(facts)
    await transfer.note(msgspec.structs.replace(facts, is_aside=True, has_taken_files=False))
    await services.in_thread(services.volumes.set_aside, facts.server, facts.transfer, identity)
    await daemon.forget(facts.server)
    await _put_back(transfer, identity)
    return on.Mended() if is_source_connected() else on.MendAbandoned()


async def _is_stuck(transfer: Transfer, daemon: Daemon, is_source_connected: IsConnected) -> bool:
    """Whether there is anything to mend, and mending it is safe."""
    server = transfer.facts.server
    if transfer.services.volumes.layout(server).kind is not LayoutKind.DIRECTORY:
        return False  # a mount point cannot be moved aside
    if transfer.state.stray:  # a `success` of the daemon may be on its way: moving an owned volume aside is no mending
        await asyncio.sleep(transfer.services.timings.daemon_call_s)
    if await transfer.arbiter().is_ours(server) is not False or not await _is_open_at_panel(transfer):
        return False
    knows = await daemon.knows(server)
    if knows is None:
        raise HostFailed("daemon.unreachable", "The node daemon does not say whether it knows the server.")
    # One that does not know it has tried, failed and said so: asked again it would fail again, and two families delete
    # the volume when the panel refuses their `failure`.
    return knows and is_source_connected() and await daemon.is_stuck(server) is not False


async def _is_open_at_panel(transfer: Transfer) -> bool:
    """Whether the panel still lets this node read the server's configuration, as it does while the transfer runs."""
    try:
        await transfer.services.configuration(transfer.facts.server)
    except PeerFailed as error:
        return error.code != "panel.refused"
    return True


async def _put_back(transfer: Transfer, identity: Identity) -> None:
    facts, services = _facts(transfer), transfer.services
    layout = services.volumes.layout(facts.server)
    try:
        await services.in_thread(commit, layout, layout.staging_root / facts.transfer, identity)
    except Refused as error:  # something stands at the volume's place: somebody's doing, and not the world
        label = f"left-by-daemon-{facts.transfer}"
        await services.in_thread(services.volumes.trash, facts.server, label, services.now())
        raise HostFailed("disk.failed", error.message) from error
    await transfer.note(msgspec.structs.replace(_facts(transfer), is_aside=False))


async def forget_discarded(transfer: Transfer, daemon: Daemon) -> None:
    """The volume is in the trash: the daemon must not go on to hold a server without files. Raises HostFailed."""
    if await daemon.knows(transfer.facts.server) is not False:
        await daemon.forget(transfer.facts.server)


def _facts(transfer: Transfer) -> IncomingFacts:
    assert isinstance(transfer.facts, IncomingFacts)
    return transfer.facts


def _identity(facts: IncomingFacts) -> Identity:
    if facts.staging is None:
        raise HostFailed("disk.failed", "The journal does not know the staging directory.")
    return Identity(*facts.staging)
