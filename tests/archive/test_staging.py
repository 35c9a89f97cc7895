"""D3, D5 and D8: staging, and the commit killed before each of its steps."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from sidecar.archive.staging import (
    MARKER_NAME,
    Identity,
    LayoutKind,
    Staging,
    VolumeLayout,
    commit,
    list_staging,
    remove_staging,
)
from sidecar.errors import HostFailed, Refused
from tests.archive.extracting import Tree, tree_of

TRANSFER = "0f8b6f2e-7a4b-4c3e-9f65-3f0f3ad9d1a1"
KINDS = [LayoutKind.DIRECTORY, LayoutKind.MOUNT]


def layout_of(kind: LayoutKind, base: Path) -> VolumeLayout:
    volumes = base / "volumes"
    volumes.mkdir(parents=True)
    if kind is LayoutKind.DIRECTORY:
        return VolumeLayout.detect(volumes / "uuid", volumes)
    chosen = base / "claim"
    (chosen / "lost+found").mkdir(parents=True)
    return VolumeLayout.detect(chosen, volumes)


def fill(path: Path) -> None:
    (path / "world/region").mkdir(parents=True)
    (path / "world/region/r.mca").write_bytes(b"region" * 1000)
    (path / "server.properties").write_bytes(b"motd=x")
    (path / "link").symlink_to("world")
    (path / "empty").mkdir()
    (path / ".hidden").write_bytes(b"h")
    path.chmod(0o751)


def own(tree: Tree) -> Tree:
    return {name: entry for name, entry in tree.items() if not name.startswith((b".sidecar-", b"lost+found"))}


def killed_at(number: int, work: Callable[[Callable[[str], None]], object]) -> str | None:
    """Run `work` in a child process that dies at its step `number`; that step's name, None when it got through."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        count = 0

        def step(name: str) -> None:
            nonlocal count
            if count == number:
                os.write(write, name.encode())
                os._exit(9)
            count += 1

        try:
            work(step)
        except BaseException:  # noqa: BLE001 - a child must not return into the test runner
            os._exit(1)
        os._exit(0)
    os.close(write)
    _, status = os.waitpid(child, 0)
    name = os.read(read, 100).decode()
    os.close(read)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, 9)
    return name if code == 9 else None


@pytest.mark.parametrize("kind", KINDS)
def test_d5_a_commit_rolls_forward_from_every_step(kind: LayoutKind, tmp_path: Path) -> None:
    seen: list[str] = []
    for number in range(100):
        layout = layout_of(kind, tmp_path / str(number))
        staging = Staging.make(layout, TRANSFER)
        fill(staging.path)
        staging.sync()
        wanted = own(tree_of(staging.path))
        name = killed_at(number, lambda step, s=staging: commit(s.layout, s.path, s.identity, step))  # type: ignore[misc]
        again = killed_at(number // 2, lambda step, s=staging: commit(s.layout, s.path, s.identity, step))  # type: ignore[misc]
        for _ in range(2):
            commit(layout, staging.path, staging.identity)
            assert own(tree_of(layout.volume)) == wanted
            assert layout.volume.stat().st_mode & 0o777 == 0o751
            assert not staging.path.exists()
            assert list_staging(layout) == []
        if name is None:
            break
        seen.append(name)
        assert again != ""
    expected = {"rename", "sync volumes"} if kind is LayoutKind.DIRECTORY else {"mark", "move world", "mark done"}
    assert expected <= set(seen)
    assert len(seen) >= 3


@pytest.mark.parametrize("kind", KINDS)
def test_d3_a_volume_is_never_merged_into(kind: LayoutKind, tmp_path: Path) -> None:
    layout = layout_of(kind, tmp_path)
    layout.volume.mkdir(exist_ok=True)
    (layout.volume / "theirs").write_bytes(b"x")
    staging = Staging.make(layout, TRANSFER)
    fill(staging.path)
    with pytest.raises(Refused) as caught:
        commit(layout, staging.path, staging.identity)
    assert caught.value.code == "volume.exists"
    assert set(own(tree_of(layout.volume))) == {b"theirs"}
    assert (staging.path / "world/region/r.mca").exists()


def test_an_empty_directory_in_the_way_is_refused_too(tmp_path: Path) -> None:
    layout = layout_of(LayoutKind.DIRECTORY, tmp_path)
    staging = Staging.make(layout, TRANSFER)
    layout.volume.mkdir()
    with pytest.raises(Refused):
        commit(layout, staging.path, staging.identity)
    layout.volume.rmdir()
    layout.volume.symlink_to("/nowhere")
    with pytest.raises(Refused):
        commit(layout, staging.path, staging.identity)


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_was_proved_is_committed(kind: LayoutKind, tmp_path: Path) -> None:
    layout = layout_of(kind, tmp_path)
    staging = Staging.make(layout, TRANSFER)
    other = Identity(staging.identity.device, staging.identity.inode + 1)
    with pytest.raises(HostFailed) as caught:
        commit(layout, staging.path, other)
    assert caught.value.code == "disk.failed"
    staging.remove()
    with pytest.raises(HostFailed) as caught:
        commit(layout, staging.path, staging.identity)
    assert caught.value.code == "volume.missing"


def test_what_appears_during_a_commit_is_not_overwritten(tmp_path: Path) -> None:
    layout = layout_of(LayoutKind.MOUNT, tmp_path)
    staging = Staging.make(layout, TRANSFER)
    fill(staging.path)

    def step(name: str) -> None:
        if name == "move link":
            (layout.volume / "server.properties").write_bytes(b"theirs")

    with pytest.raises(Refused):
        commit(layout, staging.path, staging.identity, step)
    assert (layout.volume / "server.properties").read_bytes() == b"theirs"
    assert (staging.path / "server.properties").read_bytes() == b"motd=x"


def test_a_second_transfer_into_the_same_mount(tmp_path: Path) -> None:
    layout = layout_of(LayoutKind.MOUNT, tmp_path)
    for transfer in ("first", "second"):
        staging = Staging.make(layout, transfer)
        (staging.path / transfer).write_bytes(b"x")
        commit(layout, staging.path, staging.identity)
        commit(layout, staging.path, staging.identity)
        assert transfer in (layout.volume / MARKER_NAME).read_text()
        assert layout.own_entries() == [transfer]
        (layout.volume / transfer).unlink()


@pytest.mark.parametrize("kind", KINDS)
def test_staging_is_private_and_empty(kind: LayoutKind, tmp_path: Path) -> None:
    layout = layout_of(kind, tmp_path)
    staging = Staging.make(layout, TRANSFER)
    assert staging.path.stat().st_mode & 0o777 == 0o700
    assert layout.staging_root.stat().st_mode & 0o777 == 0o700
    assert list_staging(layout) == [TRANSFER]
    (staging.path / "kept").write_bytes(b"x")
    with pytest.raises(HostFailed):
        Staging.make(layout, TRANSFER)
    resumed = Staging.make(layout, TRANSFER, resume=True)
    assert resumed.identity == staging.identity
    assert (resumed.path / "kept").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_d8_staging_is_removed_whatever_it_holds(kind: LayoutKind, tmp_path: Path) -> None:
    layout = layout_of(kind, tmp_path)
    remove_staging(layout, TRANSFER)
    staging = Staging.make(layout, TRANSFER)
    fill(staging.path)
    (staging.path / "outside").symlink_to("/etc")
    (staging.path / "world").chmod(0)
    staging.path.chmod(0)
    staging.remove()
    staging.remove()
    assert list_staging(layout) == []
    assert Path("/etc").is_dir()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", ".hidden", "a\n", "x" * 200])
def test_names_that_are_none(name: str, tmp_path: Path) -> None:
    layout = layout_of(LayoutKind.DIRECTORY, tmp_path)
    with pytest.raises(ValueError, match="not usable"):
        Staging.make(layout, name)
    with pytest.raises(ValueError, match="not usable"):
        remove_staging(layout, name)


def test_a_link_in_place_of_the_staging_root_is_not_followed(tmp_path: Path) -> None:
    layout = layout_of(LayoutKind.DIRECTORY, tmp_path)
    (tmp_path / "elsewhere").mkdir()
    layout.staging_root.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(HostFailed):
        Staging.make(layout, TRANSFER)
    with pytest.raises(HostFailed):
        remove_staging(layout, TRANSFER)
    assert list_staging(layout) == []


def test_a_mount_that_is_not_there(tmp_path: Path) -> None:
    layout = VolumeLayout.detect(tmp_path / "not-mounted", tmp_path / "volumes")
    with pytest.raises(HostFailed) as caught:
        Staging.make(layout, TRANSFER)
    assert caught.value.code == "volume.missing"


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
@pytest.mark.parametrize("options", [["-t", "tmpfs", "none"], ["--bind", "SOURCE"]])
def test_a_real_mount_point(tmp_path: Path, options: list[str]) -> None:
    volumes, source = tmp_path / "volumes with space", tmp_path / "source"
    volume = volumes / "uuid"
    volume.mkdir(parents=True)
    source.mkdir()
    command = ["mount", *(str(source) if word == "SOURCE" else word for word in options), str(volume)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        layout = VolumeLayout.detect(volume, volumes)
        assert layout.kind is LayoutKind.MOUNT
        staging = Staging.make(layout, TRANSFER)
        fill(staging.path)
        wanted = own(tree_of(staging.path))
        staging.sync()
        commit(layout, staging.path, staging.identity)
        assert own(tree_of(volume)) == wanted
    finally:
        subprocess.run(["umount", volume], check=True)
    assert VolumeLayout.detect(volume, volumes).kind is LayoutKind.DIRECTORY
