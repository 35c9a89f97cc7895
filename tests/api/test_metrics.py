"""What Prometheus is told, and who is told."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest
from prometheus_client import CONTENT_TYPE_LATEST
from prometheus_client.parser import text_string_to_metric_families

from sidecar.api.health import Check, Readiness
from sidecar.api.metrics import PATH
from sidecar.errors import CODES, HostFailed
from sidecar.lifecycle.statuses import Role, Status
from sidecar.views import Progress, TransferView
from tests.api.fake_transfers import FakeTransfers, view
from tests.api.node import Node, in_loop, node

SCRAPER = "token-of-prometheus-0123456789"


def transfer(number: int, role: Role, status: Status, *, done: int = 0, reason: str | None = None) -> TransferView:
    return msgspec.structs.replace(
        view(role=role, status=status, transfer=f"a0b1c2d3-e4f5-4a6b-8c7d-{number:012}"),
        progress=Progress(bytes_done=done, wire_bytes=done // 2),
        reason=reason,
    )


def remember(transfers: FakeTransfers, *views: TransferView) -> None:
    transfers.current = {known.transfer: known for known in views}


async def scrape(n: Node) -> dict[str, float]:
    answer = await n.ask("GET", PATH)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == CONTENT_TYPE_LATEST
    return dict(samples(answer.text))


def samples(text: str) -> Iterator[tuple[str, float]]:
    for family in text_string_to_metric_families(text):
        assert family.documentation.endswith(".")
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            yield f"{sample.name.removeprefix('transfer_sidecar_')}{{{labels}}}", sample.value


@in_loop
async def test_an_idle_node() -> None:
    async with node() as n:
        remember(n.transfers)
        told = await scrape(n)
    assert told["ready{}"] == 1
    assert told["transfers{role=source,status=processing}"] == 0
    assert told["content_bytes_total{role=destination}"] == 0
    assert [name for name in told if name.startswith("transfers_ended")] == []


@in_loop
async def test_each_transfer_and_each_byte_is_counted_once() -> None:
    async with node() as n:
        remember(
            n.transfers,
            transfer(1, Role.SOURCE, Status.PROCESSING, done=100),
            transfer(2, Role.DESTINATION, Status.COMPLETED, done=1000),
        )
        told = await scrape(n)
        assert told["transfers{role=source,status=processing}"] == 1
        assert told["transfers_ended_total{reason=,role=destination,status=completed}"] == 1
        assert told["content_bytes_total{role=source}"] == 100
        assert told["archive_bytes_total{role=destination}"] == 500
        assert await scrape(n) == told
        remember(
            n.transfers,
            transfer(1, Role.SOURCE, Status.FAILED, done=150, reason="peer.reset"),
            transfer(3, Role.SOURCE, Status.CANCELLED, done=10, reason="transfer.cancelled"),
        )  # the second one is forgotten, and stays counted
        told = await scrape(n)
        assert told["transfers{role=source,status=processing}"] == 0
        assert told["transfers_ended_total{reason=peer.reset,role=source,status=failed}"] == 1
        assert told["transfers_ended_total{reason=transfer.cancelled,role=source,status=cancelled}"] == 1
        assert told["transfers_ended_total{reason=,role=destination,status=completed}"] == 1
        assert told["content_bytes_total{role=source}"] == 160
        assert told["content_bytes_total{role=destination}"] == 1000


@in_loop
async def test_what_ended_before_this_start_is_not_counted_again() -> None:
    transfers = FakeTransfers()
    remember(
        transfers,
        transfer(1, Role.SOURCE, Status.COMPLETED, done=100),
        transfer(2, Role.SOURCE, Status.PROCESSING),
    )
    async with node(transfers) as n:
        remember(
            transfers,
            transfer(1, Role.SOURCE, Status.COMPLETED, done=100),
            transfer(2, Role.SOURCE, Status.FAILED, done=7, reason="transfer.interrupted"),
        )
        told = await scrape(n)
    ended = {name: number for name, number in told.items() if name.startswith("transfers_ended_total")}
    assert ended == {"transfers_ended_total{reason=transfer.interrupted,role=source,status=failed}": 1}
    assert told["content_bytes_total{role=source}"] == 7


@in_loop
async def test_what_waits_for_people() -> None:
    async with node() as n:
        stuck = transfer(1, Role.SOURCE, Status.PROCESSING)
        remember(n.transfers, msgspec.structs.replace(stuck, in_doubt=True, needs="Restart the daemon."))
        told = await scrape(n)
    assert told["transfers_in_doubt{role=source}"] == 1
    assert told["transfers_need_help{role=source}"] == 1
    assert told["transfers_in_doubt{role=destination}"] == 0


@in_loop
async def test_labels_have_fixed_values() -> None:
    async with node() as n:
        strange = [transfer(i, Role.SOURCE, Status.FAILED, reason=f'stranger"{i}\n') for i in range(50)]
        known = [transfer(100 + i, Role.SOURCE, Status.FAILED, reason=code) for i, code in enumerate(CODES)]
        remember(n.transfers, *strange, *known)
        told = await scrape(n)
    assert told["transfers_ended_total{reason=other,role=source,status=failed}"] == 50
    assert len(told) < 40 + len(CODES)


@in_loop
async def test_the_checks_of_readiness() -> None:
    async def well() -> dict[str, object]:
        return {"waiting": 12, "is_kept": True, "guarantee": "at least once"}

    async def broken() -> None:
        raise HostFailed("engine.unreachable", "x")

    checks = [Check("journal", well), Check("containers", broken), Check("bus", broken, is_required=False)]
    async with node(readiness=Readiness(checks, clock=lambda: 0.0)) as n:
        told = await scrape(n)
    assert told["ready{}"] == 0
    facts = {name: value for name, value in told.items() if name.startswith("check_fact")}
    assert facts == {"check_fact{check=journal,fact=waiting}": 12, "check_fact{check=journal,fact=is_kept}": 1}
    assert [told[f"check_ok{{check={name}}}"] for name in ("journal", "containers", "bus")] == [1, 0, 0]


@pytest.mark.parametrize("has_own", [True, False])
@in_loop
async def test_who_may_scrape(has_own: bool) -> None:
    async with node(metrics_token=SCRAPER if has_own else "") as n:
        scraper = {"Authorization": f"Bearer {SCRAPER}"}
        assert (await n.ask("GET", PATH, headers={})).status_code == 401
        assert (await n.ask("GET", PATH)).status_code == (403 if has_own else 200)
        assert (await n.ask("GET", PATH, headers=scraper)).status_code == (200 if has_own else 403)
        assert (await n.ask("GET", "/api/transfers", headers=scraper)).status_code == 403
