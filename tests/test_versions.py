"""One version, wherever it stands, and a section of the changelog for it."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from sidecar import __version__

ROOT = Path(__file__).parents[1]


def test_charts_and_compose_files_name_the_programs_version() -> None:
    chart = yaml.safe_load((ROOT / "charts/transfer-sidecar/Chart.yaml").read_text())
    nats = yaml.safe_load((ROOT / "charts/transfer-sidecar/charts/nats/Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == nats["version"] == __version__
    assert [one["version"] for one in chart["dependencies"]] == [__version__]
    for name in ("compose.yaml", "compose.beside.yaml"):
        images = re.findall(r"transfer-sidecar:([0-9.]+)\}", (ROOT / "docker" / name).read_text())
        assert images and set(images) == {__version__}, name
    assert f"  transfer-sidecar:{__version__}\n" in (ROOT / "docker/README.md").read_text()


def test_the_changelog_has_a_section_for_this_version_below_what_is_not_released() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[:2] == ["Unreleased", __version__]
