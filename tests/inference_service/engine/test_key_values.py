"""A prefix of keys and values: read from a version's bytes and served without computing a prefill."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from inference_service.engine.engine import Engine
from shared.errors import PreconditionFailed
from shared.prompt.blob import decode_blob, encode_blob
from shared.prompt.key_values import KeyValuePrefix
from shared.prompt.lift import key_values_of
from shared.values.enums import PrefixKind
from tests.inference_service.engine.builders import Positions, greedy, run_one, small_config, soft_prompt, tiny_base
from tests.shared.prompt.blobs import manifest
from tests.tiny_models import VOCAB_SIZE

IDS = (11, 12, 13, 14, 15)


def test_a_version_of_keys_and_values_is_served_as_it_is() -> None:
    base = tiny_base("gemma3_text")
    engine = Engine.from_base_model(base, small_config(prefix_kv_bytes=1))
    engine.load_prefix("prompt", soft_prompt(base))
    expected = run_one(engine, IDS, greedy(8), "prompt").token_ids
    lifted = engine.prefixes.get("prompt")
    (keys,), (values,) = lifted.keys, lifted.values
    prefix = KeyValuePrefix(
        tuple(keys.transpose(1, 2).contiguous().unbind()), tuple(values.transpose(1, 2).contiguous().unbind())
    )
    info = replace(manifest().base_model, num_layers=base.info.num_layers)
    blob = decode_blob(encode_blob(prefix, manifest(kind=PrefixKind.PREFIX, num_virtual_tokens=7, base_model=info)))
    assert blob.prefix.equals(prefix)
    computed = engine.live.observer = Positions()
    engine.load_prefix("kv", blob.prefix)
    assert computed.num_positions == 0
    assert run_one(engine, IDS, greedy(8), "kv").token_ids == expected
    engine.load_prefix("other", soft_prompt(base, seed=2))  # evicts the keys and values
    assert engine.prefixes.kv_bytes("kv") == 0
    engine.scheduler.pool.forget("kv")
    assert run_one(engine, IDS, greedy(8), "kv").token_ids == expected
    narrow = KeyValuePrefix(*(tuple(layer[..., :4] for layer in part) for part in (prefix.keys, prefix.values)))
    with pytest.raises(PreconditionFailed, match="layer 0; gemma3_text has"):
        engine.load_prefix("narrow", narrow)
    assert "narrow" not in engine.prefixes
    engine.check_integrity()
    assert torch.equal(blob.prefix.tensors()["layers.0.key"], prefix.keys[0])


@pytest.mark.parametrize(
    ("kind", "paged", "dtype"),
    [
        *((kind, False, torch.float32) for kind in ("llama", "qwen3", "gemma3_text", "gpt2", "falcon", "deepseek_v3")),
        ("gemma3_text", True, torch.float32),
        ("deepseek_v3", True, torch.bfloat16),
        ("llama", False, torch.float16),
    ],
)
def test_a_lifted_prompt_answers_like_the_prompt(kind: str, paged: bool, dtype: torch.dtype) -> None:
    base = tiny_base(kind, dtype=dtype)
    prompt = soft_prompt(base, num_virtual=12)  # longer than the windows of Gemma 3
    lifted = key_values_of(base, prompt.cast(base.dtype))
    engine = Engine.from_base_model(base, small_config(paged=paged))
    engine.load_prefix("prompt", prompt)
    engine.load_prefix("lifted", lifted)
    computed, ours = engine.prefixes.get("prompt"), engine.prefixes.get("lifted")
    for one, other in zip((*computed.keys, *computed.values), (*ours.keys, *ours.values), strict=True):
        assert one.dtype == other.dtype == dtype
        assert float((one - other).float().norm() / one.float().norm()) < (1e-5 if dtype == torch.float32 else 0.03)
    if dtype == torch.float32:
        assert (
            run_one(engine, IDS, greedy(8), "lifted").token_ids == run_one(engine, IDS, greedy(8), "prompt").token_ids
        )


def test_a_model_that_shares_keys_between_layers_is_refused_by_name() -> None:
    base = tiny_base(
        "gemma3n_text",
        num_hidden_layers=6,
        num_kv_shared_layers=2,
        layer_types=["sliding_attention", "full_attention"] * 3,
        intermediate_size=[96] * 6,
        activation_sparsity_pattern=[0.0] * 6,
        vocab_size_per_layer_input=VOCAB_SIZE,
        hidden_size_per_layer_input=8,
    )
    with pytest.raises(PreconditionFailed, match="gemma3n_text does not keep keys and values of every token in each"):
        key_values_of(base, soft_prompt(base).embeddings)
