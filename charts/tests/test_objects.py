"""What is rendered: for each mode what it must have, and for all of them what nobody may have."""

from __future__ import annotations

from typing import Any

import pytest

from charts.tests.rendering import CASES, NAME, NAMESPACE, env_of, mounts_of, render, volumes_of
from sidecar import __version__
from sidecar.api.metrics import PATH

PRIVILEGED = "engine"  # the only container that may have everything
ROOT_CAPABILITIES = {"CHOWN", "DAC_OVERRIDE", "FOWNER"}
VOLUMES = "/var/lib/pterodactyl/volumes"


@pytest.mark.parametrize("case", CASES)
def test_no_pod_has_more_than_it_needs(case: str) -> None:
    for pod in render(case).pods():
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            security = container["securityContext"]
            if container["name"] == PRIVILEGED:
                assert security["privileged"] is True
                continue
            assert security["privileged"] is False
            assert security["allowPrivilegeEscalation"] is False
            assert security["readOnlyRootFilesystem"] is True
            assert security["capabilities"]["drop"] == ["ALL"]
            added = set(security["capabilities"].get("add", []))
            is_root = security.get("runAsUser", pod["securityContext"]["runAsUser"]) == 0
            assert added <= ROOT_CAPABILITIES if is_root else not added
            assert container["resources"]["limits"]["memory"]


@pytest.mark.parametrize("case", CASES)
def test_only_who_is_beside_a_daemon_is_root(case: str) -> None:
    pod = render(case).pod
    if case == "beside":
        assert pod["securityContext"]["runAsUser"] == 0
        assert set(render(case).sidecar["securityContext"]["capabilities"]["add"]) == ROOT_CAPABILITIES
    else:
        assert (
            pod["securityContext"] | {"runAsNonRoot": True, "runAsUser": 988, "runAsGroup": 988}
            == (pod["securityContext"])
        )
        assert "add" not in render(case).sidecar["securityContext"]["capabilities"]


@pytest.mark.parametrize("case", CASES)
def test_nothing_may_ask_the_kubernetes_api(case: str) -> None:
    kinds = {found["kind"] for found in render(case).objects}
    assert not kinds & {"Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"}
    assert all(account["automountServiceAccountToken"] is False for account in render(case).of("ServiceAccount"))


@pytest.mark.parametrize("case", CASES)
def test_every_object_says_where_it_belongs_and_every_port_its_protocol(case: str) -> None:
    for found in render(case).objects:
        if found["metadata"]["name"] == "sidecar-extra":
            continue  # the user's own
        assert found["metadata"]["namespace"] == NAMESPACE
        assert found["metadata"]["labels"]["app.kubernetes.io/instance"] == "sidecar"
    for pod in render(case).pods():
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            assert all(port["protocol"] for port in container.get("ports", []))
    assert all(port["protocol"] for service in render(case).of("Service") for port in service["spec"]["ports"])


@pytest.mark.parametrize("case", CASES)
def test_mounts_have_their_volumes_and_volumes_their_use(case: str) -> None:
    for pod in render(case).pods():
        containers = [*pod.get("initContainers", []), *pod["containers"]]
        used = {mount["name"] for container in containers for mount in container.get("volumeMounts", [])}
        claimed = {"data"}  # of volumeClaimTemplates, where there are any
        assert used - claimed == {volume["name"] for volume in pod.get("volumes", [])} - claimed
        for container in containers:
            paths = [mount["mountPath"] for mount in container.get("volumeMounts", [])]
            assert len(paths) == len(set(paths))


@pytest.mark.parametrize("case", CASES)
def test_what_is_asked_for_health(case: str) -> None:
    container = render(case).sidecar
    scheme = "HTTPS" if case in ("beside", "full") else "HTTP"
    for probe, path in (("startupProbe", "/healthz"), ("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
        asked = container[probe]["httpGet"]
        assert (asked["path"], asked["port"], asked["scheme"]) == (path, "api", scheme)
        assert asked.get("host") == ("127.0.0.1" if case == "beside-unprivileged" else None)
    assert container["ports"][0]["name"] == "api"


@pytest.mark.parametrize("case", CASES)
def test_a_transfer_is_never_cut_by_a_roll_out(case: str) -> None:
    """Nothing rolls by itself, and who is to end has the time that the settings promise its transfers."""
    rendered = render(case)
    assert rendered.workload["spec"]["updateStrategy"]["type"] == ("RollingUpdate" if case == "full" else "OnDelete")
    promised = 7200 if case == "full" else 3600
    assert f"shutdown_grace_s = {promised}\n" in rendered.toml
    engine = 60 if case == "dind" else 0
    assert rendered.pod["terminationGracePeriodSeconds"] == promised + engine + 30


def test_the_grace_follows_the_settings() -> None:
    def grace(values: dict[str, Any]) -> int:
        return int(render("daemonset", values).pod["terminationGracePeriodSeconds"])

    assert grace({"config": {"transfer": {"shutdown_grace_s": 0}}}) == 30
    assert grace({"config": {"transfer": {"shutdown_grace_s": 10.5}}}) == 41
    assert grace({"terminationGracePeriodSeconds": 5000}) == 5000


def test_the_images_are_named_as_it_is_said() -> None:
    def image(**values: str) -> str:
        return str(render("daemonset", {"image": values}).sidecar["image"])

    assert image() == f"transfer-sidecar:{__version__}"
    assert image(registry="r.example.com:5000", repository="a/b", tag="1") == "r.example.com:5000/a/b:1"
    assert image(tag="1", digest="sha256:" + "0" * 64) == f"transfer-sidecar@sha256:{'0' * 64}"
    engine = render("dind").pod["initContainers"][0]
    assert engine["image"] == "docker.io/docker:29-dind"


# daemonset


def test_daemonset_takes_the_nodes_directories_at_their_own_paths() -> None:
    rendered = render("daemonset")
    mounts, volumes = mounts_of(rendered.sidecar), volumes_of(rendered.pod)
    assert mounts[VOLUMES]["name"] == "volumes"
    assert volumes["volumes"]["hostPath"] == {"path": VOLUMES, "type": "Directory"}
    assert volumes["engine"]["hostPath"] == {"path": "/var/run/docker.sock", "type": "Socket"}
    assert volumes["state"]["hostPath"] == {"path": "/var/lib/transfer-sidecar", "type": "Directory"}
    assert rendered.pod["securityContext"]["supplementalGroups"] == [998]
    assert "fsGroup" not in rendered.pod["securityContext"]
    assert rendered.sidecar["ports"] == [{"name": "api", "containerPort": 8080, "hostPort": 8080, "protocol": "TCP"}]
    assert rendered.pod["nodeSelector"] == {"transfer-sidecar": "enabled"}
    assert "hostNetwork" not in rendered.pod
    assert "initContainers" not in rendered.pod


def test_each_node_sees_its_own_token_only() -> None:
    rendered = render("daemonset")
    mounts, env = mounts_of(rendered.sidecar), env_of(rendered.sidecar)
    assert env["SIDECAR_NODE_NAME"] == {"fieldRef": {"fieldPath": "spec.nodeName"}}
    for file, variable in (("token", "SIDECAR_NODE_TOKEN_FILE"), ("token-id", "SIDECAR_NODE_TOKEN_ID_FILE")):
        mount = mounts[env[variable]]
        assert mount["subPathExpr"] == f"$(SIDECAR_NODE_NAME).{file}"
        assert volumes_of(rendered.pod)[mount["name"]]["secret"]["secretName"] == "node-tokens"
    assert [mount for mount in mounts.values() if mount["name"] == "node" and "subPathExpr" not in mount] == []
    shared = render("daemonset", {"node": {"perNode": False}})
    assert mounts_of(shared.sidecar)["/run/transfer-sidecar/node"].keys() == {"name", "mountPath", "readOnly"}


def test_directories_are_prepared_by_a_container_that_can_do_nothing_else() -> None:
    rendered = render("standalone")
    (prepare,) = rendered.pod["initContainers"]
    assert prepare["command"] == ["chown", "988:988", "/var/lib/transfer-sidecar", VOLUMES]
    assert prepare["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["CHOWN"]}
    assert volumes_of(rendered.pod)["state"]["hostPath"]["type"] == "DirectoryOrCreate"
    assert volumes_of(rendered.pod)["volumes"]["hostPath"]["type"] == "DirectoryOrCreate"


def test_a_new_configuration_is_a_new_pod() -> None:
    def checksum(values: dict[str, Any]) -> str:
        annotations = render("daemonset", values).workload["spec"]["template"]["metadata"]["annotations"]
        return str(annotations["checksum/config"])

    assert checksum({}) != checksum({"config": {"log": {"level": "debug"}}})
    assert checksum({}) == checksum({"podLabels": {"a": "b"}})


# beside a daemon


def test_beside_a_daemon() -> None:
    rendered = render("beside")
    env, mounts, volumes = env_of(rendered.sidecar), mounts_of(rendered.sidecar), volumes_of(rendered.pod)
    assert rendered.pod["hostNetwork"] is True
    assert rendered.pod["dnsPolicy"] == "ClusterFirstWithHostNet"
    assert mounts[env["SIDECAR_WINGS_CONFIG"]]["readOnly"] is True
    assert volumes["daemon-config"]["hostPath"] == {"path": "/etc/pterodactyl/config.yml", "type": "File"}
    assert "SIDECAR_NODE_TOKEN_FILE" not in env, "the daemon's file has it"
    assert 'url = "http://127.0.0.1:8081"' in rendered.toml
    assert "front = true" in rendered.toml
    assert env["SIDECAR_API_TLS_CERT"] == "/run/transfer-sidecar/tls/live/$(SIDECAR_NODE_NAME)/fullchain.pem"
    assert volumes["tls"]["hostPath"] == {"path": "/etc/letsencrypt", "type": "Directory"}
    assert volumes["volumes"]["hostPath"]["type"] == "Directory"
    assert not rendered.of("NetworkPolicy"), "it would not hold for the node's network"


def test_beside_a_daemon_below_1024() -> None:
    added = render("beside", {"listen": {"port": 443}}).sidecar["securityContext"]["capabilities"]["add"]
    assert added == ["CHOWN", "DAC_OVERRIDE", "FOWNER", "NET_BIND_SERVICE"]


def test_beside_a_daemon_without_root() -> None:
    rendered = render("beside-unprivileged")
    assert rendered.pod["securityContext"]["supplementalGroups"] == [998]
    assert "front = false" in rendered.toml
    assert rendered.sidecar["ports"][0] == {"name": "api", "containerPort": 8082, "hostPort": 8082, "protocol": "TCP"}


# dind


def test_dind_brings_its_own_engine() -> None:
    rendered = render("dind")
    (engine,) = rendered.pod["initContainers"]
    assert engine["restartPolicy"] == "Always", "a native sidecar: it ends after the transfers"
    assert engine["startupProbe"]["exec"]["command"] == ["docker", "info"]
    assert "--host=unix:///run/engine/docker.sock" in engine["args"]
    assert "--group=988" in engine["args"]
    assert not any("tcp://" in argument for argument in engine["args"])
    assert engine["securityContext"]["privileged"] is True
    assert not any("hostPath" in volume for volume in rendered.pod["volumes"])
    assert "hostNetwork" not in rendered.pod
    assert "fsGroup" not in rendered.pod["securityContext"], "it would rewrite the owners of images and worlds"


def test_dind_has_the_servers_at_one_path() -> None:
    rendered = render("dind")
    (engine,) = rendered.pod["initContainers"]
    ours, its = mounts_of(rendered.sidecar), mounts_of(engine)
    (whole,) = (path for path, mount in its.items() if mount["name"] == "data")
    data = {path: mount["subPath"] for path, mount in ours.items() if mount["name"] == "data"}
    assert data == {f"{whole}/{name}": name for name in ("state", "volumes")}
    assert f'volumes = "{whole}/volumes"' in rendered.toml
    assert f'dir = "{whole}/state"' in rendered.toml
    assert ours["/run/engine"]["name"] == its["/run/engine"]["name"] == "engine"
    assert f"--data-root={whole}/docker" in engine["args"]


def test_dind_keeps_worlds() -> None:
    rendered = render("dind")
    spec = rendered.workload["spec"]
    (claim,) = spec["volumeClaimTemplates"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOncePod"]
    assert spec["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}
    assert rendered.one("PodDisruptionBudget")["spec"]["maxUnavailable"] == 0


def test_dind_pods_are_nodes_with_names_and_addresses_of_their_own() -> None:
    rendered = render("dind")
    assert env_of(rendered.sidecar)["SIDECAR_NODE_NAME"] == {"fieldRef": {"fieldPath": "metadata.name"}}
    assert rendered.workload["spec"]["serviceName"] == rendered.one("Service")["metadata"]["name"]
    for number in range(2):
        service = rendered.one("Service", f"{NAME}-{number}")["spec"]
        assert service["selector"]["statefulset.kubernetes.io/pod-name"] == f"{NAME}-{number}"
        assert [port["port"] for port in service["ports"]] == [8080, 25565, 7777]
        assert service["type"] == "LoadBalancer"
        assert service["publishNotReadyAddresses"] is True
    allowed = rendered.one("NetworkPolicy")["spec"]["ingress"]
    assert {(port["port"], port["protocol"]) for rule in allowed for port in rule["ports"]} == {
        (8080, "TCP"), (25565, "TCP"), (7777, "UDP"),
    }  # fmt: skip


# what is optional


def test_the_networks_policy() -> None:
    policy = render("full").one("NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    (rule,) = policy["ingress"]
    assert rule["ports"] == [{"port": 8080, "protocol": "TCP"}]
    assert {"ipBlock": {"cidr": "10.0.0.0/8"}} in rule["from"]
    assert {port["port"] for rule in policy["egress"] for port in rule["ports"]} == {53, 443}
    anybody = render("daemonset").one("NetworkPolicy")["spec"]
    assert anybody["policyTypes"] == ["Ingress"]
    assert anybody["ingress"] == [{"ports": [{"port": 8080, "protocol": "TCP"}]}]
    assert not render("daemonset", {"networkPolicy": {"enabled": False}}).of("NetworkPolicy")


def test_the_service_monitor_is_there_when_it_is_wanted() -> None:
    monitor = render("full").one("ServiceMonitor")
    (endpoint,) = monitor["spec"]["endpoints"]
    assert (endpoint["path"], endpoint["scheme"]) == (PATH, "https")
    assert endpoint["authorization"]["credentials"] == {"name": "metrics", "key": "metrics-token"}
    service = render("full").one("Service")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert all(not render(case).of("ServiceMonitor") for case in CASES if case != "full")


def test_what_users_add() -> None:
    rendered = render("full")
    assert rendered.one("ConfigMap", "sidecar-extra")["data"] == {"key": "value"}
    assert env_of(rendered.sidecar)["SIDECAR_LOG_LEVEL"] == "debug"
    assert mounts_of(rendered.sidecar)["/srv/other"]["name"] == "other"
    assert rendered.pod["nodeSelector"] == {"games": "true"}
    assert rendered.pod["priorityClassName"] == "system-node-critical"
    assert rendered.pod["tolerations"]
    assert rendered.pod["affinity"]
    assert rendered.pod["imagePullSecrets"] == [{"name": "regcred"}]
    assert rendered.pod["securityContext"]["seLinuxOptions"] == {"type": "spc_t"}
    assert rendered.workload["metadata"]["labels"]["team"] == "games"


def test_the_test_hook_asks_every_pod_that_has_a_name() -> None:
    def asked(case: str) -> list[str]:
        pod = render(case).one("Pod", f"{NAME}-test-ready")
        assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
        return [env_of(container)["SIDECAR_API_HOST"] for container in pod["spec"]["containers"]]

    assert asked("daemonset") == [f"{NAME}.{NAMESPACE}.svc"]
    assert asked("dind") == [f"{NAME}-0.{NAMESPACE}.svc", f"{NAME}-1.{NAMESPACE}.svc"]


def test_names_stay_short_enough_for_pods_and_labels() -> None:
    rendered = render("dind", {"fullnameOverride": "a" * 52})
    names = [found["metadata"]["name"] for found in rendered.of("Service")]
    assert max(len(name) for name in names) <= 63
