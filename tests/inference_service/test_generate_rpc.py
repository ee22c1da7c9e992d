"""Answers through a real channel: what they say, what they start and end with, and that they are the model's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from prompttuning.v1 import common_pb2, generation_pb2
from tokenizers import decoders
from transformers import AutoModelForCausalLM

from inference_service.completions import AnswerText
from shared.errors import DeadlineExceeded, InvalidInput, NotFound
from shared.model.base_model import load, load_tokenizer
from shared.text.template import InputEncoder, Template, TemplateFormat
from shared.values.sampling import Sampling
from tests.inference_service.conftest import Brake
from tests.inference_service.replica import (
    Replica,
    blob,
    generate_request,
    matrix,
    publish,
    refusal,
    running_replica,
    stream_request,
)
from tests.tiny_models import FLOAT32, byte_tokenizer, save_tiny_llama

NUM_TOKENS = 40


BARE = Template(format=TemplateFormat.CHAT)
"""What the bare model is asked through: the tiny models have a chat template."""
NUM_CONTROL_TOKENS = 3


def greedy_reference(model_dir: Path, soft_prompt: torch.Tensor | None, ids: list[int], count: int) -> list[int]:
    """transformers' own answer: the prompt prepended to the input's embeddings."""
    model: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    embeds = model.get_input_embeddings()(torch.tensor([ids]))  # [1, num_input, hidden_size]
    if soft_prompt is not None:
        embeds = torch.cat([soft_prompt[None], embeds], dim=1)
    mask = torch.ones(embeds.shape[:2], dtype=torch.long)
    with torch.inference_mode():
        out = model.generate(
            inputs_embeds=embeds, attention_mask=mask, max_new_tokens=count, do_sample=False, eos_token_id=None
        )
    return [int(token) for token in out[0]]


@pytest.mark.parametrize("prompt", ["", "tone"])
async def test_greedy_equals_transformers(replica: Replica, tiny_model_dir: Path, prompt: str) -> None:
    soft_prompt = matrix(1, 10)
    publish(replica.store, blob(tiny_model_dir, soft_prompt, template=Template(text="Q: {input}\nA:")))
    template = Template(text="Q: {input}\nA:") if prompt else BARE
    ids = InputEncoder(load_tokenizer(tiny_model_dir), template).encode_input("hello there")
    answer = await replica.generate("hello there", prompt, max_new_tokens=NUM_TOKENS, temperature=0, ignore_eos=True)
    expected = greedy_reference(tiny_model_dir, soft_prompt if prompt else None, ids, NUM_TOKENS)
    assert list(answer.output.token_ids) == expected


async def test_a_stream_starts_continues_and_ends(replica: Replica, tiny_model_dir: Path) -> None:
    record = publish(replica.store, blob(tiny_model_dir, matrix(1, 10)))
    request = stream_request("hello", "tone@default", max_new_tokens=12, seed=7, temperature=1, ignore_eos=True)
    parts = [part async for part in replica.stub.GenerateStream(request, metadata=(("x-request-id", "mine-1"),))]
    start, deltas, end = parts[0].start, [part.delta for part in parts[1:-1]], parts[-1].end
    assert (start.version, start.digest) == (record.name, record.digest)
    assert (start.input_tokens, start.virtual_tokens, start.cached_tokens) == (5, 10, 10)
    assert (start.seed, start.request_id) == (7, "mine-1")
    assert sum(len(delta.token_ids) for delta in deltas) == end.output_tokens == 12
    assert end.finish_reason == generation_pb2.FINISH_REASON_LENGTH
    assert 0 <= end.queue_time.ToNanoseconds() <= end.first_token_time.ToNanoseconds() <= end.total_time.ToNanoseconds()
    whole = await replica.generate("hello", "tone", max_new_tokens=12, seed=7, temperature=1, ignore_eos=True)
    assert whole.output.text == "".join(delta.text for delta in deltas)


async def test_a_chosen_seed_is_reported_and_repeats_the_answer(replica: Replica) -> None:
    first = await replica.generate("hello", temperature=1.5, max_new_tokens=24)
    again = await replica.generate("hello", temperature=1.5, max_new_tokens=24, seed=first.start.seed)
    assert again.output == first.output


def test_the_space_between_input_and_target_is_not_shown() -> None:
    trim = AnswerText(trim=" ")
    assert [trim(text) for text in ("", " Paris", " is", " ")] == ["", "Paris", " is", " "]
    trim = AnswerText(trim=" ")
    assert [trim(text) for text in ("Paris", " is")] == ["Paris", " is"]
    assert AnswerText()(" Paris") == " Paris"


async def test_token_ids_are_taken_as_they_are(replica: Replica, tiny_model_dir: Path) -> None:
    ids = InputEncoder(load_tokenizer(tiny_model_dir), BARE).encode_input("hello")
    request = generate_request(temperature=0, max_new_tokens=20)
    request.input.token_ids.ids.extend(ids)
    answer = await replica.stub.Generate(request)
    assert answer.start.input_tokens == len(ids) == 5 + NUM_CONTROL_TOKENS
    assert (
        answer.output.token_ids == (await replica.generate("hello", temperature=0, max_new_tokens=20)).output.token_ids
    )


async def test_the_stop_sequence_that_ended_the_answer_is_reported(replica: Replica) -> None:
    sampling: dict[str, Any] = {"temperature": 1.0, "seed": 5, "max_new_tokens": 60, "ignore_eos": True}
    whole = (await replica.generate("hello", **sampling)).output.text
    readable = [char for char in whole if char.isascii() and char.isprintable() and char != " "]
    stop = readable[len(readable) // 2]
    cut = await replica.generate("hello", **sampling, stop_sequences=["never in there", stop, "nor this"])
    assert cut.end.finish_reason == generation_pb2.FINISH_REASON_STOP_SEQUENCE
    assert cut.end.stop_sequence == stop
    assert cut.output.text == whole.partition(stop)[0]


async def test_a_stop_sequence_that_is_a_control_token_ends_the_answer_at_it(replica: Replica) -> None:
    """Its string is in no text: control tokens have none."""
    wanted, *others = (byte_tokenizer().convert_tokens_to_ids(token) for token in ("<user>", "<assistant>"))
    for token, stop in ((wanted, "<user>"), (*others, "")):
        answer = await replica.generate(
            "hello", temperature=0, max_new_tokens=3, logit_bias={token: 100.0}, stop_sequences=["<user>"]
        )
        assert answer.end.stop_sequence == stop
        assert list(answer.output.token_ids) == ([token] if stop else [token] * 3)
        assert answer.output.text == ""


async def test_a_stop_sequence_that_no_answer_can_have_is_refused(replica: Replica) -> None:
    error = await refusal(replica.generate("hello", stop_sequences=["x<user>"]))
    assert isinstance(error, InvalidInput)
    assert error.violations[0].field == "sampling.stop_sequences[0]"
    assert "must be the whole stop sequence; this one has '<user>' and more" in error.message


async def test_log_probabilities_as_many_as_asked_for(replica: Replica) -> None:
    none = await replica.generate(temperature=0)
    alone = await replica.generate(temperature=0, num_logprobs=0)
    three = await replica.generate(temperature=0, num_logprobs=3)
    assert not none.output.logprobs
    assert [len(item.alternatives) for item in alone.output.logprobs] == [0] * len(alone.output.token_ids)
    assert [len(item.alternatives) for item in three.output.logprobs] == [3] * len(three.output.token_ids)
    assert all(item.alternatives[0].token_id == item.token_id for item in three.output.logprobs)
    assert three.output.token_ids == none.output.token_ids


async def test_log_probabilities_say_what_their_tokens_say(replica: Replica) -> None:
    output = (await replica.generate("hello", temperature=1.5, seed=3, num_logprobs=2, max_new_tokens=40)).output
    control = set(byte_tokenizer().added_tokens_decoder)
    said = b"".join(item.utf8 for item in output.logprobs if item.token_id not in control)
    assert said.decode("utf-8", errors="replace") == output.text
    alternatives = [alternative for item in output.logprobs for alternative in item.alternatives]
    tokens: list[Any] = [*output.logprobs, *alternatives]
    for token in tokens:
        assert token.text == token.utf8.decode("utf-8", errors="replace")
        assert token.utf8


async def test_sampling_of_the_version_holds_where_the_request_says_nothing(
    replica: Replica, tiny_model_dir: Path
) -> None:
    publish(replica.store, blob(tiny_model_dir, matrix(2), sampling_defaults=Sampling(max_new_tokens=3)))
    request = generate_request("hello", "tone", ignore_eos=True)
    request.sampling.ClearField("max_new_tokens")
    assert (await replica.stub.Generate(request)).end.output_tokens == 3
    request.sampling.max_new_tokens = 5
    assert (await replica.stub.Generate(request)).end.output_tokens == 5


async def test_scores_are_shares_of_one(replica: Replica, tiny_model_dir: Path) -> None:
    publish(replica.store, blob(tiny_model_dir, matrix(3), labels=("good", "bad", "neither")))
    by_label_set = await replica.stub.Score(
        generation_pb2.ScoreRequest(input=generation_pb2.GenerationInput(prompt="tone", text="nice"))
    )
    assert [score.candidate for score in by_label_set.scores] == ["good", "bad", "neither"]
    assert sum(score.probability for score in by_label_set.scores) == pytest.approx(1)
    assert by_label_set.best == max(range(3), key=lambda index: by_label_set.scores[index].logprob)
    assert [score.num_tokens for score in by_label_set.scores] == [5, 4, 8]  # a space and the letters
    nested = generation_pb2.ScoreRequest(
        input=generation_pb2.GenerationInput(text="nice"), candidates=["good", "good enough"]
    )
    assert [score.num_tokens for score in (await replica.stub.Score(nested)).scores] == [
        5,
        12,
    ]  # the end tells them apart
    bare = generation_pb2.ScoreRequest(input=generation_pb2.GenerationInput(text="nice"))
    assert "candidates" in (await refusal(replica.stub.Score(bare))).message


async def test_counting_does_not_generate(replica: Replica, tiny_model_dir: Path) -> None:
    publish(replica.store, blob(tiny_model_dir, matrix(3), template=Template(text="<{input}>\n")))
    counted = await replica.stub.CountTokens(
        generation_pb2.CountTokensRequest(input=generation_pb2.GenerationInput(prompt="tone", text="abc"))
    )
    assert (counted.input_tokens, counted.virtual_tokens, len(counted.token_ids), counted.max_positions) == (
        6,
        8,
        6,
        512,
    )


async def test_chat_is_rendered_by_the_models_template(replica: Replica) -> None:
    messages = [common_pb2.Message(role="system", content="be brief"), common_pb2.Message(role="user", content="hi")]
    chat = generation_pb2.GenerationInput(chat=generation_pb2.ChatInput(messages=messages))
    counted = await replica.stub.CountTokens(generation_pb2.CountTokensRequest(input=chat))
    assert counted.input_tokens == len("be brief") + len("hi") + 5


async def test_an_input_that_is_too_long_is_refused_with_the_counts_or_cut_on_request(replica: Replica) -> None:
    error = await refusal(replica.generate("x" * 600))
    assert isinstance(error, InvalidInput)
    assert error.violations[0].field == "input.text"
    assert f"{600 + NUM_CONTROL_TOKENS} tokens" in error.message
    assert "512" in error.message
    request = generate_request("x" * 600, max_new_tokens=50)
    request.input.truncate = True
    answer = await replica.stub.Generate(request)
    assert (answer.start.input_tokens, answer.end.output_tokens) == (511, 1)
    counted = [
        await replica.stub.CountTokens(
            generation_pb2.CountTokensRequest(input=generation_pb2.GenerationInput(text="x" * 600, truncate=cut))
        )
        for cut in (False, True)
    ]
    assert [count.input_tokens for count in counted] == [600 + NUM_CONTROL_TOKENS, 511], (
        "what is too long is what one wants to count"
    )


async def test_unknown_prompts_aliases_and_versions_are_named(replica: Replica, tiny_model_dir: Path) -> None:
    publish(replica.store, blob(tiny_model_dir, matrix(1)))
    for reference, kind in (("nobody", "prompt"), ("tone@staging", "alias"), ("tone@7", "version")):
        error = await refusal(replica.generate("hello", reference))
        assert isinstance(error, NotFound), reference
        assert error.kind == kind
        assert reference.partition("@")[0] in error.message


async def test_a_version_published_a_moment_ago_is_served_at_once(replica: Replica, tiny_model_dir: Path) -> None:
    for number in range(1, 6):
        publish(replica.store, blob(tiny_model_dir, matrix(number)), alias=None)
        assert (await replica.generate("hello", f"tone@{number}")).start.version == f"prompts/tone/versions/{number}"


async def test_the_callers_deadline_ends_the_answer_with_what_there_is(replica: Replica, brake: Brake) -> None:
    await replica.generate()
    brake.seconds = 0.01
    request, seconds, parts = stream_request(max_new_tokens=400, ignore_eos=True), 2, list[Any]()
    while not parts:  # where no token is ready in time, the machine needs longer
        try:
            parts = [part async for part in replica.stub.GenerateStream(request, timeout=seconds)]
        except grpc.aio.AioRpcError:
            brake.seconds, seconds = 2 * brake.seconds, 2 * seconds
    assert parts[-1].end.finish_reason == generation_pb2.FINISH_REASON_DEADLINE
    assert 0 < parts[-1].end.output_tokens < 400


async def test_a_deadline_before_the_first_token_is_an_error(replica: Replica, brake: Brake) -> None:
    brake.seconds = 1.0
    assert isinstance(await refusal(replica.stub.Generate(generate_request(), timeout=0.3)), DeadlineExceeded)


async def test_model_info_tells_model_and_limits(replica: Replica) -> None:
    info = await replica.stub.GetModelInfo(generation_pb2.GetModelInfoRequest())
    assert (info.base_model.hidden_size, info.base_model.architecture, info.dtype) == (
        64,
        "LlamaForCausalLM",
        "float32",
    )
    assert (info.limits.max_positions, info.limits.max_stop_sequences) == (512, 16)
    assert info.default_sampling.max_new_tokens == 256


async def test_the_bare_models_answer_goes_on_in_the_inputs_own_text(replica: Replica, tiny_model_dir: Path) -> None:
    """Put together they are what the model wrote: a space with which the answer begins is not dropped."""
    tokenizer, model = (
        load_tokenizer(tiny_model_dir),
        load(tiny_model_dir, FLOAT32).model,
    )
    (space,) = tokenizer(" ", add_special_tokens=False)["input_ids"]
    texts = [
        first + second + third
        for first in "abcdefghijklmno"
        for second in "abcdefghijklmno"
        for third in "abcdefghijklmno"
    ]
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts])
    with torch.no_grad():
        greedy = model(ids).logits[:, -1].argmax(-1)
    text = texts[greedy.tolist().index(space)]
    plain = common_pb2.Template(format=common_pb2.Template.FORMAT_TEXT)
    whole, stream = generate_request(text, max_new_tokens=3), stream_request(text, max_new_tokens=3)
    for request in (whole, stream):
        request.input.template.CopyFrom(plain)
    answer = (await replica.stub.Generate(whole)).output
    assert answer.text.startswith(" ")
    assert answer.text == tokenizer.decode(answer.token_ids)
    streamed = [part.delta.text async for part in replica.stub.GenerateStream(stream)]
    assert "".join(streamed) == answer.text


@pytest.mark.parametrize(("rendering", "spaces"), [(2, 2), (1, 1)])
async def test_an_answer_keeps_the_spaces_that_targets_had(tmp_path: Path, rendering: int, spaces: int) -> None:
    """SentencePiece decoders drop the first space of a text. Targets are continuations, but not in earlier releases."""
    model_dir, tokenizer = save_tiny_llama(tmp_path / "model"), byte_tokenizer()
    tokenizer.backend_tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    tokenizer.save_pretrained(model_dir)
    template = Template(text="{input}:", rendering=rendering)
    encoder = InputEncoder(load_tokenizer(model_dir), template)
    target = encoder.encode_target("  ", end=False)  # one more space separates it from the input
    async with running_replica(model_dir, tmp_path) as replica:
        publish(replica.store, blob(model_dir, matrix(1), template=template))
        sampling = {"allowed_token_ids": target[:1], "max_new_tokens": len(target), "ignore_eos": True}
        assert (await replica.generate("hello", "tone", **sampling)).output.text == " " * spaces
