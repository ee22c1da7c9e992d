"""The OpenAPI description: it is valid, it names every field, and requests made from it never break the gateway."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import given as given_by
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from softprompt.gateway.app import API
from softprompt.gateway.openapi import openapi
from tests.softprompt.gateway.running import World

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
OPERATIONS = [(method, path.replace(":path", "")) for method, path, _ in API]


def test_every_endpoint_is_described_and_the_description_is_served(http: httpx.Client) -> None:
    described = http.get("/openapi.json").json()
    assert described == openapi(API)
    assert {(method.upper(), path) for path, one in described["paths"].items() for method in one} == set(OPERATIONS)
    chat = described["components"]["schemas"]["ChatRequest"]
    assert chat["additionalProperties"] is False
    assert {"model", "messages", "stream", "response_format", "tools", "logit_bias"} <= set(chat["properties"])


@pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
@pytest.mark.parametrize(("method", "path"), OPERATIONS, ids=[" ".join(operation) for operation in OPERATIONS])
def test_requests_that_the_description_allows_never_break_it(services: World, method: str, path: str) -> None:
    """A few requests to each endpoint; `schemathesis run URL/openapi.json` makes many."""
    schema = schemathesis.openapi.from_dict(openapi(API))
    schema.config.update(base_url=services.url)
    operation = schema[path][method]

    @given_by(case=operation.as_strategy())
    @settings(
        max_examples=6,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def requests(case: schemathesis.Case[Any]) -> None:
        case.call_and_validate(checks=CHECKS, timeout=600)

    requests()
