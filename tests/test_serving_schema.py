"""The answers are those that /openapi.json describes, whatever Schemathesis sends."""

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis import checks

import served
from conftest import ToyModel
from imprompt.serving.app import create_app

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def schema(toy: ToyModel) -> Iterator[Any]:
    limits = {"steps": 2, "side": 32, "count": 2}
    with served.running_service(served.toy_settings(toy, limits=limits)) as service:
        yield schemathesis.openapi.from_asgi("/openapi.json", create_app(service))


schema_of_server = schemathesis.pytest.from_fixture("schema")

CHECKS = [
    checks.not_a_server_error,
    checks.CHECKS.get_one("status_code_conformance"),
    checks.CHECKS.get_one("content_type_conformance"),
    checks.CHECKS.get_one("response_schema_conformance"),
]


@schema_of_server.parametrize()
@settings(
    max_examples=10,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
def test_answers_are_as_described(case: Any) -> None:
    case.headers = {**(case.headers or {}), "Host": "localhost"}
    case.call_and_validate(checks=CHECKS)
