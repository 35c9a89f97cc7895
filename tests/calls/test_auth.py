"""Who may call: every token that a stranger could try, and every form in which a panel's comes."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sidecar.calls.auth import MAX_TOKEN_CHARS, NodeAuth
from sidecar.errors import Refused
from tests.api.fake_transfers import OTHER, SERVER
from tests.api.tokens import NODE_TOKEN, NOW, auth, signed, socket_claims, upload_claims


def forged(header: dict[str, Any], claims: Any, key: str = NODE_TOKEN, *, signature: bytes | None = None) -> str:
    """A token whose header says anything, signed with HMAC-SHA256."""
    parts = [json.dumps(header).encode(), claims if isinstance(claims, bytes) else json.dumps(claims).encode()]
    text = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    mac = hmac.new(key.encode(), text, hashlib.sha256).digest() if signature is None else signature
    return (text + b"." + base64.urlsafe_b64encode(mac).rstrip(b"=")).decode()


def code_of(token: str, **options: Any) -> str:
    with pytest.raises(Refused) as refused:
        auth(**options).upload_claims([f"Bearer {token}"])
    return refused.value.code


def test_a_panels_token_is_good() -> None:
    claims = auth(require_scope=True).upload_claims([f"Bearer {signed(upload_claims())}"])
    assert (claims.server, claims.expires_at) == (SERVER, NOW + 900)


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": NOW + 0.5, "nbf": NOW - 0.5, "iat": NOW + 0.25},
        {"nbf": None, "iat": None, "iss": None, "aud": None, "jti": None, "unique_id": None},
        {"aud": "http://somebody"},
        {"aud": []},
        {"sub": SERVER.upper()},
        {"scope": None},
        {"scope": "websocket transfer"},
        {"scope": ["transfer"]},
        {"exp": 10**400},
    ],
)
def test_what_is_tolerated(changes: dict[str, Any]) -> None:
    assert auth().upload_claims([f"bearer {signed(upload_claims(**changes))}"]).server == SERVER


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"exp": int(NOW)}, "auth.jwt_expired"),
        ({"exp": NOW - 0.1}, "auth.jwt_expired"),
        ({"exp": None}, "auth.jwt"),
        ({"exp": "1999999999"}, "auth.jwt"),
        ({"exp": True}, "auth.jwt"),
        ({"nbf": NOW + 1}, "auth.jwt"),
        ({"nbf": "soon"}, "auth.jwt"),
        ({"sub": None}, "auth.jwt"),
        ({"sub": "../../etc"}, "auth.jwt"),
        ({"sub": SERVER.replace("-", "")}, "auth.jwt"),
        ({"sub": SERVER + "\n"}, "auth.jwt"),
        ({"scope": "websocket"}, "auth.jwt_scope"),
        ({"scope": "transfers"}, "auth.jwt_scope"),
        ({"scope": ""}, "auth.jwt_scope"),
        ({"scope": {"transfer": 1}}, "auth.jwt_scope"),
        ({"scope": 7}, "auth.jwt_scope"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], code: str) -> None:
    assert code_of(signed(upload_claims(**changes))) == code


def test_a_token_without_scope_where_one_is_required() -> None:
    assert code_of(signed(upload_claims(scope=None)), require_scope=True) == "auth.jwt_scope"


def test_another_key_or_algorithm() -> None:
    key = generate_private_key(public_exponent=65537, key_size=2048)
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    claims = upload_claims()
    for token in (
        signed(claims, key="another node's token, long enough"),
        signed(claims, key=key, algorithm="RS256"),
        signed(claims, key=NODE_TOKEN * 2, algorithm="HS512"),
        forged({"alg": "none"}, claims, signature=b""),
        forged({"alg": "None"}, claims),
        forged({"alg": "RS256"}, claims),
        forged({"alg": "HS256"}, claims, key=public.decode()),
        forged({"alg": ["HS256"]}, claims),
        forged({}, claims),
        forged({"alg": "HS256", "crit": ["b64"], "b64": False}, claims),
    ):
        assert code_of(token) == "auth.jwt", token


def test_damaged_tokens() -> None:
    good = signed(upload_claims())
    for token in (
        "x",
        "a.b.c",
        "..",
        good[:-1],
        good + "x",
        good.replace(".", "", 1),
        good.replace(".", "..", 1),
        "é" + good,
        forged({"alg": "HS256"}, b"\xff\xfe"),
        forged({"alg": "HS256"}, b'["sub"]'),
        forged({"alg": "HS256"}, b"[" * 4000),
        good + "A" * MAX_TOKEN_CHARS,
    ):
        assert code_of(token) == "auth.jwt", token


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [""],
        ["Bearer"],
        ["Bearer "],
        [f"Basic {NODE_TOKEN}"],
        [NODE_TOKEN],
        [f"Bearer {NODE_TOKEN} x"],
        [f"Bearer {NODE_TOKEN}"] * 2,
    ],
)
def test_authorization_headers_that_are_none(headers: list[str]) -> None:
    with pytest.raises(Refused) as refused:
        auth().check_node_token(headers)
    assert refused.value.code == "auth.missing"


def test_the_node_token() -> None:
    auth().check_node_token([f"Bearer {NODE_TOKEN}"])
    for wrong in (NODE_TOKEN[:-1], NODE_TOKEN + "x", NODE_TOKEN.upper(), "é" * 48, signed(upload_claims())):
        with pytest.raises(Refused) as refused:
            auth().check_node_token([f"Bearer {wrong}"])
        assert refused.value.code == "auth.token"


def test_an_expired_token_may_still_ask_how_it_ended() -> None:
    token = [f"Bearer {signed(upload_claims(exp=NOW - 3600))}"]
    assert auth().upload_claims(token, expired_for_s=3601).server == SERVER
    with pytest.raises(Refused, match="expired"):
        auth().upload_claims(token, expired_for_s=3600)


def test_secrets_are_not_shown() -> None:
    assert NODE_TOKEN not in repr(auth())
    with pytest.raises(ValueError, match="empty"):
        NodeAuth("", require_scope=False, now=lambda: NOW)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"exp": NOW - 1}, "jwt: exp claim is invalid"),
        ({"server_uuid": OTHER}, "jwt: server uuid mismatch"),
        ({"server_uuid": None}, "jwt: server uuid mismatch"),
        ({"user_uuid": ""}, "jwt: no user uuid present"),
        ({"permissions": None}, "jwt: no permissions present"),
        ({"permissions": "websocket.connect"}, "jwt: no permissions present"),
        ({"permissions": ["control.console"]}, "jwt: missing connect permission"),
        ({"iat": None}, "jwt: The token's 'iat' is missing or not a time."),
        ({"scope": "transfer"}, "jwt: The token's scope does not include 'websocket'."),
    ],
)
def test_socket_tokens_that_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(Refused) as refused:
        auth().socket_claims(signed(socket_claims(**changes)), SERVER)
    assert refused.value.message == words


def test_an_uploads_token_opens_no_socket_and_a_sockets_no_upload() -> None:
    with pytest.raises(Refused):
        auth().socket_claims(signed(upload_claims(scope=None)), SERVER)
    assert code_of(signed(socket_claims(scope=None))) == "auth.jwt"
