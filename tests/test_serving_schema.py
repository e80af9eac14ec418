"""The answers are those that /openapi.json describes, whatever Schemathesis sends."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from schemathesis import checks

import served
import tiny
from conftest import ToyModel
from imprompt.serving.app import create_app

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def schema(toy: ToyModel) -> Iterator[Any]:
    limits = {"steps": 2, "side": 32, "count": 2}
    settings = served.toy_settings(toy, limits=limits)
    with served.running_service(settings, draw=lambda seed: tiny.picture(seed=seed)) as service:
        asyncio.run(service.warm_up())
        yield schemathesis.openapi.from_asgi("/openapi.json", create_app(service))


checks.load_all_checks()
NAMES = ("not_a_server_error", "status_code_conformance", "content_type_conformance")
CHECKS = [checks.CHECKS.get_one(name) for name in (*NAMES, "response_schema_conformance")]


QUICK = hypothesis_settings(
    max_examples=10,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def test_answers_are_as_described(schema: Any, subtests: pytest.Subtests) -> None:
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) > 30
    for operation in operations:

        @QUICK
        @given(case=operation.as_strategy())
        def check(case: Any) -> None:
            case.headers = {**(case.headers or {}), "Host": "localhost"}
            case.call_and_validate(checks=CHECKS)

        with subtests.test(operation.label):
            check()
