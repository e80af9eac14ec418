"""The page of `imprompt serve` in Chromium: servers that are full, gone, behind a key, or of other models."""

import json
from collections.abc import Iterator

import pytest
from selenium.webdriver import Chrome

import served
from browsing import PAGE, Page, post, running_browser
from conftest import ToyModel
from imprompt.serving.access import Access
from imprompt.serving.settings import ServerSettings

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with running_browser(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


def test_a_server_that_is_full_or_gone_is_said(toy: ToyModel, browser: Chrome) -> None:
    settings = served.toy_settings(toy, limits={"queue_seconds": 1e-9})
    with served.running_service(settings, page=PAGE) as service:
        with served.live_server(service) as address:
            page = Page(browser, address)
            page.open()
            assert page.generate()["status"] == "done"
            page.set("[name=steps]", 200)
            job = json.loads(post(address, "/api/jobs", {"steps": 200, "count": 10}))
            page.click("#generate")
            page.wait(lambda: "again in" in page.text("#fault"))
            assert page.text("#generate") == "Generate"
            assert job["status"] == "queued"
        page.click("#generate")
        page.wait(lambda: page.text("#fault") == "The server does not answer. Does it still run?")


def test_another_model_brings_its_own_choices(toy: ToyModel, browser: Chrome) -> None:
    models = [
        served.toy_model(toy),
        {"name": "mini", "base": "mini", "adapters": ["mini", "mini-plus"], "controls": ["mini"]},
    ]
    models.append(served.toy_model(toy, name="bare", adapters=[]))
    settings = ServerSettings.model_validate({"models": models})
    with served.running_service(settings, page=PAGE) as service, served.live_server(service) as address:
        page = Page(browser, address)
        page.open()
        page.complaints()
        page.click("#more summary")
        assert (page.value("[name=steps]"), page.value("[name=prompt]")) == ("2", "")
        assert not page.all("#control")
        assert not page.all("[name=adapter]")
        page.set("header select", "mini")
        assert page.value("[name=steps]") == "25"
        assert page.all("#control")
        page.set("[name=adapter]", "mini-plus")
        page.reload()
        assert (page.value("header select"), page.value("[name=adapter]")) == ("mini", "mini-plus")
        page.set("header select", "toy")
        page.click("#welcome .tile")
        assert page.finish()["model"] == "toy"
        page.wait(lambda: "ease in" in page.text(".card [name=layers]"))  # known once the model is in memory
        page.set("header select", "bare")
        assert not page.all("#prompts")
        run = page.generate()
        assert (run["status"], "references" in run["request"]) == ("done", False)
        page.set("header select", "toy")
        assert len(page.all(".card")) == 1
        assert page.complaints() == []


def test_the_browser_asks_for_the_key_and_sends_it_everywhere(toy: ToyModel, browser: Chrome) -> None:
    access = Access(keys={"a-key-of-the-tests": "somebody"})
    settings = served.toy_settings(toy)
    with (
        served.running_service(settings, page=PAGE, access=access) as service,
        served.live_server(service) as address,
    ):
        # As if somebody had typed it into the browser's own dialog, which no test can reach.
        browser.get(address.replace("//", "//anybody:a-key-of-the-tests@") + "/icon.svg")
        page = Page(browser, address)
        page.open()
        assert page.generate()["status"] == "done"
        page.wait(lambda: page.run("return document.querySelector('.frame img').naturalWidth"))
