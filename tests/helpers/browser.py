"""A headless Chromium that tests look at pages with, driven over two pipes in its DevTools protocol.

Owns finding and starting it, and the few commands that are needed. Invariant: it starts with an empty profile, which is deleted.
"""

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_OPTIONS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"),
    *("--no-first-run", "--disable-background-networking", "--disable-extensions", "--disable-component-update"),
    *("--renderer-process-limit=1", "--remote-debugging-pipe"),
)


def find() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


class Seen(NamedTuple):
    """What a page looked like. requests: every address that it asked for, itself included; errors: of its console.

    A data URI, which holds what it names, is no request.
    """

    requests: list[str]
    errors: list[str]
    answer: Any
    "of the script that was given"
    picture: bytes
    "PNG"


class Browser:
    """One tab. Messages end in a zero byte, and an answer has the number of its command."""

    def __init__(self, to: int, back: int):
        self._to, self._back, self._rest, self._number = os.fdopen(to, "wb"), back, b"", 0
        self._events: list[dict[str, Any]] = []
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        self._to.write(json.dumps(message).encode() + b"\0")
        self._to.flush()
        while (answer := self._next()).get("id") != self._number:
            self._events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = os.read(self._back, 1 << 20)
            assert more, "the browser has ended"
            self._rest += more
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def look(self, page: Path, script: str, width: int, dark: bool = False, height: int = 900) -> Seen:
        """Open a page in a window of `width` pixels, run a script that gives a value, and take a picture of the whole page."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self._events.clear()
        self.call("Page.navigate", url=page.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self._events):
            self._events.append(self._next())
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)["result"].get(
            "value"
        )
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True, optimizeForSpeed=True)
        asked = [event["params"]["request"]["url"] for event in self._of("Network.requestWillBeSent")]
        sent = [address for address in asked if not address.startswith("data:")]
        errors = [event["params"]["entry"]["text"] for event in self._of("Log.entryAdded")]
        return Seen(sent, errors, answer, base64.b64decode(shot["data"]))

    def _of(self, method: str) -> list[dict[str, Any]]:
        return [event for event in self._events if event.get("method") == method]


@contextmanager
def browser(program: str, profile: Path) -> Iterator[Browser]:
    """Start it; it ends with the block."""
    their_in, to = os.pipe()
    back, their_out = os.pipe()
    command = [program, *_OPTIONS, f"--user-data-dir={profile}", "about:blank"]
    # The protocol's pipes are the descriptors 3 and 4 of the browser.
    shell = ["bash", "-c", f'exec "$@" 3<&{their_in} 4>&{their_out}', "browser", *command]
    process = subprocess.Popen(
        shell,
        pass_fds=(their_in, their_out),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(their_in)
    os.close(their_out)
    try:
        yield Browser(to, back)
    finally:
        process.terminate()
        process.wait(timeout=20)
        os.close(back)
        shutil.rmtree(profile, ignore_errors=True)
