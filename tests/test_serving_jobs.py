"""The jobs API: jobs with events, pictures that clients send, what the server can do."""

import base64
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

import served
import tiny
from conftest import ToyModel
from imprompt.serving.app import create_app
from imprompt.serving.service import Service


@pytest.fixture(scope="module")
def service(toy: ToyModel) -> Iterator[Service]:
    limits = {"picture_megabytes": 1.0, "picture_megapixels": 1.0}
    with served.running_service(served.toy_settings(toy, limits=limits), draw=draw) as service:
        yield service


@pytest.fixture(scope="module")
def client(service: Service) -> TestClient:
    return TestClient(create_app(service), base_url="http://localhost")


def draw(seed: int) -> Image.Image:
    return tiny.picture(seed=seed % 100)


def png(seed: int = 0) -> bytes:
    file = io.BytesIO()
    tiny.picture(seed=seed).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def asset(client: TestClient) -> str:
    return client.post("/api/assets", content=png()).json()["id"]


def submit(client: TestClient, **values: Any) -> dict[str, Any]:
    response = client.post("/api/jobs", json=values)
    assert response.status_code == 202, response.text
    assert response.headers["location"] == f"/api/jobs/{response.json()['id']}"
    return response.json()


def read_events(
    client: TestClient, job: dict[str, Any], after: int = 0
) -> list[tuple[int, str, dict[str, Any]]]:
    """All events of a job: (id, name, data)."""
    headers = {"Last-Event-ID": str(after)} if after else {}
    text = client.get(job["events"], headers=headers).text
    events = []
    for block in text.strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if lines:
            events.append((int(lines.get("id", 0)), lines["event"], json.loads(lines["data"])))
    return events


def read_pictures(client: TestClient, job: dict[str, Any]) -> list[np.ndarray]:
    state = client.get(f"/api/jobs/{job['id']}").json()
    assert state["status"] == "done", state
    return [decode(client.get(picture["url"]).content) for picture in state["pictures"]]


def decode(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_events_tell_everything_in_order(client: TestClient, asset: str) -> None:
    job = submit(client, prompt="a cat", references=[{"images": asset}], steps=6, seed=4, previews=2)
    events = [event for event in read_events(client, job) if event[0]]
    assert [number for number, _, _ in events] == list(range(1, len(events) + 1))
    names = [name for _, name, _ in events]
    assert names[0] == "started"
    assert names[-2:] == ["image", "done"]
    assert [data["step"] for _, name, data in events if name == "step"] == [1, 2, 3, 4, 5, 6]
    assert [data["step"] for _, name, data in events if name == "preview"] == [2, 4]
    (image,) = [data for _, name, data in events if name == "image"]
    assert {**image} == {
        "picture": 0,
        "url": f"/api/jobs/{job['id']}/pictures/0",
        "seed": 4,
        "width": 16,
        "height": 16,
    }
    previews = [data["image"] for _, name, data in events if name == "preview"]
    assert all(preview.startswith("data:image/webp;base64,") for preview in previews)


def test_a_client_that_connects_again_gets_what_it_missed(client: TestClient) -> None:
    job = submit(client, prompt="a cat", steps=3)
    whole = [event for event in read_events(client, job) if event[0]]
    assert read_events(client, job, after=2) == whole[2:]
    assert client.get(job["events"], headers={"Last-Event-ID": str(whole[-1][0])}).status_code == 204


def test_the_picture_is_that_of_generate_and_carries_its_settings(
    client: TestClient, asset: str, toy: ToyModel, tmp_path: Path
) -> None:
    reference = {"images": asset, "scale": 0.4, "crop": "pad", "end": 0.6}
    job = submit(client, prompt="a cat", references=[reference], steps=4, seed=4, guidance_scale=2.0)
    read_events(client, job)
    (picture,) = read_pictures(client, job)
    values = reference | {"images": served.save_picture_of(0, tmp_path)}
    expected = served.toy_job(toy, prompt="a cat", references=[values], steps=4, seed=4, guidance_scale=2.0)
    assert np.array_equal(picture, served.generate(expected))
    data = client.get(f"/api/jobs/{job['id']}/pictures/0").content
    settings = json.loads(Image.open(io.BytesIO(data)).info["imprompt"])
    assert (settings["seed"], settings["steps"], settings["references"][0]["scale"]) == (4, 4, 0.4)
    assert settings["references"][0]["images"] == [f"{asset}.png"]  # no folder of the server


def test_a_strip_shows_the_strength_and_zero_is_the_picture_without_references(
    client: TestClient, asset: str
) -> None:
    scales = [None, 0.0, 0.5, 1.0]
    job = submit(client, prompt="a cat", references=[{"images": asset}], strip=scales, steps=3, seed=1)
    events = read_events(client, job)
    assert sorted(
        ((data["picture"], data["scale"]) for _, name, data in events if name == "image"),
        key=lambda one: one[0],
    ) == list(enumerate(scales))
    without, zero, half, full = read_pictures(client, job)
    assert served.differ(without, zero) <= 1  # bit for bit only if both ran in buckets of one size
    assert not np.array_equal(half, full)


def test_several_pictures_have_the_seeds_from_the_first_one_on(client: TestClient) -> None:
    job = submit(client, count=3, seed=7, steps=1)
    read_events(client, job)
    state = client.get(f"/api/jobs/{job['id']}").json()
    assert [picture["seed"] for picture in state["pictures"]] == [7, 8, 9]
    assert state["progress"] == 1


def test_a_random_seed_is_named_and_makes_the_picture_again(client: TestClient) -> None:
    first = submit(client, prompt="a cat", steps=2)
    read_events(client, first)
    second = submit(client, prompt="a cat", steps=2, seed=first["seed"])
    read_events(client, second)
    assert served.all_equal([*read_pictures(client, first), *read_pictures(client, second)])


def test_canceling_frees_the_row(client: TestClient, service: Service) -> None:
    job = submit(client, prompt="a cat", steps=200)
    state = client.delete(f"/api/jobs/{job['id']}").json()
    assert state["status"] == "canceled"
    assert [name for number, name, _ in read_events(client, job) if number][-1] == "canceled"
    assert served.wait_until(lambda: service.engine.running == 0)
    assert client.delete(f"/api/jobs/{job['id']}").json()["status"] == "canceled"


@pytest.mark.parametrize(
    ("kind", "magic"), [("png", b"\x89PNG"), ("webp", b"RIFF"), ("jpeg", b"\xff\xd8\xff")]
)
def test_formats(client: TestClient, kind: str, magic: bytes) -> None:
    job = submit(client, format=kind, quality=50, steps=1)
    read_events(client, job)
    response = client.get(f"/api/jobs/{job['id']}/pictures/0")
    assert response.content.startswith(magic)
    assert response.headers["content-type"] == f"image/{kind}"


@pytest.mark.parametrize(
    ("values", "status", "param", "word"),
    [
        ({"stepz": 3}, 400, None, "did you mean 'steps'"),
        ({"prompt": 3}, 400, "prompt", "string"),
        ({"references": [{"images": "abc"}]}, 400, None, "send it to /api/assets again"),
        ({"references": [{"images": "data:image/png;base64,!!"}]}, 400, "references[0].images", "base64"),
        ({"references": [{"images": "https://x.org/a.png"}]}, 400, None, "no picture"),
        ({"references": [{"images": "data:,", "adapter": "x"}]}, 400, "references[0].images", "base64"),
        ({"adapter": "../../secret", "references": []}, 202, None, ""),
        ({"model": "nope"}, 404, "model", "the models are toy"),
        ({"steps": 201}, 400, "steps", "200"),
        ({"count": 11}, 400, "count", "10"),
        ({"width": 8}, 400, "width", "width and height belong together"),
        ({"strip": [0.5]}, 400, "strip", "none"),
        ({"scheduler": "best"}, 400, "scheduler", "ddim"),
        ({"strength": 0.5}, 400, "strength", "init_image"),
        ({"seed": -2}, 400, "seed", "-1"),
    ],
)
def test_a_wrong_job_is_one_sentence(
    client: TestClient, values: dict[str, Any], status: int, param: str | None, word: str
) -> None:
    response = client.post("/api/jobs", json=values)
    assert response.status_code == status, response.text
    if status != 202:
        error = response.json()["error"]
        assert error["param"] == param
        assert word in error["message"]
        assert "/root" not in error["message"]
        assert "Traceback" not in response.text


def test_a_fault_that_shows_late_is_an_event(client: TestClient) -> None:
    job = submit(client, width=17, height=17)
    number, name, data = read_events(client, job)[-1]
    assert number
    assert name == "error"
    assert "multiple of 8" in data["message"]
    state = client.get(f"/api/jobs/{job['id']}").json()
    assert (state["status"], state["error"]["type"]) == ("failed", "invalid_request_error")


def test_a_full_queue_answers_429_with_the_time_to_wait(toy: ToyModel, client: TestClient) -> None:
    limits = {"queue_seconds": 0.01}
    with served.running_service(served.toy_settings(toy, limits=limits, batching={"pictures": 1})) as service:
        client = TestClient(create_app(service), base_url="http://localhost")
        jobs = [submit(client, steps=200)]
        served.wait_until(lambda: service.engine.running == 1)
        jobs.append(submit(client, steps=200))
        response = client.post("/api/jobs", json={"steps": 200})
        assert response.status_code == 429
        assert 1 <= int(response.headers["retry-after"]) <= 120
        assert response.json()["error"]["type"] == "rate_limit_error"
        waiting = client.get(f"/api/jobs/{jobs[1]['id']}").json()
        assert (waiting["status"], waiting["position"]) == ("queued", 0)
        assert waiting["eta_s"] > 0


# Pictures that clients send


def test_a_picture_that_is_sent_twice_is_stored_once(client: TestClient, service: Service) -> None:
    first = client.post("/api/assets", content=png(3))
    second = client.post("/api/assets", files={"file": ("x.png", png(3), "image/png")})
    assert first.status_code == second.status_code == 201
    assert first.json() == second.json()
    assert client.get(first.json()["url"]).content == png(3)
    names = [path.stem for path in service.assets.folder.iterdir()]
    assert names.count(first.json()["id"]) == 1


def test_a_picture_may_come_with_the_job(client: TestClient) -> None:
    uri = "data:image/png;base64," + base64.b64encode(png(5)).decode()
    job = submit(client, references=[{"images": [uri, uri], "mask": uri}], steps=1)
    assert read_events(client, job)[-1][1] == "done"


def test_the_view_is_what_the_encoder_sees(client: TestClient, toy: ToyModel) -> None:
    file = io.BytesIO()
    tiny.picture(seed=1).resize((60, 40)).save(file, "PNG")
    name = client.post("/api/assets", content=file.getvalue()).json()["id"]
    views = {
        crop: decode(client.get(f"/api/assets/{name}/view?crop={crop}").content)
        for crop in ("center", "pad", "tiles")
    }
    assert views["center"].shape == views["pad"].shape == (28, 28, 3)
    assert views["tiles"].shape == (28, 64, 3)
    assert not np.array_equal(views["center"], views["pad"])
    left = decode(client.get(f"/api/assets/{name}/view?x=0&y=0").content)
    assert np.array_equal(left, decode(client.get(f"/api/assets/{name}/view?crop=left").content))
    assert client.get(f"/api/assets/{name}/view?adapter=nope").status_code == 400


def header_of_a_bomb() -> bytes:
    """A PNG whose header promises a hundred million pixels; nothing of them follows."""
    file = io.BytesIO()
    Image.new("1", (1, 1)).save(file, "PNG")
    data = bytearray(file.getvalue())
    data[16:24] = (10_000).to_bytes(4, "big") * 2
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "no PNG, JPEG or WebP"),
        (b"GIF89a" + b"\0" * 50, "no PNG, JPEG or WebP"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "no PNG, JPEG or WebP"),
        (header_of_a_bomb(), "damaged"),
        (png()[:60], "damaged"),
        (b"\x89PNG\r\n\x1a\n" + b"x" * 2_000_000, "million"),
    ],
)
def test_a_bad_picture_is_refused_before_anything_is_decoded(
    client: TestClient, data: bytes, word: str
) -> None:
    response = client.post("/api/assets", content=data)
    assert response.status_code == 400
    assert word in response.json()["error"]["message"]


def test_a_picture_with_too_many_pixels_is_refused_by_its_header(client: TestClient) -> None:
    file = io.BytesIO()
    Image.new("1", (2000, 2000)).save(file, "PNG")
    response = client.post("/api/assets", content=file.getvalue())
    assert response.status_code == 400
    assert "4,000,000 pixels" in response.json()["error"]["message"]


def test_old_pictures_leave_but_not_those_of_unfinished_jobs(toy: ToyModel) -> None:
    limits = {"assets_megabytes": 3.5 * len(png()) / 1e6}
    with served.running_service(served.toy_settings(toy, limits=limits)) as service:
        stored = [service.assets.add_now(png(seed), "x") for seed in range(2)]
        with service.assets.hold([stored[0].id]):
            for seed in range(2, 6):
                service.assets.add_now(png(seed), "x")
            assert service.assets.find(stored[0].id).path.is_file()
        assert not stored[1].path.exists()


def test_examples_and_a_fresh_one(client: TestClient) -> None:
    examples = client.get("/api/examples").json()
    assert [example["name"] for example in examples] == ["blue-hair", "glasses", "spiky-hair"]
    assert client.get(examples[0]["url"]).headers["content-type"] == "image/png"
    fresh = client.post("/api/examples/draw", json={"seed": 12})
    assert fresh.status_code == 201
    assert np.array_equal(
        decode(client.get(fresh.json()["url"]).content), np.asarray(draw(12).convert("RGB"))
    )
    assert client.post("/api/examples/draw").status_code == 201


def test_capabilities_name_everything_that_a_page_needs(client: TestClient, toy: ToyModel) -> None:
    answer = client.get("/api/capabilities").json()
    (model,) = answer["models"]
    assert model["name"] == "toy"
    assert [adapter["name"] for adapter in model["adapters"]] == [str(toy.adapter)]
    assert model["adapters"][0]["tokens"] == 4
    assert answer["limits"]["steps"] == 200
    assert {"ddim", "euler_a"} <= {*answer["schedulers"]}
    assert "references" in answer["request"]["properties"]
    assert answer["can_draw"] is True


def test_unknown_things_are_not_found(client: TestClient) -> None:
    for path in ("/api/jobs/x", "/api/jobs/x/events", "/api/jobs/x/pictures/0", "/api/assets/x", "/nothing"):
        response = client.get(path)
        assert response.status_code == 404, path
        assert response.json()["error"]["message"]


def test_finished_jobs_are_forgotten_one_day(toy: ToyModel) -> None:
    with served.running_service(served.toy_settings(toy, limits={"finished_jobs": 2})) as service:
        client = TestClient(create_app(service), base_url="http://localhost")
        jobs = []
        for _ in range(5):
            jobs.append(submit(client, steps=1))
            read_events(client, jobs[-1])
        states = [client.get(f"/api/jobs/{job['id']}").status_code for job in jobs]
        assert states == [404, 404, 200, 200, 200]


def test_a_page_is_served_if_there_is_one(toy: ToyModel, tmp_path: Path, service: Service) -> None:
    assert TestClient(create_app(service), base_url="http://localhost").get("/").status_code == 404
    (tmp_path / "index.html").write_text("<title>imprompt</title>")
    (tmp_path / "page.js").write_text("export {}")
    with served.running_service(served.toy_settings(toy), page=tmp_path) as with_page:
        client = TestClient(create_app(with_page), base_url="http://localhost")
        answer = client.get("/")
        assert "imprompt" in answer.text
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert client.get("/page.js").status_code == 200
        assert client.get("/api/capabilities").status_code == 200
        assert client.get("/../pyproject.toml").status_code == 404


def test_the_openapi_document_describes_all_routes(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert {"/api/jobs", "/v1/images/generations", "/sdapi/v1/txt2img"} <= {*document["paths"]}
    assert "strip" in json.dumps(document["paths"]["/api/jobs"])


def test_many_clients_lose_nothing(client: TestClient, service: Service) -> None:
    results: dict[int, str] = {}

    def work(number: int) -> None:
        job = submit(client, prompt="a cat", seed=number, steps=1 + number % 3)
        results[number] = read_events(client, job)[-1][1]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == dict.fromkeys(range(12), "done")
    assert served.wait_until(lambda: service.engine.running == service.engine.waiting == 0)
