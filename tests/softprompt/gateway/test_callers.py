"""Callers with tokens: roles, limits, tenants and the audit are those of the services, through the gateway as well."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from prompttuning.v1 import tuning_pb2 as pb

from shared.security.tokens import hash_token, new_token
from tests.inference_service.conftest import Brake
from tests.inference_service.replica import blob, matrix, publish
from tests.log_lines import log_lines
from tests.softprompt.gateway.running import World, world
from tests.softprompt.gateway.test_fine_tuning import EXAMPLES, lines
from tests.waiting import wait_until

MESSAGES: Any = [{"role": "user", "content": "hello"}]
NAMES = ("admin", "shop", "tuner", "rival", "slow", "counted")
TOKENS = {name: new_token() for name in NAMES}
CALLERS: list[dict[str, Any]] = [
    {"name": "admin", "roles": ["admin"]},
    {"name": "shop", "roles": ["generator"], "prompts": ["tone*"]},
    {"name": "tuner", "roles": ["tuner", "generator"], "prompts": ["tone*"]},
    {"name": "rival", "roles": ["tuner", "publisher", "generator"], "prompts": ["rival-*"]},
    {"name": "slow", "roles": ["generator"], "limits": {"requests_per_second": 0.1}},
    {"name": "counted", "roles": ["generator"], "prompts": ["tone*"]},  # of one test alone
]


@pytest.fixture(scope="module")
def guarded(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("guarded")
    file = directory / "callers.json"
    callers = [{**caller, "token_sha256": [hash_token(TOKENS[caller["name"]])]} for caller in CALLERS]
    file.write_text(json.dumps({"callers": callers}))
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("SOFTPROMPT_TOKEN", TOKENS["admin"])  # the gateway must not use it for anyone
        with world(tiny_model_dir, directory, str(file)) as made:
            for prompt in ("tone", "rival-tone"):
                publish(made.store, blob(tiny_model_dir, matrix(1), prompt=prompt), prompt=prompt)
            yield made


def by(guarded: World, name: str) -> OpenAI:
    return OpenAI(base_url=f"{guarded.url}/v1", api_key=TOKENS[name], max_retries=0)


def chat(client: OpenAI, model: str = "tone", **more: Any) -> Any:
    return client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=2, **more)


async def job_of(guarded: World, id: str) -> Any:
    request = pb.GetTuningJobRequest(name=id.replace("ftjob-", "tuningJobs/"))
    return await guarded.trainer.tuning.GetTuningJob(
        request, metadata=(("authorization", f"Bearer {TOKENS['admin']}"),)
    )


def test_without_a_valid_token_nothing_is_answered(guarded: World) -> None:
    good, body = TOKENS["shop"], {"model": "tone", "messages": MESSAGES}
    for headers in (
        [],
        [("authorization", "Bearer wrong")],
        [("authorization", good)],
        [("authorization", f"Basic {good}")],
        [("authorization", f"Bearer {good}"), ("authorization", f"Bearer {good}")],
        [("authorization", f"Bearer {good}\tx")],
        [("authorization", f"Bearer {good}\u00e9".encode())],
        [("authorization", "Bearer " + "x" * 5000)],
    ):
        with httpx.Client(base_url=guarded.url, headers=headers, timeout=None) as client:  # type: ignore[arg-type]
            for call in (
                client.get("/v1/models"),
                client.get("/v1/models/tiny-llama"),
                client.post("/v1/chat/completions", json=body),
                client.post("/v1/chat/completions", json={**body, "stream": True}),
                client.post("/v1/files", files={"file": b"x"}, data={"purpose": "fine-tune"}),
                client.get("/v1/fine_tuning/jobs"),
            ):
                # after ten wrong tokens the service makes the address wait
                assert call.status_code in ((401, 429) if headers else (401,)), call.text
                if call.status_code == 401:
                    assert call.json()["error"]["code"] == "invalid_api_key"
                    assert call.headers["www-authenticate"] == "Bearer"
    assert chat(by(guarded, "shop")).model == "tone@1"


def test_a_caller_sees_and_does_what_its_roles_and_prompts_allow(guarded: World) -> None:
    with by(guarded, "shop") as shop:
        models = [model.id for model in shop.models.list()]
        assert "tone@1" in models
        assert not any("rival" in model for model in models)
        for model in ("rival-tone", "rival-tone@1", "nothing"):
            with pytest.raises(openai.NotFoundError) as error:
                chat(shop, model)
            hidden = error.value.message.replace(model, "MODEL")
            assert hidden.startswith("Error code: 404 - The model 'MODEL' does not exist")
        with pytest.raises(openai.PermissionDeniedError):
            chat(shop, "tiny-llama")
        for call in (
            lambda: shop.files.list(),
            lambda: shop.files.create(file=("x.jsonl", io.BytesIO(lines(EXAMPLES))), purpose="fine-tune"),
            lambda: shop.fine_tuning.jobs.list(),
            lambda: shop.fine_tuning.jobs.create(model="tiny-llama", training_file="file-" + "0" * 64),
        ):
            with pytest.raises(openai.PermissionDeniedError) as denied:
                call()
            assert denied.value.code == "permission_denied"


def test_files_and_jobs_of_another_tenant_do_not_exist(guarded: World) -> None:
    with by(guarded, "tuner") as tuner, by(guarded, "rival") as rival:
        file = tuner.files.create(file=("x.jsonl", io.BytesIO(lines(EXAMPLES))), purpose="fine-tune")
        job = tuner.fine_tuning.jobs.create(model="tiny-llama", training_file=file.id, suffix="tone-new")
        stored = guarded.loop.run(job_of(guarded, job.id))
        assert stored.job.spec.publish.alias == "-", "a caller who may not move aliases moves none"
        for call in (rival.files.retrieve, rival.files.content, rival.files.delete):
            with pytest.raises(openai.NotFoundError):
                call(file.id)
        for get in (rival.fine_tuning.jobs.retrieve, rival.fine_tuning.jobs.cancel, rival.fine_tuning.jobs.list_events):
            with pytest.raises(openai.NotFoundError):
                get(job.id)
        with pytest.raises(openai.BadRequestError) as error:
            rival.fine_tuning.jobs.create(model="tiny-llama", training_file=file.id, suffix="rival-x")
        assert (error.value.param, error.value.code) == ("training_file", "invalid_file")
        assert list(rival.fine_tuning.jobs.list()) == []
        assert list(rival.files.list()) == []
        tuner.fine_tuning.jobs.cancel(job.id)


def test_a_limit_becomes_429_with_the_time_to_wait(guarded: World) -> None:
    with by(guarded, "slow") as slow, pytest.raises(openai.RateLimitError) as error:
        [chat(slow) for _ in range(20)]
    assert error.value.code == "rate_limit_exceeded"
    seconds = float(error.value.response.headers["retry-after"])
    assert 1 <= seconds <= 11
    assert abs(float(error.value.response.headers["retry-after-ms"]) / 1000 - seconds) <= 1


def test_request_ids_and_traces_reach_the_services(guarded: World) -> None:
    def calls() -> list[tuple[str, str]]:
        mine = [line for line in logged if line["request_id"] == "from-the-caller"]
        return [(line["trace_id"], line["caller"]) for line in mine if line["method"].endswith("Service/Generate")]

    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"x-request-id": "from-the-caller", "traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    with log_lines("shared.rpc.interceptors", "call") as logged:
        raw = by(guarded, "shop").chat.completions.with_raw_response.create(
            model="tone", messages=MESSAGES, max_tokens=2, extra_headers=headers
        )
        wait_until(calls)  # a call's line follows its answer
    assert raw.headers["x-request-id"] == "from-the-caller"
    assert calls() == [(trace, "shop")]


def test_requests_are_counted_for_the_tenant_that_the_service_names(guarded: World, brake: Brake) -> None:
    def counted(outcome: str) -> float:
        text = httpx.get(f"http://127.0.0.1:{guarded.gateway.metrics_port}/metrics", timeout=None).text
        wanted = f'softprompt_tenant_requests_total{{outcome="{outcome}",prompt_class="standard",tenant="counted"}} '
        return float(next((line.rpartition(" ")[2] for line in text.splitlines() if line.startswith(wanted)), 0))

    with by(guarded, "counted") as caller:
        chat(caller)
        for _ in chat(caller, stream=True):
            pass
        with pytest.raises(openai.NotFoundError):
            chat(caller, model="rival-tone")
    wait_until(lambda: (counted("ok"), counted("invalid")) == (2, 1))
    brake.holds = True
    with (
        by(guarded, "counted") as caller,
        caller.chat.completions.create(model="tone", messages=MESSAGES, max_tokens=400, stream=True) as stream,
    ):
        next(iter(stream))
    wait_until(lambda: counted("cancelled") == 1)
