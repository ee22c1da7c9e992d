"""Weights of 4 and 8 bits on a CPU: how far the answers differ from float32, and the time of a decode step.

    python -m benchmarks.quantised --model MODEL --data DIRECTORY

DIRECTORY has files NAME.test.jsonl with `input` and `output`. The reference is the model's own code in float32 with the
stored weights. Times are processor seconds of one thread, the shortest step of many, so other processes hardly matter.
Writes quantised.json in the folder of this kind of processor.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import machine, result_file
from inference_service.engine.core.config import EngineConfig
from inference_service.engine.core.request import GenerationRequest
from inference_service.engine.engine import load_engine
from shared.errors import PreconditionFailed
from shared.kernels.formats import Weights
from shared.kernels.replace_modules import speed_up_serving
from shared.model import base_model
from shared.model.options import DType, ModelOptions
from shared.values.sampling import SamplingParams

FORMATS: tuple[Weights, ...] = ("stored", "restored", "q8_0", "q4_1", "q4_0")
STREAMS = (1, 4, 16, 32)
MAX_TOKENS, NUM_INPUT, NUM_NEW, VOCAB = 192, 25, 12, 32_000


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quantised", description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--texts", type=int, default=16, help="texts of each file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=result_file("quantised"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    texts = texts_of(arguments.data, arguments.texts)
    expected = logits_of(arguments.model, "float32", "stored", texts)
    results: dict[str, Any] = {"machine": machine(), "texts": len(texts)}
    for weights in FORMATS:
        found = logits_of(arguments.model, "bfloat16", weights, texts)
        results[weights] = compared(found, expected) | step_times(arguments.model, weights, arguments.rounds)
        print(weights, json.dumps(results[weights]), flush=True)
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(results, indent=2) + "\n")


def texts_of(directory: Path, num: int) -> list[str]:
    """The first `num` examples of each file, input and output one after the other."""
    files = sorted(directory.glob("*.test.jsonl"))
    if not files:
        raise SystemExit(f"{directory} has no files NAME.test.jsonl")
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()[:num]]
    return [f"{row['input']}\n{row['output']}" for row in rows]


@torch.inference_mode()
def logits_of(model: Path, dtype: DType, weights: Weights, texts: list[str]) -> list[torch.Tensor]:
    """Log-probabilities `[tokens, vocab]` of every position of each text, kept in float16."""
    base = base_model.load(model, ModelOptions(dtype=dtype, device="cpu"))
    if dtype != "float32":
        speed_up_serving(base.model, base.device, base.dtype, "auto", weights)
    ids = (base.tokenizer(text, return_tensors="pt").input_ids[:, :MAX_TOKENS] for text in texts)
    return [base.model(input_ids=one, use_cache=False).logits[0].float().log_softmax(-1).half() for one in ids]


def compared(found: list[torch.Tensor], expected: list[torch.Tensor]) -> dict[str, float]:
    """Mean over all positions of all texts."""
    divergences, same = list[torch.Tensor](), list[torch.Tensor]()
    for ours, theirs in zip(found, expected, strict=True):
        ours, theirs = ours.float(), theirs.float()
        divergences.append((theirs.exp() * (theirs - ours)).sum(-1))
        same.append(ours.argmax(-1).eq(theirs.argmax(-1)).float())
    return {
        "divergence, nats": float(torch.cat(divergences).mean()),
        "same first choice": float(torch.cat(same).mean()),
    }


def step_times(model: Path, weights: Weights, rounds: int) -> dict[str, Any]:
    """Processor milliseconds of the prefill of one input and of decode steps."""
    config = EngineConfig(max_running=max(STREAMS), max_length=256, text_reuse="off", weights=weights)
    try:
        engine = load_engine(model, ModelOptions(dtype="bfloat16"), config=config)
    except PreconditionFailed as error:
        return {"refused": error.message}
    generator, times, number = torch.Generator().manual_seed(0), dict[str, float](), 0
    for streams in STREAMS:
        best = float("inf")
        for _ in range(rounds):
            for _ in range(streams):
                number += 1
                ids = tuple(torch.randint(3, VOCAB, (NUM_INPUT,), generator=generator).tolist())
                sampling = SamplingParams(temperature=0.0, max_new_tokens=NUM_NEW, ignore_eos=True)
                engine.submit(GenerationRequest(f"{number}", ids, sampling, None))
            steps = list[float]()
            while engine.has_work:
                started = time.thread_time()
                engine.step()
                steps.append(time.thread_time() - started)
            # By then every input is prefilled, and no stream has ended.
            best = min(best, *steps[NUM_NEW // 2 : NUM_NEW - 1])
            if streams == 1:
                times["prefill of 25 tokens, ms"] = min(times.get("prefill of 25 tokens, ms", 1e9), 1e3 * steps[0])
        times[f"decode step of {streams}, ms"] = 1e3 * best
    engine.close()
    return times


if __name__ == "__main__":
    main()
