"""The command `watch`: what it refuses, and how it says so. What it shows: `tests/watch/`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.test_cli import SECRET, UUID, run

URL = ("--nats", "nats://127.0.0.1:1")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "the configuration is wrong: nats.url: it must be set"),
        ((*URL, "--server", "12345"), "'12345' is not the UUID of a server"),
        ((*URL, "--server", "*"), "'*' is not the UUID of a server"),
        ((*URL, "--node", "a.b"), "'a.b' is not the id of a node"),
        ((*URL, "--node", ">"), "'>' is not the id of a node"),
        (("--nats", "http://127.0.0.1"), "nats.url: it must be a URL"),
        (("--nats", f"nats://user:{SECRET}@127.0.0.1"), "nats.url: it must not hold a user or a password"),
        ((*URL, "--root", "a.*"), "nats.root"),
        ((*URL, "--inbox-prefix", ">"), "nats.inbox_prefix"),
        ((*URL, "--user", "panel"), "nats.password: it must be set together with nats.user"),
        ((*URL, "--tls-ca", "/nowhere"), "tls://"),
        (("--nats", "tls://127.0.0.1", "--tls-ca", "/nowhere"), "A TLS file of the bus cannot be used"),
        (
            (*URL, "--creds", "/nowhere", "--token-file", "/nowhere"),
            "nats.token_file: the file /nowhere cannot be read",
        ),
    ],
)
def test_what_is_wrong_is_said_in_a_line(arguments: tuple[str, ...], said: str) -> None:
    code, out, err = run("watch", *arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert SECRET not in err
    assert len(err.splitlines()) == 1


def test_a_broker_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidecar.watch.run.FIRST_ANSWER_S", 1.0)
    code, out, err = run("watch", *URL, "--once")
    assert (code, out) == (1, "")
    assert err.startswith("transfer-sidecar: ")
    assert len(err.splitlines()) == 1


def test_no_option_takes_a_secret(tmp_path: Path) -> None:
    for option in ("--password", "--token", "--nkey-seed"):
        code, _, err = run("watch", *URL, option, SECRET, "--server", UUID)
        assert code == 2
        assert "No such option" in err
