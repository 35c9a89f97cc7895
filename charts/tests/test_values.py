"""Wrong values are refused, and it is said which."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from charts.config_schema import ELSEWHERE
from charts.tests.rendering import CHART, Refused, render
from sidecar import __version__
from sidecar.settings.reading import FIELDS

WRONG: list[tuple[str, dict[str, Any], str]] = [
    # by the schema
    ("daemonset", {"mod": "dind"}, "'mod' not allowed"),
    ("daemonset", {"mode": "statefulset"}, "/mode"),
    ("daemonset", {"image": {"tga": "1"}}, "'tga' not allowed"),
    ("daemonset", {"image": {"digest": "sha256:1"}}, "/image/digest"),
    ("daemonset", {"node": {"existingSecret": "No_Name"}}, "/node/existingSecret"),
    ("daemonset", {"docker": {"groupId": "docker"}}, "/docker/groupId"),
    ("daemonset", {"servers": {"volumes": "relative"}}, "/servers/volumes"),
    ("daemonset", {"runAs": {"user": 0}}, "/runAs/user"),
    ("daemonset", {"updateStrategy": "Recreate"}, "/updateStrategy"),
    ("daemonset", {"listen": {"port": 70000}}, "/listen/port"),
    ("daemonset", {"bus": {"url": "nats://user:pass@host:4222"}}, "/bus/url"),
    ("dind", {"dind": {"service": {"gamePorts": [{"port": 1}]}}}, "/dind/service/gamePorts/0"),
    ("dind", {"dind": {"storage": {"size": "much"}}}, "/dind/storage/size"),
    ("dind", {"nats": {"nodes": ["UPPER"]}}, "/nodes/0"),
    ("dind", {"nats": {"nodes": ["watch"]}}, "/nodes/0"),
    ("dind", {"nats": {"node": []}}, "'node' not allowed"),
    # the program's own settings
    ("daemonset", {"config": {"transfer": {"max_outgoin": 1}}}, "'max_outgoin' not allowed"),
    ("daemonset", {"config": {"transfers": {}}}, "'transfers' not allowed"),
    ("daemonset", {"config": {"transfer": {"max_outgoing": 65}}}, "/config/transfer/max_outgoing"),
    ("daemonset", {"config": {"transfer": {"max_outgoing": 1.5}}}, "/config/transfer/max_outgoing"),
    ("daemonset", {"config": {"transfer": {"stall_timeout_s": 0}}}, "/config/transfer/stall_timeout_s"),
    ("daemonset", {"config": {"log": {"level": "loud"}}}, "/config/log/level"),
    ("daemonset", {"config": {"servers": {"not-a-uuid": {}}}}, "'not-a-uuid' not allowed"),
    # secrets do not belong into a ConfigMap, and what has a value of its own is set there only
    ("daemonset", {"config": {"nats": {"password": "x"}}}, "'password' not allowed"),
    ("daemonset", {"config": {"node": {"token": "x"}}}, "'node' not allowed"),
    ("daemonset", {"listen": {"publicUrl": "node:8080"}}, "/listen/publicUrl"),
    ("daemonset", {"config": {"api": {"port": 1}}}, "'port' not allowed"),
    ("daemonset", {"config": {"servers": {"volumes": "/x"}}}, "'volumes' not allowed"),
    # together with others
    ("daemonset", {"node": {"existingSecret": ""}}, "node.existingSecret: "),
    ("daemonset", {"docker": {"groupId": ""}}, "docker.groupId: "),
    ("daemonset", {"terminationGracePeriodSeconds": 3600}, "terminationGracePeriodSeconds: 3600 would cut"),
    ("daemonset", {"listen": {"port": 443}}, "listen.port: "),
    ("daemonset", {"serviceMonitor": {"enabled": True}}, "metrics.existingSecret: "),
    ("daemonset", {"tls": {"existingSecret": "a", "hostDirectory": "/b"}}, "tls.hostDirectory: "),
    ("daemonset", {"bus": {"auth": "token"}}, "bus.existingSecret: "),
    ("daemonset", {"bus": {"auth": "token", "existingSecret": "a"}}, "bus.url: "),
    ("daemonset", {"bus": {"url": "nats://h:1", "auth": "userPassword", "existingSecret": "a"}}, "bus.user: "),
    ("daemonset", {"bus": {"url": "nats://h:1", "tlsSecret": "a"}}, "bus.url: it must begin with tls://"),
    ("daemonset", {"bus": {"tlsClientCertificate": True}}, "bus.tlsSecret: "),
    ("standalone", {"bus": {"url": "nats://h:1"}}, "bus.url: "),
    ("standalone", {"bus": {"auth": "none"}, "nats": {"nodes": []}}, "nats.nodes: "),
    ("standalone", {"config": {"nats": {"root": "other"}}}, "nats.root: "),
    ("beside-unprivileged", {"docker": {"groupId": ""}}, "docker.groupId: "),
    ("beside", {"mode": "dind"}, "beside.enabled: "),
    ("dind", {"tls": {"hostDirectory": "/etc/letsencrypt"}}, "tls.hostDirectory: "),
    ("dind", {"terminationGracePeriodSeconds": 3650}, "terminationGracePeriodSeconds: 3650 would cut"),
]


@pytest.mark.parametrize(("case", "values", "said"), WRONG)
def test_a_wrong_value_is_named(case: str, values: dict[str, Any], said: str) -> None:
    with pytest.raises(Refused) as refused:
        render(case, values)
    assert said in str(refused.value)


def test_nothing_given_is_answered_with_what_is_needed() -> None:
    with pytest.raises(Refused, match=r"node\.existingSecret: the Secret with the nodes' tokens must be named"):
        render("")


def test_what_is_set_elsewhere_is_a_setting() -> None:
    assert {field.path for fields in FIELDS.values() for field in fields.values()} >= ELSEWHERE


def test_the_chart_has_the_programs_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))
    assert chart["version"] == chart["appVersion"] == __version__
    nats = yaml.safe_load((CHART / "charts" / "nats" / "Chart.yaml").read_text("utf-8"))
    assert nats["version"] == chart["dependencies"][0]["version"]
