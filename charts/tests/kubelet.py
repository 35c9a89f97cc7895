"""Runs a rendered container on the Docker engine as a kubelet would: image, command, user, capabilities, mounts.

What differs from a node of a cluster: the container has the machine's own network, because an engine in CI may have no
bridge; a port is then the container's, not `hostPort`. And a machine that is itself a container may not have all
privileges to give: a privileged container gets those that there are.
"""

from __future__ import annotations

import re
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from charts.tests.rendering import NAMESPACE, Object, Rendered
from integration.image import Ended, docker

POLL_S: Final = 0.05
# Source: capabilities(7), in the order of linux/capability.h
_CAPABILITIES: Final = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
    "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
    "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ",
)  # fmt: skip
Secrets = Mapping[str, Mapping[str, str]]  # by name, by key


class Kubelet:
    """One node. Args: name, of the node and of the pod; directory: for what is made from Secrets and ConfigMaps;
    emptied: instead of an emptyDir of that name, a directory of this machine; image: instead of the rendered one."""

    def __init__(
        self,
        rendered: Rendered,
        *,
        name: str,
        directory: Path,
        image: str,
        secrets: Secrets,
        emptied: Mapping[str, Path] | None = None,
    ) -> None:
        self._rendered = rendered
        self._name = name
        self._directory = directory
        self._image = image
        self._secrets = secrets
        self._emptied = emptied or {}
        self._edits: list[tuple[str, str]] = []
        self.container = f"chart-test-{uuid4().hex[:12]}"
        self.engine = f"{self.container}-engine"

    def edit(self, there: str, here: str) -> None:
        """Another text in every ConfigMap: what only a cluster's DNS could resolve."""
        self._edits.append((there, here))

    def prepare(self) -> Ended:
        """Run the init container to its end."""
        (container,) = self._rendered.pod["initContainers"]
        return docker("run", "--rm", *self._arguments(self._rendered.pod, container))

    def start(self) -> None:
        """Start the sidecar's container."""
        done = docker(
            "run", "--detach", f"--name={self.container}", *self._arguments(self._rendered.pod, self._rendered.sidecar)
        )
        assert done.code == 0, done.said

    def start_engine(self, image: str, patience_s: float) -> None:
        """Start the native sidecar of mode dind, and wait until it has started, as its probe says."""
        (container,) = self._rendered.pod["initContainers"]
        assert container["restartPolicy"] == "Always"
        arguments = self._arguments(self._rendered.pod, {**container, "image": image})
        done = docker("run", "--detach", f"--name={self.engine}", *arguments)
        assert done.code == 0, done.said
        self._wait(lambda: self.probe_engine("startupProbe"), "the engine", patience_s, self.engine)

    def probe_engine(self, probe: str) -> bool:
        (container,) = self._rendered.pod["initContainers"]
        return docker("exec", self.engine, *container[probe]["exec"]["command"]).code == 0

    def stop_engine(self) -> int:
        """SIGTERM, after the sidecar has ended; the exit code."""
        docker("stop", f"--time={self._rendered.pod['terminationGracePeriodSeconds']}", self.engine)
        return int(docker("wait", self.engine).said)

    def run_test_hook(self) -> Ended:
        """The container of `helm test`, whose Service leads to this node."""
        pod = self._rendered.one("Pod", f"{self._rendered.workload['metadata']['name']}-test-ready")["spec"]
        container = pod["containers"][0]
        (host,) = (entry["value"] for entry in container["env"] if entry["name"] == "SIDECAR_API_HOST")
        assert host.endswith(f".{NAMESPACE}.svc")
        return docker("run", "--rm", f"--add-host={host}:127.0.0.1", *self._arguments(pod, container))

    def exec(self, *command: str) -> Ended:
        return docker("exec", self.container, *command)

    def logs(self) -> str:
        return docker("logs", self.container).said

    def exit_code(self, patience_s: float) -> int:
        """Of the container, when it has ended."""
        return int(docker("wait", self.container, timeout_s=patience_s).said)

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        docker("stop", f"--time={self._rendered.pod['terminationGracePeriodSeconds']}", self.container)
        return self.exit_code(10)

    def remove(self) -> None:
        docker("rm", "--force", self.container)
        docker("rm", "--force", self.engine)

    def until(self, holds: Callable[[], bool], what: str, patience_s: float = 30.0) -> None:
        self._wait(holds, what, patience_s, self.container)

    def _wait(self, holds: Callable[[], bool], what: str, patience_s: float, container: str) -> None:
        deadline = time.monotonic() + patience_s
        while not holds():
            assert time.monotonic() < deadline, f"waited in vain for {what}\n{docker('logs', container).said}"
            time.sleep(POLL_S)

    def _arguments(self, pod: Object, container: Object) -> list[str]:
        """Of `docker run`, the image and the command at the end."""
        security: dict[str, Any] = {**pod.get("securityContext", {}), **container["securityContext"]}
        if security["runAsNonRoot"]:
            assert security["runAsUser"] != 0, "the kubelet would not start it"
        env: dict[str, str] = {}
        for entry in container.get("env", []):
            env[entry["name"]] = _expanded(entry["value"], env) if "value" in entry else self._field(entry["valueFrom"])
        command = container.get("command", [])
        return [
            "--network=host",
            f"--user={security['runAsUser']}:{security['runAsGroup']}",
            *(f"--group-add={group}" for group in security.get("supplementalGroups", [])),
            *(_privileges() if security.get("privileged") else _restrictions(security, container)),
            *(f"--env={name}={value}" for name, value in env.items()),
            *(f"--mount={self._mount(pod, mount, env)}" for mount in container.get("volumeMounts", [])),
            *([f"--entrypoint={command[0]}"] if command else []),
            container.get("image", "") if security.get("privileged") else self._image,
            *command[1:],
            *container.get("args", []),
        ]  # fmt: skip

    def _field(self, source: Object) -> str:
        assert source["fieldRef"]["fieldPath"] in ("spec.nodeName", "metadata.name")
        return self._name

    def _mount(self, pod: Object, mount: Object, env: Mapping[str, str]) -> str:
        source = self._volume(pod, mount["name"])
        below = mount.get("subPath") or _expanded(mount.get("subPathExpr", ""), env)
        if below:
            source = source / below
            if not source.exists():
                source.mkdir()  # as the kubelet does, in a Secret too
        only = ",readonly" if mount.get("readOnly") else ""
        return f"type=bind,source={source},target={mount['mountPath']}{only}"

    def _volume(self, pod: Object, name: str) -> Path:
        claims = self._rendered.workload["spec"].get("volumeClaimTemplates", [])
        if any(claim["metadata"]["name"] == name for claim in claims):
            return self._emptied[name]
        (volume,) = (volume for volume in pod["volumes"] if volume["name"] == name)
        if "hostPath" in volume:
            return _host_path(Path(volume["hostPath"]["path"]), volume["hostPath"]["type"])
        if "emptyDir" in volume:
            return self._emptied[name]
        directory = self._directory / name
        directory.mkdir(parents=True, exist_ok=True)
        if "secret" in volume:
            content, mode = self._secrets[volume["secret"]["secretName"]], volume["secret"]["defaultMode"]
        else:
            data = self._rendered.one("ConfigMap", volume["configMap"]["name"])["data"]
            content, mode = {key: self._edited(text) for key, text in data.items()}, volume["configMap"]["defaultMode"]
        for key, text in content.items():
            path = directory / key
            path.write_text(text)
            path.chmod(mode)
        return directory

    def _edited(self, text: str) -> str:
        for there, here in self._edits:
            assert text.count(there) == 1
            text = text.replace(there, here)
        return text


def _restrictions(security: Object, container: Object) -> Iterator[str]:
    if security["readOnlyRootFilesystem"]:
        yield "--read-only"
    yield from (f"--cap-drop={name}" for name in security["capabilities"]["drop"])
    yield from (f"--cap-add={name}" for name in security["capabilities"].get("add", []))
    if not security["allowPrivilegeEscalation"]:
        yield "--security-opt=no-new-privileges"
    yield f"--memory={_bytes(container['resources']['limits']['memory'])}"


def _privileges() -> Iterator[str]:
    """All of them; where this process lacks some itself, all others and what else comes with them."""
    missing = _missing_capabilities()
    if not missing:
        yield "--privileged"
        return
    yield "--cap-add=ALL"
    yield from (f"--cap-drop={name}" for name in missing)
    yield from (f"--security-opt={name}=unconfined" for name in ("seccomp", "apparmor", "systempaths"))
    yield "--mount=type=bind,source=/sys/fs/cgroup,target=/sys/fs/cgroup"


def _missing_capabilities() -> list[str]:
    """Of those that every engine knows, the ones outside this process's bounding set."""
    status = Path("/proc/self/status").read_text("ascii", "replace")
    (bounds,) = (int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapBnd:"))
    return [name for number, name in enumerate(_CAPABILITIES) if not bounds >> number & 1]


def _host_path(path: Path, kind: str) -> Path:
    if kind == "DirectoryOrCreate" and not path.exists():
        path.mkdir(mode=0o755, parents=True)
    is_kind = stat.S_ISSOCK if kind == "Socket" else stat.S_ISREG if kind == "File" else stat.S_ISDIR
    assert is_kind(path.stat().st_mode), f"the kubelet would not mount {path} as {kind}"
    return path


def _expanded(text: str, env: Mapping[str, str]) -> str:
    return re.sub(r"\$\(([A-Z_]+)\)", lambda found: env.get(found[1], found[0]), text)


def _bytes(quantity: str) -> int:
    assert quantity.endswith("Mi")
    return int(quantity.removesuffix("Mi")) * 1024 * 1024
