"""Two replicas on a Ray of this machine: the pictures of one engine, and what dies with a replica.

    IMPROMPT_TEST_RAY=1 python -m pytest -m slow tests/test_serving_ray.py

They run alone, because Ray has ended the process of tests after them.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image
from starlette.testclient import TestClient

import served
import tiny
from conftest import ToyModel
from imprompt.serving.app import create_app
from imprompt.serving.engine.ray_engine import RayEngine
from imprompt.serving.service import Service

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),
    pytest.mark.skipif(not os.environ.get("IMPROMPT_TEST_RAY"), reason="set IMPROMPT_TEST_RAY=1"),
]

PICTURES = 2
START_SECONDS = 300


@pytest.fixture(scope="module")
def service(toy: ToyModel) -> Iterator[Service]:
    pytest.importorskip("ray.serve", reason="Ray Serve is not installed: pip install 'imprompt[ray]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        patch.setenv("RAY_worker_niceness", "0")  # by default its processes wait for all others
        patch.setenv("OMP_NUM_THREADS", "1")
        replicas = {"replicas": 2, "cpus": 0.5}
        settings = served.toy_settings(toy, ray=replicas, batching={"pictures": PICTURES})
        with served.running_service(settings) as service:
            assert served.wait_until(lambda: replicas_of(service) == 2, START_SECONDS)
            yield service


@pytest.fixture
def client(service: Service) -> TestClient:
    return TestClient(create_app(service), base_url="http://localhost")


def replicas_of(service: Service) -> int:
    assert isinstance(service.engine, RayEngine)
    return service.engine.replicas


def replica_processes() -> list[psutil.Process]:
    processes = psutil.Process().children(recursive=True)
    return [process for process in processes if "ServeReplica:imprompt" in process.cmdline()[:1][0]]


def send(client: TestClient, path: Path) -> str:
    return client.post("/api/assets", content=path.read_bytes()).json()["id"]


def read_picture(client: TestClient, job: dict[str, Any], tmp_path: Path) -> np.ndarray:
    assert "event: done" in client.get(job["events"]).text
    (tmp_path / "made.png").write_bytes(client.get(f"/api/jobs/{job['id']}/pictures/0").content)
    return np.asarray(Image.open(tmp_path / "made.png"))


def test_a_replica_makes_the_picture_of_generate(client: TestClient, toy: ToyModel, tmp_path: Path) -> None:
    tiny.picture(seed=1).save(tmp_path / "cat.png")
    reference = {"images": send(client, tmp_path / "cat.png"), "scale": 0.7}
    body = {"references": [reference], "prompt": "a cat", "seed": 5, "steps": 3, "previews": 1}
    job = client.post("/api/jobs", json=body).json()
    events = client.get(job["events"]).text
    assert events.count("event: step") == 3
    assert "event: preview" in events
    expected = served.toy_job(
        toy,
        references=[{"images": str(tmp_path / "cat.png"), "scale": 0.7}],
        prompt="a cat",
        seed=5,
        guidance_scale=7.5,
    )
    assert np.array_equal(read_picture(client, job, tmp_path), served.generate(expected))


def test_what_an_encoder_sees_comes_from_a_replica(client: TestClient, tmp_path: Path) -> None:
    tiny.picture(seed=1).save(tmp_path / "cat.png")
    answer = client.get(f"/api/assets/{send(client, tmp_path / 'cat.png')}/view")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")


def test_a_wrong_request_is_the_clients_fault(client: TestClient) -> None:
    job = client.post("/api/jobs", json={"width": 17, "height": 17}).json()
    client.get(job["events"])
    error = client.get(f"/api/jobs/{job['id']}").json()["error"]
    assert (error["type"], "multiple of 8" in error["message"]) == ("invalid_request_error", True)


def test_a_canceled_job_frees_its_replica(client: TestClient, service: Service) -> None:
    job = client.post("/api/jobs", json={"steps": 200}).json()
    assert served.wait_until(lambda: client.get(f"/api/jobs/{job['id']}").json()["progress"] > 0, 60)
    client.delete(f"/api/jobs/{job['id']}")
    assert served.wait_until(lambda: service.engine.running == 0, 60)
    assert client.get(f"/api/jobs/{job['id']}").json()["status"] == "canceled"


def test_with_a_replica_die_only_the_pictures_that_it_was_computing(
    client: TestClient, service: Service
) -> None:
    jobs = [client.post("/api/jobs", json={"steps": 80, "seed": seed}).json() for seed in range(6)]

    def states() -> list[dict[str, Any]]:
        return [client.get(f"/api/jobs/{job['id']}").json() for job in jobs]

    assert served.wait_until(lambda: sum(0 < one["progress"] < 1 for one in states()) == 2 * PICTURES, 120)
    running = {one["id"] for one in states() if one["status"] == "running"}
    replica_processes()[0].kill()
    for job in jobs:
        client.get(job["events"])
    failed = [one for one in states() if one["status"] == "failed"]
    assert 1 <= len(failed) <= PICTURES
    assert {one["id"] for one in failed} <= running
    assert {one["error"]["code"] for one in failed} == {"engine_failure"}
    assert {one["status"] for one in states() if one not in failed} == {"done"}
    assert served.wait_until(lambda: replicas_of(service) == 2, START_SECONDS)
    assert len(replica_processes()) == 2
