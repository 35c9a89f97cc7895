"""What people do without a tool for it: `tar | gzip -1` into `gunzip | tar` through a TCP connection over loopback.

The processes hold the two ends of the connection themselves, so nothing stands between them and copies.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from integration.bench.figures import Move


class PipelineFailed(Exception):
    """One of its commands ended with an error."""


def missing_tools() -> list[str]:
    return [name for name in ("tar", "gzip") if shutil.which(name) is None]


def run_pipeline(source: Path, destination: Path, *, gzip: bool) -> Move:
    """Copy all of `source` into the new directory `destination`. Blocks. Raises PipelineFailed.

    The time ends when the last process has ended, as theirs is the only sign that all is written.
    """
    destination.mkdir(parents=True)
    pack = ["tar", "-C", str(source), "-cf", "-", "."]
    unpack = ["tar", "-C", str(destination), "-xpf", "-"]
    sending = [pack, ["gzip", "-1"]] if gzip else [pack]
    receiving = [["gzip", "-dc"], unpack] if gzip else [unpack]
    with ExitStack() as stack:
        began = time.monotonic()
        out, into = _connection(stack)
        source_end = _start(sending, None, out.fileno(), stack)
        destination_end = _start(receiving, into.fileno(), None, stack)
        out.close()  # the last process that holds it ends the stream
        into.close()
        source_cpu_s = _wait(source_end)
        destination_cpu_s = _wait(destination_end)
        wall_s = time.monotonic() - began
    return Move(wall_s=wall_s, source_cpu_s=source_cpu_s, destination_cpu_s=destination_cpu_s)


def _connection(stack: ExitStack) -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        out = stack.enter_context(socket.create_connection(listener.getsockname()))
        into = stack.enter_context(listener.accept()[0])
    return out, into


def _start(
    commands: Sequence[Sequence[str]], stdin: int | None, stdout: int | None, stack: ExitStack
) -> list[subprocess.Popen[bytes]]:
    """Commands joined by pipes. They are killed and collected when the scope ends early."""
    started: list[subprocess.Popen[bytes]] = []
    for index, command in enumerate(commands):
        before = started[-1].stdout if started else None
        is_last = index == len(commands) - 1
        process = subprocess.Popen(
            command,
            stdin=before if before is not None else stdin if stdin is not None else subprocess.DEVNULL,
            stdout=(stdout if stdout is not None else subprocess.DEVNULL) if is_last else subprocess.PIPE,
        )
        stack.callback(_end, process)
        if before is not None:
            before.close()
        started.append(process)
    return started


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.returncode is None:
        process.kill()
        process.wait()


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> float:
    """Their CPU seconds, each taken from the kernel when it has ended."""
    total = 0.0
    for process in processes:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise PipelineFailed(f"{process.args!r} ended with exit code {process.returncode}")
        total += usage.ru_utime + usage.ru_stime
    return total
