"""Distills an instruction of about 700 tokens into a prompt, with the real base model and the trainer's cohort.

    python -m benchmarks.distillation --model DIRECTORY

Writes benchmarks/results/distillation.json: the report of the job (KL divergence from the teacher, agreement of greedy
tokens, both beside the bare model, on held-out questions), the time of each phase, and held-out answers to read.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from shared.model.base_model import load
from shared.model.options import ModelOptions
from shared.text.template import Template, default_format, pinned
from shared.values.spec import DOCUMENT, Distillation
from trainer_service.training.cohort import Cohort
from trainer_service.training.distillation.texts import filled, with_text_init
from trainer_service.training.events import Evaluated, Failed, Finished, Preparing, Started, TrainingTask
from trainer_service.training.recipe.defaults import fill
from trainer_service.training.spec import Example, Hyperparameters, TaskKind, TrainingSpec

TEXT = Path(__file__).parent / "instruction.txt"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.distillation", description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--questions", type=int)
    parser.add_argument("--answer-tokens", type=int)
    parser.add_argument("--tokens", type=int, help="virtual tokens")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rate", type=float, help="learning rate")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/distillation.json"))
    results = measured(parser.parse_args())
    text = json.dumps(results, indent=2, ensure_ascii=False) + "\n"
    sys.stdout.write(text)


def measured(arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures of one distillation, which are also written to the output file."""
    base_model = load(arguments.model, ModelOptions(dtype=arguments.dtype))
    document = arguments.text.read_text()
    chosen = filled(Distillation(arguments.questions, arguments.answer_tokens), 0, None)
    template = pinned(replace(Template(), format=default_format(base_model.tokenizer)), base_model.tokenizer)
    request = Hyperparameters(
        num_virtual_tokens=arguments.tokens,
        num_steps=arguments.steps,
        batch_size=arguments.batch,
        learning_rate=arguments.rate,
        seed=arguments.seed,
    )
    num_train = chosen.num_questions - chosen.num_held_out
    hyperparameters = fill(with_text_init(request, document), TaskKind.GENERATION, num_train, base_model.info, template)
    spec = TrainingSpec(
        task=TaskKind.GENERATION, template=template, hyperparameters=hyperparameters, distillation=chosen
    )
    cohort = Cohort(base_model)
    cohort.add(TrainingTask("distillation", 1, spec, (Example(document, DOCUMENT, line=1),)))
    started, study_seconds, curve = time.perf_counter(), 0.0, list[dict[str, Any]]()
    while True:
        for event in cohort.step():
            match event:
                case Preparing():
                    sys.stderr.write(f"self-study {event.num_prepared}/{event.num_examples}\n")
                case Started():
                    study_seconds = time.perf_counter() - started
                case Evaluated():
                    curve.append({"step": event.step, **event.metrics})
                    sys.stderr.write(f"step {event.step}: {dict(event.metrics)}\n")
                case Failed():
                    raise SystemExit(event.message)
                case Finished(result=result):
                    assert result.distillation is not None
                    results = {
                        "machine": machine(),
                        "model": base_model.info.id,
                        "dtype": str(base_model.dtype).removeprefix("torch."),
                        "hyperparameters": hyperparameters.model_dump(mode="json", exclude={"init"}),
                        "distillation": asdict(result.distillation),
                        "bytes": result.prefix.num_virtual_tokens * base_model.info.hidden_size * 4,
                        "self_study_seconds": study_seconds,
                        "seconds": time.perf_counter() - started,
                        "best_step": result.best_step,
                        "curve": curve,
                        "answers": [asdict(answer) for answer in result.answers.answers],
                    }
                    arguments.output.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")
                    return results


if __name__ == "__main__":
    main()
