"""The OpenAI Images API with the official client, and with the request bodies of other clients."""

import base64
import io
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from openai import OpenAI
from PIL import Image

import served
import tiny
from conftest import ToyModel
from imprompt.serving.service import Service


@pytest.fixture(scope="module")
def service(toy: ToyModel) -> Iterator[Service]:
    with served.running_service(served.toy_settings(toy, limits={"steps": 60, "side": 64})) as service:
        yield service


@pytest.fixture(scope="module")
def address(service: Service) -> Iterator[str]:
    with served.live_server(service) as address:
        yield address


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


def png(seed: int = 0, size: tuple[int, int] | None = None) -> bytes:
    picture = tiny.picture(seed=seed)
    return encode(picture if size is None else picture.resize(size))


def encode(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def decode(text: str | None) -> np.ndarray:
    assert text is not None
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB"))


def test_a_picture_from_a_text(client: OpenAI) -> None:
    response = client.images.generate(prompt="a cat", model="toy", n=2, extra_body={"seed": 7})
    assert response.data is not None
    first, second = (decode(one.b64_json) for one in response.data)
    assert first.shape == (16, 16, 3)
    assert not np.array_equal(first, second)
    assert [one.model_extra for one in response.data] == [{"seed": 7}, {"seed": 8}]
    assert (response.output_format, response.background, response.size) == ("png", "opaque", "16x16")
    assert response.model_extra is not None
    assert (response.model_extra["model"], response.model_extra["warnings"]) == ("toy", [])


def test_an_edit_is_the_picture_of_generate_with_these_references(
    client: OpenAI, toy: ToyModel, tmp_path: Path
) -> None:
    files = [tmp_path / f"{seed}.png" for seed in range(2)]
    for seed, file in enumerate(files):
        file.write_bytes(png(seed))
    references = [{"image": 1, "scale": 0.4, "end": 0.8}, {"image": 0, "mode": "full"}]
    extra = {"references": json.dumps(references), "seed": 3, "num_inference_steps": 4, "guidance_scale": 2.5}
    response = client.images.edit(
        image=[file.read_bytes() for file in files],
        prompt="a dog",
        extra_body=extra | {"negative_prompt": "rain"},
    )
    job = served.toy_job(toy, prompt="a dog", negative_prompt="rain", seed=3, steps=4, guidance_scale=2.5)
    job["references"] = [{"images": str(files[1]), "scale": 0.4, "end": 0.8}, {"images": str(files[0])}]
    assert response.data is not None
    assert np.array_equal(decode(response.data[0].b64_json), served.generate(job))


@pytest.mark.parametrize("count", [1, 3])
def test_all_pictures_of_an_edit_are_references(client: OpenAI, count: int) -> None:
    pictures: Any = [(f"{seed}.png", png(seed), "image/png") for seed in range(count)]
    response = client.images.edit(
        image=pictures if count > 1 else pictures[0], prompt="", input_fidelity="high"
    )
    assert response.model_extra is not None
    assert response.model_extra["references_used"] == count


def test_a_mask_says_what_of_the_first_picture_is_repainted(client: OpenAI) -> None:
    original = tiny.picture(seed=1).resize((16, 16))
    alpha = Image.new("L", (16, 16), 255)
    alpha.paste(0, (8, 0, 16, 16))
    mask = original.convert("RGBA")
    mask.putalpha(alpha)
    response = client.images.edit(
        image=[encode(original), png(2)], mask=encode(mask), prompt="a hat", size="16x16"
    )
    assert response.data is not None
    made, before = decode(response.data[0].b64_json), np.asarray(original.convert("RGB"))
    assert np.array_equal(made[:, :8], before[:, :8])
    assert not np.array_equal(made[:, 8:], before[:, 8:])


def test_streaming_sends_previews_and_then_the_picture(client: OpenAI) -> None:
    stream = client.images.generate(
        prompt="a cat", stream=True, partial_images=2, extra_body={"num_inference_steps": 9, "seed": 1}
    )
    events = list(stream)
    kinds = [event.type for event in events]
    assert kinds == [*["image_generation.partial_image"] * 2, "image_generation.completed"]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]  # pyright: ignore[reportAttributeAccessIssue]
    whole = client.images.generate(prompt="a cat", extra_body={"num_inference_steps": 9, "seed": 1})
    assert whole.data is not None
    assert np.array_equal(decode(events[-1].b64_json), decode(whole.data[0].b64_json))


def test_an_error_in_a_stream_reaches_the_client(client: OpenAI) -> None:
    stream = client.images.edit(
        image=png(), prompt="x", stream=True, extra_body={"references": '[{"image":0,"without":"y"}]'}
    )
    with pytest.raises(openai.APIError, match="without"):
        list(stream)


@pytest.mark.parametrize(
    ("changes", "status", "param", "word"),
    [
        ({"model": "gpt-9"}, 404, "model", "the models are toy"),
        ({"size": "4096x4096"}, 400, "width", "64"),
        ({"size": "17x17"}, 400, None, "multiple of 8"),
        ({"size": "big"}, 400, "size", "512x768"),
        ({"n": 11}, 400, "count", "10"),
        ({"background": "transparent"}, 400, "background", "opaque"),
        ({"output_format": "gif"}, 400, "output_format", "png"),
        ({"extra_body": {"num_inference_steps": 61}}, 400, "steps", "60"),
        ({"extra_body": {"seed": "x"}}, 400, "seed", "whole number"),
        ({"extra_body": {"references": [{"image": 3}]}}, 400, "references", "no picture 3"),
        ({"extra_body": {"references": [{"image": "http://10.0.0.1/a.png"}]}}, 400, None, "no picture"),
    ],
)
def test_a_wrong_request_is_a_typed_error_that_names_the_field(
    client: OpenAI, changes: dict[str, Any], status: int, param: str | None, word: str
) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        client.images.generate(**{"prompt": "a cat", **changes})
    error = caught.value
    assert isinstance(error, {404: openai.NotFoundError, 400: openai.BadRequestError}[status])
    assert (error.param, error.type) == (param, "invalid_request_error")
    assert word in str(error)
    assert error.request_id is not None


def test_unknown_fields_are_named_in_a_warning(client: OpenAI) -> None:
    response = client.images.generate(prompt="a cat", user="me", extra_body={"enable_teacache": True})
    assert response.model_extra is not None
    assert response.model_extra["warnings"] == ["enable_teacache is not known here and was ignored"]


@pytest.mark.filterwarnings("default")
def test_words_that_the_model_does_not_read_are_a_warning(client: OpenAI) -> None:
    response = client.images.generate(prompt="a very long text", model="toy")
    assert response.model_extra is not None
    assert "drops" in response.model_extra["warnings"][0]


@pytest.mark.parametrize(
    ("kind", "magic"), [("png", b"\x89PNG"), ("webp", b"RIFF"), ("jpeg", b"\xff\xd8\xff")]
)
def test_formats(client: OpenAI, kind: Any, magic: bytes) -> None:
    response = client.images.generate(prompt="a cat", output_format=kind, output_compression=60)
    assert response.data is not None
    assert base64.b64decode(response.data[0].b64_json or "").startswith(magic)


def test_a_link_is_good_without_a_key_and_only_as_it_is(client: OpenAI) -> None:
    response = client.images.generate(prompt="a cat", response_format="url")
    assert response.data is not None
    link = response.data[0].url or ""
    with urllib.request.urlopen(link) as answer:
        assert answer.read().startswith(b"\x89PNG")
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(link.replace("signature=", "signature=0"))
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(link.replace("signature=", "signature=%C3%A9"))


def test_models_and_names_that_clients_have_hard_coded(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["toy"]
    assert client.models.retrieve("toy").id == "toy"
    response = client.images.generate(prompt="a cat", model="dall-e-3")
    assert response.model_extra is not None
    assert response.model_extra["model"] == "toy"


def test_a_refused_request_is_tried_again_after_the_time_that_the_answer_names(
    address: str, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    from imprompt.serving.engine.base import QueueFull

    submit, refusals = service.jobs.submit, iter([QueueFull(0.2)])

    def refuse_once(*arguments: Any) -> Any:
        for refusal in refusals:
            raise refusal
        return submit(*arguments)

    monkeypatch.setattr(service.jobs, "submit", refuse_once)
    with OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=1) as client:
        response = client.images.generate(prompt="a cat")
    assert response.data is not None


# What other clients send


def post(address: str, path: str, body: bytes, kind: str, **headers: str) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(address + path, body, {"Content-Type": kind, **headers})
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def multipart(*parts: tuple[str, bytes | str]) -> bytes:
    """A form as aiohttp writes it."""
    lines = []
    for name, value in parts:
        is_file = isinstance(value, bytes)
        disposition = f'form-data; name="{name}"' + ('; filename="image.png"' if is_file else "")
        kind = b"\r\nContent-Type: image/png" if is_file else b""
        data = value if isinstance(value, bytes) else value.encode()
        lines += [b"--x", b"Content-Disposition: " + disposition.encode() + kind, b"", data]
    return b"\r\n".join([*lines, b"--x--", b""])


def test_open_webui_generates(address: str) -> None:
    """The body of routers/images.py, engine "openai"."""
    body = {"model": "dall-e-2", "prompt": "a cat", "n": 1, "size": "16x16", "response_format": "b64_json"}
    status, answer = post(
        address,
        "/v1/images/generations",
        json.dumps(body).encode(),
        "application/json",
        Authorization="Bearer x",
    )
    assert status == 200
    assert base64.b64decode(answer["data"][0]["b64_json"]).startswith(b"\x89PNG")  # it takes it for PNG


@pytest.mark.parametrize("name", ["image", "image[]", "images", "images[]", "image[0]", "url", "url[]"])
def test_pictures_under_every_name_and_in_chunks(address: str, name: str) -> None:
    """Open WebUI edits with a chunked form, without Content-Length; others use the other names."""
    import http.client

    texts = {"model": "default", "prompt": "a hat", "n": "1", "size": "16x16", "response_format": "b64_json"}
    picture: bytes | str = png()
    if name.startswith("url"):
        picture = "data:image/png;base64," + base64.b64encode(png()).decode()
    body = multipart(*texts.items(), (name, picture), (name, picture))
    connection = http.client.HTTPConnection(address.removeprefix("http://"))
    pieces = (body[start : start + 500] for start in range(0, len(body), 500))
    connection.request(
        "POST",
        "/v1/images/edits",
        pieces,
        {"Content-Type": "multipart/form-data; boundary=x"},
        encode_chunked=True,
    )
    answer = json.load(connection.getresponse())
    connection.close()
    assert answer["references_used"] == 2


def test_an_edit_in_json(address: str) -> None:
    uri = "data:image/png;base64," + base64.b64encode(png()).decode()
    body: dict[str, Any] = {"prompt": "a hat", "images": [{"image_url": uri}, {"image_url": {"url": uri}}]}
    status, answer = post(address, "/v1/images/edits", json.dumps(body).encode(), "application/json")
    assert (status, answer["references_used"]) == (200, 2)
    body["images"] = [{"image_url": "https://example.org/cat.png"}]
    status, answer = post(address, "/v1/images/edits", json.dumps(body).encode(), "application/json")
    assert status == 400
    assert "fetches none" in answer["error"]["message"]


def test_a_repeated_request_joins_the_job_of_the_first(address: str, service: Service) -> None:
    body = json.dumps({"prompt": "a cat"}).encode()
    headers = {"Idempotency-Key": "abc"}
    answers = [
        post(address, "/v1/images/generations", body, "application/json", **headers)[1] for _ in range(2)
    ]
    assert answers[0]["data"] == answers[1]["data"]  # though the seed is random
    other = post(address, "/v1/images/generations", body, "application/json")[1]
    assert other["data"] != answers[0]["data"]
