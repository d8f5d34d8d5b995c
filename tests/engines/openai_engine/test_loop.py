"""The client's loop: usable while the caller's own loop runs, and clean after an interruption."""

from __future__ import annotations

import asyncio
import signal
import threading
import time

import pytest

from detcheck.engines.openai.loop import LoopThread


@pytest.fixture
def loop():
    made = LoopThread()
    yield made
    made.close()


async def answer(value: int) -> int:
    await asyncio.sleep(0)
    return value


async def fail() -> None:
    raise ValueError("planted")


def test_results_and_exceptions_come_back(loop):
    assert loop.run(answer(3)) == 3
    with pytest.raises(ValueError, match="planted"):
        loop.run(fail())
    assert loop.run(answer(4)) == 4


def test_works_inside_a_running_loop(loop):
    async def notebook() -> int:
        return loop.run(answer(5))

    assert asyncio.run(notebook()) == 5


def test_ctrl_c_cancels_the_work_before_it_is_raised(loop):
    steps = []

    async def work() -> None:
        steps.append("started")
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.05)
            steps.append("closed")

    def interrupt() -> None:
        while not steps:
            time.sleep(0.01)
        signal.pthread_kill(main, signal.SIGINT)

    main = threading.main_thread().ident
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            loop.run(work())
    finally:
        signal.signal(signal.SIGINT, before)
    assert steps == ["started", "closed"]
    assert loop.run(answer(6)) == 6


def test_close_ends_the_thread_and_what_it_ran():
    made = LoopThread()
    cancelled = []

    async def forever() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def start() -> asyncio.Task[None]:
        task = asyncio.create_task(forever())
        await asyncio.sleep(0)
        return task

    task = made.run(start())
    made.close()
    made.close()
    assert cancelled == [True]
    assert task.cancelled()
    assert not any(thread.name == "detcheck-client" for thread in threading.enumerate())
