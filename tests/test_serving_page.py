"""The page of `imprompt serve` in Chromium: everything that a visitor does with it."""

import json
import os
import random
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver import ActionChains, Keys

import browsing
import served
from browsing import PAGE, Page, pixels, save_photo, served_picture
from imprompt.generation.job import Job
from imprompt.generation.run import run_job
from imprompt.serving.service import EXAMPLES, Service
from imprompt.serving.settings import ServerSettings

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    from imprompt.lab.making.characters import find_character
    from imprompt.lab.making.drawing import draw as draw_character

    def draw(seed: int) -> Image.Image:
        return draw_character(find_character({}, random.Random(seed), None), 256)

    with served.running_service(ServerSettings(), page=PAGE, draw=draw) as service:
        yield service


@pytest.fixture(scope="module")
def address(service: Service) -> Iterator[str]:
    with served.live_server(service) as address:
        yield address


@pytest.fixture(scope="module")
def browser_page(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browsing.running_browser(tmp_path_factory.mktemp("chromium")) as driver:
        yield Page(driver, address)


@pytest.fixture
def page(browser_page: Page) -> Iterator[Page]:
    """The page as on a first visit; at the end, the browser must not have complained."""
    browser_page.open()
    browser_page.complaints()
    yield browser_page
    assert browser_page.complaints() == []


def test_the_first_visit_makes_a_picture_with_one_click(page: Page) -> None:
    tiles = [tile.text for tile in page.all("#welcome .tile span")]
    assert tiles == ["blue hair", "glasses", "spiky hair", "draw a new one"]
    page.click("#welcome .tile:last-child")
    run = page.finish()
    assert run["status"] == "done"
    assert run["names"][run["request"]["references"][0]["images"]].startswith("character")
    assert page.wait(lambda: page.run("return document.querySelector('.frame img').naturalWidth")) == 128
    assert not page.all("#welcome")


def test_a_photo_is_turned_shrunk_and_shown_as_the_encoder_sees_it(
    page: Page, address: str, tmp_path: Path
) -> None:
    page.send("#prompts input[type=file]", save_photo(tmp_path / "photo.jpg"))
    page.wait(lambda: page.all(".card"))
    image = page.run("return JSON.parse(sessionStorage.getItem('imprompt.settings')).references[0].image")
    assert (image["name"], image["width"], image["height"]) == ("photo", 768, 1024)
    stored = served_picture(address, f"/api/assets/{image['id']}")
    (top, bottom) = (stored.getpixel((384, y)) for y in (10, 1000))
    assert isinstance(top, tuple)
    assert isinstance(bottom, tuple)
    assert top[0] > 200 > 50 > top[2]
    assert bottom[2] > 200 > 50 > bottom[0]
    page.click(".card summary")
    page.set(".card [name=crop]", "pad")
    source = page.wait(
        lambda: page.run("const view = document.querySelector('.card img'); return view.complete && view.src")
    )
    assert "crop=pad" in source
    assert source.startswith(f"{address}/api/assets/{image['id']}/view")


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_pictures_are_dropped_and_pasted(page: Page, event: str) -> None:
    page.bring(EXAMPLES / "glasses.png", "main", event)
    page.wait(lambda: page.all(".card"))
    assert page.text(".card .name") == "glasses"
    page.bring(EXAMPLES / "glasses.png", "#start summary", event)
    page.wait(lambda: page.find("#start .value").get_property("textContent") == "glasses")
    assert len(page.all(".card")) == 1


def test_a_painted_area_is_where_a_reference_acts(page: Page, address: str) -> None:
    page.click("#welcome .tile")
    everywhere = page.finish()
    page.click(".card summary")
    page.click("[data-act=paintReference]")
    page.drag("canvas", (0.2, 0.2), (0.2, 0.8))
    page.click("#done")
    page.wait(lambda: page.text("[data-act=paintReference]") == "Change")
    page.set("[name=seed]", everywhere["seed"])
    painted = page.generate()
    mask = served_picture(address, f"/api/assets/{painted['request']['references'][0]['mask']}").convert("L")
    assert mask.size == (128, 128)
    assert [mask.getpixel(place) for place in ((26, 64), (110, 64), (26, 3))] == [255, 0, 0]
    assert not np.array_equal(pixels(address, painted), pixels(address, everywhere))
    page.click("[data-act=paintReference]")
    page.click("#areas button:first-child")
    page.click("#done")
    page.wait(lambda: page.text("[data-act=paintReference]") == "Paint")
    assert "mask" not in page.generate()["request"]["references"][0]


def test_inpainting_changes_only_what_is_painted(page: Page, address: str) -> None:
    start = Image.open(EXAMPLES / "glasses.png").convert("RGB").resize((128, 128))
    page.click("#start summary")
    page.send("#start input[type=file]", EXAMPLES / "glasses.png")
    page.click("[data-act=paint]")
    page.click("#areas button:nth-child(3)")
    page.click("#done")
    page.wait(lambda: page.text("[data-act=paint]") == "Change the area")
    run = page.generate()
    assert run["status"] == "done", run
    change = np.abs(pixels(address, run).astype(int) - np.asarray(start).astype(int)).mean(axis=(0, 2))
    assert change[:60].max() < 12
    assert change[68:].mean() > 20


def test_outlines_of_a_picture_are_followed(page: Page) -> None:
    page.click("#control summary")
    page.send("#control input[type=file]", EXAMPLES / "glasses.png")
    page.wait(lambda: page.all("#control .chosen"))
    page.set("[name='control.scale']", 0.8)
    run = page.generate()
    assert run["status"] == "done"
    assert [{**one, "image": ""} for one in run["request"]["controls"]] == [
        {"image": "", "model": "mini", "scale": 0.8}
    ]


def test_stop_ends_a_run_within_a_step(page: Page, service: Service) -> None:
    page.set("[name=steps]", 200)
    page.click("#generate")
    page.wait(lambda: re.search(r"Step [2-9]", page.text("#status")))
    page.click("#generate")
    run = page.finish()
    assert (run["status"], page.text("#status")) == ("canceled", "Stopped")
    job = service.jobs.find(run["id"])
    assert job is not None
    assert job.status == "canceled"
    assert served.wait_until(lambda: service.engine.running == 0)
    assert sum(done for done, _ in job.progress.values()) < 200


def test_a_reload_joins_the_run_again(page: Page) -> None:
    page.set("[name=steps]", 80)
    page.click("#welcome .tile")
    page.wait(lambda: page.all(".frame.preview"))
    page.reload()
    assert page.text("#generate") == "Stop"
    page.wait(lambda: page.all(".frame.preview"))
    assert page.value("[name=steps]") == "80"
    run = page.finish()
    assert run["status"] == "done"
    assert len(run["pictures"]) == 1


def test_one_click_shows_all_strengths_and_another_the_base_model(page: Page, address: str) -> None:
    page.set("[name=steps]", 8)
    page.click("#welcome .tile")
    first = page.finish()
    page.click("[data-act=without]")
    without = page.finish()
    assert [tile.text for tile in page.all("#row .tile")] == ["With", "Without"]
    page.click("#past li:last-child button")
    page.click("[data-act=strip]")
    strip = page.finish()
    assert [tile.text for tile in page.all("#row .tile")] == ["0", "0.25", "0.5", "0.75", "1"]
    assert {picture["seed"] for picture in strip["pictures"]} == {first["pictures"][0]["seed"]}
    pictures = {picture["scale"]: picture["picture"] for picture in strip["pictures"]}
    base = next(number for number, one in enumerate(strip["pictures"]) if one["picture"] == pictures[0])
    assert served.differ(pixels(address, strip, base), pixels(address, without)) <= 1
    page.click("#row li:nth-child(4) button")
    page.click("[data-act=restore]")
    assert page.value(".card input[type=number]") == "0.75"


def test_settings_of_a_picture_come_back_and_survive_toggles_and_reloads(page: Page) -> None:
    page.set("[name=steps]", 6)
    page.click("#welcome .tile")
    page.wait(lambda: page.all(".card"))
    run = page.finish()
    page.set("[name=prompt]", "something else")
    page.set(".card [type=range][name=scale]", 0.3)
    page.set(".card [name=layers]", "style")
    page.click(".card [name=on]")
    page.click(".card [name=on]")
    assert [page.value(f".card [name={name}]") for name in ("scale", "layers")] == ["0.3", "style"]
    page.reload()
    assert [page.value(f".card [name={name}]") for name in ("scale", "layers")] == ["0.3", "style"]
    assert page.value("[name=prompt]") == "something else"
    assert "prompt=something+else" in page.driver.current_url
    page.click("[data-act=restore]")
    assert page.value("[name=prompt]") == run["request"]["prompt"]
    assert page.value("[name=seed]") == str(run["pictures"][0]["seed"])
    assert [page.value(f".card [name={name}]") for name in ("scale", "layers")] == ["0.6", "full"]
    page.click("[data-act=reuse]")
    page.wait(lambda: len(page.all(".card")) == 2)
    assert page.text(".card:last-child .name") == f"picture {run['pictures'][0]['seed']}"


@pytest.mark.parametrize("kind", ["Toml", "Python"])
def test_copied_code_makes_the_same_picture(page: Page, address: str, tmp_path: Path, kind: str) -> None:
    page.set("[name=steps]", 6)
    page.click("#welcome .tile")
    page.wait(lambda: page.all(".card"))
    run = page.finish()
    page.click(f"[data-copy={kind}]")
    text = page.text("#code pre")
    assert page.text("#code span") == "Copied"
    (tmp_path / "blue-hair.png").write_bytes((EXAMPLES / "blue-hair.png").read_bytes())
    if kind == "Toml":
        (tmp_path / "job.toml").write_text(text)
        made = np.asarray(next(iter(run_job(Job.from_toml(tmp_path / "job.toml")))).picture)
    else:
        subprocess.run(["python", "-c", text], cwd=tmp_path, check=True)
        made = np.asarray(Image.open(tmp_path / "out.png"))
    assert served.differ(made, pixels(address, run)) <= 1


def test_what_is_wrong_is_said_beside_the_control(page: Page, tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("no picture")
    page.send("#prompts input[type=file]", tmp_path / "notes.png")
    assert page.wait(lambda: page.text("#references-note")).startswith("This browser cannot read notes.png")
    page.click("#more summary")
    page.set("[name=steps]", 999)
    assert page.text("#note-steps") == "At most 200 steps here."
    page.click("#more summary")
    page.click("#generate")
    assert page.all("#note-steps")
    assert page.runs == []
    page.set("[name=steps]", 6)
    page.set("[name=prompt]", "glasses " * 100)
    page.click("#welcome .tile")
    page.finish()
    assert page.text("#viewer ul")
    page.set(".card [name=scale]", 1.2)
    assert "The text counts for little" in page.text(".card .note")
    page.click(".card summary")
    page.set(".card [name=start]", 0.8)
    page.set(".card [name=end]", 0.5)
    assert "It ends before it begins." in page.text(".card .note")


def test_it_works_on_a_phone(page: Page) -> None:
    page.open(390, 844, touch=True)
    for selector in ("#welcome .tile", None):
        assert page.run("return document.documentElement.scrollWidth") == 390
        if selector:
            page.click(selector)
            page.finish()
    bar = page.find(".bar").rect
    assert page.run("return document.querySelector('.bar').getBoundingClientRect().bottom") == 844
    assert bar["width"] == 390
    for details in page.all("#settings summary"):
        details.click()
    small = [
        (element.get_attribute("name"), element.size)
        for element in page.all(
            "#settings button, #settings select, #settings [type=number], #settings [type=range]"
        )
        if element.size["height"] < 43.9
    ]
    assert small == []


def test_it_works_by_keyboard_alone(page: Page) -> None:
    keys = Keys
    page.run("document.querySelector('#welcome .tile').focus()")
    page.press(keys.ENTER)
    page.finish()
    page.run("document.querySelector('.card [type=range]').focus()")
    page.press(keys.ARROW_RIGHT, keys.ARROW_RIGHT)
    assert page.value(".card [type=number]") == "0.7"
    page.run("document.querySelector('.card summary').focus()")
    page.press(keys.ENTER, *[keys.TAB] * 4, keys.ENTER)
    page.wait(lambda: page.all("dialog"))
    page.press(keys.SPACE, keys.ARROW_LEFT, keys.SPACE, *[keys.TAB] * 10, keys.ENTER)
    page.wait(lambda: page.text("[data-act=paintReference]") == "Change")
    page.run("document.querySelector('[name=prompt]').focus()")
    ActionChains(page.driver).key_down(keys.CONTROL).send_keys(keys.ENTER).key_up(keys.CONTROL).perform()
    page.wait(lambda: len(page.runs) == 2)
    assert "mask" in page.finish()["request"]["references"][0]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(("width", "height"), [(1280, 800), (768, 1024), (390, 844)])
def test_axe_finds_nothing(
    page: Page, pytestconfig: pytest.Config, width: int, height: int, dark: bool
) -> None:
    axe = browsing.read_axe(Path(pytestconfig.cache.mkdir("axe")))  # pyright: ignore[reportOptionalMemberAccess]
    page.open(width, height, dark=dark, touch=width < 500)
    assert page.find_violations(axe) == []
    page.set("[name=steps]", 4)
    page.click("#welcome .tile")
    page.finish()
    page.click("[data-act=strip]")
    page.finish()
    page.send("#start input[type=file]", EXAMPLES / "glasses.png")
    page.send("#control input[type=file]", EXAMPLES / "glasses.png")
    page.set(".card [name=scale]", 1.2)
    page.run("for (const one of document.querySelectorAll('details')) one.open = true")
    page.click("[data-copy=Json]")
    json.loads(page.text("#code pre"))
    assert page.find_violations(axe) == []
    page.click("[data-act=paint]")
    assert page.find_violations(axe) == []


def test_screenshots_for_the_documents(page: Page, tmp_path: Path) -> None:
    """With IMPROMPT_FIGURES=docs/figures this test makes the figures of docs/serving.md."""
    folder = Path(os.environ.get("IMPROMPT_FIGURES", tmp_path))
    for name, size, seed in (("wide", (1280, 800), 3733796616), ("phone", (390, 844), 5)):
        page.open(*size, touch=name == "phone")
        page.set("[name=seed]", seed)
        page.click("#welcome .tile")
        page.finish()
        page.click("[data-act=strip]")
        assert page.finish()["status"] == "done"
        page.wait(lambda: len(page.all("#row .made")) == 5)
        page.run(
            "document.querySelector('#stage').scrollIntoView(); document.querySelector('#generate').focus()"
        )
        file = folder / f"serve-{name}.png"
        page.screenshot(file)
        assert file.stat().st_size < 150_000
