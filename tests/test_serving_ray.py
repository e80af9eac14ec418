"""Two replicas on a Ray of this machine: the pictures of one engine, and what dies with a replica.

    IMPROMPT_TEST_RAY=1 python -m pytest -m slow tests/test_serving_ray.py

They run alone, because Ray has ended the process of tests after them.
"""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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


# The command

AUTOSCALING = """
[ray]
replicas = 1
max_replicas = 2
gpus = 0
cpus = 0.5
[batching]
pictures = 2
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    (tmp_path / "models.toml").write_text(AUTOSCALING)
    command = [
        sys.executable,
        "-m",
        "imprompt",
        "serve",
        str(tmp_path / "models.toml"),
        "--ray",
        "--port",
        "0",
    ]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"},
        )
    assert process.stdout is not None
    match = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
    assert match is not None
    assert served.wait_until(lambda: read_gauge(match[0], "replicas") == 1, START_SECONDS)
    assert served.wait_until(lambda: read_gauge(match[0], "loaded_models") == 1, START_SECONDS)
    yield process, match[0]
    process.kill()
    process.communicate()


def read_gauge(address: str, name: str) -> float:
    with urllib.request.urlopen(f"{address}/metrics") as answer:
        text = answer.read().decode()
    match = re.search(rf"^imprompt_{name} (.+)$", text, re.MULTILINE)
    assert match is not None
    return float(match[1])


def draw(address: str, steps: int) -> int:
    body = {"prompt": "a face", "size": "128x128", "num_inference_steps": steps}
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(
        f"{address}/v1/images/generations", json.dumps(body).encode(), headers=headers
    )
    with urllib.request.urlopen(request) as answer:
        assert json.load(answer)["data"]
        return answer.status


def test_with_the_load_comes_a_second_replica(server: tuple[subprocess.Popen[str], str]) -> None:
    _, address = server
    with ThreadPoolExecutor(16) as pool:
        jobs = [pool.submit(draw, address, 100) for _ in range(32)]
        assert served.wait_until(lambda: read_gauge(address, "replicas") == 2, START_SECONDS)
        assert {job.result() for job in jobs} == {200}


def test_a_signal_lets_pictures_be_finished_and_leaves_no_process_of_ray(
    server: tuple[subprocess.Popen[str], str], tmp_path: Path
) -> None:
    process, address = server
    with ThreadPoolExecutor() as pool:
        # Ray's own handler of the signal ended the process after three seconds.
        job = pool.submit(draw, address, 150)
        assert served.wait_until(lambda: read_gauge(address, "running") == 1, 60)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        assert job.result() == 200
    assert process.wait(60) == 0
    assert served.wait_until(lambda: not any(child.is_running() for child in children), 60)
    assert "SIGTERM received" not in (tmp_path / "log").read_text()
