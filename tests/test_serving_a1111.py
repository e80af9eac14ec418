"""A1111's API with webuiapi, and with the sequence of requests that SillyTavern makes."""

import base64
import io
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webuiapi
from PIL import Image

import served
import tiny
from conftest import ToyModel
from imprompt.serving.access import Access
from imprompt.serving.service import Service

# diffusers' Euler schedulers with NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

KEY = "a key of the tests"


@pytest.fixture(scope="module")
def service(toy: ToyModel) -> Iterator[Service]:
    models = [served.toy_model(toy, controls=[]), served.toy_model(toy, name="other", adapters=[])]
    settings = served.toy_settings(toy, models=models)
    with served.running_service(settings, access=Access({KEY: "tests"})) as service:
        yield service


@pytest.fixture(scope="module")
def address(service: Service) -> Iterator[str]:
    with served.live_server(service) as address:
        yield address


@pytest.fixture(scope="module")
def client(address: str) -> Any:  # its types are wrong
    return webuiapi.WebUIApi(baseurl=f"{address}/sdapi/v1", steps=3, username="anybody", password=KEY)


def call(address: str, path: str, body: Any = None) -> tuple[int, Any]:
    token = base64.b64encode(f"user:{KEY}".encode()).decode()
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address + path, data, {"Authorization": f"Basic {token}"})
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def base64_picture(seed: int = 0, mode: str = "RGB") -> str:
    file = io.BytesIO()
    tiny.picture(seed=seed).convert(mode).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_txt2img(client: Any) -> None:
    result = client.txt2img(prompt="a cat", negative_prompt="rain", seed=5, width=16, height=24, batch_size=2)
    assert [picture.size for picture in result.images] == [(16, 24)] * 2
    assert result.info["all_seeds"] == [5, 6]
    assert result.info["sampler_name"] == "Euler a"
    assert "Sampler: Euler a" in result.info["infotexts"][0]
    assert result.parameters["prompt"] == "a cat"


def test_an_ip_adapter_unit_is_a_reference(client: Any, toy: ToyModel, tmp_path: Path) -> None:
    picture: Any = tiny.picture(seed=1)
    unit = webuiapi.ControlNetUnit(
        image=picture,
        module="ip-adapter_clip_h",
        model=client.controlnet_model_list()[0] + " [0123abcd]",
        weight=0.6,
        guidance_start=0.2,
        guidance_end=0.9,
    )
    result = client.txt2img(
        prompt="a cat", seed=5, width=16, height=16, sampler_name="DDIM", controlnet_units=[unit], steps=6
    )
    reference = {"images": served.save_picture_of(1, tmp_path), "scale": 0.6, "start": 0.2, "end": 0.9}
    job = served.toy_job(toy, references=[reference], prompt="a cat", seed=5, steps=6, guidance_scale=7.0)
    expected = served.generate(job | {"scheduler": "ddim"})
    assert np.array_equal(np.asarray(result.image.convert("RGB")), expected)


def test_a_unit_may_have_several_pictures_a_region_and_weights(address: str, service: Service) -> None:
    unit = {
        "module": "ip-adapter-auto",
        "model": "None",
        "image": [{"image": base64_picture(1), "mask": None}, {"image": base64_picture(2)}],
        "effective_region_mask": base64_picture(3, "L"),
        "advanced_weighting": [1.0, 0.5, 0.0, 1.0],
        "guidance": 0.7,
    }
    body = {
        "prompt": "",
        "width": 16,
        "height": 16,
        "steps": 2,
        "alwayson_scripts": {"controlnet": {"args": [unit]}},
    }
    status, answer = call(address, "/sdapi/v1/txt2img", body)
    assert status == 200
    settings = json.loads(Image.open(io.BytesIO(base64.b64decode(answer["images"][0]))).info["imprompt"])
    (reference,) = settings["references"]
    assert len(reference["images"]) == 2
    assert reference["end"] == 0.7
    assert reference["layers"] == {"0": 1.0, "1": 0.5, "2": 0.0, "3": 1.0}
    assert reference["mask"].endswith(".png")


def test_img2img_and_inpainting(client: Any) -> None:
    original = tiny.picture(seed=1).resize((16, 16))
    mask = Image.new("L", (16, 16), 0)
    mask.paste(255, (8, 0, 16, 16))
    common: Any = {
        "images": [original],
        "prompt": "a hat",
        "width": 16,
        "height": 16,
        "seed": 1,
        "sampler_name": "DDIM",
    }
    whole = client.img2img(**common, denoising_strength=0.7)
    part = client.img2img(**common, denoising_strength=1.0, mask_image=mask)
    before = np.asarray(original.convert("RGB"))
    made = np.asarray(part.image.convert("RGB"))
    assert not np.array_equal(np.asarray(whole.image.convert("RGB")), before)
    assert np.array_equal(made[:, :8], before[:, :8])
    assert not np.array_equal(made[:, 8:], before[:, 8:])
    assert "mask_blur was ignored" in part.info["warnings"]


def test_lists(client: Any) -> None:
    assert [model["model_name"] for model in client.get_sd_models()] == ["toy", "other"]
    names = [sampler["name"] for sampler in client.get_samplers()]
    assert {"Euler", "Euler a", "DPM++ 2M", "DDIM"} <= {*names}
    assert client.get_options()["sd_model_checkpoint"] == "toy"
    assert client.get_schedulers()[1]["name"] == "karras"
    assert client.controlnet_version() == 3
    assert client.get_loras() == client.get_upscalers() == []


UNIT = {"module": "ip-adapter-auto", "image": ""}


@pytest.mark.parametrize(
    ("changes", "status", "word"),
    [
        ({"sampler_name": "Best"}, 404, "Sampler not found"),
        ({"scheduler": "sgm_uniform"}, 422, "Scheduler not found"),
        ({"enable_hr": True}, 422, "enable_hr"),
        ({"script_name": "x/y/z plot"}, 422, "script_name"),
        ({"alwayson_scripts": {"ADetailer": {"args": [True]}}}, 422, "ADetailer"),
        (
            {"alwayson_scripts": {"ControlNet": {"args": [{"ipadapter_input": "gAS", **UNIT}]}}},
            422,
            "pickled",
        ),
        ({"alwayson_scripts": {"ControlNet": {"args": [UNIT]}}}, 422, "no image"),
        (
            {"alwayson_scripts": {"ControlNet": {"args": [{"module": "canny", "image": "x"}]}}},
            422,
            "no ControlNet",
        ),
        ({"override_settings": {"sd_model_checkpoint": "nope"}}, 404, "Checkpoint not found"),
        ({"steps": 10**6}, 400, "steps may be 200"),
        ({"width": 17, "height": 17}, 400, "multiple of 8"),
    ],
)
def test_what_cannot_be_done_is_an_error_in_the_form_of_the_web_ui(
    address: str, changes: dict[str, Any], status: int, word: str
) -> None:
    code, answer = call(
        address, "/sdapi/v1/txt2img", {"prompt": "a cat", "width": 16, "height": 16, **changes}
    )
    assert code == status
    assert {*answer} == {"error", "detail", "body", "errors"}
    assert word in answer["detail"]


def test_scripts_that_are_off_are_no_error(address: str) -> None:
    body = {
        "steps": 1,
        "width": 16,
        "height": 16,
        "alwayson_scripts": {"ADetailer": {"args": [False]}, "ControlNet": {"args": []}},
    }
    assert call(address, "/sdapi/v1/txt2img", body)[0] == 200


def test_silly_tavern(address: str) -> None:
    """The sequence of its source for A1111, with Basic authentication."""
    assert call(address, "/sdapi/v1/options")[1]["sd_model_checkpoint"] == "toy"
    for path in ("sd-models", "samplers", "schedulers", "sd-vae", "upscalers", "latent-upscale-modes"):
        assert call(address, f"/sdapi/v1/{path}")[0] == 200
    assert call(address, "/sdapi/v1/options", {"sd_model_checkpoint": "other"}) == (200, {})
    progress = call(address, "/sdapi/v1/progress")[1]
    assert (progress["progress"], progress["state"]["job_count"]) == (0, 0)
    assert call(address, "/sdapi/v1/options")[1]["sd_model_checkpoint"] == "other"
    body = {
        "prompt": "a cat",
        "negative_prompt": "",
        "sampler_name": "Euler a",
        "scheduler": "karras",
        "steps": 2,
        "cfg_scale": 7,
        "width": 16,
        "height": 16,
        "restore_faces": False,
        "enable_hr": False,
        "save_images": False,
        "send_images": True,
        "do_not_save_grid": False,
        "do_not_save_samples": False,
        "override_settings": {"CLIP_stop_at_last_layers": 1},
        "override_settings_restore_afterwards": True,
    }
    assert call(address, "/sdapi/v1/txt2img", body)[0] == 404  # there is no Euler a with that schedule
    status, answer = call(address, "/sdapi/v1/txt2img", body | {"sampler_name": "Euler"})
    assert status == 200
    assert base64.b64decode(answer["images"][0]).startswith(b"\x89PNG")
    assert json.loads(answer["info"])["sd_model_name"] == "other"
    call(address, "/sdapi/v1/options", {"sd_model_checkpoint": "toy"})


def test_open_webui(address: str) -> None:
    """The sequence of its engine "automatic1111": routers/images.py."""
    options = call(address, "/sdapi/v1/options")[1]
    names = [model["title"] for model in call(address, "/sdapi/v1/sd-models")[1]]
    assert options["sd_model_checkpoint"] in names
    assert call(address, "/sdapi/v1/options", options | {"sd_model_checkpoint": "toy"}) == (200, {})
    body = {
        "prompt": "a cat",
        "batch_size": 2,
        "width": 16,
        "height": 16,
        "steps": 2,
        "negative_prompt": "rain",
    }
    status, answer = call(address, "/sdapi/v1/txt2img", body)
    assert (status, len(answer["images"])) == (200, 2)
    assert json.loads(answer["info"])["negative_prompt"] == "rain"


def test_progress_and_interrupt(address: str) -> None:
    answers: list[Any] = []
    body = {"prompt": "a cat", "width": 16, "height": 16, "steps": 200, "sampler_name": "DDIM"}
    thread = threading.Thread(target=lambda: answers.append(call(address, "/sdapi/v1/txt2img", body)))
    thread.start()
    progress: dict[str, Any] = {"state": {"sampling_step": 0}}
    end = time.monotonic() + 20
    while progress["state"]["sampling_step"] < 2 and time.monotonic() < end:
        progress = call(address, "/sdapi/v1/progress?skip_current_image=true")[1]
    assert 0 < progress["progress"] < 1
    assert progress["state"]["sampling_steps"] == 200
    assert call(address, "/sdapi/v1/interrupt", {}) == (200, {})
    thread.join(20)
    status, answer = answers[0]
    assert (status, answer["images"], json.loads(answer["info"])["interrupted"]) == (200, [], True)
    assert call(address, "/sdapi/v1/progress")[1]["state"]["job_count"] == 0


def test_nothing_without_the_key(address: str) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{address}/sdapi/v1/options")
