"""Chromium without a window, driven over its DevTools protocol: just what the tests look at."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import websocket

BINARIES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
    "--remote-allow-origins=*",
)
TIMEOUT_S = 60


def find_chromium() -> str | None:
    """Path of an installed Chromium, or None."""
    return next(filter(None, map(shutil.which, BINARIES)), None)


class Page:
    """One tab. Events that came in are kept in `events`."""

    def __init__(self, socket: websocket.WebSocket):
        self._socket = socket
        self._ids = itertools.count(1)
        self.events: list[dict[str, Any]] = []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its result."""
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = self._receive()
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]

    def open(self, path: Path, width: int, height: int, *, dark: bool = False) -> None:
        """Load a file at a window size and wait until it has settled."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while not self.methods("Page.loadEventFired"):
            self._receive()
        self.call("Page.bringToFront")

    def methods(self, name: str) -> list[dict[str, Any]]:
        """Parameters of the events of one name so far."""
        return [event["params"] for event in self.events if event["method"] == name]

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, run beside the page's content policy."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """The whole page as PNG."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))

    def _receive(self) -> dict[str, Any]:
        message = json.loads(self._socket.recv())
        if "method" in message:
            self.events.append(message)
            if message["method"] == "Page.javascriptDialogOpening":
                # An open dialog would block everything after it.
                dismiss = {"id": 0, "method": "Page.handleJavaScriptDialog"}
                self._socket.send(json.dumps(dismiss | {"params": {"accept": False}}))
        return message


@contextlib.contextmanager
def open_browser(binary: str, profile: Path) -> Iterator[Page]:
    """A fresh Chromium with one tab; ended with the context."""
    command = [binary, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        socket = websocket.create_connection(
            _tab_url(profile), timeout=TIMEOUT_S, http_no_proxy=["127.0.0.1"]
        )
        with contextlib.closing(socket):
            yield Page(socket)
    finally:
        process.terminate()
        process.wait(timeout=TIMEOUT_S)


def _tab_url(profile: Path) -> str:
    """Address of the first tab, once the browser says on which port it listens."""
    port_file = profile / "DevToolsActivePort"
    deadline = time.monotonic() + TIMEOUT_S
    while not (port_file.exists() and port_file.read_text().strip()):
        assert time.monotonic() < deadline, "Chromium did not start"
        time.sleep(0.05)
    port = port_file.read_text().split()[0]
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(f"http://127.0.0.1:{port}/json/list", timeout=TIMEOUT_S) as reply:
        tabs = json.load(reply)
    return next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
