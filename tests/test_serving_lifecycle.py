"""What happens at the edges: clients that leave, a server that stops, an engine that dies."""

import asyncio
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from starlette.testclient import TestClient

import served
from conftest import ToyModel
from imprompt.serving.app import create_app
from imprompt.serving.jobs import ServedJob
from imprompt.serving.service import Service


@pytest.fixture
def service(toy: ToyModel) -> Iterator[Service]:
    with served.running_service(served.toy_settings(toy, batching={"pictures": 2})) as service:
        yield service


@pytest.fixture
def address(service: Service) -> Iterator[str]:
    with served.live_server(service) as address:
        yield address.removeprefix("http://")


def ask(address: str, path: str, values: dict[str, Any]) -> http.client.HTTPConnection:
    """Send a request and read nothing."""
    connection = http.client.HTTPConnection(address)
    connection.request("POST", path, json.dumps(values), {"Content-Type": "application/json"})
    return connection


LONG: dict[str, Any] = {"prompt": "a cat", "num_inference_steps": 200}
REQUESTS = {
    "/v1/images/generations": LONG,
    "/sdapi/v1/txt2img": {"prompt": "a cat", "steps": 200, "width": 16, "height": 16, "sampler_name": "DDIM"},
}


def count_steps(service: Service) -> int:
    return sum(done for job in service.jobs.unfinished for done, _ in job.progress.values())


@pytest.mark.parametrize("path", REQUESTS)
def test_a_client_that_hangs_up_frees_its_row(service: Service, address: str, path: str) -> None:
    connection = ask(address, path, REQUESTS[path])
    assert served.wait_until(lambda: count_steps(service) > 2)
    (job,) = service.jobs.unfinished
    connection.close()
    assert served.wait_until(lambda: job.status == "canceled")
    at_cancel = job.progress[0][0]
    assert served.wait_until(lambda: service.engine.running == 0)
    assert job.progress[0][0] <= at_cancel + 1
    metrics = service.metrics.render().decode()
    assert 'canceled_total{stage="running"} 1.0' in metrics
    assert 'code="500"' not in metrics


def test_a_client_whose_job_another_one_cancels_gets_a_conflict(service: Service, address: str) -> None:
    with contextlib.closing(ask(address, "/v1/images/generations", LONG)) as connection:
        assert served.wait_until(lambda: count_steps(service) > 0)
        (job,) = service.jobs.unfinished
        service.jobs.cancel(job)
        response = connection.getresponse()
        assert (response.status, json.load(response)["error"]["code"]) == (409, "canceled")


def test_a_client_that_hangs_up_in_a_stream_frees_its_row(service: Service, address: str) -> None:
    connection = ask(address, "/v1/images/generations", LONG | {"stream": True, "partial_images": 3})
    response = connection.getresponse()
    assert response.readline().startswith(b"event: image_generation.partial_image")
    (job,) = service.jobs.unfinished
    response.close()
    connection.close()
    assert served.wait_until(lambda: job.status == "canceled" and service.engine.running == 0)


def test_a_client_that_hangs_up_in_the_queue_leaves_it(service: Service, address: str) -> None:
    running = [ask(address, "/v1/images/generations", LONG) for _ in range(2)]
    assert served.wait_until(lambda: service.engine.running == 2)
    waiting = ask(address, "/v1/images/generations", LONG)
    assert served.wait_until(lambda: service.engine.waiting == 1)
    waiting.close()
    assert served.wait_until(lambda: service.engine.waiting == 0)
    assert service.engine.running == 2
    for connection in running:
        connection.close()
    assert served.wait_until(lambda: service.engine.running == 0)


@pytest.mark.parametrize("clients", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_many_clients_that_hang_up_lose_no_row(
    service: Service, address: str, clients: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancel, canceled = service.jobs.cancel, list[tuple[ServedJob, int]]()

    def note(job: ServedJob) -> None:
        canceled.append((job, done_steps(job)))
        cancel(job)

    monkeypatch.setattr(service.jobs, "cancel", note)
    for number in range(clients):
        connection = ask(address, "/v1/images/generations", LONG)
        if number % 3:
            served.wait_until(lambda: count_steps(service) > 0, seconds=0.05)
        connection.close()
    assert served.wait_until(
        lambda: service.engine.running == service.engine.waiting == 0 and not service.jobs.unfinished, 120
    )
    assert all(done_steps(job) <= steps + 1 for job, steps in canceled)
    with contextlib.closing(ask(address, "/v1/images/generations", {"prompt": "a cat"})) as connection:
        assert len(json.load(connection.getresponse())["data"]) == 1


def done_steps(job: ServedJob) -> int:
    return sum(done for done, _ in list(job.progress.values()))


def test_a_job_goes_on_when_a_reader_of_its_events_leaves(service: Service, address: str) -> None:
    with contextlib.closing(ask(address, "/api/jobs", {"steps": 15})) as connection:
        job = json.load(connection.getresponse())
    reader = http.client.HTTPConnection(address)
    reader.request("GET", job["events"])
    reader.getresponse().readline()
    reader.close()
    with urllib.request.urlopen(f"http://{address}{job['events']}") as answer:
        again = answer.read().decode()
    assert "event: done" in again
    assert again.count("event: step") == 15


# Draining


def test_a_server_that_stops_finishes_what_runs_and_refuses_the_rest(toy: ToyModel) -> None:
    with served.running_service(served.toy_settings(toy, batching={"pictures": 1})) as service:
        client = TestClient(create_app(service), base_url="http://localhost")
        running, waiting = (client.post("/api/jobs", json={"steps": 25}).json() for _ in range(2))
        assert served.wait_until(
            lambda: client.get(f"/api/jobs/{running['id']}").json()["status"] == "running"
        )
        draining = threading.Thread(target=lambda: asyncio.run(service.drain(30)))
        draining.start()
        assert served.wait_until(lambda: service.is_draining)
        refused = client.post("/api/jobs", json={})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert "retry-after" in refused.headers
        assert client.get("/readyz").status_code == 503
        assert client.get("/healthz").status_code == 200
        draining.join(30)
        states = [client.get(f"/api/jobs/{job['id']}").json() for job in (running, waiting)]
        assert [state["status"] for state in states] == ["done", "failed"]
        assert states[1]["error"]["code"] == "draining"


def test_what_takes_too_long_is_ended(toy: ToyModel) -> None:
    with served.running_service(served.toy_settings(toy)) as service:
        client = TestClient(create_app(service), base_url="http://localhost")
        job = client.post("/api/jobs", json={"steps": 200}).json()
        assert served.wait_until(lambda: service.engine.running == 1)
        asyncio.run(service.drain(0))
        assert client.get(f"/api/jobs/{job['id']}").json()["error"]["code"] == "draining"
        assert served.wait_until(lambda: service.engine.running == 0)


# Health


def test_the_server_is_ready_once_its_model_is_loaded(service: Service) -> None:
    client = TestClient(create_app(service), base_url="http://localhost")
    assert client.get("/readyz").json()["reason"] == "the model is being loaded"
    asyncio.run(service.warm_up())
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()) == (200, {"ready": True, "loaded": ["toy"]})


def test_every_batch_size_is_run_once_when_nothing_else_is_to_do(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imprompt.serving.service._QUIET", 0.05)
    asyncio.run(service.prime())
    assert 'images_total{model="toy"} 2.0' in service.metrics.render().decode()


def test_an_engine_that_hangs_is_not_ready(toy: ToyModel) -> None:
    with served.running_service(served.toy_settings(toy), stuck_seconds=0.2) as service:
        asyncio.run(service.warm_up())
        client = TestClient(create_app(service), base_url="http://localhost")
        release = threading.Event()
        with served.engine_of(service).store.use(service.settings.models[0], toy_request(toy)) as model:
            run = model.denoiser.run
            model.denoiser.run = lambda calls: release.wait(20) and run(calls)  # pyright: ignore[reportAttributeAccessIssue]
            job = client.post("/api/jobs", json={"steps": 1}).json()
            assert served.wait_until(lambda: client.get("/readyz").status_code == 503)
            assert client.get("/readyz").json()["reason"] == "the engine gives no sign"
            release.set()
            assert "event: done" in client.get(job["events"]).text
        assert served.wait_until(lambda: client.get("/readyz").status_code == 200)


def toy_request(toy: ToyModel) -> Any:
    from imprompt.serving.request_job import RequestJob

    return RequestJob.model_validate(served.toy_job(toy))


def test_an_engine_that_fails_answers_500_and_goes_on(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = TestClient(create_app(service), base_url="http://localhost")
    engine = served.engine_of(service)
    group, is_broken = engine._group_calls, threading.Event()
    is_broken.set()

    def fail() -> Any:
        calls = [active for active in engine._active if active.thread.status == "calling"]
        if calls and is_broken.is_set():
            is_broken.clear()
            raise SystemError("broken")
        return group()

    monkeypatch.setattr(engine, "_group_calls", fail)
    first = client.post("/v1/images/generations", json={"prompt": "a cat"})
    assert (first.status_code, first.json()["error"]["code"]) == (500, "engine_failure")
    assert "x-should-retry" not in first.headers  # the client may try again
    assert client.post("/v1/images/generations", json={"prompt": "a cat"}).status_code == 200
    assert "imprompt_engine_failures 1.0" in service.metrics.render().decode()


def test_a_dead_engine_is_not_ready_and_is_started_again(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imprompt.serving.engine.loop._PAUSE", 0.5)
    asyncio.run(service.warm_up())
    client = TestClient(create_app(service), base_url="http://localhost")
    job = client.post("/api/jobs", json={"steps": 200}).json()
    assert served.wait_until(lambda: count_steps(service) > 1)
    waiting = client.post("/api/jobs", json={"steps": 1}).json()
    engine = served.engine_of(service)
    turn = engine._turn

    def die() -> None:
        monkeypatch.setattr(engine, "_turn", turn)
        raise SystemExit

    monkeypatch.setattr(engine, "_turn", die)
    assert served.wait_until(lambda: not service.engine.is_alive)
    assert client.get("/readyz").json()["reason"] == "the engine is not running"
    assert "event: error" in client.get(job["events"]).text
    assert client.get(f"/api/jobs/{job['id']}").json()["error"]["code"] == "engine_failure"
    assert "event: done" in client.get(waiting["events"]).text
    assert client.get("/readyz").status_code == 200


def test_a_picture_for_which_there_is_no_thread_is_an_error(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("imprompt.serving.engine.picture_thread.PictureThread.start", fail)
    client = TestClient(create_app(service), base_url="http://localhost")
    answer = client.post("/v1/images/generations", json={"prompt": "a cat"})
    assert answer.json()["error"]["code"] == "engine_failure"


# The process

START_SECONDS = 300


@pytest.fixture
def process(toy: ToyModel) -> Iterator[tuple[subprocess.Popen[str], str]]:
    config = toy.base.parent / "served.toml"
    config.write_text(
        f'[[models]]\nname = "toy"\nbase = "{toy.base}"\n'
        f'adapters = ["{toy.adapter}"]\nimage_encoder = "{toy.image_encoder}"\n'
    )
    command = [sys.executable, "-m", "imprompt", "serve", str(config), "--port", "0"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    match = re.search(r"127\.0\.0\.1:\d+", process.stdout.readline())
    assert match is not None
    yield process, match[0]
    process.kill()
    process.communicate()


def is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/readyz") as answer:
            return answer.status == 200
    except OSError:
        return False


def read(address: str, path: str) -> Any:
    with urllib.request.urlopen(f"http://{address}{path}") as answer:
        return json.load(answer)


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_under_load_truncates_no_answer(
    process: tuple[subprocess.Popen[str], str], sign: signal.Signals
) -> None:
    running, address = process
    assert served.wait_until(lambda: is_ready(address), START_SECONDS)
    connections = [
        ask(address, "/v1/images/generations", {"prompt": "a cat", "num_inference_steps": 100 + n})
        for n in range(12)
    ]
    assert served.wait_until(lambda: read(address, "/api/capabilities")["queue"]["running"] == 8, 60)
    running.send_signal(sign)
    statuses = []
    for connection in connections:
        with contextlib.closing(connection):
            response = connection.getresponse()
            statuses.append(response.status)
            assert json.load(response)  # whole JSON, whatever it says
    assert {*statuses} <= {200, 503}
    assert 200 in statuses
    assert running.wait(30) == 0
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(address.split(":"))  # pyright: ignore[reportArgumentType]


@pytest.mark.slow
def test_a_killed_server_answers_again_and_its_requests_end_at_once(
    process: tuple[subprocess.Popen[str], str],
) -> None:
    supervisor, address = process
    assert served.wait_until(lambda: is_ready(address), START_SECONDS)
    with contextlib.closing(ask(address, "/api/jobs", {"steps": 200})) as connection:
        job = json.load(connection.getresponse())["id"]
    connections = [ask(address, "/v1/images/generations", LONG) for _ in range(4)]
    assert served.wait_until(lambda: read(address, "/api/capabilities")["queue"]["running"] == 5, 60)
    (worker,) = psutil.Process(supervisor.pid).children()
    worker.kill()
    start = time.monotonic()
    for connection in connections:
        with contextlib.closing(connection), pytest.raises((OSError, http.client.HTTPException)):
            connection.getresponse()
    assert not is_ready(address)
    assert time.monotonic() - start < 5
    assert served.wait_until(lambda: is_ready(address), START_SECONDS)
    with pytest.raises(urllib.error.HTTPError, match="404") as caught:
        read(address, f"/api/jobs/{job}")
    assert "the server has restarted since" in caught.value.read().decode()
    with contextlib.closing(ask(address, "/v1/images/generations", {"prompt": "a cat"})) as connection:
        assert len(json.load(connection.getresponse())["data"]) == 1


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_ends_the_server_with_a_sentence() -> None:
    command = [sys.executable, "-m", "imprompt", "serve", "/dev/stdin", "--port", "0"]
    text = '[[models]]\nname = "x"\nbase = "/nowhere/base"\n'
    result = subprocess.run(command, input=text, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].startswith("imprompt: ")
