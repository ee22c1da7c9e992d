"""Strict datasets: every kind of bad line is refused by its number, good ones are split and compared."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from shared.errors import InvalidInput
from shared.text.template import InputEncoder, Template
from tests.tiny_models import byte_tokenizer
from tests.trainer_service.training.tasks import classification, generation, task
from trainer_service.training.data.dataset import (
    DatasetLimits,
    count_overlap,
    encode_dataset,
    parse_examples,
    split_validation,
)
from trainer_service.training.spec import Example, TaskKind

GOOD = b'{"input": "a", "output": "b"}'


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"input": "a", "output": ', "line 2: is not JSON"),
        (b"[1, 2]", "line 2: must be a JSON object"),
        (b'"text"', "line 2: must be a JSON object"),
        (b'{"input": "a"}', "line 2: must have exactly input and output"),
        (b'{"input": "a", "output": "b", "weight": 1}', "'weight'"),
        (b'{"input": "a", "output": NaN}', "NaN is not JSON"),
        (b'{"input": "a", "output": 7}', "line 2 output: must be a string, not a number"),
        (b'{"input": "a", "output": null}', "line 2 output: must be a string, not null"),
        (b'{"input": "a", "output": "  "}', "line 2 output: is empty"),
        (b'{"input": "", "output": "b"}', "line 2 input: is empty"),
        (b'{"input": "\\u200b\\ufeff", "output": "b"}', "line 2 input: is empty"),
        (b'{"input": "a", "output": "\\u200b"}', "line 2 output: is empty"),
        (b'{"input": "a", "input": "c", "output": "b"}', "the key 'input' is there twice"),
        (b'{"input": "a", "output": "\\ud800"}', "line 2 output: is not valid Unicode"),
        (b'{"input": "a", "output": "\xff"}', "line 2: is not UTF-8"),
        ('{"input": "да", "output": "b"}'.encode("utf-16-le"), "line 2: has NUL bytes, as UTF-16 has; it must"),
        (b'{"input": "a", "label": "b"}', "line 2: is classification, earlier examples are generation"),
        (b'{"messages": [{"role": "user", "content": "x"}]}', "line 2: is chat"),
        (b'{"messages": "hello"}', "line 2 messages: must be a list"),
        (b'{"messages": [{"role": "user"}]}', "line 2 messages[0]: must have exactly role and content"),
        (b"[" * 100_000, "line 2: is nested too deeply"),
        (b'{"input": "a", "output": ' + b"9" * 5000 + b"}", "line 2"),
        (b'{"input": "' + b"a" * 2000 + b'", "output": "b"}', "line 2: is longer than 1000 bytes"),
    ],
)
def test_a_bad_line_is_refused_by_its_number(line: bytes, reason: str) -> None:
    limits = DatasetLimits(max_line_bytes=1000 if b"aaaa" in line else 1 << 20)
    with pytest.raises(InvalidInput) as refused:
        parse_examples([GOOD + b"\n", line + b"\n", GOOD], limits=limits)
    assert reason in str(refused.value)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([("user", "x"), ("user", "y")], "must end with the assistant"),
        ([("assistant", "x")], "after at least one other"),
        ([("robot", "x"), ("assistant", "y")], "messages[0].role: must be one of system, user, assistant"),
        ([("user", " "), ("assistant", "y")], "messages[0].content: is empty"),
    ],
)
def test_a_conversation_must_end_in_something_to_learn(messages: list[tuple[str, str]], reason: str) -> None:
    line = json.dumps({"messages": [{"role": role, "content": content} for role, content in messages]})
    with pytest.raises(InvalidInput) as refused:
        parse_examples([line])
    assert reason in str(refused.value)


def test_many_bad_lines_are_reported_together_but_not_all() -> None:
    with pytest.raises(InvalidInput) as refused:
        parse_examples([b"{"] * 1000)
    assert [violation.field for violation in refused.value.violations] == ["line 1", "line 2", "line 3"]
    assert refused.value.violations[2].description.endswith("(and 997 more like this)")


def test_mistakes_of_several_kinds_are_reported_each_with_its_count() -> None:
    lines = [b"{", b'{"input": "a"}', b'{"input": "", "output": "b"}'] * 10
    with pytest.raises(InvalidInput) as refused:
        parse_examples(lines)
    assert [violation.field for violation in refused.value.violations] == [
        *("line 1", "line 2", "line 3 input", "line 4", "line 5", "line 6 input", "line 7", "line 8", "line 9 input"),
    ]
    assert all("(and 7 more like this)" in violation.description for violation in refused.value.violations[6:])
    strange = [
        f'{{"messages": [{{"role": "role{number}", "content": "x"}}, {{"role": "assistant", "content": "y"}}]}}'
        for number in range(30)
    ]
    with pytest.raises(InvalidInput) as refused:
        parse_examples(strange)
    assert len(refused.value.violations) == 21
    assert refused.value.violations[-1].description == "has 10 more mistakes of other kinds"


def test_byte_order_marks_of_joined_files_are_skipped() -> None:
    assert len(parse_examples([b"\xef\xbb\xbf" + GOOD, GOOD, b"\xef\xbb\xbf" + GOOD]).examples) == 3


def test_nothing_too_many_and_one_label_are_refused() -> None:
    for lines, reason in (
        ([], "has no examples"),
        ([b"\n", b"  \n"], "has no examples"),
        ([GOOD] * 4, "more than 3 examples; line 4"),
    ):
        with pytest.raises(InvalidInput, match=reason):
            parse_examples(lines, limits=DatasetLimits(max_examples=3))
    with pytest.raises(InvalidInput, match="needs at least two labels"):
        parse_examples([b'{"input": "a", "label": "x"}'])


def test_labels_are_checked_against_the_set_or_collected() -> None:
    lines = [b'{"input": "a", "label": "x"}', b'{"input": "b", "label": "y"}']
    assert parse_examples(lines).labels == ("x", "y")
    assert parse_examples(lines, ("y", "x", "z")).labels == ("y", "x", "z")
    with pytest.raises(InvalidInput, match="line 2 label: 'y' is not in the label set"):
        parse_examples(lines, ("x", "z"))
    with pytest.raises(InvalidInput, match="labels: a label set needs"):
        parse_examples([GOOD], ("x", "y"))
    with pytest.raises(InvalidInput, match=r"labels\[1\]: 'x' is repeated"):
        parse_examples(lines, ("x", "x"))


def test_blank_lines_and_a_byte_order_mark_are_skipped_and_lines_still_count() -> None:
    parsed = parse_examples([b"\xef\xbb\xbf" + GOOD + b"\r\n", b"\n", GOOD])
    assert [example.line for example in parsed.examples] == [1, 3]
    assert parsed.task is TaskKind.GENERATION


@given(st.integers(4, 60), st.floats(0.05, 0.95), st.integers(0, 2**40))
def test_a_split_is_deterministic_disjoint_and_leaves_no_input_on_both_sides(
    count: int, fraction: float, seed: int
) -> None:
    examples = tuple(Example(line=i + 1, input=f"input {i // 2}", output=str(i)) for i in range(count))
    try:
        train, held = split_validation(examples, fraction, seed)
    except InvalidInput:
        assert fraction * count < 1.5 or count < 4
        return
    assert (train, held) == split_validation(examples, fraction, seed)
    assert sorted((*train, *held), key=lambda example: example.line) == list(examples)
    assert train
    assert held
    assert count_overlap(train, held) == 0


def test_a_fraction_that_leaves_nothing_is_refused_and_overlap_is_counted() -> None:
    with pytest.raises(InvalidInput, match="leaves none on one side"):
        split_validation(generation(3), 0.01, 0)
    with pytest.raises(InvalidInput, match="below 1"):
        split_validation(generation(3), 1.0, 0)
    assert count_overlap(generation(10), generation(6, 7)) == 3


def test_encoding_refuses_what_does_not_fit_with_line_and_counts() -> None:
    spec = task().spec
    encoder = InputEncoder(byte_tokenizer(), Template(text="In: {input}\nOut:"))
    examples = (*generation(2), Example(line=30, input="x" * 80, output="y" * 20))
    with pytest.raises(
        InvalidInput,
        match="line 30: 89 input tokens and 22 target tokens; beside 6 virtual tokens there is room for 94",
    ):
        encode_dataset(examples, encoder, spec, 100)
    fits = encode_dataset(examples, encoder, spec, 200)
    assert fits.examples[2].target_ids[-1] == encoder.tokenizer.eos_token_id


@pytest.mark.parametrize("around", [" ", "\u200b", "\u00a0", "\ufeff"])
def test_labels_have_nothing_around_them(around: str) -> None:
    lines = [json.dumps({"input": "a", "label": label}) for label in ("x", f"x{around}")]
    with pytest.raises(InvalidInput, match=r"line 2 label: .* has white space or invisible characters around it"):
        parse_examples(lines)


def test_labels_that_begin_one_another_are_distinguished_by_the_end_of_sequence() -> None:
    encoder = InputEncoder(byte_tokenizer(), Template(text="In: {input}\nOut:"))
    spec = task(train=classification()).spec
    nested = spec.model_copy(update={"labels": ("good", "good enough", "so-so", "bad")})
    eos = encoder.tokenizer.eos_token_id
    assert all(ids[-1] == eos for ids in encode_dataset(classification(), encoder, nested, 200).label_ids)
    assert all(ids[-1] != eos for ids in encode_dataset(classification(), encoder, spec, 200).label_ids)


def test_tokens_that_the_model_lacks_are_refused_with_their_line() -> None:
    """A tokenizer may have tokens that were added after the model; their ids have no embeddings."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["[new]"])
    encoder, spec = InputEncoder(tokenizer, Template(text="In: {input}\nOut:")), task().spec
    examples = (*generation(2), Example(line=30, input="a [new] word", output="y"))
    with pytest.raises(InvalidInput, match=r"line 30: has the token '\[new\]' with the id 261, but .* has 261 tokens"):
        encode_dataset(examples, encoder, spec, 200, vocab_size=261)
    assert len(encode_dataset(examples, encoder, spec, 200, vocab_size=262)) == 3
    assert len(encode_dataset(examples[:2], encoder, spec, 200, vocab_size=261)) == 2
    labels = task(train=classification()).spec.model_copy(update={"labels": ("good", "[new]", "so-so", "bad")})
    with pytest.raises(InvalidInput, match=r"labels\[1\]: has the token '\[new\]'"):
        encode_dataset([Example(line=1, input="x", label="good")], encoder, labels, 200, vocab_size=261)


def test_a_tokenizer_whose_ids_have_gaps_may_have_large_ids() -> None:
    tokenizer = byte_tokenizer()
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    vocab = backend["model"]["vocab"]
    vocab["z"] = 70_000
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(backend)), eos_token="<end>")
    encoder = InputEncoder(tokenizer, Template(text="{input}\n"))
    (example,) = encode_dataset([Example(line=1, input="z", output="y")], encoder, task().spec, 200).examples
    assert example.input_ids[0] == 70_000
