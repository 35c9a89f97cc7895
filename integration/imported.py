"""Stand-ins for public images where no registry can be reached: this machine's own programs, imported under a name."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from uuid import uuid4

import docker

from sidecar.demo.game import is_static
from sidecar.demo.nats import find_nats_server

APPLETS: Final = ("sh", "cat", "sleep", "mkdir", "dd", "chown", "ln", "test", "[", "echo", "kill", "ls")
ENGINE: Final = ("dockerd", "containerd", "containerd-shim-runc-v2", "runc", "docker")


class NoProgram(Exception):
    """What is missing on this machine."""


@contextmanager
def imported(
    programs: Mapping[str, Path | Sequence[Path]], scripts: Mapping[str, str] | None = None
) -> Iterator[dict[str, str]]:
    """Images by name, each of its programs beside a shell with the usual tools; removed at the end.

    Args: scripts, by name: shell scripts in each of them. Raises NoProgram.
    """
    found = shutil.which("busybox")
    if found is None or not is_static(Path(found)):
        raise NoProgram("there is no static busybox (Debian: busybox-static)")
    tag = uuid4().hex[:12]
    client = docker.from_env()
    made: dict[str, str] = {}
    try:
        for name, inside in programs.items():
            image = f"transfer-sidecar-test-{name}"
            client.api.import_image_from_data(
                _root(Path(found), [inside] if isinstance(inside, Path) else inside, scripts or {}),
                repository=image,
                tag=tag,
                changes=["ENV PATH=/bin"],
            )
            made[name] = f"{image}:{tag}"
        yield made
    finally:
        for image in made.values():
            client.images.remove(image, force=True)
        client.close()


def nats_server() -> Path:
    return find_nats_server()


def engine_programs() -> tuple[Path, ...]:
    """What a Docker engine is made of. Raises NoProgram."""
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    found = {name: shutil.which(name, path=path) for name in ENGINE}
    missing = [name for name, place in found.items() if place is None]
    if missing:
        raise NoProgram(f"there is no {', '.join(missing)} (Debian: docker.io)")
    return tuple(Path(place) for place in found.values() if place is not None)


def _root(busybox: Path, programs: Iterable[Path], scripts: Mapping[str, str]) -> bytes:
    files = {"bin/busybox": busybox.resolve()}
    for program in programs:
        files[f"bin/{program.name}"] = program.resolve()
        files |= {str(library).lstrip("/"): library for library in _libraries(program)}
    contents = {f"bin/{name}": text.encode() for name, text in scripts.items()}
    folders = {str(parent) for name in files for parent in Path(name).parents if str(parent) != "."} | {"tmp", "data"}
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as tar:
        for folder in sorted(folders):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        for name in (*files, *contents):
            content = contents[name] if name in contents else files[name].read_bytes()
            entry = tarfile.TarInfo(name)
            entry.mode, entry.size = 0o755, len(content)
            tar.addfile(entry, io.BytesIO(content))
        for applet in APPLETS:
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
    return output.getvalue()


def _libraries(program: Path) -> list[Path]:
    """Under the names by which the program asks for them; none for a static one."""
    told = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=False).stdout
    return [Path(path) for path in re.findall(r"(/\S+) \(0x", told)]
