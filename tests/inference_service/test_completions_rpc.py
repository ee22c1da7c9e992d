"""Several completions, the input's log-probabilities and its text, through a real channel."""

from __future__ import annotations

from pathlib import Path

import pytest
from prompttuning.v1 import generation_pb2

from shared.errors import InvalidInput
from shared.text.template import Template
from tests.inference_service.conftest import Brake
from tests.inference_service.replica import (
    Replica,
    blob,
    generate_request,
    matrix,
    publish,
    refusal,
    stream_request,
)
from tests.waiting import until


async def test_completions_are_those_of_consecutive_seeds(replica: Replica, tiny_model_dir: Path) -> None:
    publish(replica.store, blob(tiny_model_dir, matrix(1)))
    sampling = {"temperature": 1.5, "max_new_tokens": 12, "num_logprobs": 1}
    whole = await replica.generate("hello there", "tone", n=3, seed=40, **sampling)
    texts = [whole.output.text, *(other.output.text for other in whole.other_completions)]
    alone = [(await replica.generate("hello there", "tone", seed=40 + index, **sampling)) for index in range(3)]
    assert texts == [one.output.text for one in alone]
    assert len(set(texts)) == 3
    assert [other.output.index for other in whole.other_completions] == [1, 2]
    assert [other.end.index for other in whole.other_completions] == [1, 2]
    assert whole.start.seed == 40
    for other, one in zip(whole.other_completions, alone[1:], strict=True):
        assert other.end.output_tokens == one.end.output_tokens
        assert len(other.output.logprobs) == other.end.output_tokens


async def test_a_stream_of_completions_starts_once_and_ends_for_each(replica: Replica) -> None:
    request = stream_request("hello", n=3, temperature=1, seed=5, max_new_tokens=9, ignore_eos=True)
    parts = [part async for part in replica.stub.GenerateStream(request)]
    assert [part.WhichOneof("part") for part in parts].count("start") == 1
    assert parts[0].HasField("start")
    ends = [part.end for part in parts if part.HasField("end")]
    assert sorted(end.index for end in ends) == [0, 1, 2]
    whole = await replica.generate("hello", n=3, temperature=1, seed=5, max_new_tokens=9, ignore_eos=True)
    for index, output in enumerate([whole.output, *(other.output for other in whole.other_completions)]):
        deltas = [part.delta for part in parts if part.HasField("delta") and part.delta.index == index]
        assert "".join(delta.text for delta in deltas) == output.text


async def test_cancelling_frees_all_completions(replica: Replica, brake: Brake) -> None:
    brake.holds = True
    call = replica.stub.GenerateStream(stream_request("hello", n=4, max_new_tokens=400, ignore_eos=True))
    await call.read()

    async def running(count: int) -> bool:
        return await replica.metric("requests_running") == count

    await until(lambda: running(4))
    call.cancel()
    await until(lambda: running(0))


@pytest.mark.parametrize("n", [0, 17, -1])
async def test_the_number_of_completions_is_bounded(replica: Replica, n: int) -> None:
    found = await refusal(replica.stub.Generate(generate_request(n=n)))
    assert isinstance(found, InvalidInput)
    assert [violation.field for violation in found.violations] == ["sampling.n"]


async def test_the_input_s_tokens_and_their_log_probabilities(replica: Replica) -> None:
    request = generate_request(temperature=0, num_input_logprobs=2, n=2)
    request.input.token_ids.ids.extend([70, 71, 72, 73])
    answer = await replica.stub.Generate(request)
    tokens = answer.start.input_logprobs
    assert [token.token_id for token in tokens] == [70, 71, 72, 73]
    assert not tokens[0].HasField("logprob")
    assert all(token.logprob < 0 and len(token.alternatives) == 2 for token in tokens[1:])
    assert "".join(token.text for token in tokens) == "bcde"
    assert not (await replica.generate(temperature=0)).start.input_logprobs


async def test_too_many_log_probabilities_of_the_input_are_refused(replica: Replica) -> None:
    request = generate_request(max_new_tokens=1, num_input_logprobs=20)
    request.input.token_ids.ids.extend([70] * 400)
    assert len((await replica.stub.Generate(request)).start.input_logprobs) == 400
    found = await refusal(replica.stub.Generate(generate_request(num_input_logprobs=21)))
    assert [violation.field for violation in found.violations] == ["sampling.num_input_logprobs"]


async def test_an_echo_is_the_input_as_the_model_reads_it(replica: Replica, tiny_model_dir: Path) -> None:
    publish(replica.store, blob(tiny_model_dir, matrix(1), template=Template(text="Q: {input}\nA:")))
    sampling = {"temperature": 0, "max_new_tokens": 6, "ignore_eos": True}
    plain = await replica.generate("hello", "tone", **sampling)
    echoed = await replica.generate("hello", "tone", echo=True, n=2, **sampling)
    for output in (echoed.output, echoed.other_completions[0].output):
        assert output.text.startswith("Q: hello\nA:")
        assert output.text.removeprefix("Q: hello\nA:").removeprefix(" ") == plain.output.text
        assert output.token_ids == plain.output.token_ids
    parts = replica.stub.GenerateStream(stream_request("hello", "tone", echo=True, **sampling))
    assert "".join([part.delta.text async for part in parts]) == echoed.output.text
    assert echoed.end.finish_reason == generation_pb2.FINISH_REASON_LENGTH
