"""Beside a node daemon: what must be set together."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.errors import HostFailed
from sidecar.settings.load import load

GOOD = """
[node]
id = "a"
token = "0123456789abcdef0123456789abcdef"
token_id = "abc"
[panel]
url = "https://panel.example.com"
[daemon]
url = "http://127.0.0.1:8081"
[api]
front = true
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "sidecar.toml"
    path.write_text(text)
    return path


def test_a_daemon_and_a_front(tmp_path: Path) -> None:
    settings = load(written(tmp_path, GOOD), environ={}).settings
    assert settings.daemon.url == "http://127.0.0.1:8081" and settings.api.front


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (GOOD.replace('url = "https://panel.example.com"', ""), "panel.url"),
        (GOOD.replace('url = "http://127.0.0.1:8081"', ""), "api.front"),
        (GOOD.replace("http://127.0.0.1:8081", "127.0.0.1:8081"), "daemon.url"),
    ],
)
def test_what_cannot_be_is_named(tmp_path: Path, text: str, path: str) -> None:
    with pytest.raises(HostFailed, match=path):
        load(written(tmp_path, text), environ={})
