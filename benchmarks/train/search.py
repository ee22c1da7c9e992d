"""The cost of a search: examples and positions that it trains, relative to one run with the same number of steps.

    python -m benchmarks.train.search

The figure is a count that depends only on the recipe, so a tiny random model is trained, which takes seconds. Examples
that are scored, to choose the checkpoint and to judge it, are counted apart. Writes benchmarks/results/search.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from benchmarks.machine import machine
from shared.model.base_model import BaseModel
from shared.text.template import Template
from shared.values.base_model import BaseModelInfo
from trainer_service.training import compute
from trainer_service.training.cohort import Cohort
from trainer_service.training.events import Failed, Finished, StepDone, TrainingTask
from trainer_service.training.recipe.defaults import fill
from trainer_service.training.spec import Example, Hyperparameters, TaskKind, TrainingSpec

LABELS = ("positive", "negative")
TEMPLATE = Template(text="Review: {input}\nSentiment:")
NUM_TRAIN, NUM_VALIDATION = 1280, 64


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train.search", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/search.json"))
    arguments = parser.parse_args()
    torch.manual_seed(0)
    base = _tiny_model()
    one, search = (train(base, search=search) for search in (False, True))
    results = {
        "machine": machine(),
        "one_run": one,
        "search": search,
        "examples_trained_ratio": search["examples_trained"] / one["examples_trained"],
        "positions_trained_ratio": search["positions_trained"] / one["positions_trained"],
        "examples_scored_ratio": search["examples_scored"] / one["examples_scored"],
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(results, indent=2) + "\n")
    sys.stdout.write(json.dumps(results, indent=2) + "\n")


def train(base: BaseModel, *, search: bool) -> dict[str, Any]:
    """One job with the recipe's 320 steps of 8 examples."""
    request = Hyperparameters(search=search, seed=0)
    hyperparameters = fill(request, TaskKind.CLASSIFICATION, NUM_TRAIN, base.info, TEMPLATE, LABELS)
    spec = TrainingSpec(task=TaskKind.CLASSIFICATION, template=TEMPLATE, labels=LABELS, hyperparameters=hyperparameters)
    cohort = Cohort(base)
    cohort.add(
        TrainingTask(
            "search" if search else "one", 1, spec, _examples(NUM_TRAIN, 0), _examples(NUM_VALIDATION, NUM_TRAIN)
        )
    )
    trained, positions, scored = 0, 0, 0
    original = compute.score

    def counting(model: Any, forward: Any, works: Any) -> Any:
        nonlocal scored
        scored += sum(len(work.rows) for work in works)
        return original(model, forward, works)

    compute.score = counting  # type: ignore[assignment]
    try:
        while not cohort.is_idle:
            for event in cohort.step():
                if isinstance(event, Failed):
                    raise SystemExit(f"training failed: {event.message}")
                if isinstance(event, StepDone):
                    trained += event.num_examples
                    positions += event.num_tokens
                if isinstance(event, Finished):
                    steps = event.result.num_steps
    finally:
        compute.score = original
    return {"steps": steps, "examples_trained": trained, "positions_trained": positions, "examples_scored": scored}


def _examples(count: int, first: int) -> tuple[Example, ...]:
    return tuple(
        Example(line=i + 1, input=f"it is {'good' if i % 2 else 'bad'} {i}", label=LABELS[1 - i % 2])
        for i in range(first, first + count)
    )


def _tiny_model() -> BaseModel:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        models.BPE(vocab={token: index for index, token in enumerate(["<end>", *alphabet])}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=0,
    )
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    info = BaseModelInfo(
        id="tiny",
        fingerprint="",
        tokenizer_digest="",
        architecture="LlamaForCausalLM",
        hidden_size=32,
        vocab_size=257,
        num_layers=1,
        max_positions=512,
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", clean_up_tokenization_spaces=False)
    return BaseModel(info, model, fast, torch.device("cpu"), torch.float32)


if __name__ == "__main__":
    main()
