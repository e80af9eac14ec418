"""The files of the page of `imprompt serve`: served as they should be, small, and in step with the API."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from starlette.testclient import TestClient

import served
import tiny
from conftest import ToyModel
from imprompt.serving.app import create_app
from imprompt.serving.requests import GenerationRequest, ReferenceRequest
from imprompt.serving.service import EXAMPLES

PAGE = EXAMPLES.parent / "page"
FILES = sorted(path.name for path in PAGE.iterdir())
POLICY = "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

SVG = "http://www.w3.org/2000/svg"
"""A name, which no browser fetches."""


def read(name: str) -> str:
    return (PAGE / name).read_text(encoding="utf-8")


SCRIPTS = "\n".join(read(name) for name in FILES if name.endswith(".js"))


@pytest.fixture(scope="module")
def client(toy: ToyModel) -> Iterator[TestClient]:
    with served.running_service(served.toy_settings(toy), page=PAGE, draw=draw) as service:
        yield TestClient(create_app(service), base_url="http://localhost")


def draw(seed: int) -> Image.Image:
    return tiny.picture(seed=seed % 100)


def test_every_file_is_served_with_its_type_and_the_policy(client: TestClient) -> None:
    for name in ("", *FILES):
        response = client.get(f"/{name}")
        assert response.status_code == 200
        kind = TYPES[Path(name or "index.html").suffix]
        assert response.headers["content-type"].partition(";")[0] == kind
        assert response.headers["content-security-policy"] == POLICY
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.content == (PAGE / (name or "index.html")).read_bytes()


def test_the_page_has_less_than_60_kilobytes_in_all() -> None:
    assert sum((PAGE / name).stat().st_size for name in FILES) < 60 * 1024


def test_the_page_needs_no_other_address_and_nothing_inline() -> None:
    for name in FILES:
        assert not re.search(r"(https?:)?//[a-z]", read(name).replace(SVG, "")), name
    page = read("index.html")
    assert re.findall(r"<script[^>]*>", page) == ['<script type="module" src="main.js">']
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", page)
    modules = {name for names in re.findall(r'from "\./([\w.]+)"', SCRIPTS) for name in [names]}
    assert modules | {"main.js"} == {name for name in FILES if name.endswith(".js")}


def test_the_scripts_look_for_elements_that_the_page_has() -> None:
    page = read("index.html")
    for name in re.findall(r'\$\$?\("#([\w-]+)', SCRIPTS):
        assert f'id="{name}"' in page, name
    buttons = set(re.findall(r'data-act="(\w+)"', page))
    assert buttons == set(re.findall(r"^\t(\w+): (?:async )?\(", read("main.js"), re.MULTILINE)) | {"paint"}


def test_the_page_uses_routes_fields_and_events_that_the_api_has(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    called = re.findall(r'"(GET|POST|DELETE)", [`"](/api/[^`"]*)', read("api.js"))
    assert len(called) >= 7
    for method, path in called:
        route = re.sub(r"\$\{id\}", "{name}", path)
        assert method.lower() in paths[route], (method, route)
    assert "/api/jobs/{name}/events" in paths
    assert "/api/assets/{name}/view" in paths
    fields = set(re.findall(r'name="(\w+)"', read("index.html").partition("<template>")[0])) - {"viewport"}
    assert fields <= set(GenerationRequest.model_fields)
    cards = set(re.findall(r'name="(\w+)"', read("index.html").partition("<template>")[2]))
    assert cards - {"on"} <= set(ReferenceRequest.model_fields)
    documented = re.findall(r"^\| `(\w+)` \|", served_events(), re.MULTILINE)
    names = re.findall(
        r'"(\w+)"', "".join(re.findall(r"^const (?:ENDS|EVENTS) = .*$", read("api.js"), re.MULTILINE))
    )
    assert set(names) == set(documented)


def served_events() -> str:
    text = (Path(__file__).parents[1] / "docs" / "serving.md").read_text(encoding="utf-8")
    return text.partition("### Events")[2].partition("###")[0]
