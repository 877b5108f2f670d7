"""A headless Chromium for the tests of pages, driven by the DevTools protocol over a pipe."""
from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--hide-scrollbars", "--remote-debugging-pipe",
)
PATIENCE_SECONDS = 60.0


class Browser:
    """One page. https://chromedevtools.github.io/devtools-protocol/ names what can be sent."""

    def __init__(self, folder: Path) -> None:
        inside, self._out = os.pipe()
        self._in, outside = os.pipe()
        command = ["bash", "-c", f'exec "$@" 3<&{inside} 4>&{outside}', "bash", str(CHROMIUM), *FLAGS, f"--user-data-dir={folder}",
                   "about:blank"]
        self._process = subprocess.Popen(command, pass_fds=(inside, outside), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(inside)
        os.close(outside)
        self._number, self._rest, self._session = 0, b"", ""
        self.seen: list[dict[str, Any]] = []
        """Events so far."""

    def __enter__(self) -> Browser:
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE_SECONDS)
        os.close(self._out)
        os.close(self._in)

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """The command's result; events that come before it are put into `seen`."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params, **({"sessionId": self._session} if self._session else {})}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (found := self._receive()).get("id") != self._number:
            self.seen.append(found)
        assert "error" not in found, found
        result: dict[str, Any] = found["result"]
        return result

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = os.read(self._in, 1 << 16)
            assert more, "the browser has ended"
            self._rest += more
        message, self._rest = self._rest.split(b"\0", 1)
        found: dict[str, Any] = json.loads(message)
        return found

    def look(self, width: int, height: int, dark: bool) -> None:
        """The window's size, and the scheme that the person prefers."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def run(self, script: str) -> Any:
        """The value of an expression in the page; promises are awaited."""
        found = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, script: str) -> Any:
        """Waits until an expression is truthy; its value."""
        end = time.monotonic() + PATIENCE_SECONDS
        while not (found := self.run(script)):
            assert time.monotonic() < end, f"{script} is still {found!r}; the page says {self.run('document.body.innerText')}"
            time.sleep(0.05)
        return found

    def press(self, key: str) -> None:
        text = {"Enter": "\r"}.get(key, "")
        code = {"Enter": 13, "Escape": 27, "Tab": 9}[key]
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code,
                      **({"text": text} if text and kind == "keyDown" else {}))

    def type(self, text: str) -> None:
        self.send("Input.insertText", text=text)

    def complaints(self) -> list[str]:
        """What the page's console and its security policy said was wrong."""
        self.run("0")
        said = [str(one["params"]) for one in self.seen if one.get("method") == "Runtime.exceptionThrown"]
        entries = [one["params"]["entry"] for one in self.seen if one.get("method") == "Log.entryAdded"]
        return said + [f"{one['text']} {one.get('url', '')}" for one in entries if one["level"] == "error"]

    def fetched(self) -> set[str]:
        """Every address that the page asked for."""
        return {one["params"]["request"]["url"] for one in self.seen if one.get("method") == "Network.requestWillBeSent"}

    def screenshot(self, path: Path, **options: Any) -> None:
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png", **options)["data"]))
