from __future__ import annotations

import email.parser
import gzip
import hashlib
import io
import os
import random
import stat
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidecar.archive.extract import Extraction, ExtractLimits
from sidecar.archive.meter import Meter
from sidecar.archive.pipe import PipeClosed
from sidecar.archive.remove_tree import remove_tree
from sidecar.errors import DataCorrupt, SidecarError
from tests.archive.extracting import (
    MTIME,
    directory,
    extract,
    hard_link,
    make_volume,
    member,
    removed,
    split,
    symlink,
    tar_of,
    tree_of,
)
from tests.programs import needed

CAPTURES = Path(__file__).parents[1] / "captures"
_COMPRESSORS = {"--zstd": "zstd", "-J": "xz", "-z": "gzip"}  # programs that GNU tar starts


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    top = tmp_path_factory.mktemp("made") / "volume"
    make_volume(top)
    yield top
    (top / "plugins/read-only").chmod(0o755)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name == "extract"] == []


@pytest.mark.parametrize(
    ("command", "nanoseconds"),
    [
        (["tar", "--format=oldgnu"], False),
        (["tar", "--format=gnu"], False),
        (["tar", "--format=gnu", "--sparse", "-z"], False),
        (["tar", "--format=posix"], True),
        (["tar", "--format=posix", "--sparse", "--zstd"], True),
        (["tar", "--format=posix", "-J"], True),
        (["bsdtar", "--format=pax"], True),
        (["bsdtar", "--format=pax", "--zstd"], True),  # pads what it compresses, when it writes into a pipe
        (["bsdtar", "--format=pax", "--lz4"], True),
        (["bsdtar", "--format=gnutar", "-z"], False),
    ],
)
def test_what_other_programs_write(volume: Path, tmp_path: Path, command: list[str], nanoseconds: bool) -> None:
    program, *options = command
    if program == "tar":
        for option in _COMPRESSORS.keys() & set(options):
            needed(_COMPRESSORS[option])
    command = [needed(program), *options, "-cf", "-", "."]
    made = subprocess.run(command, cwd=volume, stdout=subprocess.PIPE, check=True).stdout
    extracted = extract(split(made, 50_000), tmp_path / "out")
    assert tree_of(tmp_path / "out", nanoseconds=nanoseconds) == tree_of(volume, nanoseconds=nanoseconds)
    assert extracted.sha256_hex == hashlib.sha256(made).hexdigest()
    assert extracted.wire_bytes == len(made)


@pytest.mark.parametrize("form", ["v7", "ustar"])
def test_the_old_forms_of_gnu_tar(tmp_path: Path, form: str) -> None:
    top = tmp_path / "in"
    (top / "d/e").mkdir(parents=True)
    (top / "d/e/file").write_bytes(b"x" * 5000)
    (top / "link").symlink_to("d")
    for path in (top / "d/e/file", top / "d/e", top / "d"):
        os.utime(path, (MTIME, MTIME))
    command = [needed("tar"), f"--format={form}", "-cf", "-", "."]
    made = subprocess.run(command, cwd=top, stdout=subprocess.PIPE, check=True)
    extract(made.stdout, tmp_path / "out")
    assert tree_of(tmp_path / "out") == tree_of(top)


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_what_tarfile_writes(volume: Path, tmp_path: Path, form: int) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", format=form) as archive:
        archive.add(volume, ".")
    extract(out.getvalue(), tmp_path / "out")
    exact = form == tarfile.PAX_FORMAT
    # tarfile keeps an mtime as a float, so a PAX mtime is exact to a microsecond or so.
    found, wanted = (tree_of(top, nanoseconds=False) for top in (tmp_path / "out", volume))
    assert found == wanted
    assert (tmp_path / "out/zeros.db").stat().st_blocks * 512 < 300_000
    if exact:
        assert (tmp_path / "out/noise.jar").stat().st_mtime_ns % 10**9


def test_the_meter_and_the_counts(tmp_path: Path) -> None:
    meter = Meter()
    archive = tar_of(
        directory("d"), member("a/b/c", b"12345"), hard_link("h", "a/b/c"), symlink("s", "x"), removed("z")
    )
    extracted = extract(archive, tmp_path / "out", meter=meter)
    assert (extracted.files, extracted.directories, extracted.symlinks, extracted.removed) == (2, 3, 1, 1)
    assert (meter.files, meter.content_bytes, meter.wire_bytes) == (2, 5, len(archive))
    assert extracted.content_bytes == 5


# --- what real daemons send


def _archive_part(path: Path) -> tuple[bytes, str, str | None]:
    """The archive, its file name, and the checksum that came with it."""
    head, _, body = path.read_bytes().partition(b"\r\n\r\n")
    headers = email.parser.BytesParser().parsebytes(head.split(b"\r\n", 1)[1] + b"\r\n\r\n")
    content, at = bytearray(), 0
    while True:
        end = body.index(b"\r\n", at)
        size = int(body[at:end].split(b";")[0], 16)
        if not size:
            break
        content += body[end + 2 : end + 2 + size]
        at = end + 2 + size + 2
    boundary = headers.get_param("boundary")
    found: dict[str, tuple[bytes, str]] = {}
    for part in bytes(content).split(b"--" + str(boundary).encode())[1:]:
        part_head, _, value = part.partition(b"\r\n\r\n")
        part_headers = email.parser.BytesParser().parsebytes(part_head.lstrip(b"\r\n") + b"\r\n\r\n")
        name = part_headers.get_param("name", header="content-disposition")
        if name:
            found.setdefault(str(name), (value[:-2], part_headers.get_filename() or ""))
    archive, filename = found["archive"]
    checksum = found.get("checksum") or found.get("checksum_archive")
    return archive, filename, checksum[0].decode() if checksum else None


EXPECTED = {
    b"server.properties": b"motd=hello\n",
    b"run.sh": b"#!/bin/sh\nexec true\n",
    b"hard-link.sh": b"#!/bin/sh\nexec true\n",
    "world/r\u00e9gion \u2603/r.0.0.mca".encode(): bytes(range(256)) * 64,
    b"d" * 60 + b"/" + b"e" * 60 + b"/" + b"f" * 90 + b".txt": b"long name\n",
    b"zeros.db": bytes(40_000),
}
LINKS = {b"latest", b"linkdir", b"dangling", b"outside"}


def _check_captured(top: Path, daemon: str) -> None:
    tree = tree_of(top)
    for name, content in EXPECTED.items():
        kind, mode, mtime_ns, size, digest, _ = tree[name]
        assert (kind, size, digest) == ("file", len(content), hashlib.sha256(content).hexdigest())
        assert mtime_ns == MTIME * 10**9
        assert mode == {b"server.properties": 0o640, b"run.sh": 0o755, b"hard-link.sh": 0o755}.get(name, 0o644)
    links = {name for name, entry in tree.items() if entry[0] == "symlink"}
    assert {name for name, entry in tree.items() if entry[0] == "file"} == set(EXPECTED)
    if daemon == "ca":
        assert links == LINKS
        assert tree[b"plugins/empty"][0] == "directory"
    else:
        assert links == set()


@pytest.mark.parametrize("name", sorted(p.stem for p in CAPTURES.glob("*.http") if "multiplex" not in p.name))
def test_captured_uploads(tmp_path: Path, name: str) -> None:
    archive, filename, checksum = _archive_part(CAPTURES / f"{name}.http")
    staging = tmp_path / "out"
    staging.mkdir()
    extraction = Extraction(
        staging, limits=ExtractLimits(), owner=None, meter=Meter(), notice=lambda _: None, filename=filename
    )
    for piece in split(archive, 100):
        extraction.feed(piece)
    assert extraction.finish().sha256_hex == checksum
    _check_captured(staging, name[:2])


def test_a_captured_multiplex_upload(tmp_path: Path) -> None:
    for path in sorted(CAPTURES.glob("ca-source-multiplex-*.http")):
        archive, _, checksum = _archive_part(path)
        assert extract(archive, tmp_path / "out").sha256_hex == checksum
    _check_captured(tmp_path / "out", "ca")


# --- splits and damage

_SMALL = gzip.compress(
    tar_of(
        directory("d"), member("d/file", random.Random(2).randbytes(700)), symlink("s", "d"), member("z", bytes(900))
    ),
    mtime=0,
)


def test_byte_by_byte(tmp_path: Path) -> None:
    extract(split(_SMALL, 1), tmp_path / "out")
    extract(_SMALL, tmp_path / "whole")
    assert tree_of(tmp_path / "out") == tree_of(tmp_path / "whole")


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_random_splits(volume: Path, tmp_path: Path, seed: int) -> None:
    archive = tmp_path / "archive"
    if not archive.exists():
        with tarfile.open(archive, "w:gz", compresslevel=1) as made:
            made.add(volume, ".")
    data, rng, at, pieces = archive.read_bytes(), random.Random(seed), 0, []
    while at < len(data):
        size = rng.choice((1, 7, 500, 5000, 65_536, 200_000))
        pieces.append(data[at : at + size])
        at += size
    extract(pieces, tmp_path / str(seed))
    assert tree_of(tmp_path / str(seed), nanoseconds=False) == tree_of(volume, nanoseconds=False)
    top = os.open(tmp_path, os.O_RDONLY)
    try:
        remove_tree(top, str(seed))  # also what its owner may not write into
    finally:
        os.close(top)


def test_truncated_at_every_byte(tmp_path: Path) -> None:
    for length in range(len(_SMALL)):
        with pytest.raises(DataCorrupt):
            extract(_SMALL[:length], tmp_path / "out")


def test_flipped_at_every_byte(tmp_path: Path) -> None:
    digest = hashlib.sha256(_SMALL).hexdigest()
    for at in range(len(_SMALL)):
        damaged = bytearray(_SMALL)
        damaged[at] ^= 0x55
        try:
            assert extract(bytes(damaged), tmp_path / "out").sha256_hex != digest
        except SidecarError as error:
            assert error.code.startswith("archive.")


def test_the_piece_may_be_used_again(tmp_path: Path) -> None:
    content = random.Random(3).randbytes(3_000_000)
    for archive in (tar_of(member("f", content)), gzip.compress(tar_of(member("f", content)), 0)):
        staging = tmp_path / str(len(archive))
        staging.mkdir()
        extraction = Extraction(staging, limits=ExtractLimits(), owner=None, meter=Meter(), notice=lambda _: None)
        buffer = bytearray(1 << 18)
        for piece in split(archive, len(buffer)):
            buffer[: len(piece)] = piece
            extraction.feed(memoryview(buffer)[: len(piece)])
            buffer[:] = b"\xee" * len(buffer)
        extraction.finish()
        assert (staging / "f").read_bytes() == content


# --- the end, in its several ways


def test_abort_at_any_time_leaves_nothing_open(tmp_path: Path) -> None:
    archive = tar_of(*(member(f"d{n % 7}/f{n}", os.urandom(50_000)) for n in range(100)))
    before = len(list(Path("/proc/self/fd").iterdir()))
    for fed in (0, 100, 100_000, 3_000_000):
        staging = tmp_path / str(fed)
        staging.mkdir()
        extraction = Extraction(staging, limits=ExtractLimits(), owner=None, meter=Meter(), notice=lambda _: None)
        for piece in split(archive[:fed], 60_000):
            extraction.feed(piece)
        extraction.abort()
        extraction.abort()
        with pytest.raises(PipeClosed):
            for piece in split(archive, 1 << 20):
                extraction.feed(piece)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_abort_frees_a_feed_that_waits(tmp_path: Path) -> None:
    told = threading.Event()
    release = threading.Event()

    def slow(_: object) -> None:
        told.set()
        release.wait(30)

    staging = tmp_path / "out"
    staging.mkdir()
    extraction = Extraction(staging, limits=ExtractLimits(), owner=None, meter=Meter(), notice=slow)
    outcome: list[BaseException] = []

    def feed() -> None:
        try:
            for piece in split(tar_of(member("pipe", type=tarfile.FIFOTYPE), member("f", bytes(30 << 20))), 1 << 20):
                extraction.feed(piece)
        except PipeClosed as error:
            outcome.append(error)

    feeder = threading.Thread(target=feed)
    feeder.start()
    assert told.wait(30)
    stopper = threading.Thread(target=extraction.abort)
    stopper.start()
    release.set()
    feeder.join(30)
    stopper.join(30)
    assert len(outcome) == 1


def test_an_error_of_the_writer_reaches_feed_or_finish(tmp_path: Path) -> None:
    archive = tar_of(member("../x"), member("f", os.urandom(20 << 20)))
    with pytest.raises(DataCorrupt) as caught:
        extract(split(archive, 1 << 20), tmp_path / "out")
    assert caught.value.code == "archive.hostile"
    with pytest.raises(DataCorrupt):
        extract(archive[:1024] + bytes(1024), tmp_path / "out2")


def test_memory_stays_flat(tmp_path: Path) -> None:
    """A gigabyte of zeros and noise, and the process never holds 100 MiB more than at its start."""
    program = """
import os, resource, sys, tarfile, zlib
from pathlib import Path
from sidecar.archive.extract import Extraction, ExtractLimits
from sidecar.archive.meter import Meter
extraction = Extraction(Path(sys.argv[1]), limits=ExtractLimits(), owner=None, meter=Meter(), notice=print)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
gz = zlib.compressobj(1, zlib.DEFLATED, 31)
info = tarfile.TarInfo("f"); info.size = 1 << 30
extraction.feed(gz.compress(info.tobuf()) + gz.flush(zlib.Z_FULL_FLUSH))
raw = zlib.compressobj(1, zlib.DEFLATED, -15)
zeros = raw.compress(bytes(63 << 20)) + raw.flush(zlib.Z_FULL_FLUSH)
raw = zlib.compressobj(0, zlib.DEFLATED, -15)
noise = raw.compress(os.urandom(1 << 20)) + raw.flush(zlib.Z_FULL_FLUSH)
for _ in range(16):
    extraction.feed(zeros); extraction.feed(noise)
try:
    extraction.finish()
except Exception as error:
    assert "gzip" in str(error), error
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    staging = tmp_path / "out"
    staging.mkdir()
    run = subprocess.run([sys.executable, "-c", program, staging], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 100 * 1024, run.stdout
    info = (staging / "f").stat()
    assert info.st_size <= 1 << 30
    assert info.st_blocks * 512 < 40 << 20
    assert stat.S_IMODE(info.st_mode) == 0o600
