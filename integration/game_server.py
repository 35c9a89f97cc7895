"""The game server that is moved: Debian's teeworlds-server in an image made from this machine's own files.

Its entry point is that of a usual game image: it runs `$STARTUP` in the volume, takes lines typed at the console, and
ends the game when it is asked to. It writes to the volume all the time, and once more some time after the game has
ended, so an archive that was begun before the container had stopped lacks the last line.

Where there is no teeworlds-server a shell loop takes its place; then nobody answers on the game's port.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import socket
import subprocess
import tarfile
from pathlib import Path
from typing import Any, Final

import msgspec

from sidecar.demo.game import is_static
from sidecar.demo.world import make_world

USER: Final = (4321, 4321)  # nobody's here: what runs and owns servers
LABEL: Final = "transfer-sidecar.integration"
DATA_TARGET: Final = "/home/container"
SESSIONS: Final = "logs/sessions.log"
TICKS: Final = "logs/ticks.log"
SAVED: Final = "saved"
TEEWORLDS_LOG: Final = "dumps/server.txt"
WRITTEN: Final = (SESSIONS, TICKS, TEEWORLDS_LOG)  # what a running server changes
_DATA: Final = Path("/usr/share/games/teeworlds/data/maps")
_MAP_RESOURCES: Final = Path("usr/share/games/teeworlds/data/mapres")  # by it the game knows its data directory
_SEARCHED: Final = f"{os.environ.get('PATH', os.defpath)}:/usr/games:/bin:/usr/bin"

_ENTRY_POINT: Final = rb"""#!/bin/sh
# IGNORES_TERM: a server that cannot be asked to stop. SAVES_S: how long it takes to end.
cd /home/container || exit 1
export HOME=/home/container
say() { echo "$*" >>logs/sessions.log; }
end() { [ -n "$IGNORES_TERM" ] && say "ignored" || { say "asked to end by $1"; kill -TERM "$game"; }; }
trap 'end signal' TERM INT
exec 3<&0
say "started: $STARTUP"
eval "exec $STARTUP" </dev/null &
game=$!
(while :; do echo tick >>logs/ticks.log; sleep 0.2; done) &
ticks=$!
(while read -r line <&3; do
    [ "$line" = stop ] && end console
done) &
console=$!
while kill -0 "$game" 2>/dev/null; do wait "$game"; done
sleep "${SAVES_S:-0.3}"
kill "$ticks" "$console" 2>/dev/null
say saved
"""


class NoGame(Exception):
    """Why no image can be made; one line for a person."""


class GameServer(msgspec.Struct, frozen=True):
    """An image in the engines, and how a panel starts it."""

    image: str
    invocation: str
    answers: bool  # on its UDP port


def find_game() -> tuple[Path, Path | None]:
    """A static busybox, and the game where it is installed. Raises NoGame."""
    busybox = shutil.which("busybox", path=_SEARCHED)
    if busybox is None or not is_static(Path(busybox)):
        raise NoGame("there is no static busybox to make an image of (Debian: busybox-static)")
    game = shutil.which("teeworlds-server", path=_SEARCHED)
    return Path(busybox), Path(game) if game is not None and _DATA.is_dir() else None


def import_image(clients: list[Any], tag: str) -> GameServer:
    """Make the image in each of the engines. Raises NoGame."""
    busybox, game = find_game()
    archive = _image(busybox, game)
    for client in clients:
        client.api.import_image_from_data(
            archive,
            repository="transfer-sidecar-integration",
            tag=tag,
            changes=['ENTRYPOINT ["/bin/sh", "/entrypoint"]', "ENV PATH=/bin:/usr/games", f"LABEL {LABEL}=1"],
        )
    invocation = "sleep 1000000"
    if game is not None:
        invocation = 'teeworlds-server "bindaddr {{SERVER_IP}}" "sv_port {{SERVER_PORT}}"'
    return GameServer(f"transfer-sidecar-integration:{tag}", invocation, answers=game is not None)


def _image(busybox: Path, game: Path | None) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as tar:
        contents = {Path("bin/busybox"): busybox.read_bytes(), Path("entrypoint"): _ENTRY_POINT}
        for path in [] if game is None else [game, *_libraries(game), *sorted(_DATA.iterdir())]:
            contents[path.relative_to("/")] = path.read_bytes()
        folders = {parent for name in contents for parent in name.parents}
        for place in sorted(folders | {Path("tmp"), Path("home"), Path("home/container"), _MAP_RESOURCES}):
            folder = tarfile.TarInfo(str(place))
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755  # the engine would make them for root alone
            tar.addfile(folder)
        for name, content in contents.items():
            member = tarfile.TarInfo(str(name))
            member.mode, member.size = 0o755, len(content)
            tar.addfile(member, io.BytesIO(content))
        for tool in ("sh", "sleep"):
            link = tarfile.TarInfo(f"bin/{tool}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
    return output.getvalue()


def _libraries(program: Path) -> list[Path]:
    """Under the names by which the program asks for them."""
    told = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=True).stdout
    return [Path(path) for path in re.findall(r"(/\S+) \(0x", told)]


def make_volume(volume: Path, size_mb: int) -> None:
    """A world, and what this server reads and writes; owned by the user that servers run as."""
    make_world(volume, size_mb)
    (volume / "storage.cfg").write_text("add_path $CURRENTDIR\nadd_path $DATADIR\n")
    (volume / "autoexec.cfg").write_text('sv_name "moved"\nsv_register 0\nlogfile server\nlogfile_timestamp 0\n')
    for folder in ("dumps", "demos", "configs"):
        (volume / folder).mkdir()
    for root, _, files in os.walk(volume):
        for path in (root, *(os.path.join(root, name) for name in files)):  # noqa: PTH118 - thousands of them
            os.chown(path, *USER, follow_symlinks=False)


def sessions(volume: Path) -> list[str]:
    """What the entry point has said so far, on whichever node."""
    path = volume / SESSIONS
    return path.read_text("utf-8").splitlines() if path.exists() else []


def answers(address: tuple[str, int]) -> bool:
    """Whether a game client that asks for a token, the first thing it does, gets one.

    Source: the connection-less control messages of the game's protocol 0.7.
    """
    asked = b"\x04\x00\x00" + b"\xff" * 4 + b"\x05" + os.urandom(4)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(0.2)
        try:
            client.connect(address)
            client.send(asked.ljust(520, b"\x00"))
            answer = client.recv(1400)
        except OSError:
            return False
    return len(answer) >= 12 and answer[7] == 5 and answer[3:7] == asked[8:12]
