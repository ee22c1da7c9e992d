"""Bad and hostile requests through a real channel: INVALID_ARGUMENT names the field, and the service keeps serving."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from prompttuning.v1 import common_pb2, generation_pb2

from shared.errors import InvalidInput, Overloaded
from tests.inference_service.conftest import Brake
from tests.inference_service.replica import Replica, generate_request, refusal, running_replica, stream_request
from tests.retry_info import retry_delay_seconds
from tests.waiting import until

Change = Callable[[Any], Any]

CASES: dict[str, tuple[Change, str]] = {
    "temperature below zero": (lambda r: setattr(r.sampling, "temperature", -1), "sampling.temperature"),
    "temperature not a number": (lambda r: setattr(r.sampling, "temperature", math.nan), "sampling.temperature"),
    "temperature infinite": (lambda r: setattr(r.sampling, "temperature", math.inf), "sampling.temperature"),
    "top_p of 0": (lambda r: setattr(r.sampling, "top_p", 0), "sampling.top_p"),
    "top_p above 1": (lambda r: setattr(r.sampling, "top_p", 1.5), "sampling.top_p"),
    "min_p below 0": (lambda r: setattr(r.sampling, "min_p", -0.1), "sampling.min_p"),
    "negative top_k": (lambda r: setattr(r.sampling, "top_k", -1), "sampling.top_k"),
    "repetition penalty of 0": (lambda r: setattr(r.sampling, "repetition_penalty", 0), "sampling.repetition_penalty"),
    "presence penalty of 3": (lambda r: setattr(r.sampling, "presence_penalty", 3), "sampling.presence_penalty"),
    "frequency penalty not a number": (
        lambda r: setattr(r.sampling, "frequency_penalty", math.nan),
        "sampling.frequency_penalty",
    ),
    "negative seed": (lambda r: setattr(r.sampling, "seed", -1), "sampling.seed"),
    "no new tokens": (lambda r: setattr(r.sampling, "max_new_tokens", 0), "sampling.max_new_tokens"),
    "too many new tokens": (lambda r: setattr(r.sampling, "max_new_tokens", 1 << 30), "sampling.max_new_tokens"),
    "least above most": (lambda r: setattr(r.sampling, "min_new_tokens", 9), "sampling.min_new_tokens"),
    "too many log-probabilities": (lambda r: setattr(r.sampling, "num_logprobs", 21), "sampling.num_logprobs"),
    "10,000 stop sequences": (lambda r: r.sampling.stop_sequences.extend(["x"] * 10_000), "sampling.stop_sequences"),
    "an empty stop sequence": (lambda r: r.sampling.stop_sequences.extend(["x", ""]), "sampling.stop_sequences[1]"),
    "a huge stop sequence": (lambda r: r.sampling.stop_sequences.append("x" * 10_000), "sampling.stop_sequences[0]"),
    "a stop token that does not exist": (
        lambda r: r.sampling.stop_token_ids.extend([3, 5000]),
        "sampling.stop_token_ids[1]",
    ),
    "priority": (lambda r: setattr(r, "priority", 1000), "priority"),
    "nothing to start from": (lambda r: r.input.ClearField("text"), "input"),
    "an empty text": (lambda r: setattr(r.input, "text", ""), "input.text"),
    "a million tokens": (lambda r: setattr(r.input, "text", "word " * 1_000_000), "input.text"),
    "a token id that does not exist": (
        lambda r: r.input.token_ids.ids.extend([1, 2, 3, 261]),
        "input.token_ids.ids[3]",
    ),
    "a negative token id": (lambda r: r.input.token_ids.ids.extend([-1]), "input.token_ids.ids[0]"),
    "no token ids": (lambda r: r.input.token_ids.SetInParent(), "input.token_ids"),
    "too many token ids": (lambda r: r.input.token_ids.ids.extend([1] * 1_000_000), "input.token_ids"),
    "no messages": (lambda r: r.input.chat.SetInParent(), "input.chat.messages"),
    "an unknown role": (lambda r: r.input.chat.messages.add(role="root", content="x"), "input.chat.messages[0].role"),
    "the assistant last": (lambda r: r.input.chat.messages.add(role="assistant", content="x"), "input.chat.messages"),
    "100,000 messages": (
        lambda r: r.input.chat.messages.extend([common_pb2.Message(role="user")] * 100_000),
        "input.chat.messages",
    ),
    "a path as a prompt": (lambda r: setattr(r.input, "prompt", "../../etc/passwd"), "input.prompt"),
    "a label as a prompt": (lambda r: setattr(r.input, "prompt", 'a"} 1\n'), "input.prompt"),
    "version 0": (lambda r: setattr(r.input, "prompt", "tone@0"), "input.prompt"),
    "an unknown template format": (lambda r: setattr(r.input.template, "format", 77), "input.template.format"),
    "a template without its input": (lambda r: setattr(r.input.template, "text", "hello"), "input.template.text"),
    "a huge template": (lambda r: setattr(r.input.template, "text", "{input}" + "x" * 100_000), "input.template.text"),
    "a system message in a text template": (
        lambda r: r.input.template.MergeFrom(common_pb2.Template(format=common_pb2.Template.FORMAT_TEXT, system="x")),
        "input.template.system",
    ),
    "an argument of a template that is not a number": (
        lambda r: r.input.template.arguments.update({"x": [{"y": math.nan}]}),
        "input.template.arguments",
    ),
    "an infinite argument of a template": (
        lambda r: r.input.template.arguments.update({"x": math.inf}),
        "input.template.arguments",
    ),
    "a bias that is not a number": (lambda r: r.sampling.logit_bias.update({3: math.nan}), "sampling.logit_bias[3]"),
    "a huge routing key": (lambda r: setattr(r.input, "routing_key", "x" * 10_000), "input.routing_key"),
}


async def test_each_bad_field_is_named(replica: Replica) -> None:
    for name, (change, field) in CASES.items():
        request = generate_request("hello")
        change(request)
        error = await refusal(replica.stub.Generate(request))
        assert isinstance(error, InvalidInput), (name, error)
        assert field in [violation.field for violation in error.violations], (name, error.violations)
        stream = generation_pb2.GenerateStreamRequest(
            input=request.input, sampling=request.sampling, priority=request.priority
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await replica.stub.GenerateStream(stream).read()
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, name
    assert (await replica.generate()).end.output_tokens > 0


async def test_all_violations_are_reported_at_once(replica: Replica) -> None:
    request = generate_request("hello", temperature=-1, top_p=0, seed=-1, max_new_tokens=0)
    request.priority = 500
    request.input.prompt = "Not A Name"
    request.sampling.stop_sequences.append("")
    error = await refusal(replica.stub.Generate(request))
    assert {violation.field for violation in error.violations} == {
        "sampling.temperature",
        "sampling.top_p",
        "sampling.seed",
        "sampling.max_new_tokens",
        "sampling.stop_sequences[0]",
        "priority",
        "input.prompt",
    }


async def test_a_template_beside_a_prompt_is_refused(replica: Replica) -> None:
    request = generate_request("hello", "tone")
    request.input.template.text = "{input}!"
    assert (await refusal(replica.stub.Generate(request))).violations[0].field == "input.template"


async def test_score_candidates_are_checked(replica: Replica) -> None:
    def request(*candidates: str) -> generation_pb2.ScoreRequest:
        return generation_pb2.ScoreRequest(input=generation_pb2.GenerationInput(text="x"), candidates=candidates)

    for candidates, field in (
        (["a", ""], "candidates[1]"),
        (["a", "b", "a"], "candidates[2]"),
        (["x"] * 1000, "candidates"),
    ):
        error = await refusal(replica.stub.Score(request(*candidates)))
        assert error.violations[0].field == field
    assert isinstance(await refusal(replica.stub.Score(request("y" * 1000))), InvalidInput)


async def test_a_full_queue_says_when_to_come_back(tiny_model_dir: Any, tmp_path: Any, brake: Brake) -> None:
    async with running_replica(tiny_model_dir, tmp_path, max_running=1, max_waiting=1) as replica:
        brake.holds = True
        running = replica.stub.GenerateStream(stream_request(max_new_tokens=400, ignore_eos=True))
        await running.read()
        waiting = replica.stub.GenerateStream(stream_request(max_new_tokens=400))

        async def one_waits() -> bool:
            return await replica.metric("requests_waiting") == 1

        await until(one_waits)
        error = await refusal(replica.generate())
        assert isinstance(error, Overloaded)
        assert retry_delay_seconds(error)
        running.cancel()
        assert (await waiting.read()).HasField("start")
        brake.holds = False


async def test_two_requests_may_carry_the_same_request_id(replica: Replica, brake: Brake) -> None:
    brake.seconds = 0.01
    metadata = (("x-request-id", "same"),)
    streams = [replica.stub.GenerateStream(stream_request(max_new_tokens=5), metadata=metadata) for _ in range(2)]
    assert {(await stream.read()).start.request_id for stream in streams} == {"same"}
