"""Serve the misbehaving server in a thread of this process, for the length of a `with` block."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from aiohttp import web

from .faults import Faults
from .misbehaving import MisbehavingServer


@dataclass(frozen=True, slots=True)
class Served:
    """A server that is listening."""

    url: str
    """Base URL, such as http://127.0.0.1:40001/v1."""
    server: MisbehavingServer
    other_url: str
    """The same on another port of the same server."""

    @property
    def root(self) -> str:
        """Its address without /v1."""
        return self.url.removesuffix("/v1")


@contextmanager
def serve(faults: Faults | None = None, *, host: str = "127.0.0.1") -> Iterator[Served]:
    """Serve on two free ports until the block ends, which cuts the open connections."""
    server = MisbehavingServer(faults or Faults())
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(server.app(), access_log=None, shutdown_timeout=0.05)
    thread = threading.Thread(target=loop.run_forever, name="misbehaving-server", daemon=True)
    thread.start()
    try:
        ports = asyncio.run_coroutine_threadsafe(_start(runner, host), loop).result(10)
        url, other_url = (f"http://{host}:{port}/v1" for port in ports)
        yield Served(url, server, other_url)
    finally:
        asyncio.run_coroutine_threadsafe(_stop(runner), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


async def _start(runner: web.AppRunner, host: str) -> list[int]:
    """Ports of a server that has begun to listen."""
    await runner.setup()
    for _ in range(2):
        await web.TCPSite(runner, host, 0, backlog=2048).start()
    return [int(address[1]) for address in runner.addresses]


async def _stop(runner: web.AppRunner) -> None:
    """Close the server, then cancel every handler that still waits."""
    await runner.cleanup()
    mine = asyncio.current_task()
    tasks = [task for task in asyncio.all_tasks() if task is not mine]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
