"""PEFT's comparison of methods on MetaMathQA, for ours: `python -m benchmarks.metamath --model DIR --data DIR`.

Follows `method_comparison/MetaMathQA` in huggingface/peft (commit 5d602fd, August 2026), whose published figures are
those of Llama-3.2-3B in bfloat16 on one GPU. The same: training examples (the first ones of MetaMathQA of at most 1,300
characters), steps, batch size, template, test set (GSM8K), lengths of answers, and how a number is read from an answer.
Different: the recipe chooses rate, decay and the checkpoint (by the loss on examples of MetaMathQA that come after the
training examples); batches are shuffled; the loss is on the answers alone; a space precedes an answer.

`--data` has the files `metamath` and `gsm8k-test`, in any format that `softprompt tune` reads, with the columns of the
originals: `query` and `response`, `question` and `answer`. If it also has `wiki` with the column `text`, the loss on
these texts says how much of the model's abilities the prefix hides (PEFT: "forgetting").
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from decimal import Decimal, DecimalException
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import machine
from benchmarks.quality.contestants import train
from benchmarks.quality.scoring import Prefixed, Tuned
from shared.model.base_model import BaseModel, load
from shared.model.options import ModelOptions
from shared.text.template import InputEncoder, Template, TemplateFormat, pinned
from shared.values.enums import PrefixKind
from softprompt.data.files import file_rows
from softprompt.types.data import Data
from trainer_service.training.attention.forward import choose_forward
from trainer_service.training.attention.packing import Row
from trainer_service.training.cohort import Cohort
from trainer_service.training.recipe.defaults import fill
from trainer_service.training.spec import Example, Hyperparameters, TaskKind, TooLong, TrainingSpec

MAX_CHARS, MAX_TOKENS = 1300, 768
NUM_STEPS, BATCH_SIZE = 5000, 4
NUM_HELD_OUT = 128
TEMPLATE = "Question: {input} Think step by step.\nAnswer:"
TEST_BATCH, MAX_NEW_TOKENS, MAX_TOTAL_TOKENS = 50, 300, 800
NUM_WIKI = 100
MARKERS = ("The answer is: ", "The answer is ", "The final answer is: ", "The final answer is ", "#### ")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.metamath", description=__doc__)
    parser.add_argument("--model", required=True, help="a model directory; PEFT's figures are of Llama-3.2-3B")
    parser.add_argument("--data", type=Path, required=True, help="a directory with the datasets")
    parser.add_argument("--kind", type=PrefixKind, choices=list(PrefixKind), default=PrefixKind.PROMPT)
    parser.add_argument("--virtual-tokens", type=int, help="default: the recipe's")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=NUM_STEPS, help=f"PEFT: {NUM_STEPS}")
    parser.add_argument("--test", type=int, default=0, help="test rows from the beginning; 0: all, as PEFT")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/metamath.json"))
    arguments = parser.parse_args()
    found = run(arguments)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    runs = json.loads(arguments.output.read_text()) if arguments.output.is_file() else []
    arguments.output.write_text("[\n" + ",\n".join(map(json.dumps, [*runs, found])) + "\n]\n")
    print(json.dumps({name: value for name, value in found.items() if name not in ("right", "hyperparameters")}))


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Trains and tests one prefix; returns PEFT's metrics and the settings."""
    base = load(arguments.model, ModelOptions(dtype=arguments.dtype))
    num_train = arguments.steps * BATCH_SIZE
    short = (row for row in _read(arguments.data, "metamath", "query", "response") if len(" ".join(row)) <= MAX_CHARS)
    every = [
        Example(line=line, input=query, output=answer)
        for line, (query, answer) in enumerate(islice(short, num_train + NUM_HELD_OUT), start=1)
    ]
    examples, held = every[:-NUM_HELD_OUT], every[-NUM_HELD_OUT:]
    if not examples:
        raise SystemExit(f"{arguments.data}/metamath has {len(every)} short examples, {NUM_HELD_OUT} are held out")
    questions = _read(arguments.data, "gsm8k-test", "question", "answer")
    test = [(question, answer) for question, answer in islice(questions, arguments.test or None)]
    template = pinned(Template(text=TEMPLATE, format=TemplateFormat.TEXT), base.tokenizer)
    request = Hyperparameters(
        num_virtual_tokens=arguments.virtual_tokens,
        num_steps=arguments.steps,
        batch_size=BATCH_SIZE,
        seed=arguments.seed,
        kind=arguments.kind,
    )
    filled = fill(request, TaskKind.GENERATION, len(examples), base.info, template, on_gpu=base.device.type == "cuda")
    longest = min(MAX_TOKENS + filled.num_virtual_tokens, base.info.max_positions)
    spec = TrainingSpec(
        task=TaskKind.GENERATION,
        template=template,
        labels=(),
        hyperparameters=filled,
        too_long=TooLong.DROP,
        max_positions=longest,
    )
    started = time.perf_counter()
    prefix = train(Cohort(base), spec, examples, held)
    seconds = time.perf_counter() - started
    forward = choose_forward(base)
    tuned = Prefixed(base, forward, prefix)
    found: dict[str, Any] = {
        "model": base.info.id,
        "kind": arguments.kind.value,
        "num_train": len(examples),
        "num_test": len(test),
        "train_seconds": seconds,
        "parameters": tuned.num_parameters,
        "bytes": tuned.num_bytes,
        "hyperparameters": filled.model_dump(mode="json"),
        "machine": machine(),
    }
    if base.device.type == "cuda":
        found |= {"gpu": torch.cuda.get_device_name(), "max_memory_bytes": torch.cuda.max_memory_reserved()}
    right = right_answers(tuned, InputEncoder(base.tokenizer, template), test)
    found |= {"test_accuracy": statistics.mean(right), "right": "".join("01"[mark] for mark in right)}
    if wiki := _texts(arguments.data):
        before = text_loss(Prefixed(base, forward, None), base, wiki)
        found |= {"forgetting": text_loss(tuned, base, wiki) - before, "wiki_loss": before}
    return found


def right_answers(tuned: Tuned, encoder: InputEncoder, test: Sequence[tuple[str, str]]) -> list[bool]:
    """Whether each greedy answer states the number of the expected one."""
    stops = [] if encoder.end_token_id is None else [encoder.end_token_id]
    right = list[bool]()
    for first in range(0, len(test), TEST_BATCH):
        batch = test[first : first + TEST_BATCH]
        inputs = [encoder.encode_input(question) for question, _ in batch]
        room = min(MAX_NEW_TOKENS, max(1, MAX_TOTAL_TOKENS - max(map(len, inputs))))
        answers = tuned.answers(inputs, room, stops)
        right += [states(answer, expected) for answer, (_, expected) in zip(answers, batch, strict=True)]
        print(f"{len(right)} of {len(test)} test questions, {sum(right)} right", flush=True)
    return right


def states(answer: str, expected: str) -> bool:
    """Whether an answer ends with the same number, or the same text, as the expected one; as PEFT compares them."""
    found, wanted = final_answer(answer), final_answer(expected)
    if wanted is None:
        raise SystemExit(f"the expected answer {expected[-80:]!r} has none of {', '.join(map(repr, MARKERS))}")
    return found is not None and _value(found) == _value(wanted)


def final_answer(text: str) -> str | None:
    """What follows the last occurrence of the first known marker, up to the end of the line; None without a marker."""
    text = text.strip().rstrip(".!?")
    marker = next((marker for marker in MARKERS if marker in text), None)
    if marker is None:
        return None
    return text.rpartition(marker)[2].strip().split("\n", 1)[0].strip(" .!?$%")


def text_loss(tuned: Tuned, base: BaseModel, texts: Sequence[str]) -> float:
    """Nats per token of the texts' first tokens."""
    every = [tuple(base.tokenizer(text)["input_ids"][:MAX_TOKENS]) for text in texts]
    scores = tuned.score_rows([Row(ids[:1], ids[1:]) for ids in every if len(ids) > 1])
    return -sum(score.log_probability for score in scores) / sum(score.num_targets for score in scores)


def _value(text: str) -> float | str:
    """A number or a fraction as a number; anything else as it is."""
    try:
        numerator, *rest = [Decimal(part.strip()) for part in text.split("/")]
        return text if len(rest) > 1 else float(numerator / rest[0] if rest else numerator)
    except DecimalException:
        return text


def _texts(directory: Path) -> list[str]:
    if not any(directory.glob("wiki.*")):
        return []
    return [text for (text,) in islice(_read(directory, "wiki", "text"), NUM_WIKI)]


def _read(directory: Path, name: str, *columns: str) -> Generator[tuple[str, ...]]:
    """The columns of the file with this name and any ending."""
    paths = sorted(directory.glob(f"{name}.*"))
    if len(paths) != 1:
        raise SystemExit(f"{directory} needs one file {name}.*, with {' and '.join(columns)}; it has {len(paths)}")
    with closing(file_rows(paths[0], Data(paths[0]), str(paths[0])).items) as rows:
        for row in rows:
            fields = row.fields
            if not isinstance(fields, dict) or not all(isinstance(fields.get(column), str) for column in columns):
                raise SystemExit(f"{paths[0]}, row {row.number}: needs the texts {' and '.join(columns)}")
            yield tuple(fields[column] for column in columns)


if __name__ == "__main__":
    main()
