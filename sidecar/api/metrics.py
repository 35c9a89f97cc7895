"""`GET /api/transfers/sidecar/metrics`: this node in numbers, in the text format of Prometheus.

The path is the sidecar's own beside a node daemon, too, whose `/metrics` may be something else. Nothing is counted
while transfers run: a scrape looks at the roster and counts what has ended, or moved on, since the last one. So a
scrape that comes later than `engine.node.HISTORY` ended transfers misses some, and after a restart everything starts
from 0, as Prometheus expects of a counter.

Labels take their values from fixed lists: roles, statuses, reason codes, names of checks and of what they tell.
Servers, peers and transfers are no labels: they would make a new series each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sidecar import __version__
from sidecar.api.health import Readiness
from sidecar.calls.auth import NodeAuth
from sidecar.engine.contract import Transfers
from sidecar.errors import CODES
from sidecar.lifecycle.statuses import Role, Status
from sidecar.views import TransferView

PATH: Final = "/api/transfers/sidecar/metrics"
_UNFINISHED: Final = tuple(status for status in Status if not status.is_final)


class _Tally:
    """Counts each transfer and each byte once. Memory: a view, about 1 KiB, of each transfer of the roster."""

    def __init__(self, views: Iterable[TransferView]) -> None:
        self._seen: dict[str, TransferView] = {}
        self.ended: Counter[tuple[Role, Status, str]] = Counter()
        self.content_bytes: Counter[Role] = Counter()
        self.archive_bytes: Counter[Role] = Counter()
        self._seen = {view.transfer: view for view in views}  # from before this start: nobody has lost sight of them

    def look(self, views: list[TransferView]) -> None:
        for view in views:
            before = self._seen.get(view.transfer)
            if before is None or not before.status.is_final:
                self._count(before, view)
        self._seen = {view.transfer: view for view in views}

    def _count(self, before: TransferView | None, view: TransferView) -> None:
        done, wire = (before.progress.bytes_done, before.progress.wire_bytes) if before else (0, 0)
        self.content_bytes[view.role] += max(0, view.progress.bytes_done - done)
        self.archive_bytes[view.role] += max(0, view.progress.wire_bytes - wire)
        if view.status.is_final:
            reason = view.reason or ""
            self.ended[view.role, view.status, reason if reason in CODES else "other" if reason else ""] += 1


class MetricsRoutes:
    """Args: transfers, the roster to look at; readiness, whose checks are shown; auth, of the node; token, of who may
    scrape and nothing else, or empty: then the node's own is wanted."""

    def __init__(self, *, transfers: Transfers, readiness: Readiness, auth: NodeAuth, token: str) -> None:
        self._transfers = transfers
        self._readiness = readiness
        self._auth = auth.scraping(token)
        self._tally = _Tally(transfers.views())

    def routes(self) -> list[Route]:
        return [Route(PATH, self.metrics, methods=["GET"])]

    async def metrics(self, request: Request) -> Response:
        self._auth.check_node_token(request.headers.getlist("authorization"))
        is_ready, report = await self._readiness.report()
        views = self._transfers.views()
        self._tally.look(views)
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Collected([*_node(is_ready, report), *_now(views), *_counters(self._tally)]))
        return Response(
            generate_latest(registry), headers={"Cache-Control": "no-store", "Content-Type": CONTENT_TYPE_LATEST}
        )


class _Collected(Collector):
    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _node(is_ready: bool, report: Mapping[str, Any]) -> Iterable[Metric]:
    version = GaugeMetricFamily("transfer_sidecar_info", "The program that runs here.", labels=["version"])
    version.add_metric([__version__], 1)
    yield version
    yield GaugeMetricFamily(
        "transfer_sidecar_ready", "1 where the node takes transfers, as /readyz answers.", value=float(is_ready)
    )
    checks = GaugeMetricFamily("transfer_sidecar_check_ok", "1 where a check of /readyz is well.", labels=["check"])
    for name, check in report["checks"].items():
        checks.add_metric([name], float(check["status"] == "ok"))
    yield checks
    facts = GaugeMetricFamily(
        "transfer_sidecar_check_fact", "Numbers that checks of /readyz tell.", labels=["check", "fact"]
    )
    for name, check in report["checks"].items():
        for fact, value in check.items():
            if isinstance(value, (int, float)):
                facts.add_metric([name, fact], float(value))
    yield facts


def _now(views: list[TransferView]) -> Iterable[Metric]:
    running = Counter((view.role, view.status) for view in views)
    current = GaugeMetricFamily(
        "transfer_sidecar_transfers", "Transfers that have not ended.", labels=["role", "status"]
    )
    for role in Role:
        for status in _UNFINISHED:
            current.add_metric([role, status], running[role, status])
    yield current
    waiting = (
        ("in_doubt", "Transfers of which nobody can tell yet how they end.", lambda view: view.in_doubt),
        ("need_help", "Transfers that wait for a human; `needs` says for what.", lambda view: view.needs is not None),
    )
    for name, meaning, matches in waiting:
        family = GaugeMetricFamily(f"transfer_sidecar_transfers_{name}", meaning, labels=["role"])
        for role in Role:
            family.add_metric([role], sum(view.role is role and matches(view) for view in views))
        yield family


def _counters(tally: _Tally) -> Iterable[Metric]:
    ended = CounterMetricFamily(
        "transfer_sidecar_transfers_ended",
        "Transfers that have ended since this start; reason: a code, empty where they were completed.",
        labels=["role", "status", "reason"],
    )
    for (role, status, reason), number in sorted(tally.ended.items()):
        ended.add_metric([role, status, reason], number)
    yield ended
    for name, meaning, counted in (
        ("content_bytes", "Bytes of files that were read (source) or written (destination).", tally.content_bytes),
        ("archive_bytes", "Bytes of archives that were sent (source) or received (destination).", tally.archive_bytes),
    ):
        family = CounterMetricFamily(f"transfer_sidecar_{name}", meaning, labels=["role"])
        for role in Role:
            family.add_metric([role], counted[role])
        yield family
