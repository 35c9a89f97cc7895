"""The chart as the real helm renders it: objects as plain mappings."""

from __future__ import annotations

import functools
import os
import subprocess
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml

CHART: Final = Path(__file__).parents[1] / "transfer-sidecar"
CASES: Final = tuple(sorted(path.name.removesuffix("-values.yaml") for path in (CHART / "ci").glob("*-values.yaml")))
RELEASE: Final = "sidecar"
NAMESPACE: Final = "games"
NAME: Final = f"{RELEASE}-transfer-sidecar"
_HELM_S: Final = 60

Object = dict[str, Any]


class Refused(Exception):
    """What helm said, where it refused to render."""


class Rendered(msgspec.Struct, frozen=True):
    """All objects of one rendering."""

    objects: tuple[Object, ...]

    def of(self, kind: str) -> list[Object]:
        return [found for found in self.objects if found["kind"] == kind]

    def one(self, kind: str, name: str = NAME) -> Object:
        (found,) = (found for found in self.of(kind) if found["metadata"]["name"] == name)
        return found

    @property
    def workload(self) -> Object:
        """The DaemonSet, or the StatefulSet of mode dind."""
        return self.one("DaemonSet" if self.of("DaemonSet") else "StatefulSet")

    @property
    def pod(self) -> Object:
        """The specification of its pods."""
        spec: Object = self.workload["spec"]["template"]["spec"]
        return spec

    @property
    def sidecar(self) -> Object:
        (container,) = self.pod["containers"]
        found: Object = container
        return found

    @property
    def toml(self) -> str:
        text: str = self.one("ConfigMap")["data"]["sidecar.toml"]
        return text

    def pods(self) -> list[Object]:
        """The specification of every pod that there can be, of hooks and of the NATS server too."""
        templates = [
            found["spec"]["template"]["spec"] for kind in ("DaemonSet", "StatefulSet") for found in self.of(kind)
        ]
        return templates + [found["spec"] for found in self.of("Pod")]


def helm(*arguments: str, input_text: str = "") -> str:
    """Standard output. Raises Refused."""
    program = os.environ.get("HELM", ".venv-chart/bin/helm")
    done = subprocess.run(
        [program, *arguments], input=input_text, capture_output=True, text=True, timeout=_HELM_S, check=False
    )
    if done.returncode != 0:
        raise Refused(done.stderr)
    return done.stdout


def render(case: str, values: Object | None = None) -> Rendered:
    """The chart with the values of `ci/<case>-values.yaml`, and on top of them `values`.

    Raises Refused.
    """
    return _render(case, yaml.safe_dump(values or {}))


@functools.cache
def _render(case: str, values: str) -> Rendered:
    files = ["--values", str(CHART / "ci" / f"{case}-values.yaml")] if case else []
    text = helm(
        "template", RELEASE, str(CHART), "--namespace", NAMESPACE, "--api-versions", "monitoring.coreos.com/v1",
        *files, "--values", "-", input_text=values,
    )  # fmt: skip
    return Rendered(tuple(found for found in yaml.safe_load_all(text) if found))


def env_of(container: Object) -> dict[str, Any]:
    """Variables by name: the value, or what it is taken from."""
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container["env"]}


def mounts_of(container: Object) -> dict[str, Object]:
    """Mounts by their path in the container."""
    return {entry["mountPath"]: entry for entry in container["volumeMounts"]}


def volumes_of(pod: Object) -> dict[str, Object]:
    return {entry["name"]: entry for entry in pod["volumes"]}
