"""Who may use the server, and how much of it: keys, hosts, origins, limits, what answers and logs reveal."""

import base64
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

import served
from conftest import Result, ToyModel
from imprompt.errors import ConfigError
from imprompt.serving.access import LOOPBACK, Access, read_keys
from imprompt.serving.api_error import ApiError
from imprompt.serving.app import build_routes, create_app
from imprompt.serving.service import Service
from imprompt.serving.settings import ServerSettings

KEY = "0123456789abcdef"


@pytest.fixture(scope="module")
def service(toy: ToyModel) -> Iterator[Service]:
    access = Access({KEY: "tests", "another key of them": "others"}, [*LOOPBACK], ["https://page.example"])
    with served.running_service(
        served.toy_settings(toy, limits={"body_megabytes": 0.01}), access=access
    ) as service:
        yield service


@pytest.fixture(scope="module")
def client(service: Service) -> TestClient:
    return TestClient(create_app(service), base_url="http://localhost")


WITH_KEY = {"Authorization": f"Bearer {KEY}"}


def all_routes(service: Service) -> list[tuple[str, str]]:
    """Every method and path of the application, in its OpenAPI document or not."""
    routes: list[Any] = build_routes(service).routes
    return [(method, route.path) for route in routes for method in getattr(route, "methods", None) or ["GET"]]


def test_every_route_but_health_needs_the_key(client: TestClient, service: Service) -> None:
    routes = [*all_routes(service), ("GET", "/"), ("GET", "/nothing"), ("POST", "/nothing")]
    assert ("GET", "/openapi.json") in routes
    assert len(routes) > 30
    for method, path in routes:
        status = client.request(method, re.sub(r"{(\w+).*?}", r"\1", path)).status_code
        is_open = path in ("/healthz", "/readyz") or path.startswith("/v1/files/")
        assert (status != 401) == is_open, (method, path, status)


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"anybody:{password}".encode()).decode()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Authorization": f"Bearer {KEY}"}, 200),
        ({"Authorization": f"bearer {KEY}"}, 200),
        ({"x-api-key": KEY}, 200),
        ({"Authorization": basic(KEY)}, 200),
        ({"Authorization": f"Bearer {KEY}x"}, 401),
        ({"Authorization": "Bearer "}, 401),
        ({"Authorization": basic("")}, 401),
        ({"Authorization": "Basic %%%"}, 401),
        ({"x-api-key": KEY[:-1]}, 401),
        ({}, 401),
    ],
)
def test_a_key_comes_in_three_ways(client: TestClient, headers: dict[str, str], status: int) -> None:
    response = client.get("/v1/models", headers=headers)
    assert response.status_code == status
    if status == 401:
        assert response.json()["error"]["type"] == "authentication_error"
        assert "Basic" in response.headers["www-authenticate"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 201),
        ({"Origin": "http://localhost"}, 201),
        ({"Origin": "https://page.example"}, 201),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 201),
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1:8000"}, 201),
        ({"Host": "[::1]:8000"}, 201),
        ({"Host": ""}, 421),
    ],
)
def test_other_pages_and_other_names_are_refused(
    client: TestClient, headers: dict[str, str], status: int
) -> None:
    picture = Path(served.__file__).parents[1] / "docs" / "examples" / "ponytail.png"
    response = client.post("/api/assets", content=picture.read_bytes(), headers=WITH_KEY | headers)
    assert response.status_code == status, response.text


def test_a_page_that_is_allowed_gets_the_headers_for_it(client: TestClient) -> None:
    allowed, other = ({"Origin": origin} for origin in ("https://page.example", "https://evil.example"))
    assert (
        client.get("/readyz", headers=allowed).headers["access-control-allow-origin"]
        == "https://page.example"
    )
    assert "access-control-allow-origin" not in client.get("/readyz", headers=other).headers


def test_a_large_body_is_refused_with_and_without_its_length(client: TestClient) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(100):
            yield b"x" * 1000

    whole = client.post("/api/assets", content=b"x" * 20_000, headers=WITH_KEY)
    parts = client.post("/api/assets", content=chunks(), headers=WITH_KEY)
    lying = client.post("/api/assets", content=b"x", headers=WITH_KEY | {"Content-Length": "9" * 30})
    assert [whole.status_code, parts.status_code, lying.status_code] == [413] * 3
    assert parts.json()["error"]["code"] == "body_too_large"
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    assert client.post("/v1/images/edits", content=chunks(), headers=WITH_KEY | form).status_code == 413


def test_a_form_of_very_many_fields_is_refused(toy: ToyModel) -> None:
    with served.running_service(served.toy_settings(toy)) as service:
        client = TestClient(create_app(service), base_url="http://localhost")
        fields = b"".join(
            b'--x\r\nContent-Disposition: form-data; name="a%d"\r\n\r\n1\r\n' % n for n in range(5000)
        )
        form = {"Content-Type": "multipart/form-data; boundary=x"}
        response = client.post("/v1/images/edits", content=fields + b"--x--\r\n", headers=form)
        assert response.status_code == 400
        assert response.json()["error"]["message"]
        broken = client.post("/v1/images/edits", content=b"nothing of that kind", headers=form)
        assert broken.status_code == 400


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"prompt": NaN}', b"[" * 50_000, b"\xff\xfe"])
@pytest.mark.parametrize(
    "path", ["/api/jobs", "/v1/images/generations", "/sdapi/v1/txt2img", "/sdapi/v1/options"]
)
def test_a_body_that_is_no_object_is_a_client_error(
    toy: ToyModel, open_client: TestClient, path: str, body: bytes
) -> None:
    response = open_client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert 400 <= response.status_code < 500 or (path.endswith("options") and b"NaN" in body)


@pytest.fixture(scope="module")
def open_client(toy: ToyModel) -> Iterator[TestClient]:
    with served.running_service(served.toy_settings(toy)) as service:
        yield TestClient(create_app(service), base_url="http://localhost")


def test_a_defect_reveals_nothing(open_client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    from imprompt.serving.routes import jobs_api

    def fail(*_: Any) -> Any:
        raise ZeroDivisionError("/home/ann/secret")

    monkeypatch.setattr(jobs_api, "describe_capabilities", fail)
    app = open_client.app
    response = TestClient(app, base_url="http://localhost", raise_server_exceptions=False).get(
        "/api/capabilities"
    )
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    assert "secret" not in response.text
    assert response.headers["x-request-id"].startswith("req_")


def test_the_log_has_request_ids_and_no_prompts(
    open_client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "imprompt"):
        response = open_client.post("/api/jobs", json={"prompt": "secret", "steps": 1})
        assert "event: done" in open_client.get(response.json()["events"]).text
    assert response.headers["x-request-id"] in caplog.text
    assert "/api/jobs" in caplog.text
    assert "secret" not in caplog.text


def test_metrics_count_by_route_and_name_no_prompt(open_client: TestClient) -> None:
    response = open_client.post("/api/jobs", json={"prompt": "secret", "steps": 2})
    open_client.get(response.json()["events"])
    text = open_client.get("/metrics").text
    assert 'imprompt_requests_total{code="202",route="/api/jobs"}' in text
    assert 'imprompt_step_seconds_count{bucket="2",model="toy"}' in text
    for name in ("queue_depth", "batch_occupancy", "memory_bytes", "images_total", "job_seconds"):
        assert f"imprompt_{name}" in text
    assert "secret" not in text


# Settings


def test_keys_are_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    file.write_text(f"# ours\n\nalice {KEY}\nanother-long-key-of-bob\n")
    assert read_keys(file) == {KEY: "alice", "another-long-key-of-bob": "key 4"}
    for content, word in (("\n", "holds none"), ("short\n", "shorter than 16")):
        file.write_text(content)
        with pytest.raises(ConfigError, match=word):
            read_keys(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_keys(tmp_path / "nowhere")


def test_without_rules_everybody_is_let_in_under_his_address() -> None:
    assert Access().check("POST", "/api/jobs", {"host": "x"}, "10.0.0.7") == "10.0.0.7"
    with pytest.raises(ApiError):
        Access({KEY: "a"}).check("GET", "/", {}, "10.0.0.7")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("models = []", "at least one"),
        ('[[models]]\nname = "a"\nbase = "mini"\n[[models]]\nname = "a"\nbase = "mini"', "two have the name"),
        ('[[models]]\nname = "a"\nbase = "mini"\nadaptors = ["mini"]', "did you mean 'adapters'"),
        ("[limits]\nstep = 3", "limits.steps"),
        ('[aliases]\nx = "y"', "there is no model 'y'"),
        ("[batching]\npictures = 0", "greater than or equal to 1"),
        ("[ray]\nreplicas = 3\nmax_replicas = 2", "max_replicas is less than replicas"),
        ("x = ", "TOML"),
        ('[[models]]\nname = "a"\nbase = "mini"\noffload = "model"', "'group' or 'sequential'"),
        ('[[models]]\nname = "a"\nbase = "mini"\nwidth = 8', "width and height belong together"),
    ],
)
def test_a_wrong_configuration_is_one_sentence(tmp_path: Path, text: str, word: str) -> None:
    file = tmp_path / "models.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=word):
        ServerSettings.from_toml(file)


def test_a_configuration_names_files_relative_to_itself(tmp_path: Path, toy: ToyModel) -> None:
    file = toy.base.parent / "models.toml"
    file.write_text(
        f'[[models]]\nname = "toy"\nbase = "{toy.base.name}"\nadapters = ["{toy.adapter.name}"]\n'
    )
    (model,) = ServerSettings.from_toml(file).models
    assert (model.base, model.adapters) == (str(toy.base), (str(toy.adapter),))


def test_names_that_clients_have_hard_coded_mean_the_first_model_or_what_an_alias_says() -> None:
    models = [{"name": name, "base": "mini"} for name in ("first", "second")]
    settings = ServerSettings.model_validate(
        {"models": models, "aliases": {"dall-e-2": "second", "x": "second"}}
    )
    names = {
        name: getattr(settings.find_model(name), "name", None)
        for name in (None, "dall-e-3", "dall-e-2", "x", "y")
    }
    assert names == {None: "first", "dall-e-3": "first", "dall-e-2": "second", "x": "second", "y": None}


# The command


def test_another_address_needs_a_key(imprompt: Any, tmp_path: Path) -> None:
    result: Result = imprompt("serve", "--host", "0.0.0.0", "--port", "0")
    assert result.code == 1
    assert "--key-file" in result.error
    (tmp_path / "keys").write_text("short")
    assert "shorter" in imprompt("serve", "--key-file", tmp_path / "keys").error


def test_a_port_in_use_is_named(imprompt: Any) -> None:
    from imprompt.serving.supervisor import listen

    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    result: Result = imprompt("serve", "--port", str(port))
    listener.close()
    assert (result.code, f"port {port}" in result.error) == (1, True)
