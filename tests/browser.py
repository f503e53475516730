"""A headless Chromium for tests, driven through chromedriver's HTTP interface (W3C WebDriver)."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key of an element's id, fixed by the standard
KEYS = {"Tab": "\ue004", "Enter": "\ue007", "Escape": "\ue00c", "Home": "\ue011", "End": "\ue010"}
KEYS |= {"ArrowLeft": "\ue012", "ArrowUp": "\ue013", "ArrowRight": "\ue014", "ArrowDown": "\ue015"}
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")


class Browser:
    """One window. `folder` takes its downloads and its profile."""

    def __init__(self, port: str, folder: Path, width: int, height: int) -> None:
        self.session = f"http://127.0.0.1:{port}/session"
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        flags += ["--hide-scrollbars", "--force-prefers-reduced-motion"]  # a click does not wait for a smooth scroll
        options = {
            "binary": CHROMIUM,
            "args": [*flags, f"--window-size={width},{height}", f"--user-data-dir={folder / 'profile'}"],
            "prefs": {"download.default_directory": str(folder)},
        }
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        wanted |= {"unhandledPromptBehavior": "accept"}
        self.session += "/" + self._call("", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]

    def _call(self, path: str, body: dict | None = None, method: str = "POST") -> Any:
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.session + path, content, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(json.load(error)["value"]["message"]) from None

    def open(self, path: Path) -> None:
        """Load a file."""
        self._call("/url", {"url": path.resolve().as_uri()})

    def js(self, script: str, *arguments: Any) -> Any:
        """The value of a script that ends in `return`."""
        return self._call("/execute/sync", {"script": script, "args": list(arguments)})

    def click(self, selector: str) -> None:
        """Scroll to the first element that matches and click its middle."""
        element = self._call("/element", {"using": "css selector", "value": selector})[ELEMENT]
        self._call(f"/element/{element}/click", {})

    def press(self, *keys: str) -> None:
        """Press keys in turn; the focused element gets them."""
        for key in keys:
            strokes = [{"type": kind, "value": KEYS.get(key, key)} for kind in ("keyDown", "keyUp")]
            self._call("/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": strokes}]})

    def devtools(self, command: str, **parameters: Any) -> Any:
        """A command of Chromium's own protocol."""
        return self._call("/goog/cdp/execute", {"cmd": command, "params": parameters})

    def log(self) -> list[str]:
        """Console messages, warnings and errors since the last call."""
        return [line["message"] for line in self._call("/se/log", {"type": "browser"})]

    def screenshot(self, path: Path) -> None:
        """Save the visible part of the page as PNG."""
        path.write_bytes(base64.b64decode(self._call("/screenshot", method="GET")))

    def close(self) -> None:
        """End the session."""
        self._call("", method="DELETE")


@contextlib.contextmanager
def browser(folder: Path, *, width: int = 1280, height: int = 900) -> Iterator[Browser]:
    """A browser that ends with the block."""
    driver = subprocess.Popen([CHROMEDRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        line = next(line for line in driver.stdout if "started successfully on port" in line)
        window = Browser(line.rstrip(".\n").rpartition(" ")[2], folder, width, height)
        try:
            yield window
        finally:
            window.close()
    finally:
        driver.terminate()
        driver.wait(10)


def wait_for(condition: Any, seconds: float = 5) -> Any:
    """The first truthy value of `condition()`."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"not true within {seconds} s"
        time.sleep(0.02)
    return value
