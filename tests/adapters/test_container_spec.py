"""The container's document from panels' configurations, without an engine."""

from typing import Any

import pytest

from sidecar.adapters.container_spec import Site, build_spec, image_of, understand, without_optional
from sidecar.errors import PeerFailed
from sidecar.ports import Configuration

SERVER = "6f1c3f0e-2b1d-4c55-9c7e-0d6b1a2c3d4e"
SITE = Site(
    volume=f"/data/{SERVER}",
    data_target="/home/container",
    user=(988, 988),
    timezone="UTC",
    network="game_nw",
    gateway="172.18.0.1",
    allowed_mounts=("/srv/shared",),
)


def settings(**parts: Any) -> Configuration:
    return Configuration({"uuid": SERVER, "container": {"image": "game:1"}, **parts}, {})


def host(site: Site = SITE, **parts: Any) -> Any:
    return build_spec(SERVER, understand(settings(**parts)), site).document["HostConfig"]


def env(**parts: Any) -> dict[str, str]:
    document = build_spec(SERVER, understand(settings(**parts)), SITE).document
    return dict(entry.split("=", 1) for entry in document["Env"])


def test_the_least_that_a_panel_can_send_is_enough() -> None:
    document = build_spec(SERVER, understand(settings()), SITE).document
    assert document["Image"] == "game:1" and document["User"] == "988:988"
    assert "Memory" not in document["HostConfig"] and "CpuQuota" not in document["HostConfig"]


@pytest.mark.parametrize("empty", [[], {}, None])
def test_every_way_to_write_nothing(empty: object) -> None:
    given = settings(environment=empty, labels=empty, mounts=[], allocations={"default": None, "mappings": empty})
    spec = build_spec(SERVER, understand(given), SITE)
    assert spec.document["HostConfig"]["PortBindings"] == {}


@pytest.mark.parametrize(
    ("limit", "swap", "memory_mib", "total_mib"),
    [(1000, 0, 1150, 1150), (2048, 0, 2355, 2355), (4096, 512, 4506, 5018), (10000, 100, 10500, 10600)],
)
def test_memory_has_an_overhead(limit: int, swap: int, memory_mib: int, total_mib: int) -> None:
    limits = host(build={"memory_limit": limit, "swap": swap})
    assert limits["Memory"] == memory_mib * 2**20 and limits["MemoryReservation"] == limit * 2**20
    assert limits["MemorySwap"] == total_mib * 2**20


def test_swap_without_a_limit() -> None:
    assert host(build={"memory_limit": 100, "swap": -1})["MemorySwap"] == -1


def test_processor_and_weights() -> None:
    limits = host(build={"cpu_limit": 150, "threads": "0,2-3", "io_weight": 500})
    assert (limits["CpuQuota"], limits["CpuPeriod"], limits["CpuShares"]) == (150_000, 100_000, 1024)
    assert limits["CpusetCpus"] == "0,2-3" and limits["BlkioWeight"] == 500
    assert "BlkioWeight" not in host(build={"io_weight": 0, "threads": None})


@pytest.mark.parametrize(
    ("build", "is_disabled"),
    [({"oom_disabled": True}, True), ({"oom_killer": False}, True), ({"oom_disabled": False}, False), ({}, False)],
)
def test_both_words_for_the_oom_killer(build: dict[str, bool], is_disabled: bool) -> None:
    assert host(build=build).get("OomKillDisable", False) is is_disabled


def test_ports_of_both_protocols_and_the_networks_own_address_for_loopback() -> None:
    bindings = host(allocations={"mappings": {"127.0.0.1": [1000], "10.0.0.1": [1000, 2000, 0]}})["PortBindings"]
    assert bindings == {
        "1000/tcp": [{"HostIp": "172.18.0.1", "HostPort": "1000"}, {"HostIp": "10.0.0.1", "HostPort": "1000"}],
        "1000/udp": [{"HostIp": "172.18.0.1", "HostPort": "1000"}, {"HostIp": "10.0.0.1", "HostPort": "1000"}],
        "2000/tcp": [{"HostIp": "10.0.0.1", "HostPort": "2000"}],
        "2000/udp": [{"HostIp": "10.0.0.1", "HostPort": "2000"}],
    }


@pytest.mark.parametrize("network", ["host", "none"])
def test_networks_without_ports(network: str) -> None:
    site = Site(volume="/v", data_target="/d", user=(1, 1), timezone="UTC", network=network)
    made = host(site, allocations={"mappings": {"10.0.0.1": [1000]}})
    assert made["PortBindings"] == {} and "Dns" not in made


def test_only_allowed_mounts_are_made_and_none_over_the_data() -> None:
    wanted = [
        {"source": "/srv/shared/maps", "target": "/maps", "read_only": True},
        {"source": "/srv/sharedx", "target": "/a"},
        {"source": "/srv/shared/../../etc", "target": "/b"},
        {"source": "srv/shared", "target": "/c"},
        {"source": "/srv/shared", "target": "/home/container/"},
    ]
    spec = build_spec(SERVER, understand(settings(mounts=wanted)), SITE)
    data, maps = spec.document["HostConfig"]["Mounts"]
    assert data["Source"] == f"/data/{SERVER}" and not data["ReadOnly"]
    assert maps == {"Type": "bind", "Source": "/srv/shared/maps", "Target": "/maps", "ReadOnly": True}
    assert len(spec.refused_mounts) == 4


def test_variables_are_put_in_once_and_the_panels_cannot_replace_ours() -> None:
    given = env(
        invocation="run {{ SERVER_MEMORY }} {{a}} {{UNKNOWN}}",
        environment={"a": "{{B}}", "B": 1.0, "SERVER_IP": "evil", "STARTUP": "evil", "HALF": 0.5},
        build={"memory_limit": 64},
        allocations={"default": {"ip": "10.0.0.1", "port": 7}},
    )
    assert given["STARTUP"] == "run 64 {{B}} {{UNKNOWN}}"
    assert (given["SERVER_IP"], given["SERVER_PORT"], given["B"], given["HALF"]) == ("10.0.0.1", "7", "1", "0.5")


def test_the_timezone_of_the_server_comes_first() -> None:
    assert env()["TZ"] == "UTC"
    assert env(container={"image": "x", "timezone": "Europe/Berlin"})["TZ"] == "Europe/Berlin"
    assert env(environment={"server_timezone": "Asia/Tokyo"})["TZ"] == "Asia/Tokyo"


@pytest.mark.parametrize(("image", "name", "is_local"), [("~x:1", "x:1", True), ("x~", "x", True), (" x ", "x", False)])
def test_a_tilde_says_that_the_image_is_local(image: str, name: str, is_local: bool) -> None:
    assert image_of(understand(settings(container={"image": image}))) == (name, is_local)


@pytest.mark.parametrize(
    "parts",
    [
        {"container": {}},
        {"container": {"image": "~"}},
        {"container": {"image": 5}},
        {"build": {"memory_limit": "much"}},
        {"environment": {"A": ["x"]}},
        {"environment": ["x"]},
        {"allocations": {"mappings": {"10.0.0.1": "x"}}},
        {"allocations": {"default": {"ip": "10.0.0.1"}}},
        {"mounts": [{"source": "/x"}]},
    ],
)
def test_what_is_not_understood_is_refused(parts: dict[str, Any]) -> None:
    with pytest.raises(PeerFailed) as failed:
        understand(settings(**parts))
    assert failed.value.code == "panel.malformed"


def test_our_labels_cannot_be_replaced() -> None:
    document = build_spec(SERVER, understand(settings(labels={"transfer-sidecar.server": "x", "n": 1})), SITE).document
    assert document["Labels"]["transfer-sidecar.server"] == SERVER and document["Labels"]["n"] == "1"


def test_what_a_kernel_may_lack_can_be_left_out() -> None:
    document = build_spec(SERVER, understand(settings(build={"io_weight": 500, "oom_killer": False})), SITE).document
    smaller = without_optional(document)
    assert smaller is not None and not {"BlkioWeight", "OomKillDisable"} & smaller["HostConfig"].keys()
    assert without_optional(smaller) is None
