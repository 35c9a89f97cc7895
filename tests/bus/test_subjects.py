"""No id widens a subject."""

from __future__ import annotations

import msgspec
import pytest

from sidecar.bus.subjects import Subjects, event_filter
from sidecar.lifecycle.statuses import Role, Status
from sidecar.views import EventKind
from tests.api.fake_transfers import SERVER, TRANSFER, log_event, progress_event, status_event


def test_the_subjects() -> None:
    subjects = Subjects("node-a")
    assert subjects.event(status_event(1, Status.PENDING)) == (
        f"transfer.v1.event.node-a.outgoing.status.{SERVER}.{TRANSFER}"
    )
    assert subjects.event(log_event("x", role=Role.DESTINATION)) == (
        f"transfer.v1.event.node-a.incoming.logs.{SERVER}.{TRANSFER}"
    )
    assert Subjects("A_1", "games.eu").event(progress_event(1)).startswith("games.eu.v1.event.A_1.outgoing.progress.")


@pytest.mark.parametrize("node", ["", "a.b", "a.*", ">", "a b", "a\n", "é", "x" * 49, "a\r\nPUB x"])
def test_hostile_nodes(node: str) -> None:
    with pytest.raises(ValueError, match="node id"):
        Subjects(node)
    if node:
        with pytest.raises(ValueError, match="node id"):
            event_filter(node=node)


@pytest.mark.parametrize("root", ["", ".", "a.", ".a", "a..b", "*", ">", "a.>", "a b", "a\n"])
def test_hostile_roots(root: str) -> None:
    with pytest.raises(ValueError, match="root"):
        Subjects("node-a", root)
    with pytest.raises(ValueError, match="root"):
        event_filter(root)


@pytest.mark.parametrize("hostile", ["*", ">", "a.b", "", SERVER + ".>", "../..", SERVER[:-1] + "*"])
def test_hostile_ids(hostile: str) -> None:
    event = status_event(1, Status.PENDING)
    for changed in (
        msgspec.structs.replace(event, server=hostile),
        msgspec.structs.replace(event, transfer=hostile),
    ):
        with pytest.raises(ValueError, match=r"UUID|base 16"):
            Subjects("node-a").event(changed)


def test_other_spellings_of_a_uuid_are_one_subject() -> None:
    event = msgspec.structs.replace(status_event(1, Status.PENDING), server="{" + SERVER.upper().replace("-", "") + "}")
    assert Subjects("node-a").event(event).split(".")[-2] == SERVER


def test_filters() -> None:
    assert event_filter() == "transfer.v1.event.*.*.*.*.*"
    assert event_filter(server=SERVER.upper()) == f"transfer.v1.event.*.*.*.{SERVER}.*"
    assert event_filter(node="a", kind=EventKind.STATUS) == "transfer.v1.event.a.*.status.*.*"
