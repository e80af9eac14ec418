"""Chromium for the tests of the page: started without network, driven by selenium."""

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import time
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import ActionChains, Chrome
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from imprompt.serving.service import EXAMPLES

PAGE = EXAMPLES.parent / "page"
"""The files of the page."""

_FLAGS = (
    *("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "hide-scrollbars"),
    *("disable-background-networking", "disable-component-update", "disable-sync"),
)
_AXE = "axe-core@4.14.1"
_AXE_HASH = "FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ=="
"""SHA-512, as the registry states it."""
_BRING = """
    const [element, base64, name, event] = arguments;
    const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
    const files = new DataTransfer();
    files.items.add(new File([bytes], name, {type: "image/png"}));
    const options = {bubbles: true, cancelable: true, dataTransfer: files, clipboardData: files};
    const Kind = event === "drop" ? DragEvent : ClipboardEvent;
    element.dispatchEvent(new Kind(event, options));
"""
_RULES = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice")


class Page:
    """The page in a browser.

    Args:
        driver: selenium's
        address: of the server
    """

    def __init__(self, driver: Chrome, address: str) -> None:
        self.driver, self.address = driver, address

    def open(self, width: int = 1280, height: int = 800, *, dark: bool = False, touch: bool = False) -> None:
        """Visit the page for the first time, in a window of a size."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": touch}
        self._command("Emulation.setDeviceMetricsOverride", **metrics)
        self._command("Emulation.setTouchEmulationEnabled", enabled=touch)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._command("Emulation.setEmulatedMedia", features=[scheme])
        self.driver.get(f"{self.address}/icon.svg")
        self.run("sessionStorage.clear(); localStorage.clear()")
        self.driver.get(f"{self.address}/")
        self.wait(lambda: self.has("body.ready"))

    def reload(self) -> None:
        self.driver.refresh()
        self.wait(lambda: self.has("body.ready"))

    def _command(self, name: str, **values: Any) -> None:
        self.driver.execute_cdp_cmd(name, values)

    def run(self, script: str, *values: Any) -> Any:
        return self.driver.execute_script(script, *values)

    def wait(self, condition: Callable[[], Any], seconds: float = 60) -> Any:
        """Wait until something is true, and return it."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                if value := condition():
                    return value
            except StaleElementReferenceException:
                pass
            time.sleep(0.05)
        says = [self.text(selector) for selector in ("#status", "#fault")]
        raise AssertionError(f"still not so after {seconds} s; the page says {says}")

    def all(self, selector: str) -> list[WebElement]:
        """The elements of a selector that can be seen."""
        found = self.driver.find_elements(By.CSS_SELECTOR, selector)
        return [element for element in found if element.is_displayed()]

    def has(self, selector: str) -> bool:
        return bool(self.driver.find_elements(By.CSS_SELECTOR, selector))

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        return self.find(selector).text

    def value(self, selector: str) -> str:
        return str(self.find(selector).get_property("value"))

    def click(self, selector: str) -> None:
        element = self.wait(lambda: self.all(selector))[0]
        self.run("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def set(self, selector: str, value: object) -> None:
        """Set a field as typing or dragging does."""
        event = "arguments[0].dispatchEvent(new Event('input', {bubbles: true}))"
        self.run(f"arguments[0].value = arguments[1]; {event}", self.find(selector), str(value))

    def send(self, selector: str, path: Path) -> None:
        """Choose a file."""
        self.find(selector).send_keys(str(path))

    def bring(self, path: Path, selector: str, event: str) -> None:
        """Drop or paste a file on an element."""
        self.run(_BRING, self.find(selector), b64encode(path.read_bytes()).decode(), path.name, event)

    def press(self, *keys: str) -> None:
        for key in keys:
            ActionChains(self.driver).send_keys(key).perform()

    def drag(self, selector: str, begin: tuple[float, float], end: tuple[float, float]) -> None:
        """Drag from a place to another; both are fractions of the element."""
        element = self.find(selector)
        (x, y), (to_x, to_y) = (
            (
                round((place[0] - 0.5) * element.size["width"]),
                round((place[1] - 0.5) * element.size["height"]),
            )
            for place in (begin, end)
        )
        chain = ActionChains(self.driver).move_to_element_with_offset(element, x, y).click_and_hold()
        chain.move_by_offset(to_x - x, to_y - y).release().perform()

    @property
    def runs(self) -> list[dict[str, Any]]:
        """The runs that the page remembers, newest first."""
        return json.loads(self.run("return sessionStorage.getItem('imprompt.runs')") or "[]")

    def generate(self) -> dict[str, Any]:
        """Press Generate, wait for the end, and return the run."""
        before = len(self.runs)
        self.click("#generate")
        self.wait(lambda: len(self.runs) > before)
        return self.finish()

    def finish(self) -> dict[str, Any]:
        self.wait(lambda: self.runs and self.runs[0]["status"] in ("done", "failed", "canceled"))
        self.wait(lambda: self.text("#generate") == "Generate")
        return self.runs[0]

    def complaints(self) -> list[str]:
        """What the browser has complained about since the last call, scripts that failed for one."""
        entries = self.driver.get_log("browser")  # pyright: ignore[reportAttributeAccessIssue]
        return [entry["message"] for entry in entries if "favicon.ico" not in entry["message"]]

    def find_violations(self, axe: str) -> list[str]:
        """What axe-core finds wrong with the page as it is now."""
        self.run(axe)
        script = (
            "const done = arguments[arguments.length - 1];"
            "axe.run({runOnly: arguments[0], resultTypes: ['violations']}).then(done, (e) => done(String(e)))"
        )
        result = self.driver.execute_async_script(script, list(_RULES))
        return [f"{one['id']}: {node['html'][:200]}" for one in result["violations"] for node in one["nodes"]]

    def screenshot(self, path: Path) -> None:
        """Save what is seen, in 256 colors."""
        self._command("Input.dispatchMouseEvent", type="mouseMoved", x=1, y=1)
        picture = Image.open(io.BytesIO(self.driver.get_screenshot_as_png())).convert("RGB")
        picture.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


@contextmanager
def running_browser(folder: Path) -> Iterator[Chrome]:
    """Start Chromium, or skip the test where there is none."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("there is no chromium with chromedriver here: apt-get install chromium chromium-driver")
    options = Options()
    options.binary_location = chromium
    for flag in (*_FLAGS, f"user-data-dir={folder}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "WARNING"})
    browser = Chrome(options=options, service=Service(driver))
    browser.set_script_timeout(120)
    try:
        yield browser
    finally:
        browser.quit()


def read_axe(folder: Path) -> str:
    """Return the script of axe-core from the npm registry; skip the test where there is no npm."""
    file = folder / f"{_AXE}.tgz"
    if not file.is_file():
        if shutil.which("npm") is None:
            pytest.skip(f"there is no npm here, from which {_AXE} comes")
        command = ["npm", "pack", _AXE, "--silent", "--pack-destination", str(folder)]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode:
            pytest.skip(f"npm cannot bring {_AXE}: {made.stderr[-300:]}")
        (folder / made.stdout.strip().splitlines()[-1]).rename(file)
    data = file.read_bytes()
    assert b64encode(hashlib.sha512(data).digest()).decode() == _AXE_HASH
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        script = archive.extractfile("package/axe.min.js")
        assert script is not None
        return script.read().decode()


def fetch(address: str, path: str) -> bytes:
    with urllib.request.urlopen(address + path) as response:
        return response.read()


def post(address: str, path: str, values: dict[str, Any]) -> bytes:
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(address + path, json.dumps(values).encode(), headers)
    with urllib.request.urlopen(request) as response:
        return response.read()


def pixels(address: str, run: dict[str, Any], index: int = 0) -> np.ndarray:
    return np.asarray(served_picture(address, run["pictures"][index]["url"]))


def served_picture(address: str, path: str) -> Image.Image:
    return Image.open(io.BytesIO(fetch(address, path))).convert("RGB")


def save_photo(path: Path, size: tuple[int, int] = (4000, 3000)) -> Path:
    """A photo of 12 megapixels that a phone has stored on its side: the red half is up when it is shown."""
    photo = Image.new("RGB", size, "blue")
    ImageDraw.Draw(photo).rectangle((0, 0, size[0] // 2, size[1]), "red")
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(path, exif=exif)
    return path
