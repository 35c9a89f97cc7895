from __future__ import annotations

import os
from pathlib import Path

import pytest

from sidecar.archive.staging import LayoutKind, Staging, commit
from sidecar.archive.trash import list_trash, move_to_trash, purge
from sidecar.errors import HostFailed
from tests.archive.extracting import tree_of
from tests.archive.test_staging import KINDS, TRANSFER, fill, killed_at, layout_of, own

SERVER = "6f1c3f0e-2b1d-4c55-9c7e-0d6b1a2c3d4e"
NOW = 1_700_000_000.0


@pytest.mark.parametrize("kind", KINDS)
def test_a_volume_is_moved_aside_and_can_be_found(kind: LayoutKind, tmp_path: Path) -> None:
    layout = layout_of(kind, tmp_path)
    layout.volume.mkdir(exist_ok=True)
    fill(layout.volume)
    wanted = own(tree_of(layout.volume))
    item = move_to_trash(layout, SERVER, "deleted", now_s=NOW)
    assert item is not None
    assert own(tree_of(item.path)) == wanted
    assert list_trash(layout.trash_root) == [item]
    assert (item.server, item.label, item.moved_at_s, item.origin) == (SERVER, "deleted", NOW, layout.volume)
    if kind is LayoutKind.DIRECTORY:
        assert not os.path.lexists(layout.volume)
    else:
        assert layout.own_entries() == []
        assert (layout.volume / "lost+found").is_dir()
    assert layout.trash_root.stat().st_mode & 0o777 == 0o700
    assert move_to_trash(layout, SERVER, "deleted", now_s=NOW + 5) == item
    assert move_to_trash(layout, SERVER, "other", now_s=NOW + 5) is None


@pytest.mark.parametrize("kind", KINDS)
def test_it_goes_on_from_every_step(kind: LayoutKind, tmp_path: Path) -> None:
    seen = []
    for number in range(100):
        layout = layout_of(kind, tmp_path / str(number))
        layout.volume.mkdir(exist_ok=True)
        fill(layout.volume)
        wanted = own(tree_of(layout.volume))
        name = killed_at(number, lambda step, at=layout: move_to_trash(at, SERVER, "x", now_s=NOW, step=step))  # type: ignore[misc]
        killed_at(number // 2, lambda step, at=layout: move_to_trash(at, SERVER, "x", now_s=NOW, step=step))  # type: ignore[misc]
        for _ in range(2):
            item = move_to_trash(layout, SERVER, "x", now_s=NOW)
            assert item is not None
            assert own(tree_of(item.path)) == wanted
            assert list_trash(layout.trash_root) == [item]
        if name is None:
            break
        seen.append(name)
    assert len(seen) >= 4


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_there_is_nothing_moved(kind: LayoutKind, tmp_path: Path) -> None:
    layout = layout_of(kind, tmp_path)
    assert move_to_trash(layout, SERVER, "x", now_s=NOW) is None
    assert list_trash(layout.trash_root) == []
    assert purge(layout.trash_root, 0, NOW) == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_label_twice(kind: LayoutKind, tmp_path: Path) -> None:
    layout = layout_of(kind, tmp_path)
    ids = set()
    for number in range(12):
        layout.volume.mkdir(exist_ok=True)
        (layout.volume / f"file{number}").write_bytes(b"x")
        item = move_to_trash(layout, SERVER, "x", now_s=NOW + number)
        assert item is not None
        assert set(tree_of(item.path)) == {b"file%d" % number}
        ids.add(item.id)
    assert len(ids) == len(list_trash(layout.trash_root)) == 12
    newest = move_to_trash(layout, SERVER, "x", now_s=NOW)
    assert newest is not None
    assert set(tree_of(newest.path)) == {b"file11"}


@pytest.mark.parametrize("kind", KINDS)
def test_purge_keeps_what_is_young(kind: LayoutKind, tmp_path: Path) -> None:
    layout = layout_of(kind, tmp_path)
    for age in (100, 50, 0):
        layout.volume.mkdir(exist_ok=True)
        fill(layout.volume)
        (layout.volume / "world").chmod(0)
        move_to_trash(layout, SERVER, f"age{age}", now_s=NOW - age)
    assert [item.label for item in purge(layout.trash_root, 60, NOW)] == ["age100"]
    assert [item.label for item in list_trash(layout.trash_root)] == ["age50", "age0"]
    assert len(purge(layout.trash_root, 0, NOW - 1000)) == 2  # at once, whatever the clock says
    assert list(layout.trash_root.iterdir()) == []


def test_purge_goes_on_from_every_step(tmp_path: Path) -> None:
    for number in range(20):
        layout = layout_of(LayoutKind.DIRECTORY, tmp_path / str(number))
        for label in ("a", "b"):
            layout.volume.mkdir()
            fill(layout.volume)
            move_to_trash(layout, SERVER, label, now_s=NOW)
        name = killed_at(number, lambda step, root=layout.trash_root: purge(root, 0, NOW, step))  # type: ignore[misc]
        assert all((item.path / "world/region/r.mca").exists() for item in list_trash(layout.trash_root))
        purge(layout.trash_root, 0, NOW)
        assert list(layout.trash_root.iterdir()) == []
        if name is None:
            return
    raise AssertionError("purge has more steps than foreseen")


def test_links_are_moved_and_removed_but_never_followed(tmp_path: Path) -> None:
    layout = layout_of(LayoutKind.DIRECTORY, tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_bytes(b"x")
    layout.volume.symlink_to(elsewhere)
    assert move_to_trash(layout, SERVER, "x", now_s=NOW) is not None
    assert len(purge(layout.trash_root, 0, NOW)) == 1
    assert (elsewhere / "precious").exists()
    layout.trash_root.rmdir()
    layout.trash_root.symlink_to(elsewhere)
    layout.volume.mkdir()
    with pytest.raises(HostFailed):
        move_to_trash(layout, SERVER, "x", now_s=NOW)
    assert purge(layout.trash_root, 0, NOW) == []
    assert layout.volume.is_dir()


def test_strange_things_in_the_trash_are_left_alone(tmp_path: Path) -> None:
    layout = layout_of(LayoutKind.DIRECTORY, tmp_path)
    layout.trash_root.mkdir()
    (layout.trash_root / "file").write_bytes(b"x")
    (layout.trash_root / "unknown").mkdir()
    (layout.trash_root / "unknown/data").write_bytes(b"x")
    (layout.trash_root / "damaged").mkdir()
    (layout.trash_root / "damaged/item.json").write_bytes(b"{")
    (layout.trash_root / "stillborn").mkdir()
    os.utime(layout.trash_root / "stillborn", (NOW, NOW))
    assert list_trash(layout.trash_root) == []
    assert purge(layout.trash_root, 0, NOW + 10 * 86_400) == []
    assert {path.name for path in layout.trash_root.iterdir()} == {"file", "unknown", "damaged"}


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".", ".x"])
def test_names_that_are_none(name: str, tmp_path: Path) -> None:
    layout = layout_of(LayoutKind.DIRECTORY, tmp_path)
    for server, label in ((name, "x"), (SERVER, name)):
        with pytest.raises(ValueError, match="not usable"):
            move_to_trash(layout, server, label, now_s=NOW)


@pytest.mark.parametrize("kind", KINDS)
def test_d3_an_old_volume_goes_before_a_new_one_comes(kind: LayoutKind, tmp_path: Path) -> None:
    layout = layout_of(kind, tmp_path)
    layout.volume.mkdir(exist_ok=True)
    (layout.volume / "old").write_bytes(b"old")
    staging = Staging.make(layout, TRANSFER)
    fill(staging.path)
    item = move_to_trash(layout, SERVER, TRANSFER, now_s=NOW)
    commit(layout, staging.path, staging.identity)
    assert item is not None
    assert (item.path / "old").read_bytes() == b"old"
    assert not (layout.volume / "old").exists()
    assert (layout.volume / "world/region/r.mca").exists()
