"""A real browser without a window, for tests of pages: `with Browser() as browser: page = browser.open(path)`.

It is Chromium, driven over its DevTools pipe (two file descriptors, JSON documents that end in a zero byte), so that
nothing but the program itself is needed. WebGL is computed by the CPU.
"""

import base64
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
SECONDS = 120.0  # to wait for an answer, on a machine that is busy
FLAGS = (
    "--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader", "--disable-dev-shm-usage", "--hide-scrollbars", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-features=Translate,MediaRouter",
)  # fmt: skip


def program() -> str | None:
    """The browser that is installed; None where there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """One browser with one tab; collects what the console, the network and exceptions say."""

    def __init__(self, *flags: str) -> None:
        self.flags = flags
        self.errors: list[str] = []
        self.requests: list[str] = []

    def __enter__(self) -> "Browser":
        found = program()
        assert found is not None, "no Chromium"
        self.folder = tempfile.mkdtemp(prefix="browser-")
        commands_read, self.commands = os.pipe()
        self.answers, answers_write = os.pipe()

        def connect() -> None:
            ends = [
                fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (commands_read, answers_write)
            ]  # 3 and 4 may be theirs
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        self.process = subprocess.Popen(
            [found, *FLAGS, *self.flags, f"--user-data-dir={self.folder}", "about:blank"], close_fds=False,
            preexec_fn=connect, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(commands_read)
        os.close(answers_write)
        self.numbers, self.pending, self.session = itertools.count(1), b"", ""
        target = next(one for one in self.send("Target.getTargets")["targetInfos"] if one["type"] == "page")
        self.session = self.send("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        return self

    def __exit__(self, *failure: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.commands)
        os.close(self.answers)
        shutil.rmtree(self.folder, ignore_errors=True)

    def send(self, method: str, **parameters: Any) -> Any:
        """Call a method of the DevTools protocol and return its result."""
        number = next(self.numbers)
        document = {"id": number, "method": method, "params": parameters}
        if self.session:
            document["sessionId"] = self.session
        os.write(self.commands, json.dumps(document).encode() + b"\0")
        while True:
            found = self._next()
            if found.get("id") == number:
                assert "error" not in found, (method, found["error"])
                return found["result"]

    def open(
        self, path: Path, *, width: int = 1200, height: int = 900, dark: bool = False, mobile: bool = False
    ) -> None:
        """Load a file and wait until it is complete."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.send("Page.navigate", url=path.resolve().as_uri())
        self.wait_for("document.readyState === 'complete'")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; of a promise, what it resolves to."""
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait_for(self, condition: str) -> None:
        """Wait until a JavaScript expression is true."""
        until = time.monotonic() + SECONDS
        while not self.evaluate(condition):
            assert time.monotonic() < until, f"still not: {condition}"
            time.sleep(0.05)

    def picture(self, path: Path, *, whole: bool = True, box: tuple[float, float, float, float] | None = None) -> Path:
        """Save a screenshot as PNG: the whole page, what is in view, or a box (x, y, width, height)."""
        options: dict[str, Any] = {"format": "png", "captureBeyondViewport": whole}
        if box is not None:
            options["clip"] = dict(zip(("x", "y", "width", "height"), box, strict=True), scale=1)
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", **options)["data"]))
        return path

    def _next(self) -> dict[str, Any]:
        """The next document; events are noted on the way."""
        while b"\0" not in self.pending:
            ready, _, _ = select.select([self.answers], [], [], SECONDS)
            assert ready, "the browser does not answer"
            part = os.read(self.answers, 2**20)
            assert part, "the browser has ended"
            self.pending += part
        text, _, self.pending = self.pending.partition(b"\0")
        found = json.loads(text)
        self._note(found.get("method"), found.get("params", {}))
        return found

    def _note(self, event: str | None, what: dict[str, Any]) -> None:
        if event == "Runtime.exceptionThrown":
            details = what["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description") or details["text"])
        elif event == "Runtime.consoleAPICalled" and what["type"] in ("error", "assert"):
            self.errors.append(" ".join(str(one.get("value", one.get("description"))) for one in what["args"]))
        elif event == "Log.entryAdded" and what["entry"]["level"] == "error":
            self.errors.append(what["entry"]["text"])
        elif event == "Network.requestWillBeSent":
            self.requests.append(what["request"]["url"])
