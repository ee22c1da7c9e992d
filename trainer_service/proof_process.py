"""`python -m trainer_service.proof_process MODEL_DIR < blob > golden.json`: what a base model answers with one soft prompt.

A process of its own, since the service itself never holds weights: when this one runs out of memory or never ends, an import goes without a
golden record, and nothing else happens. In float32, so that a replica's rounding is the only one. Plain transformers, so that what a
replica's engine is compared with is not that engine.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from pydantic import TypeAdapter

from shared import base_model
from shared.base_model import BaseModel
from shared.blob import PromptBlob, decode_blob
from shared.golden_inputs import golden_input_ids
from shared.manifest import GoldenRecord
from shared.template import InputEncoder
from shared.threads import set_torch_threads

TOP_K = 8

RECORDS = TypeAdapter(tuple[GoldenRecord, ...])


def golden_records(base: BaseModel, blob: PromptBlob) -> tuple[GoldenRecord, ...]:
    encoder = InputEncoder(base.tokenizer, blob.manifest.template)
    room = base.info.max_positions - blob.soft_prompt.num_virtual_tokens
    return tuple(_record(base, blob, ids) for ids in golden_input_ids(encoder) if len(ids) < room)


@torch.no_grad()
def _record(base: BaseModel, blob: PromptBlob, input_ids: tuple[int, ...]) -> GoldenRecord:
    model: Any = base.model
    prompt = blob.soft_prompt.cast(base.dtype, base.device)  # [P, hidden_size]
    embedded = model.get_input_embeddings()(torch.tensor(input_ids, device=base.device))  # [T, hidden_size]
    logits = model(inputs_embeds=torch.cat([prompt, embedded])[None], use_cache=False).logits[0, -1].float()  # [vocab_size]
    top = torch.log_softmax(logits, dim=-1).topk(TOP_K)
    return GoldenRecord(
        text="",
        input_ids=input_ids,
        top_token_ids=tuple(top.indices.tolist()),
        top_logprobs=tuple(min(0.0, value) for value in top.values.tolist()),
        dtype=str(base.dtype).removeprefix("torch."),
    )


def main() -> None:
    (model_dir,) = sys.argv[1:]
    set_torch_threads()
    blob = decode_blob(sys.stdin.buffer.read())
    base = base_model.load(model_dir, dtype="float32", device="cpu")
    sys.stdout.buffer.write(RECORDS.dump_json(golden_records(base, blob)))


if __name__ == "__main__":
    main()
