"""The client's event loop, in a thread of its own: a notebook runs one in the main thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
CLEAN_UP_S = 10.0
"""Time that interrupted work gets to close its connections."""


class LoopThread:
    """Runs coroutines one after the other in its thread; `close` ends it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="detcheck-client", daemon=True
        )
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what `work` returns, or raise what it raises.

        If this thread is interrupted meanwhile, as by Ctrl-C, `work` is cancelled first.
        """
        ended = threading.Event()
        future = asyncio.run_coroutine_threadsafe(_notifying(work, ended), self._loop)
        try:
            return future.result()
        except BaseException:
            if future.cancel():
                ended.wait(CLEAN_UP_S)
            raise

    def close(self) -> None:
        """Cancel what still runs, and end the thread; safe to call twice."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(_cancel_others(), self._loop).result(CLEAN_UP_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CLEAN_UP_S)
        self._loop.close()


async def _notifying(work: Coroutine[Any, Any, T], ended: threading.Event) -> T:
    try:
        return await work
    finally:
        ended.set()


async def _cancel_others() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()
