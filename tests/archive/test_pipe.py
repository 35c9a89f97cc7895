from __future__ import annotations

import threading

import pytest

from sidecar.archive.pipe import Pipe, PipeClosed


def in_thread(run: object) -> threading.Thread:
    thread = threading.Thread(target=run, daemon=True)  # type: ignore[arg-type]
    thread.start()
    return thread


def test_items_arrive_in_order_and_then_the_end() -> None:
    pipe: Pipe[int] = Pipe(2)

    def produce() -> None:
        for number in range(1000):
            pipe.put(number)
        pipe.end()

    thread = in_thread(produce)
    assert list(pipe) == list(range(1000))
    thread.join(5)


def test_what_waits_is_still_delivered_after_the_end() -> None:
    pipe: Pipe[str] = Pipe(2)
    pipe.put("a")
    pipe.put("b")
    pipe.end()
    assert list(pipe) == ["a", "b"]


def test_a_full_pipe_holds_the_producer_until_a_slot_is_free() -> None:
    pipe: Pipe[int] = Pipe(1)
    pipe.put(0)
    passed = threading.Event()

    def produce() -> None:
        pipe.put(1)
        passed.set()

    thread = in_thread(produce)
    assert not passed.is_set()
    items = iter(pipe)
    assert next(items) == 0
    assert passed.wait(5)
    assert next(items) == 1
    thread.join(5)


def test_breaking_drops_what_waits_and_fails_both_sides_with_the_first_error() -> None:
    pipe: Pipe[int] = Pipe(2)
    pipe.put(1)
    error = OSError("disk")
    pipe.break_(error)
    pipe.break_(ValueError("later"))
    with pytest.raises(OSError, match="disk"):
        next(iter(pipe))
    with pytest.raises(OSError, match="disk"):
        pipe.put(2)


def test_breaking_without_an_error_says_closed() -> None:
    pipe: Pipe[int] = Pipe(1)
    pipe.break_()
    with pytest.raises(PipeClosed):
        next(iter(pipe))


@pytest.mark.parametrize("side", ["producer", "consumer"])
def test_breaking_wakes_a_waiting_partner(side: str) -> None:
    pipe: Pipe[int] = Pipe(1)
    failed: list[BaseException] = []
    started = threading.Event()

    def wait() -> None:
        started.set()
        try:
            if side == "consumer":
                next(iter(pipe))
            else:
                pipe.put(0)
                pipe.put(1)
        except PipeClosed as error:
            failed.append(error)

    thread = in_thread(wait)
    assert started.wait(5)
    pipe.break_()
    thread.join(5)
    assert len(failed) == 1


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one slot"):
        Pipe(0)
    pipe: Pipe[int] = Pipe(1)
    pipe.end()
    with pytest.raises(RuntimeError, match="after end"):
        pipe.put(1)
