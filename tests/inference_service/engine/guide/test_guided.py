"""Guided answers of a real engine over tiny random models: every one has the form of its guide."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders

from inference_service.engine.core.request import FinishReason, GenerationRequest
from inference_service.engine.engine import Engine
from inference_service.engine.guide.compiler import GuideCompiler
from shared.values.guide import Guide
from tests.inference_service.engine.builders import drain, run_one, small_config, soft_prompt, tiny_base
from tests.inference_service.engine.guide.guided import IDS, SUMS, answer, params
from tests.inference_service.engine.text.test_text import fallback_tokenizer

END = 1

SCALARS = st.sampled_from(
    [
        {"type": "integer", "minimum": -5, "maximum": 5000},
        {"type": "boolean"},
        {"type": "null"},
        {"enum": ["a", "b\n\u00e9", 3, None]},
        {"type": "string", "maxLength": 6},
        {"type": "string", "pattern": "^[a-f]{2,4}$"},
        {"type": "string", "format": "date"},
        {"const": {"k": [1, 2]}},
    ]
)
SCHEMAS = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.fixed_dictionaries({"type": st.just("array"), "items": inner, "maxItems": st.integers(0, 3)}),
        st.lists(inner, min_size=1, max_size=2).map(lambda any_of: {"anyOf": any_of}),
        st.dictionaries(st.text("xyz\u00fc ", min_size=1, max_size=3), inner, max_size=3).map(
            lambda own: {
                "type": "object", "properties": own, "required": sorted(own)[:2], "additionalProperties": False
            }
        ),
    ),
    max_leaves=4,
)  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(schema=SCHEMAS, seed=st.integers(0, 1000), lead=st.sampled_from(["", " "]))
def test_an_answer_is_valid_under_its_schema(
    engine: Engine, compiler: GuideCompiler, schema: dict[str, Any], seed: int, lead: str
) -> None:
    found = answer(engine, compiler, Guide(json_schema=schema), lead, seed=seed, temperature=1.3)
    assert found.text.startswith(lead)
    if found.finish_reason is FinishReason.EOS:
        jsonschema.validate(json.loads(found.text), schema)
    else:
        assert found.finish_reason is FinishReason.LENGTH
        assert len(found.token_ids) == 200


def test_a_schema_can_forbid_white_space(engine: Engine, compiler: GuideCompiler) -> None:
    schema = {"type": "array", "items": {"enum": [1]}, "minItems": 4, "maxItems": 4}
    assert " " in "".join(answer(engine, compiler, Guide(json_schema=schema), seed=seed).text for seed in range(4))
    schema["x-guidance"] = {"whitespace_flexible": False}
    assert answer(engine, compiler, Guide(json_schema=schema)).text == "[1,1,1,1]"


REGEXES = st.recursive(
    st.sampled_from(["a", "[b-e0-3]", "\u00e9", r"\d{1,3}", "x?", ".", r"\."]),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: f"({'|'.join(parts)})"),
        inner.map(lambda part: f"({part}){{0,4}}"),
    ),
    max_leaves=6,
)


@settings(max_examples=25, deadline=None)
@given(regex=REGEXES, seed=st.integers(0, 1000))
def test_an_answer_matches_its_expression(engine: Engine, compiler: GuideCompiler, regex: str, seed: int) -> None:
    found = answer(engine, compiler, Guide(regex=regex), seed=seed)
    assert found.finish_reason is FinishReason.EOS
    assert re.fullmatch(regex, found.text)


@settings(max_examples=25, deadline=None)
@given(choices=st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=5), seed=st.integers(0, 1000))
def test_an_answer_is_one_of_its_choices(
    engine: Engine, compiler: GuideCompiler, choices: list[str], seed: int
) -> None:
    found = answer(engine, compiler, Guide(choices=tuple(choices)), seed=seed)
    assert found.text in choices
    assert found.finish_reason is FinishReason.EOS


@pytest.mark.parametrize("choice", ["<user>", "<end>", "<|im_end|>", "a<end>b"])
def test_a_control_token_s_name_is_written_as_text(engine: Engine, compiler: GuideCompiler, choice: str) -> None:
    found = answer(engine, compiler, Guide(choices=(choice,)))
    assert found.text == choice
    assert not set(found.token_ids[:-1]) & set(range(5))


@pytest.mark.parametrize("seed", range(20))
def test_an_answer_is_a_text_of_its_grammar(engine: Engine, compiler: GuideCompiler, seed: int) -> None:
    found = answer(engine, compiler, SUMS, seed=seed)
    if found.finish_reason is FinishReason.EOS:
        assert isinstance(eval(found.text, {"__builtins__": {}}), int)
    assert set(found.text) <= set("0123456789+()")


def test_greedy_takes_the_best_token_that_fits(engine: Engine, compiler: GuideCompiler) -> None:
    free = run_one(engine, IDS, params(None, temperature=0.0, max_new_tokens=1, num_logprobs=20))
    ranked = [token for token, _ in free.logprobs[0].top]
    first = next(token for token in ranked if token >= 5 and engine.base.tokenizer.decode([token]).isascii())
    text = engine.base.tokenizer.decode([first])
    other = "a" if text != "a" else "b"
    found = answer(engine, compiler, Guide(choices=(other, text)), temperature=0.0, num_logprobs=20)
    assert found.text == text
    # Log-probabilities are the model's own, as if there were no guide.
    assert found.logprobs[0].top == free.logprobs[0].top


def test_free_requests_beside_guided_ones_get_the_same_answers(compiler: GuideCompiler) -> None:
    def run(beside: bool) -> dict[str, tuple[int, ...]]:
        base = tiny_base()
        engine = Engine.from_base_model(base, small_config(max_length=256, max_running=6))
        engine.load_prefix("p", soft_prompt(base))
        for index in range(3):
            free = params(None, seed=index, max_new_tokens=30, ignore_eos=True, temperature=0.9 * (index % 2))
            engine.submit(GenerationRequest(f"free-{index}", (7, 8, 9 + index), free, "p" if index else None))
        for index in range(3 if beside else 0):
            guided = params(SUMS, seed=index, max_new_tokens=25)
            request = GenerationRequest(f"guided-{index}", (9 + index, 8), guided, guide=compiler.compile(SUMS))
            engine.submit(request)
        return {id: delta.token_ids for id, delta in drain(engine).items() if id.startswith("free")}

    assert run(beside=True) == run(beside=False)


def test_the_limit_of_tokens_cuts_an_answer(engine: Engine, compiler: GuideCompiler) -> None:
    found = answer(engine, compiler, Guide(regex="a{50}"), max_new_tokens=10)
    assert (found.text, found.finish_reason) == ("a" * 10, FinishReason.LENGTH)


def test_a_stop_token_is_text_where_the_form_is_not_complete(engine: Engine, compiler: GuideCompiler) -> None:
    (a, b) = engine.base.tokenizer("ab")["input_ids"]
    found = answer(engine, compiler, Guide(regex="aab"), stop_token_ids=(a,))
    assert (found.text, found.finish_reason) == ("aab", FinishReason.EOS)
    found = answer(engine, compiler, Guide(regex="a*"), stop_token_ids=(b,), forbidden_token_ids=(a, END))
    assert (found.token_ids, found.finish_reason) == ((b,), FinishReason.EOS)


def test_a_stop_sequence_cuts_an_answer(engine: Engine, compiler: GuideCompiler) -> None:
    found = answer(engine, compiler, Guide(regex="abcabc"), stop_sequences=("ca",))
    assert (found.text, found.finish_reason) == ("ab", FinishReason.STOP_SEQUENCE)


def test_no_end_is_chosen_too_early_but_a_complete_answer_ends(engine: Engine, compiler: GuideCompiler) -> None:
    found = answer(engine, compiler, Guide(regex="a{1,40}"), min_new_tokens=30)
    assert 30 <= len(found.text) <= 40
    for more in ({"min_new_tokens": 60}, {"ignore_eos": True}):
        found = answer(engine, compiler, Guide(regex="a{1,40}"), **more)
        assert (found.text, found.finish_reason) == ("a" * 40, FinishReason.EOS)


def test_an_answer_without_a_possible_token_ends_with_a_reason(engine: Engine, compiler: GuideCompiler) -> None:
    (b,) = engine.base.tokenizer("b")["input_ids"]
    found = answer(engine, compiler, Guide(regex="ab"), forbidden_token_ids=(b,))
    assert (found.text, found.finish_reason) == ("a", FinishReason.ERROR)
    assert "forbidden_token_ids" in found.error
    dead_end = Guide(grammar='start: "a" x\nx: x')
    found = answer(engine, compiler, dead_end)
    assert (found.text, found.finish_reason) == ("a", FinishReason.ERROR)


@pytest.mark.parametrize(
    "sampling", [{"temperature": 0.0}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.5}, {"repetition_penalty": 3.0}]
)
def test_a_guide_holds_with_every_way_to_sample(
    engine: Engine, compiler: GuideCompiler, sampling: dict[str, Any]
) -> None:
    found = answer(engine, compiler, Guide(regex="([a-z]{3} ){6}"), num_logprobs=2, logit_bias={80: 50.0}, **sampling)
    assert re.fullmatch("([a-z]{3} ){6}", found.text)
    assert len(found.logprobs) == len(found.token_ids)


def test_the_same_seed_gives_the_same_answer_in_any_batch_and_after_preemption(
    engine: Engine, compiler: GuideCompiler
) -> None:
    schema = Guide(json_schema={"type": "array", "items": {"type": "string", "maxLength": 9}, "minItems": 3})
    expected = answer(engine, compiler, schema, max_new_tokens=90)
    # The memory holds fewer positions than three requests need, so some of them are preempted.
    crowded = Engine.from_base_model(tiny_base(), small_config(max_length=128, kv_cache_bytes=1 << 18))
    for name in ("x", "y", "z"):
        guide = compiler.compile(schema)
        crowded.submit(GenerationRequest(name, IDS, params(schema, max_new_tokens=90), guide=guide))
    found = drain(crowded)
    assert crowded.stats().preemptions > 0
    assert {delta.token_ids for delta in found.values()} == {expected.token_ids}


@pytest.mark.parametrize("strips", [False, True])
def test_sentencepiece_tokens_give_the_form_with_and_without_a_stripped_space(strips: bool) -> None:
    tokenizer = fallback_tokenizer()
    tokenizer.add_special_tokens({"eos_token": "</s>"})
    if strips:
        steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        tokenizer.backend_tokenizer.decoder = decoders.Sequence(steps)
    base = tiny_base(vocab_size=300, eos_token_id=262)
    info = replace(base.info, vocab_size=300)
    engine = Engine.from_base_model(replace(base, tokenizer=tokenizer, info=info), small_config(max_length=256))
    compiler = GuideCompiler(engine.base)
    assert compiler.leading_spaces == int(strips)
    for seed, choice in enumerate(["a ab b", " a", "\u00e9\U0001f642 a", "</s>", "<0x41>"]):
        for lead in ("", " "):
            found = answer(engine, compiler, Guide(choices=(choice, "bb")), lead, seed=seed, temperature=1.5)
            assert found.text in (lead + choice, lead + "bb")
            assert found.finish_reason is FinishReason.EOS
    matched = answer(engine, compiler, Guide(regex="(a|\u00e9| ){5}"))
    assert re.fullmatch("(a|\u00e9| ){5}", matched.text)
