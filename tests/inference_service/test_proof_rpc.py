"""Proof that a prompt is applied on this very model: one changed weight is found, on the disk and in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from shared.errors import PreconditionFailed
from shared.model import base_model
from shared.prompt.manifest import GoldenRecord
from tests.inference_service.replica import blob, matrix, publish, refusal, running_replica
from tests.tiny_models import save_tiny_llama

V1 = "prompts/tone/versions/1"
IDS = (20, 21, 22)
WEIGHT, PLACE = "model.layers.1.mlp.down_proj.weight", (5, 7)


def golden_of(model_dir: Path, embeddings: torch.Tensor) -> tuple[GoldenRecord, ...]:
    """What transformers says on the unchanged model, in float32."""
    model: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    embedded = torch.cat([embeddings, model.get_input_embeddings()(torch.tensor(IDS))])  # [P + T, hidden_size]
    with torch.no_grad():
        top = torch.log_softmax(model(inputs_embeds=embedded[None]).logits[0, -1], dim=-1).topk(5)
    tokens, values = tuple(top.indices.tolist()), tuple(top.values.tolist())
    return (GoldenRecord(text="hello", input_ids=IDS, top_token_ids=tokens, top_logprobs=values, dtype="float32"),)


async def test_a_model_with_one_weight_changed_on_the_disk_refuses_the_prompt_naming_both_fingerprints(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    changed = save_tiny_llama(tmp_path / "changed")
    (file,) = changed.glob("*.safetensors")
    weights = load_file(file)
    weights[WEIGHT][PLACE] += 1e-3
    save_file(weights, file, metadata={"format": "pt"})
    async with running_replica(changed, tmp_path / "replica") as replica:
        publish(replica.store, blob(tiny_model_dir, matrix(1), golden=golden_of(tiny_model_dir, matrix(1))))
        refused = await replica.state(V1, "QUARANTINED")
        for model_dir in (tiny_model_dir, changed):
            assert base_model.inspect(model_dir).fingerprint in refused.reason
        error = await refusal(replica.generate("hello", "tone"))
        assert isinstance(error, PreconditionFailed)
        assert base_model.inspect(changed).fingerprint in error.message


async def test_a_weight_changed_after_the_fingerprint_was_taken_is_found_by_the_golden_replay(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files and fingerprint are right, but the computation is wrong: a defect of memory, a loader or a kernel."""
    golden = golden_of(tiny_model_dir, matrix(1))
    load = base_model.load

    def damaged(*args: Any, **kwargs: Any) -> Any:
        loaded = load(*args, **kwargs)
        with torch.no_grad():
            loaded.model.get_parameter(WEIGHT)[PLACE] += 40.0
        return loaded

    async with running_replica(tiny_model_dir, tmp_path / "sound") as replica:
        publish(replica.store, blob(tiny_model_dir, matrix(1), golden=golden))
        await replica.state(V1, "LOADED")

    monkeypatch.setattr(base_model, "load", damaged)
    async with running_replica(tiny_model_dir, tmp_path / "damaged") as replica:
        publish(replica.store, blob(tiny_model_dir, matrix(1), golden=golden))
        refused = await replica.state(V1, "QUARANTINED")
        trained, here = refused.reason.partition("trained: ")[2].split("; here: ")
        recorded = dict(zip(golden[0].top_token_ids, golden[0].top_logprobs, strict=True))
        assert trained == ", ".join(f"{token} {value:.4f}" for token, value in recorded.items())
        assert [item.split()[0] for item in here.split(", ")] == [item.split()[0] for item in trained.split(", ")]
        assert here != trained
        assert isinstance(await refusal(replica.generate("hello", "tone")), PreconditionFailed)
        assert await replica.metric("version_load_failures_total", reason="golden") == 1
