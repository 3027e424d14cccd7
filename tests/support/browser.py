"""A headless Chromium for tests of pages, driven by the DevTools protocol over a pipe: no packages, no ports.

Chromium is Debian's (`apt-get install chromium`); where it is missing, tests fail and say so.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless --no-sandbox --remote-debugging-pipe --use-angle=swiftshader --enable-unsafe-swiftshader"
    " --ignore-gpu-blocklist --no-first-run --disable-background-networking --disable-component-update --disable-sync"
    " --disable-quic --hide-scrollbars --force-color-profile=srgb --disable-extensions --mute-audio"
    " --disable-dev-shm-usage"
).split()
PATIENCE = 240.0
"""Seconds that a busy machine may take for what a test waits for."""


def chromium() -> str:
    """The program. Fails where there is none: these tests must not be left out unnoticed."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        found = shutil.which(name)
        if found is not None:
            return found
    raise AssertionError("these tests need Chromium: apt-get install chromium")


_START = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


def _pipe() -> tuple[int, int]:
    """Both ends of a pipe, numbered so high that they are not in the way of others."""
    ends = os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    return high[0], high[1]


class Browser:
    """One page in one window."""

    def __init__(self, *flags: str) -> None:
        # Chromium reads commands from descriptor 3 and answers on 4, each message ended by a zero byte
        self._profile = Path(tempfile.mkdtemp(prefix="chromium-"))
        self.downloads = self._profile / "downloads"
        commands, self._to = _pipe()
        self._from, answers = _pipe()
        program = [chromium(), *FLAGS, *flags, f"--user-data-dir={self._profile}/profile", "about:blank"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, str(commands), str(answers), *program],
            pass_fds=[commands, answers],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        self._buffer, self._number = b"", 0
        self.events: list[dict[str, Any]] = []

        self._session: str | None = None

    def connect(self) -> None:
        """Find the window, and ask what is to be heard of it."""
        target = self._wait_for_target()
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")
        self.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(self.downloads), eventsEnabled=True)

    def _wait_for_target(self) -> str:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            for target in self.send("Target.getTargets")["targetInfos"]:
                if target["type"] == "page":
                    return target["targetId"]
            time.sleep(0.05)
        raise AssertionError("Chromium opened no window")

    # ---- the protocol ----

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method and return its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None and not method.startswith(("Target.", "Browser.")):
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._to, data) :]
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self.events.append(answer)

    def _read(self) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from], [], [], max(end - time.monotonic(), 0))
            assert ready, "Chromium does not answer"
            data = os.read(self._from, 1 << 20)
            assert data, "Chromium ended"
            self._buffer += data
        message, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(message)

    def close(self) -> None:
        """End it, and remove what it wrote."""
        with contextlib.suppress(Exception):
            self.send("Browser.close")
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._to)
        os.close(self._from)
        shutil.rmtree(self._profile, ignore_errors=True)

    # ---- what people do ----

    def open(self, path: Path | str) -> None:
        """Open a file, as a double click does, and wait until it has loaded."""
        self.events.clear()
        self.send("Page.navigate", url=path if isinstance(path, str) else path.resolve().as_uri())
        self.wait_for("document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """The value of an expression; promises are awaited."""
        result = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait_for(self, condition: str) -> None:
        """Wait until an expression holds."""
        end = time.monotonic() + PATIENCE
        while not self.run(condition):
            assert time.monotonic() < end, f"waited in vain for {condition}\n{self.complaints()}"
            time.sleep(0.05)

    def complaints(self) -> list[str]:
        """What the page wrote to the console, and errors in it."""
        found = [json.dumps(event) for event in self.events if event.get("method") in _COMPLAINTS]
        return [text for text in found if '"type": "log"' not in text]

    def requests(self) -> list[str]:
        """Addresses that the page asked for, its own among them."""
        return [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]

    def window(self, width: int, height: int, density: float = 1.0, *, touch: bool = False) -> None:
        """Set the size of the window."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=density, mobile=touch
        )
        self.send("Emulation.setTouchEmulationEnabled", enabled=touch)

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        """mousePressed, mouseMoved, mouseReleased, mouseWheel at a point of the window."""
        self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Drag with the left button, in a few steps."""
        held = {"button": "left", "buttons": 1, "clickCount": 1}
        self.mouse("mousePressed", *start, **held)
        for step in range(1, 5):
            self.mouse("mouseMoved", *(a + (b - a) * step / 4 for a, b in zip(start, end, strict=True)), **held)
        self.mouse("mouseReleased", *end, **held)

    def touch(self, kind: str, *points: tuple[float, float]) -> None:
        """touchStart, touchMove, touchEnd with fingers at these points."""
        fingers = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(points)]
        self.send("Input.dispatchTouchEvent", type=kind, touchPoints=fingers)

    def cpu_seconds(self) -> float:
        """Time that processors have spent on it."""
        return sum(_spent(pid) for pid in _family(self._process.pid))

    def key(self, name: str, text: str = "") -> None:
        """Press and release a key."""
        for kind in ("keyDown", "keyUp"):
            written = {"text": text} if text and kind == "keyDown" else {}
            self.send("Input.dispatchKeyEvent", type=kind, key=name, code=name, **_CODES.get(name, {}), **written)

    def middle_of(self, selector: str) -> tuple[float, float]:
        """A point of the window in the middle of an element, which is scrolled to."""
        script = f"""(() => {{ const e = document.querySelector({json.dumps(selector)});
            e.scrollIntoView({{ block: 'center' }}); const r = e.getBoundingClientRect();
            return [r.x + r.width / 2, r.y + r.height / 2]; }})()"""
        x, y = self.run(script)
        return x, y

    def click(self, selector: str) -> None:
        """Click on an element."""
        place = self.middle_of(selector)
        self.mouse("mousePressed", *place, button="left", buttons=1, clickCount=1)
        self.mouse("mouseReleased", *place, button="left", clickCount=1)

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """Save what the window shows, or the whole page, as a PNG."""
        data = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def downloaded(self) -> Path:
        """The file of the last download, when it is there; it lies in `downloads` by its suggested name."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            self.run("0")
            states = [e["params"]["state"] for e in self.events if e.get("method") == "Browser.downloadProgress"]
            names = [e["params"] for e in self.events if e.get("method") == "Browser.downloadWillBegin"]
            if names and states[-1:] == ["completed"]:
                return self.downloads / names[-1]["suggestedFilename"]
            time.sleep(0.05)
        raise AssertionError("nothing was downloaded")


def _family(pid: int) -> list[int]:
    """A process and all that came from it (Linux)."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit():
                children.setdefault(int(_stat(int(folder.name))[1]), []).append(int(folder.name))
    found = [pid]
    for parent in found:
        found += children.get(parent, [])
    return found


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()


def _spent(pid: int) -> float:
    try:
        fields = _stat(pid)
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


_COMPLAINTS = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
_CODES = {
    name: {"windowsVirtualKeyCode": code}
    for name, code in {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Tab": 9, "Home": 36}.items()
}


@contextlib.contextmanager
def open_browser(*flags: str) -> Iterator[Browser]:
    """A browser that ends with the block."""
    browser = Browser(*flags)
    try:
        browser.connect()
        yield browser
    finally:
        browser.close()
