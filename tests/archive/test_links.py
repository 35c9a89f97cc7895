from __future__ import annotations

import os
from pathlib import Path

import pytest

from sidecar.archive.descent import Descent
from sidecar.archive.links import MAX_HOPS, NoTarget, resolve
from sidecar.errors import HostFailed
from tests.archive.producing import no_residue, powerless, write


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("file", b"d/file"),
        ("./file", b"d/file"),
        ("../top", b"top"),
        ("sub/../file", b"d/file"),
        ("to-sub/deep", b"d/sub/deep"),
        ("chain", b"d/file"),
        ("../d/./to-sub/../sub//deep", b"d/sub/deep"),
        ("missing", NoTarget.DANGLING),
        ("file/x", NoTarget.DANGLING),
        ("file/", NoTarget.DANGLING),
        ("sub", NoTarget.DIRECTORY),
        ("..", NoTarget.DIRECTORY),
        (".", NoTarget.DIRECTORY),
        ("../../outside", NoTarget.OUTSIDE),
        ("../../root/top", NoTarget.OUTSIDE),
        ("../.sidecar-trash/x", NoTarget.OUTSIDE),
        ("/etc/passwd", NoTarget.ABSOLUTE),
        ("to-absolute", NoTarget.ABSOLUTE),
        ("to-outside/x", NoTarget.OUTSIDE),
        ("loop", NoTarget.LOOP),
        ("link", NoTarget.LOOP),
        ("fifo", NoTarget.SPECIAL),
    ],
)
def test_where_a_link_leads(target: str, expected: bytes | NoTarget, tmp_path: Path) -> None:
    root = tmp_path / "root"
    write(tmp_path, "outside")
    for name in ("top", "d/file", "d/sub/deep", ".sidecar-trash/x"):
        write(root, name)
    here = root / "d"
    for name, to in (
        ("to-sub", "sub"),
        ("chain", "chain2"),
        ("chain2", "../d/file"),
        ("to-absolute", "/etc/passwd"),
        ("to-outside", "../.."),
        ("loop", "loop2"),
        ("loop2", "loop"),
        ("link", target),
    ):
        (here / name).symlink_to(to)
    os.mkfifo(here / "fifo")
    with no_residue():
        descent = Descent(root)
        assert resolve(descent, b"d/link") == expected
        descent.close()


def test_a_long_chain_of_links_ends(tmp_path: Path) -> None:
    write(tmp_path, "0")
    for number in range(MAX_HOPS + 1):
        (tmp_path / str(number + 1)).symlink_to(str(number))
    descent = Descent(tmp_path)
    assert resolve(descent, b"%d" % MAX_HOPS) == b"0"
    assert resolve(descent, b"%d" % (MAX_HOPS + 1)) == NoTarget.LOOP
    descent.close()


def test_a_path_that_may_not_be_looked_at_is_an_error() -> None:
    with powerless() as volume:
        write(volume, "secret/file")
        (volume / "link").symlink_to("secret/file")
        (volume / "secret").chmod(0)
        descent = Descent(volume)
        with pytest.raises(HostFailed) as caught:
            resolve(descent, b"link")
        assert caught.value.code == "volume.unreadable"
        descent.close()
