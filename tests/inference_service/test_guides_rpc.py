"""Guided answers through a real channel."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

from prompttuning.v1 import common_pb2, generation_pb2

from shared.errors import InvalidInput, PreconditionFailed
from shared.text.template import Template
from tests.inference_service.replica import Replica, blob, generate_request, matrix, publish, refusal, stream_request

CHOICES = common_pb2.Guide(choices=common_pb2.Guide.Choices(texts=["good", "not so good"]))


async def test_an_answer_of_the_bare_model_and_of_a_prompt_has_the_form(replica: Replica, tiny_model_dir: Path) -> None:
    # With a text template the answer begins with a space that is not part of it.
    publish(replica.store, blob(tiny_model_dir, matrix(1), template=Template(text="Q: {input}\nA:")))
    schema = common_pb2.Guide(json_schema='{"enum": [{"a": 1}, ["b"], "c"]}')
    for prompt in ("", "tone"):
        for seed in range(3):
            sampling = {"temperature": 1, "seed": seed, "max_new_tokens": 40}
            chosen = await replica.generate("hello", prompt, guide=CHOICES, **sampling)
            assert chosen.output.text in CHOICES.choices.texts
            assert chosen.end.finish_reason == generation_pb2.FINISH_REASON_EOS
            value = await replica.generate("hello", prompt, guide=schema, **sampling)
            assert json.loads(value.output.text) in [{"a": 1}, ["b"], "c"]


async def test_a_stream_has_the_form_beside_free_streams(replica: Replica) -> None:
    guide = common_pb2.Guide(regex="([a-z]{2}-){8}")

    async def text(**sampling: Any) -> str:
        request = stream_request("hello", temperature=1, seed=3, max_new_tokens=30, **sampling)
        return "".join([part.delta.text async for part in replica.stub.GenerateStream(request)])

    free = await text()
    guided, *others = await asyncio.gather(text(guide=guide), *(text() for _ in range(4)))
    assert re.fullmatch("([a-z]{2}-){8}", guided)
    assert others == [free] * 4


UNUSABLE = [
    (common_pb2.Guide(), "sampling.guide"),
    (common_pb2.Guide(regex="(a"), "sampling.guide.regex"),
    (common_pb2.Guide(regex="a" * (1 << 19)), "sampling.guide.regex"),
    (common_pb2.Guide(json_schema='{"$ref": "#"}'), "sampling.guide.json_schema"),
    (common_pb2.Guide(json_schema="[" * 60_000), "sampling.guide.json_schema"),
    (common_pb2.Guide(json_schema='{"type": "array", "uniqueItems": true}'), "sampling.guide.json_schema"),
    (common_pb2.Guide(grammar="start: other"), "sampling.guide.grammar"),
    (common_pb2.Guide(choices=common_pb2.Guide.Choices(texts=["a", ""])), "sampling.guide.choices[1]"),
]


async def test_a_guide_that_can_not_be_used_is_named(replica: Replica) -> None:
    for guide, field in UNUSABLE:
        found = await refusal(replica.stub.Generate(generate_request(guide=guide)))
        assert isinstance(found, InvalidInput)
        assert [violation.field for violation in found.violations] == [field]


async def test_an_answer_that_can_not_go_on_says_why(replica: Replica) -> None:
    dead_end = common_pb2.Guide(grammar='start: "a" x\nx: x')
    found = await refusal(replica.stub.Generate(generate_request(guide=dead_end)))
    assert isinstance(found, PreconditionFailed)
    assert "sampling.guide" in found.message


async def test_biases_and_lists_of_tokens(replica: Replica) -> None:
    free = (await replica.generate(temperature=0, ignore_eos=True)).output.token_ids
    without = (await replica.generate(temperature=0, ignore_eos=True, forbidden_token_ids=[free[0]])).output.token_ids
    assert free[0] not in without
    assert without != free
    against = (await replica.generate(temperature=0, ignore_eos=True, logit_bias={free[0]: -100})).output.token_ids
    assert list(against) == list(without)
    only = (await replica.generate(temperature=1, seed=1, ignore_eos=True, allowed_token_ids=[70, 71])).output.token_ids
    assert set(only) <= {70, 71}
    always = (await replica.generate(temperature=1, seed=1, ignore_eos=True, logit_bias={90: 100})).output.token_ids
    assert set(always) == {90}
