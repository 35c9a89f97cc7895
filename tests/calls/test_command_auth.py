"""Tokens that count once, and how many of them are remembered. What is in them: `tests/bus/test_commands.py`."""

from __future__ import annotations

import pytest

from sidecar.calls import command_auth
from sidecar.calls.auth import COMMAND_TOKEN_S, NodeAuth
from sidecar.calls.command_auth import CommandAuth
from sidecar.errors import Refused
from tests.api.tokens import NODE_TOKEN, signed


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def token(clock: Clock, number: int, lifetime_s: float = 60.0) -> list[str]:
    claims = {"aud": "a", "jti": str(number), "iat": clock.now, "exp": clock.now + lifetime_s, "scope": "command"}
    return [f"Bearer {signed(claims)}"]


def checker(clock: Clock) -> CommandAuth:
    return CommandAuth(NodeAuth(NODE_TOKEN, require_scope=False, now=clock), node="a", is_required=True, now=clock)


def code(auth: CommandAuth, authorization: list[str]) -> str:
    try:
        auth.check(authorization, "list")
    except Refused as refused:
        return refused.code
    return ""


def test_a_token_counts_once_for_as_long_as_it_lives() -> None:
    clock = Clock()
    auth = checker(clock)
    first = token(clock, 1, COMMAND_TOKEN_S)
    assert code(auth, first) == ""
    clock.now += COMMAND_TOKEN_S - 1
    assert code(auth, first) == "auth.jwt_replayed"
    clock.now += 1
    assert code(auth, first) == "auth.jwt_expired"
    assert code(auth, token(clock, 1)) == ""  # the id is free again when nothing with it is alive


def test_a_restarted_node_takes_no_token_from_before() -> None:
    clock = Clock()
    used = token(clock, 1)
    clock.now += 1
    assert code(checker(clock), used) == "auth.jwt_replayed"


def test_the_number_of_remembered_tokens_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_auth, "MAX_LIVE_TOKENS", 3)
    clock = Clock()
    auth = checker(clock)
    assert [code(auth, token(clock, number)) for number in range(4)] == ["", "", "", "request.busy"]
    assert code(auth, [f"Bearer {NODE_TOKEN}"]) == ""
    clock.now += 60
    assert code(auth, token(clock, 5)) == ""
