"""A prefix of keys and values: read from a version's bytes and served without computing a prefill."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from inference_service.engine.engine import Engine
from shared.errors import PreconditionFailed
from shared.prompt.blob import decode_blob, encode_blob
from shared.prompt.key_values import KeyValuePrefix
from shared.prompt.prefix import PrefixKind
from tests.inference_service.engine.builders import greedy, run_one, small_config, soft_prompt, tiny_base
from tests.shared.prompt.blobs import manifest

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
    before = engine.stats().steps
    engine.load_prefix("kv", blob.prefix)
    assert engine.stats().steps == before, "nothing was computed"
    assert run_one(engine, IDS, greedy(8), "kv").token_ids == expected
    engine.load_prefix("other", soft_prompt(base, seed=2))  # evicts the keys and values
    assert engine.prefixes.kv_bytes("kv") == 0
    engine.scheduler.pool.forget("kv")
    assert run_one(engine, IDS, greedy(8), "kv").token_ids == expected
    narrow = KeyValuePrefix(*(tuple(layer[..., :4] for layer in part) for part in (prefix.keys, prefix.values)))
    with pytest.raises(PreconditionFailed, match="this model's are"):
        engine.load_prefix("narrow", narrow)
    assert "narrow" not in engine.prefixes
    engine.check_integrity()
    assert torch.equal(blob.prefix.tensors()["layers.0.key"], prefix.keys[0])
