"""transformers' `generate` with a static batch and prompts prepended as embeddings, the baseline without an engine.

`peer_process` runs it as `python -m benchmarks.serve.transformers_peer MODEL WORKLOAD_FILE`, in its own process, so
that it can use all cores.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from shared.model.base_model import load
from shared.model.options import ModelOptions
from shared.process.allocator import tune_allocator


def main(model: str, workload_file: str) -> None:
    tune_allocator()
    workload = torch.load(workload_file, weights_only=True)
    causal = load(Path(model), ModelOptions(dtype="bfloat16", device="cpu")).model
    _seconds(causal, workload, 2, 4, {})
    _tell({"ready": True})
    for line in sys.stdin:
        order = json.loads(line)
        count, new = order["requests"], workload["num_new"]
        now = {**workload, "inputs": order["inputs"] or workload["inputs"]}
        _tell({"value": count * new / _seconds(causal, now, count, new, order["sampling"])})


@torch.inference_mode()
def _seconds(model: Any, workload: dict[str, Any], count: int, num_new: int, sampling: dict[str, float]) -> float:
    prompts, table = workload["prompts"], model.get_input_embeddings()
    rows = [
        torch.cat([prompts[i % len(prompts)].to(torch.bfloat16), table(torch.tensor(workload["inputs"][i]))])
        for i in range(count)
    ]
    embeds = torch.stack(rows)
    begun = time.perf_counter()
    out = model.generate(
        inputs_embeds=embeds,
        attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
        max_new_tokens=num_new,
        min_new_tokens=num_new,
        **({"do_sample": True, "top_k": 0, **sampling} if sampling.get("temperature") else {"do_sample": False}),
        pad_token_id=0,
    )
    seconds = time.perf_counter() - begun
    assert out.shape == (count, num_new)
    return seconds


def _tell(answer: dict[str, Any]) -> None:
    sys.stdout.write("RESULT " + json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
