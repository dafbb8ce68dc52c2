"""Chromium without a window, driven over its DevTools protocol: enough for tests of pages."""

from __future__ import annotations

import base64
import http.client
import json
import os
import secrets
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
#: Seconds to wait for anything; a busy machine is slow.
PATIENCE = 90.0
OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu-sandbox", "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist", "--remote-debugging-port=0", "--no-first-run",
    "--disable-extensions", "--disable-background-networking", "--disable-component-update", "--mute-audio",
    "--disable-sync", "--hide-scrollbars", "about:blank",
)  # fmt: skip


def find_browser() -> str:
    """Path of a Chromium; the test is skipped where there is none (BIDS_SCSEG_CHROMIUM names another)."""
    named = os.environ.get("BIDS_SCSEG_CHROMIUM")
    found = named or next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium here")
    return found


class _Socket:
    """A WebSocket client for text frames, as far as the DevTools protocol needs it (RFC 6455)."""

    def __init__(self, host: str, port: int, path: str) -> None:
        self._socket = socket.create_connection((host, port), timeout=PATIENCE)
        key = base64.b64encode(secrets.token_bytes(16)).decode("ascii")
        head = (
            f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        self._socket.sendall(head.encode("ascii"))
        self._buffer = b""
        while b"\r\n\r\n" not in self._buffer:
            self._more()
        answer, self._buffer = self._buffer.split(b"\r\n\r\n", 1)
        if b" 101 " not in answer.split(b"\r\n", 1)[0]:
            raise ConnectionError(answer.decode("latin-1"))

    def _more(self) -> None:
        part = self._socket.recv(1 << 20)
        if not part:
            raise ConnectionError("the browser has gone")
        self._buffer += part

    def _take(self, count: int) -> bytes:
        while len(self._buffer) < count:
            self._more()
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken

    def send(self, text: str) -> None:
        data, mask = text.encode(), secrets.token_bytes(4)
        size = len(data)
        length = bytes([0x80 | size]) if size < 126 else b"\xfe" + struct.pack(">H", size)
        if size > 0xFFFF:
            length = b"\xff" + struct.pack(">Q", size)
        masked = bytes(byte ^ mask[n % 4] for n, byte in enumerate(data))
        self._socket.sendall(b"\x81" + length + mask + masked)

    def receive(self) -> str:
        """The next message, its fragments put together."""
        message = b""
        while True:
            first, second = self._take(2)
            size = second & 0x7F
            if size == 126:
                size = struct.unpack(">H", self._take(2))[0]
            elif size == 127:
                size = struct.unpack(">Q", self._take(8))[0]
            body = self._take(size)
            if first & 0x0F in (0, 1):
                message += body
                if first & 0x80:
                    return message.decode()

    def close(self) -> None:
        self._socket.close()


class Page:
    """One page of a browser: what it does, and everything that it complained about or asked for."""

    def __init__(self, address: str) -> None:
        host, _, rest = address.removeprefix("ws://").partition(":")
        port, _, path = rest.partition("/")
        self._socket = _Socket(host, int(port), f"/{path}")
        self._number = 0
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._loaded = False
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.command(f"{domain}.enable")

    def __enter__(self) -> Page:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def command(self, method: str, **parameters: object) -> dict[str, Any]:
        """Send a command and wait for its result; events on the way are noted."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.receive())
            if message.get("id") == self._number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return dict(message["result"])
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        method, facts = message.get("method"), message.get("params", {})
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Network.requestWillBeSent":
            self.requests.append(facts["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            details = facts["exceptionDetails"]
            self.complaints.append(str(details.get("exception", {}).get("description", details["text"])))
        elif method == "Log.entryAdded" and facts["entry"]["level"] in ("error", "warning"):
            self.complaints.append(facts["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and facts["type"] in ("error", "warning", "assert"):
            self.complaints.append(" ".join(str(item.get("value", item)) for item in facts["args"]))

    @property
    def foreign(self) -> list[str]:
        """Requests that are neither of this disk nor of the page's own data."""
        return [url for url in self.requests if not url.startswith(("file:", "data:", "blob:", "about:"))]

    def open(self, path: Path, *, width: int = 1280, height: int = 900) -> float:
        """Load a file; the seconds until it was drawn."""
        self.resize(width, height)
        self._loaded = False
        start = time.monotonic()
        self.command("Page.navigate", url=path.resolve().as_uri())
        self.wait("document.readyState === 'complete'")
        self.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return time.monotonic() - start

    def resize(self, width: int, height: int) -> None:
        """Set the size of the window."""
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def evaluate(self, expression: str) -> Any:
        """Value of a JavaScript expression; promises are waited for."""
        result = self.command(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in result:
            raise RuntimeError(str(result["exceptionDetails"]))
        return result["result"].get("value")

    def wait(self, expression: str, *, seconds: float = PATIENCE) -> None:
        """Wait until a JavaScript expression is true."""
        _until(lambda: bool(self.evaluate(expression)), what=expression, seconds=seconds)

    def settle(self) -> None:
        """Wait until what was asked for has been drawn."""
        self.evaluate(
            "new Promise((done) => { const ask = () => "
            "requestAnimationFrame(() => requestAnimationFrame(() => "
            "'waiting' in document.documentElement.dataset ? setTimeout(ask, 20) : done())); ask(); })"
        )

    def press(self, key: str) -> None:
        """Press and release a key."""
        text = {"text": key} if len(key) == 1 else {}
        for kind in ("keyDown", "keyUp"):
            self.command("Input.dispatchKeyEvent", type=kind, key=key, **(text if kind == "keyDown" else {}))
        self.settle()

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Press the mouse at one place and let go at another (the same: a click)."""
        self.command("Input.dispatchMouseEvent", type="mouseMoved", x=start[0], y=start[1])
        self._mouse("mousePressed", start)
        for share in (0.5, 1.0) if start != end else ():
            at = tuple(a + (b - a) * share for a, b in zip(start, end, strict=True))
            self.command("Input.dispatchMouseEvent", type="mouseMoved", x=at[0], y=at[1], buttons=1)
        self._mouse("mouseReleased", end)
        self.settle()

    def _mouse(self, kind: str, at: tuple[float, float]) -> None:
        self.command(
            "Input.dispatchMouseEvent", type=kind, x=at[0], y=at[1], button="left", buttons=1, clickCount=1
        )

    def box(self, selector: str) -> dict[str, float]:
        """Place of an element in the window (``x``, ``y``, ``width``, ``height``), after scrolling to it."""
        name = json.dumps(selector)
        self.evaluate(
            f"document.querySelector({name}).scrollIntoView({{block: 'center', behavior: 'instant'}})"
        )
        self.settle()
        return dict(
            self.evaluate(f"(({{x, y, width, height}}) => ({{x, y, width, height}}))("
                          f"document.querySelector({name}).getBoundingClientRect())")
        )  # fmt: skip

    def screenshot(self, path: Path, *, full: bool = False) -> None:
        """Write a PNG of the window, or of the whole page."""
        data = self.command("Page.captureScreenshot", format="png", captureBeyondViewport=full)["data"]
        path.write_bytes(base64.b64decode(data))


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """A browser with one empty page; its profile lies in ``folder``, and it is ended at the end."""
    profile = folder / "profile"
    with (folder / "browser.log").open("wb") as log:
        process = subprocess.Popen(
            [find_browser(), f"--user-data-dir={profile}", *OPTIONS], stdout=log, stderr=log
        )
        try:
            port_file = profile / "DevToolsActivePort"
            _until(lambda: port_file.is_file() and "\n" in port_file.read_text(), what="the browser")
            port = int(port_file.read_text().splitlines()[0])
            with Page(_page_address(port)) as page:
                yield page
        finally:
            process.terminate()
            process.wait(timeout=PATIENCE)


def _page_address(port: int) -> str:
    """Address of the first page, as the browser itself tells it."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request("GET", "/json/list")
        pages = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    return str(next(item["webSocketDebuggerUrl"] for item in pages if item["type"] == "page"))


def _until(done: Callable[[], bool], *, what: str, seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:g} s for {what}")
        time.sleep(0.05)
