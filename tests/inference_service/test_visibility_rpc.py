"""What a tenant can't name, it can't see: a replica of a store full of another tenant's prompts answers as one of a
store without them.
"""

from __future__ import annotations

import json
from pathlib import Path

from prompttuning.v1 import common_pb2
from prompttuning.v1 import generation_pb2 as pb

from shared.security.tokens import hash_token, new_token
from shared.store import open_store
from tests.inference_service.replica import blob, generate_request, matrix, publish, running_replica, stream_request
from tests.rpc_outcome import Outcome, outcome_of
from tests.shared.store_copy import copy_without

TOKEN = new_token()
TIMES = ("queue_time", "first_token_time", "total_time", "load_time", "current_time")


def requests_of(prompt: str) -> list[tuple[str, object]]:
    input = pb.GenerationInput(prompt=prompt, text="hello")
    with_template = pb.GenerationInput(prompt=prompt, text="hello", template=common_pb2.Template(text="{input}"))
    return [
        ("Generate", generate_request(prompt=prompt, temperature=0, seed=1)),
        ("Generate", pb.GenerateRequest(input=with_template)),
        ("Generate", pb.GenerateRequest(input=input, priority=1000)),
        ("GenerateStream", stream_request(prompt=prompt, temperature=0, seed=1)),
        ("Score", pb.ScoreRequest(input=input, candidates=["a", "b"])),
        ("Score", pb.ScoreRequest(input=input)),
        ("CountTokens", pb.CountTokensRequest(input=input)),
        ("ListLoadedPrompts", pb.ListLoadedPromptsRequest(prompt=prompt.partition("@")[0])),
    ]


async def test_another_tenants_prompts_are_as_if_they_did_not_exist(tiny_model_dir: Path, tmp_path: Path) -> None:
    callers = tmp_path / "callers.json"
    caller = {
        "name": "support",
        "roles": ["tuner", "generator", "viewer"],
        "prompts": ["support-*"],
        "token_sha256": [hash_token(TOKEN)],
    }
    callers.write_text(json.dumps({"callers": [caller]}))
    store = open_store(str(tmp_path / "full"))
    for number, prompt in enumerate(("acme-layoffs", "support-tone", "acme-merger", "support-faq", "acme-layoffs")):
        publish(store, blob(tiny_model_dir, matrix(number), prompt), prompt)
    store.close()
    copy_without(tmp_path / "full", tmp_path / "copy", "acme-")

    settings = {"callers_file": str(callers)}
    async with (
        running_replica(tiny_model_dir, tmp_path / "a", store_dir=tmp_path / "full", **settings) as full,
        running_replica(tiny_model_dir, tmp_path / "b", store_dir=tmp_path / "copy", **settings) as copy,
    ):

        async def same(method: str, request: object) -> Outcome:
            num_answers = 1  # how many tokens come in one message of a stream is a matter of time
            seen = await outcome_of(full.stub, method, request, TOKEN, TIMES, num_answers)
            assert seen == await outcome_of(copy.stub, method, request, TOKEN, TIMES, num_answers), (method, request)
            return seen

        for selector in ("", "@1", "@2", "@default", "@canary"):
            seen = []
            for prompt in ("acme-layoffs", "acme-nothing", "support-none"):
                outcomes = [str(await same(method, request)) for method, request in requests_of(prompt + selector)]
                seen.append([text.replace(prompt, "PROMPT") for text in outcomes])
            assert seen[0] == seen[1] == seen[2]
            assert "NOT_FOUND" in seen[0][0]
        for method, request in requests_of("support-tone"):
            await same(method, request)
        listed = await same("ListLoadedPrompts", pb.ListLoadedPromptsRequest())
        versions = [item.version for item in pb.ListLoadedPromptsResponse.FromString(listed[3][0]).prompts]
        assert versions == ["prompts/support-faq/versions/1", "prompts/support-tone/versions/1"]
        await same("GetModelInfo", pb.GetModelInfoRequest())
        assert (await same("Generate", generate_request()))[0] == "PERMISSION_DENIED", (
            "the bare model has no name to hide"
        )
        assert {method for method, _ in requests_of("")} | {"GetModelInfo"} == set(
            pb.DESCRIPTOR.services_by_name["GenerationService"].methods_by_name
        )
