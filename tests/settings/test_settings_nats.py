"""The section [nats] alone, for a program that is no node."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.bus.settings import BusSettings
from sidecar.errors import HostFailed
from sidecar.settings import Nats, load_nats

SECRET = "s3cretWordThatNobodySees"


def written(directory: Path, text: str) -> Path:
    path = directory / "sidecar.toml"
    path.write_text(text, "utf-8")
    return path


def problems(config: Path | None, environ: dict[str, str], options: dict[str, tuple[str, str]]) -> list[str]:
    with pytest.raises(HostFailed) as wrong:
        load_nats(config, environ, options)
    assert wrong.value.code == "settings.invalid"
    assert SECRET not in str(wrong.value)
    return wrong.value.message.splitlines()


def test_options_then_environment_then_file(tmp_path: Path) -> None:
    config = written(tmp_path, '[nats]\nurl = "nats://file"\nroot = "of-file"\ninbox_prefix = "of-file"')
    environ = {"SIDECAR_NATS_URL": "nats://environment", "SIDECAR_NATS_ROOT": "of-environment"}
    nats = load_nats(config, environ, {"url": ("nats://option", "--nats")})
    assert (nats.url, nats.root, nats.inbox_prefix) == ("nats://option", "of-environment", "of-file")


def test_what_is_wrong_with_the_rest_of_a_nodes_file_does_not_matter(tmp_path: Path) -> None:
    config = written(
        tmp_path,
        '[nats]\nurl = "nats://file"\n[node]\ntoken_file = "/nowhere/token"\n[api]\nport = 99999999\n'
        '[servers]\nowner = "nobody"\n',
    )
    environ = {"SIDECAR_LIMITS_MAX_PARTS": "many"}
    assert load_nats(config, environ).url == "nats://file"


def test_a_misspelt_name_does(tmp_path: Path) -> None:
    assert "did you mean nats" in problems(written(tmp_path, '[natts]\nurl = "nats://x"'), {}, {})[0]
    assert "SIDECAR_NATS_URL" in problems(None, {"SIDECAR_NATSURL": "nats://x"}, {})[0]
    assert "nats.usr: there is no such setting" in problems(None, {"SIDECAR_NATS_USR": "x"}, {})[0]


def test_nothing_is_set() -> None:
    (line,) = problems(None, {}, {})
    assert line.startswith("nats.url: it must be set (--nats, SIDECAR_NATS_URL")


def test_an_option_is_named_where_it_is_wrong(tmp_path: Path) -> None:
    options = {"url": ("http://x", "--nats"), "password_file": (str(tmp_path / "none"), "--password-file")}
    unread, wrong_url = problems(None, {}, options)
    assert unread.startswith("nats.password_file: the file ")
    assert unread.endswith(" (option --password-file)")
    assert wrong_url == "nats.url: it must be a URL that begins with nats://, tls://"


def test_a_login_of_the_options_replaces_the_whole_of_the_others(tmp_path: Path) -> None:
    word = tmp_path / "word"
    word.write_text(SECRET)
    config = written(tmp_path, f'[nats]\nurl = "nats://x"\ntoken = "{SECRET}"')
    options = {"user": ("panel", "--user"), "password_file": (str(word), "--password-file")}
    nats = load_nats(config, {}, options)
    assert (nats.user, nats.password.reveal(), nats.token.reveal()) == ("panel", SECRET, "")
    environ = {"SIDECAR_NATS_USER": "node-a", "SIDECAR_NATS_PASSWORD": SECRET}
    nats = load_nats(None, {"SIDECAR_NATS_URL": "nats://x", **environ}, {"token_file": (str(word), "--token-file")})
    assert (nats.user, nats.password.reveal(), nats.token.reveal()) == ("", "", SECRET)
    # a password in the environment belongs to its user there
    assert (
        "nats.password" in problems(None, {"SIDECAR_NATS_URL": "nats://x", **environ}, {"user": ("panel", "--user")})[0]
    )


def test_it_is_what_the_bus_takes() -> None:
    nats = load_nats(None, {"SIDECAR_NATS_URL": "nats://a,nats://b", "SIDECAR_NATS_TOKEN": SECRET})
    settings = BusSettings.of(nats, name="me", inbox_prefix="_INBOX_me")
    assert (settings.urls, settings.token, settings.inbox_prefix) == (("nats://a", "nats://b"), SECRET, "_INBOX_me")
    other = Nats(url="nats://a", inbox_prefix="_INBOX_other")
    assert BusSettings.of(other, name="me", inbox_prefix="_INBOX_me").inbox_prefix == "_INBOX_other"
