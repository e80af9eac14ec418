"""Whatever a client sends, the answer is no failure of the server: random JSON, random pictures."""

import io
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

import served
import tiny
from conftest import ToyModel
from imprompt.serving.app import create_app
from imprompt.serving.engine.base import QueueFull
from imprompt.serving.requests import GenerationRequest, ReferenceRequest

QUICK = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def client(toy: ToyModel) -> Iterator[TestClient]:
    """A server that checks everything, and then says that its queue is full."""

    def refuse(*_: Any) -> Any:
        raise QueueFull(1.0)

    with served.running_service(served.toy_settings(toy)) as service:
        service.jobs.submit = refuse  # pyright: ignore[reportAttributeAccessIssue]
        yield TestClient(create_app(service), base_url="http://localhost")


ASSET = "0b8835aafce03ca2ab6ddeac5439017d73d27c407e7a4cf5f9cb1f419e34ddfb"
"""An example picture's id."""

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(
        [ASSET, PIXEL, f"data:image/png;base64,{PIXEL}", "auto", "16x16", "style", "center", 0, 1, 8, 0.5]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def objects(*names: str, **special: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """JSON objects with some of these fields, each with any value."""
    return st.fixed_dictionaries({}, optional=dict.fromkeys(names, values) | special)


references = st.lists(objects(*ReferenceRequest.model_fields, images=st.just(ASSET) | values), max_size=2)
jobs = objects(*GenerationRequest.model_fields, references=references | values)
IMAGES = (
    "prompt model n size quality background output_format output_compression seed mask image images stream "
    "partial_images response_format num_inference_steps ip_adapter_scale input_fidelity image_role strength "
    "scheduler anything"
)
UNIT = "enabled image weight guidance_start guidance_end mask model advanced_weighting"
WEBUI = (
    "prompt negative_prompt seed steps cfg_scale width height batch_size n_iter mask sampler_name "
    "sampler_index scheduler override_settings init_images denoising_strength enable_hr script_name "
    "inpainting_mask_invert"
)
images = objects(*IMAGES.split(), references=references | values | st.just('[{"image": 0}]'))
units = st.lists(objects(*UNIT.split(), module=st.just("ip-adapter-auto") | values), max_size=2)
scripts = st.fixed_dictionaries({"ControlNet": st.fixed_dictionaries({"args": units | values})})
webui = objects(*WEBUI.split(), alwayson_scripts=scripts | values)


def check(client: TestClient, path: str, body: object) -> None:
    try:
        response = client.post(path, json=body)
    except ValueError:  # JSON has no such number or text
        return
    assert 400 <= response.status_code < 500, (response.status_code, response.text, body)
    assert "Traceback" not in response.text


@QUICK
@given(body=jobs)
def test_jobs(client: TestClient, body: object) -> None:
    check(client, "/api/jobs", body)


@QUICK
@given(body=images, is_edit=st.booleans())
def test_images(client: TestClient, body: object, is_edit: bool) -> None:
    check(client, "/v1/images/edits" if is_edit else "/v1/images/generations", body)


@QUICK
@given(body=webui, has_picture=st.booleans())
def test_webui(client: TestClient, body: object, has_picture: bool) -> None:
    check(client, "/sdapi/v1/img2img" if has_picture else "/sdapi/v1/txt2img", body)


def encode(kind: str) -> bytes:
    file = io.BytesIO()
    tiny.picture(seed=0).convert("RGB").save(file, kind)
    return file.getvalue()


FILES = [encode(kind) for kind in ("PNG", "JPEG", "WEBP")]
changes = st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=8)


@QUICK
@given(data=st.sampled_from(FILES), changes=changes, end=st.integers(0, 3000))
def test_pictures(client: TestClient, data: bytes, changes: list[tuple[int, int]], end: int) -> None:
    changed = bytearray(data)
    for place, value in changes:
        changed[place % len(changed)] = value
    response = client.post("/api/assets", content=bytes(changed[:end]))
    assert response.status_code in (201, 400), response.text
