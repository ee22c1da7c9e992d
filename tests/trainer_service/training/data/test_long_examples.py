"""Datasets in files as tokens: one copy for several jobs, and what becomes of examples that are too long."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from shared.errors import DamagedBlob, InvalidInput
from shared.text.template import InputEncoder, Template, TemplateFormat
from shared.values.message import Message
from tests.tiny_models import byte_tokenizer
from tests.trainer_service.training.tasks import task
from trainer_service.training.data.dataset import parse_examples
from trainer_service.training.data.encoding import encode_dataset, encode_split, statistics
from trainer_service.training.data.example_lines import ExampleLines
from trainer_service.training.data.split import split_validation
from trainer_service.training.data.token_rows import TokenRowsCache
from trainer_service.training.spec import TaskKind, TooLong

MAX_POSITIONS = 100


@pytest.fixture
def lines(tmp_path: Path) -> ExampleLines:
    """20 short examples, one with a long input, one with a long target."""
    examples = [{"input": f"number {n}", "output": "yes"} for n in range(20)]
    examples += [{"input": "x" * 300 + " the end", "output": "yes"}, {"input": "short", "output": "y" * 300}]
    data = b"\xef\xbb\xbf" + b"\n\n".join(json.dumps(example).encode() for example in examples)
    path = tmp_path / "data.jsonl"
    path.write_bytes(data)
    return ExampleLines(path, hashlib.sha256(data).hexdigest())


@pytest.fixture
def encoder() -> InputEncoder:
    return InputEncoder(byte_tokenizer(), Template(text="In: {input}\nOut:"))


def test_examples_are_read_from_the_file_when_they_are_needed(lines: ExampleLines, tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").unlink()
    assert (len(lines), lines[1].line, lines[1].input, lines[-1].input) == (22, 3, "number 1", "short")
    assert list(lines) == [lines[index] for index in range(22)]
    (tmp_path / "data.jsonl").write_bytes(b"{}")
    with pytest.raises(DamagedBlob, match="changed on disk"):
        ExampleLines(tmp_path / "data.jsonl", lines.digest)


def test_too_long_examples_are_refused_with_counts_cut_or_left_out(lines: ExampleLines, encoder: InputEncoder) -> None:
    spec = task().spec
    with pytest.raises(
        InvalidInput,
        match=r"line 41: 317 input tokens and 5 target tokens; beside 6 virtual tokens there is room for 94",
    ):
        encode_dataset(lines, encoder, spec, MAX_POSITIONS)
    dropped = encode_dataset(lines, encoder, spec.model_copy(update={"too_long": TooLong.DROP}), MAX_POSITIONS)
    assert (len(dropped), dropped.num_dropped, dropped.num_truncated) == (20, 2, 0)
    cut = encode_dataset(lines, encoder, spec.model_copy(update={"too_long": TooLong.TRUNCATE}), MAX_POSITIONS)
    assert (len(cut), cut.num_dropped, cut.num_truncated) == (21, 1, 1)
    text = encoder.tokenizer.decode(cut.examples[20].input_ids)
    assert text.startswith("In: x")
    assert text.endswith("x the end\nOut:")
    assert int((cut.input_lengths + cut.target_lengths).max()) == 94
    found = statistics(cut, dropped, 0)
    assert (found.num_train, found.num_dropped, found.num_truncated) == (21, 3, 1)


@pytest.mark.parametrize("roles", [("user", "assistant"), ("user", "user"), ("assistant",), ("system", "user", "user")])
@pytest.mark.parametrize("format", [TemplateFormat.CHAT, TemplateFormat.TEXT])
def test_turns_of_one_role_in_a_row_are_the_same_in_training_and_serving(
    roles: tuple[str, ...], format: TemplateFormat
) -> None:
    """The last answer is learned after exactly the tokens that a request with the turns before it has."""
    encoder = InputEncoder(byte_tokenizer(), Template(format=format))
    turns = [Message(role, f"text {index}") for index, role in enumerate((*roles, "assistant"))]
    lines = [json.dumps({"messages": [{"role": one.role, "content": one.content} for one in turns]})]
    spec = task().spec.model_copy(update={"task": TaskKind.CHAT})
    (learned,) = encode_dataset(parse_examples(lines).examples, encoder, spec, MAX_POSITIONS).examples
    assert list(learned.input_ids) == encoder.encode_messages(turns[:-1])
    assert encoder.tokenizer.decode(learned.target_ids).strip().startswith(turns[-1].content)


def test_jobs_with_the_same_file_share_one_copy_of_its_tokens(lines: ExampleLines, encoder: InputEncoder) -> None:
    cache, progress = TokenRowsCache(), list[int]()
    spec = task().spec.model_copy(update={"too_long": TooLong.DROP})
    first = cache.get(lines, encoder, (), progress.append)
    assert cache.get(lines, encoder, (), progress.append) is first
    assert progress == [0], "the second job tokenizes nothing"
    assert first.num_bytes == 2 * int(first.lengths.sum()) + 23 * 8 + 3 * 22 * 4
    train, held = split_validation(lines, 0.2, 0)
    one = encode_split(train, held, spec, encoder, MAX_POSITIONS, cache, progress.append)
    assert progress == [0]
    assert len(one.train) + len(one.validation) == 20
    assert np.array_equal(one.train.input_lengths, [len(example.input_ids) for example in one.train.examples])
