# SPDX-License-Identifier: Apache-2.0
"""A real browser, driven through the DevTools protocol over a pipe: no further package."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="no Chromium on this machine (Debian: apt install chromium)"
)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)


class Browser:
    """One tab; ``with`` it.

    Attributes
    ----------
    requests : list of str
        Addresses that the page has asked for.
    messages : list of str
        What it has told the console, and errors of its scripts.
    downloads : list of str
        States of downloads, as the browser has reported them.
    """

    def __init__(self, folder: Path, *, scripts: bool = True, size: str = "1200,1000") -> None:
        self.folder, self.scripts, self.size = folder, scripts, size
        self.requests: list[str] = []
        self.messages: list[str] = []
        self.downloads: list[str] = []
        self._count, self._rest = 0, b""

    def __enter__(self) -> Browser:
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        # The browser reads what it is told from descriptor 3 and answers on 4.
        command = [BROWSER, *FLAGS, "--remote-debugging-pipe", f"--window-size={self.size}"]
        command.append(f"--user-data-dir={self.folder / 'profile'}")
        script = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, "bash", *command],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._session = None
        tab = self.ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self.ask("Target.attachToTarget", targetId=tab, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Runtime"):
            self.ask(f"{domain}.enable")
        if not self.scripts:
            self.ask("Emulation.setScriptExecutionDisabled", value=True)
        return self

    def __exit__(self, *_) -> None:
        os.close(self._out)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)

    def ask(self, method: str, **params) -> dict:
        """Result of a method; events that come before it are kept."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return answer["result"]
            self._keep(answer)

    def _next(self) -> dict:
        while b"\0" not in self._rest:
            part = os.read(self._in, 1 << 16)
            assert part, "the browser has ended"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def _keep(self, event: dict) -> None:
        params = event.get("params", {})
        if event.get("method") == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif event.get("method") == "Runtime.consoleAPICalled":
            self.messages.append(str(params["args"]))
        elif event.get("method") == "Runtime.exceptionThrown":
            self.messages.append(str(params["exceptionDetails"]))
        elif event.get("method") == "Browser.downloadProgress":
            self.downloads.append(params["state"])

    def save_downloads(self, folder: Path) -> None:
        """Allow downloads, into a folder."""
        self.ask(
            "Browser.setDownloadBehavior",
            behavior="allow",
            downloadPath=str(folder),
            eventsEnabled=True,
        )

    def wait_for_download(self, *, within_s: float = 60) -> None:
        """Wait until a download is complete."""
        ends = time.monotonic() + within_s
        while "completed" not in self.downloads:
            assert "canceled" not in self.downloads, self.downloads
            assert time.monotonic() < ends, f"no whole download: {self.downloads}"
            self.js("0")  # events come with an answer
            time.sleep(0.05)

    def open(self, page: Path) -> None:
        """Show a file, and wait until it is loaded."""
        self.ask("Page.navigate", url=page.as_uri())
        self.until("document.readyState === 'complete' && location.protocol === 'file:'")

    def js(self, expression: str):
        """Value of an expression on the page."""
        found = self.ask(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, expression: str, *, within_s: float = 60) -> None:
        """Wait until an expression is true."""
        ends = time.monotonic() + within_s
        while not self.js(expression):
            assert time.monotonic() < ends, f"never true: {expression}; {self.messages}"
            time.sleep(0.05)

    def click(self, selector: str, x: float = 0.5, y: float = 0.5) -> None:
        """Click into an element, at a share of its width and height."""
        self.js(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center'}})")
        box = self.js(
            f"(() => {{ const b = document.querySelector({selector!r}).getBoundingClientRect();"
            " return [b.left, b.top, b.width, b.height]; })()"
        )
        at = {"x": box[0] + x * box[2], "y": box[1] + y * box[3]}
        for kind in ("mousePressed", "mouseReleased"):
            self.ask(
                "Input.dispatchMouseEvent", type=kind, button="left", buttons=1, clickCount=1, **at
            )

    def press(self, key: str, code: int) -> None:
        """Press a key, by its name and Windows' code."""
        for kind in ("keyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code)
