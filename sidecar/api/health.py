"""Whether this node can do its work: `/healthz` (the process serves) and `/readyz` (its neighbours answer).

A probe is a coroutine that returns facts to show, or raises: then its check has failed. A required check that fails
makes the node not ready (503); another one makes it `degraded` (200), because transfers go on without it. Anyone may
ask, so the probes run at most once per `FRESH_S`, whoever and how many ask, and nothing but names and codes is shown.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from sidecar.errors import CODES, SidecarError

FRESH_S: Final = 1.0  # a probe asks the container engine: strangers must not make it busy
PROBE_S: Final = 5.0  # orchestrators give up after a few seconds and want to hear which check hangs

_log = logging.getLogger(__name__)

Probe = Callable[[], Awaitable[Mapping[str, Any] | None]]


class Check(msgspec.Struct, frozen=True):
    """One neighbour: its name in the answer, whether transfers need it, how to ask it."""

    name: str
    probe: Probe
    is_required: bool = True


class Readiness:
    """Runs the checks. Args: checks, in the order to show; clock, seconds that only go forward."""

    def __init__(self, checks: Sequence[Check], *, clock: Callable[[], float]) -> None:
        self._checks = tuple(checks)
        self._clock = clock
        self._lock = asyncio.Lock()
        self._report: tuple[bool, dict[str, Any]] | None = None
        self._taken_at = 0.0
        self._failing: set[str] = set()

    async def report(self) -> tuple[bool, dict[str, Any]]:
        """Whether the node is ready, and the answer's body. Takes at most `PROBE_S`."""
        async with self._lock:
            if self._report is None or self._clock() - self._taken_at >= FRESH_S:
                results = await asyncio.gather(*(self._run(check) for check in self._checks))
                self._report = _summed(self._checks, results)
                self._taken_at = self._clock()
            return self._report

    async def _run(self, check: Check) -> dict[str, Any]:
        try:
            async with asyncio.timeout(PROBE_S):
                facts = await check.probe()
        except SidecarError as error:
            return self._failed(check, error.code, CODES[error.code][1], error)
        except TimeoutError as error:
            return self._failed(check, "timeout", f"no answer within {PROBE_S:g} s", error)
        except Exception as error:  # noqa: BLE001 - a probe of any adapter; its failure is the answer
            return self._failed(check, "transfer.internal", CODES["transfer.internal"][1], error)
        if check.name in self._failing:
            self._failing.discard(check.name)
            _log.info("readiness: %s is well again", check.name)
        return {"status": "ok", **(facts or {})}

    def _failed(self, check: Check, code: str, meaning: str, error: Exception) -> dict[str, Any]:
        if check.name not in self._failing:  # the change is news, every further poll is not
            self._failing.add(check.name)
            _log.warning("readiness: %s fails: %s", check.name, error or type(error).__name__)
        facts = error.facts if isinstance(error, SidecarError) and not check.is_required else {}
        return {"status": "failed" if check.is_required else "degraded", "code": code, "meaning": meaning, **facts}


def _summed(checks: Sequence[Check], results: Sequence[dict[str, Any]]) -> tuple[bool, dict[str, Any]]:
    statuses = {result["status"] for result in results}
    is_ready = "failed" not in statuses
    word = "not_ready" if not is_ready else "degraded" if "degraded" in statuses else "ready"
    named = {check.name: result for check, result in zip(checks, results, strict=True)}
    return is_ready, {"status": word, "checks": named}
