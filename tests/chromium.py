"""A headless Chromium, driven over its DevTools protocol: pages are opened from files, nothing else can be reached."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
import time
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp

DEADLINE_S = 30.0
_PORT_FILE = "DevToolsActivePort"


def chromium() -> str | None:
    """Path of the program (Debian: chromium), if it is installed."""
    return shutil.which("chromium") or shutil.which("google-chrome")


class Page:
    """One tab. `events` holds everything that the browser said of its own accord, in order."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, runner: asyncio.Runner) -> None:
        self.events: list[dict[str, Any]] = []
        self._socket = socket
        self._runner = runner
        self._calls = 0
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A command's result. Raises RuntimeError with the browser's words if it fails."""
        self._calls += 1
        return self._runner.run(asyncio.wait_for(self._call(self._calls, method, params), DEADLINE_S))

    def open(self, path: Path) -> None:
        """Loads a file; returns once it is loaded."""
        self.events.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        deadline_s = time.monotonic() + DEADLINE_S
        while not self.of("Page.loadEventFired"):
            assert time.monotonic() < deadline_s, f"{path} does not load"
            time.sleep(0.02)
            self.call("Browser.getVersion")

    def of(self, method: str) -> list[dict[str, Any]]:
        """What the browser said by this name."""
        return [event["params"] for event in self.events if event["method"] == method]

    def evaluate(self, expression: str) -> Any:
        """The value of a script's expression; promises are awaited. Raises RuntimeError if it throws."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if thrown := answer.get("exceptionDetails"):
            raise RuntimeError(thrown["exception"].get("description", str(thrown)))
        return answer["result"].get("value")

    def resize(self, width: int, height: int, *, scale: float = 1.0) -> None:
        """The view's size, in CSS pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def prefer(self, theme: str) -> None:
        """The system's colour scheme, `light` or `dark`."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])

    def screenshot(self) -> bytes:
        """PNG of the view."""
        return b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def pdf(self) -> bytes:
        """The page on paper."""
        return b64decode(self.call("Page.printToPDF", preferCSSPageSize=True)["data"])

    async def _call(self, number: int, method: str, params: dict[str, Any]) -> dict[str, Any]:
        await self._socket.send_json({"id": number, "method": method, "params": params})
        while True:
            said = await self._socket.receive_json()
            if said.get("id") != number:
                self.events.append(said)
            elif "error" in said:
                raise RuntimeError(f"{method}: {said['error']['message']}")
            else:
                result: dict[str, Any] = said["result"]
                return result


@contextmanager
def open_chromium(program: str) -> Iterator[Page]:
    """A browser with a profile of its own, gone afterwards; no host name resolves in it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        argv = [
            program, "--headless=new", "--remote-debugging-port=0", f"--user-data-dir={profile}", "--disable-gpu",
            "--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking", "--disable-sync",
            "--disable-component-update", "--host-resolver-rules=MAP * ~NOTFOUND", "--hide-scrollbars", "about:blank",
        ]  # fmt: skip
        if os.geteuid() == 0:
            argv.insert(1, "--no-sandbox")
        with (Path(profile) / "stderr").open("w") as errors:
            process = subprocess.Popen(argv, stdout=errors, stderr=errors)
        try:
            port = _port(process, Path(profile))
            with asyncio.Runner() as runner:
                session, socket = runner.run(_attach(port))
                try:
                    yield Page(socket, runner)
                finally:
                    runner.run(socket.close())
                    runner.run(session.close())
        finally:
            process.terminate()
            process.wait(DEADLINE_S)


def _port(process: subprocess.Popen[bytes], profile: Path) -> int:
    deadline_s = time.monotonic() + DEADLINE_S
    while True:
        assert process.poll() is None, (profile / "stderr").read_text()[-2000:]
        assert time.monotonic() < deadline_s, "Chromium opens no DevTools port"
        written = (profile / _PORT_FILE).read_text().split() if (profile / _PORT_FILE).exists() else []
        if written:
            return int(written[0])
        time.sleep(0.05)


async def _attach(port: int) -> tuple[aiohttp.ClientSession, aiohttp.ClientWebSocketResponse]:
    session = aiohttp.ClientSession()
    async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
        tabs = await answer.json()
    (tab,) = [tab for tab in tabs if tab["type"] == "page"]
    return session, await session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0)
