"""`portrait360 view` in a real browser: people, photos, files, and that nothing leaves this machine."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.data import astronaut

from portrait360.cli.main import EXIT_INTERRUPTED
from portrait360.portrait.model import PortraitModel
from support.browser import Browser, open_browser

pytestmark = pytest.mark.slow

PATIENCE = 240.0
ENDED = (0, EXIT_INTERRUPTED)
"""Statuses after Ctrl-C: 0 where this program was itself started with that signal ignored."""


@dataclass
class Served:
    """A viewer that runs."""

    process: subprocess.Popen
    address: str
    folder: Path

    def end(self) -> int:
        """Press Ctrl-C, and wait."""
        self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(PATIENCE)
        finally:
            assert self.process.stdout is not None
            self.process.stdout.close()


def serve(folder: Path, *arguments: str | Path) -> Served:
    command = [sys.executable, "-m", "portrait360", "view", "--port", "0", "--no-browser", "--out", str(folder)]
    process = subprocess.Popen([*command, *map(str, arguments)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    address = re.match(r"http://127\.0\.0\.1:\d+/[\w-]+/", line)
    assert address, line
    assert process.stdout.readline().startswith("on another machine, first: ssh -L ")
    return Served(process, address[0], folder)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as browser:
        browser.window(560, 420)
        yield browser


@pytest.fixture(scope="module")
def packaged(tmp_path_factory) -> Iterator[Served]:
    """The packaged model, which the browser renders."""
    served = serve(tmp_path_factory.mktemp("packaged") / "portraits")
    yield served
    assert served.end() in ENDED


@pytest.fixture(scope="module")
def streamed(tiny_weights, tmp_path_factory) -> Iterator[Served]:
    """A small model with super-resolution, which the server renders."""
    served = serve(tmp_path_factory.mktemp("streamed") / "portraits", "--weights", tiny_weights)
    yield served
    assert served.end() in ENDED


def show(browser: Browser, served: Served) -> None:
    browser.open(served.address)
    here = json.dumps(served.address)
    browser.wait_for(f"location.href === {here} && document.readyState === 'complete'")
    browser.wait_for("document.documentElement.dataset.ready === 'true' || !document.getElementById('problem').hidden")
    assert browser.run("document.getElementById('problem').hidden")


def status(browser: Browser) -> str:
    return browser.run("document.getElementById('status').textContent")


def wait_for_status(browser: Browser, start: str) -> str:
    browser.wait_for(f"document.getElementById('status').textContent.startsWith({json.dumps(start)})")
    return status(browser)


def set_value(browser: Browser, name: str, value: object) -> None:
    script = f"""(() => {{ const e = document.getElementById('controls').elements[{json.dumps(name)}];
        e.value = {json.dumps(value)}; e.dispatchEvent(new Event('change', {{ bubbles: true }})); }})()"""
    browser.run(script)


def picture(browser: Browser, side: int) -> np.ndarray:
    """What the page saves of its view."""
    script = f"""(async () => {{
        const blob = await portrait360.source.picture(portrait360.controls.view, {side});
        const reader = new FileReader();
        await new Promise((resolve) => {{ reader.onload = resolve; reader.readAsDataURL(blob); }});
        return reader.result;
    }})()"""
    data = base64.b64decode(browser.run(script).partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(float)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return -10.0 * math.log10(np.mean(((a - b) / 255.0) ** 2) + 1e-12)


def choose_files(browser: Browser, *paths: Path) -> None:
    root = browser.send("DOM.getDocument")["root"]["nodeId"]
    node = browser.send("DOM.querySelector", nodeId=root, selector="#photos")["nodeId"]
    browser.send("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in paths])


def test_a_seed_gives_the_same_person_as_in_python(browser, packaged):
    show(browser, packaged)
    set_value(browser, "seed", 5)
    wait_for_status(browser, "This is seed 5")
    browser.run("portrait360.controls.set({ yaw: 30 })")
    expected = np.asarray(PortraitModel.from_pretrained().sample(5).render(yaw=30, size=128)).astype(float)
    assert psnr(picture(browser, 128), expected) > 35.0
    names = browser.run("[...document.getElementById('person').options].map((option) => option.text)")
    assert names[:2] == ["Seed 0", "Seed 5"]


def test_the_server_renders_what_the_browser_cannot(browser, streamed, tiny_weights):
    show(browser, streamed)
    expected = np.asarray(PortraitModel.from_pretrained(tiny_weights).sample(0).render()).astype(float)
    assert psnr(picture(browser, 512), expected) > 60.0

    # Drafts while it turns, the whole image when it stands
    browser.run(
        "portrait360.drawn = 0; portrait360.source.element.addEventListener('drawn', () => portrait360.drawn++)"
    )
    x, y = browser.middle_of("#portrait")
    browser.drag((x, y), (x + 60, y))
    browser.wait_for("portrait360.source.isFull")
    assert browser.run("portrait360.drawn") >= 2
    assert browser.run("portrait360.controls.view.yaw") < -10


def test_nothing_is_asked_of_anybody_else(browser, packaged):
    show(browser, packaged)
    browser.wait_for("portrait360.source.isFull")
    origin = re.match(r"http://[^/]+/", packaged.address)
    assert origin
    assert all(url.startswith((origin[0], "data:", "blob:")) for url in browser.requests())
    assert browser.run("fetch('http://127.0.0.1:1/').then(() => 'asked', () => 'refused')") == "refused"
    assert browser.run("fetch('data:text/plain,x').then(() => 'asked', () => 'refused')") == "refused"


def test_files_are_saved_and_the_mesh_can_be_had(browser, packaged):
    show(browser, packaged)
    assert browser.run("document.getElementById('controls').elements.mesh.hidden")
    browser.click("button[name=files]")
    said = wait_for_status(browser, "Saved in")
    folder = packaged.folder / "seed0000"
    assert str(folder) in said
    names = {path.name for path in folder.iterdir()}
    assert {"views.png", "turntable.mp4", "portrait.glb", "portrait.safetensors", "portrait.json"} <= names
    browser.click("button[name=mesh]")
    assert browser.downloaded().read_bytes() == (folder / "portrait.glb").read_bytes()


def test_a_photo_becomes_a_portrait(browser, packaged, tmp_path):
    photo = tmp_path / "eileen.png"
    Image.fromarray(astronaut()).save(photo)
    show(browser, packaged)
    choose_files(browser, photo)
    browser.click("input[name=fast]")
    browser.click("button[name=invert]")
    browser.wait_for("!document.getElementById('job').hidden")
    wait_for_status(browser, "Saved in")
    assert (packaged.folder / "eileen" / "comparison.png").is_file()
    chosen = "document.getElementById('person').selectedOptions[0].text"
    assert browser.run(chosen) == "eileen"
    assert browser.run("document.getElementById('job').hidden")
    browser.wait_for("portrait360.source.isFull")


def test_what_is_no_photo_is_refused_in_words(browser, packaged, tmp_path):
    other = tmp_path / "words.jpg"
    other.write_text("no image")
    show(browser, packaged)
    choose_files(browser, other)
    browser.click("button[name=invert]")
    browser.wait_for("document.getElementById('status').textContent.includes('cannot be used')")
    assert not (packaged.folder / "words").exists()


def test_saved_people_are_there_when_the_viewer_starts_again(browser, tmp_path):
    PortraitModel.from_pretrained().sample(4).save(tmp_path / "ada", video=False, mesh=False, size=64)
    served = serve(tmp_path)
    try:
        show(browser, served)
        assert browser.run("portrait360.source.people") == ["ada"]
    finally:
        assert served.end() in ENDED
    # the page says so when the server has gone
    browser.click("button[name=random]")
    browser.wait_for("document.getElementById('status').textContent.includes('does not answer')")


def test_axe_finds_nothing(browser, packaged, tmp_path):
    npm = shutil.which("npm")
    assert npm, "this test needs npm: apt-get install npm"
    command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "axe-core@4"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 0
    show(browser, packaged)
    time.sleep(0.2)
    browser.run((tmp_path / "node_modules" / "axe-core" / "axe.min.js").read_text(encoding="utf-8"))
    script = "axe.run().then((r) => r.violations.map((v) => `${v.id}: ${v.help} ${v.nodes.map((n) => n.html)}`))"
    assert browser.run(script) == []
