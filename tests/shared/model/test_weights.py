"""Weights as people have them load as what they mean, or are refused in a sentence."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from shared.errors import NotFound, PreconditionFailed, Unavailable
from shared.model import base_model
from shared.model.base_model import inspect, load
from shared.model.causality import check_causal
from shared.model.model_files import INDEX, weight_files
from shared.model.options import DType, ModelOptions
from shared.model.shape import ModelShape
from tests.shared.model.conftest import CACHE
from tests.tiny_models import FLOAT32, LLAMA_SHAPE, VOCAB_SIZE, save_tiny_llama, save_tiny_model


@pytest.mark.parametrize("kind", ["gemma2", "bloom", "gptj"])
def test_a_model_without_fused_attention_loads_with_the_one_it_has(kind: str, tmp_path: Path) -> None:
    shape = (
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8}
        if kind != "gemma2"
        else {**LLAMA_SHAPE, "head_dim": 16}
    )
    save_tiny_model(tmp_path / kind, kind, **{**shape, "vocab_size": VOCAB_SIZE})
    assert load(tmp_path / kind, FLOAT32).info.id == kind


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_loads(model_dir: Path, dtype: DType) -> None:
    assert load(model_dir, ModelOptions(dtype=dtype, device="cpu")).embedding_table.dtype == getattr(torch, dtype)


def test_weights_that_are_a_pipe_are_refused_and_not_waited_for(model_dir: Path) -> None:
    (model_dir / "model.safetensors").unlink()
    os.mkfifo(model_dir / "model.safetensors")
    with pytest.raises(Unavailable, match=r"model\.safetensors is not a regular file"):
        inspect(model_dir)


def test_pickled_weights_are_refused_in_a_sentence(model_dir: Path) -> None:
    (model_dir / "model.safetensors").rename(model_dir / "pytorch_model.bin")
    with pytest.raises(NotFound, match=r"pickled \(pytorch_model.bin\).*save them as safetensors"):
        load(model_dir)


def test_settings_beside_the_weights_do_not_keep_a_model_from_loading(model_dir: Path) -> None:
    path = model_dir / "config.json"
    own = {"_attn_implementation": "flash_attention_2", "return_dict": False}
    path.write_text(json.dumps({**json.loads(path.read_text()), **own}))
    loaded = base_model.load(model_dir, FLOAT32)
    check_causal(loaded)
    assert loaded.model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("name", "change", "why"),
    [
        ("model.norm.weight", lambda weight: weight.fill_(float("nan")), "not finite in float32, the first is {}:"),
        ("model.embed_tokens.weight", lambda weight: weight.fill_(float("inf")), "not finite"),
        ("model.layers.0.mlp.up_proj.weight", lambda weight: (weight * 99).char(), "does not explain, the first is {}"),
        ("model.layers.0.mlp.up_proj.weight_scale_inv", None, "does not explain, the first is {}"),
        ("model.layers.1.self_attn.q_proj.bias", None, "does not explain, the first is {}"),
        ("model.layers.1.self_attn.q_proj.lora_A.default.weight", None, "does not explain, the first is {}"),
        ("model.layers.1.self_attn.q_norm.weight", None, "does not explain, the first is {}"),
        ("model.layers.1.self_attn.sinks", None, "does not explain, the first is {}"),
        ("model.layers.1.self_attn.q_proj.weight_scale", lambda _: torch.tensor(2.0), "does not explain, .* {}"),
        ("layers.1.self_attn.q_proj.weight_scale", lambda _: torch.tensor(2.0), "does not explain, the first is {}"),
        ("layers.1.self_attn.q_norm.weight", None, "does not explain, the first is {}"),
        ("layers.1.self_attn.q_proj.lora_A.default.weight", None, "does not explain, the first is {}"),
        ("layers.2.mlp.up_proj.weight", None, "more layers .* the first is model.layers.2:"),
        ("layers.1.self_attn.bias", lambda _: torch.ones(1, 1, 8, 8), ""),
        ("layers.1.self_attn.masked_bias", lambda _: torch.tensor(-1e4), ""),
        ("layers.2.eh_proj.weight", None, ""),
        ("model.layers.1.self_attn.rotary_emb.inv_freq", None, ""),
        ("model.layers.1.self_attn.bias", lambda _: torch.ones(1, 1, 8, 8), ""),  # a mask, as in GPT-2
        ("model.layers.1.self_attn.bias", lambda _: torch.ones(8, 8, dtype=torch.bool), ""),
        ("score.weight", None, ""),  # another head's, which is not used
        ("model.layers.2.eh_proj.weight", None, ""),  # of a layer that predicts further tokens, as in DeepSeek V3
    ],
)
def test_weights_that_mean_something_else_are_refused(model_dir: Path, name: str, change: Any, why: str) -> None:
    weights = load_file(model_dir / "model.safetensors")
    if name.startswith("layers."):  # a file of the model without a head, as that of GPT-2
        weights = {key.removeprefix("model."): weight for key, weight in weights.items()}
    weights[name] = torch.ones(1) if change is None else change(weights.get(name))
    save_file(weights, model_dir / "model.safetensors", metadata={"format": "pt"})
    if not why:
        load(model_dir, FLOAT32)
        return
    with pytest.raises(PreconditionFailed, match=why.format(name)):
        load(model_dir, FLOAT32)


def test_shards_load_and_a_missing_one_is_named(tmp_path: Path) -> None:
    directory = save_tiny_llama(tmp_path / "whole")
    model = load(directory, FLOAT32).model
    shutil.copytree(directory, tmp_path / "parts", ignore=shutil.ignore_patterns("model.safetensors", CACHE))
    model.save_pretrained(tmp_path / "parts", max_shard_size="100KB")
    loaded = load(tmp_path / "parts", FLOAT32).model
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
    shard = sorted((tmp_path / "parts").glob("*-of-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(Unavailable, match=f"missing, the first is {shard.name}"):
        load(tmp_path / "parts")


def test_of_several_files_of_weights_those_that_transformers_reads_count(model_dir: Path) -> None:
    """The single file, even beside the shards of another model."""
    single, num_weights = load_file(model_dir / "model.safetensors"), _num_weights(model_dir)
    other = {name: weight * 2 for name, weight in single.items()}
    names = sorted(other)
    parts = {f"model-{n}.safetensors": {key: other[key] for key in names[n::2]} for n in (0, 1)}
    for name, part in parts.items():
        save_file(part, model_dir / name, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {key: name for name, part in parts.items() for key in part}}
    (model_dir / INDEX).write_text(json.dumps(index))
    save_file(other, model_dir / "consolidated.safetensors")
    own = AutoModelForCausalLM.from_pretrained(model_dir)
    loaded = load(model_dir, FLOAT32).model
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), own.parameters(), strict=True))
    assert torch.equal(loaded.model.norm.weight, single["model.norm.weight"])
    assert _num_weights(model_dir) == num_weights
    (model_dir / "model.safetensors").unlink()
    assert torch.equal(load(model_dir, FLOAT32).model.model.norm.weight, other["model.norm.weight"])
    assert _num_weights(model_dir) == num_weights


@pytest.mark.parametrize("name", ["/etc/hostname", "../x.safetensors", "parts/x.safetensors", ".."])
def test_an_index_names_only_files_beside_it(tmp_path: Path, name: str) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": {"a": "x.safetensors", "b": name}}))
    with pytest.raises(Unavailable, match=f"it names '{name}', which is not a file beside it"):
        weight_files(tmp_path)


def test_tied_weights_stay_tied_and_absent_ones_are_not_made_up(model_dir: Path, tmp_path: Path) -> None:
    tied = load(save_tiny_llama(tmp_path / "tied", tie_word_embeddings=True), ModelOptions(device="cpu")).model
    assert tied.get_output_embeddings().weight is tied.get_input_embeddings().weight
    weights = load_file(model_dir / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, model_dir / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PreconditionFailed, match=r"lacks 1 of the weights .* model\.layers\.1\.mlp\.up_proj\.weight"):
        load(model_dir, ModelOptions(device="cpu"))


@pytest.mark.parametrize("method", ["gptq", "awq", "unheard-of"])
def test_a_quantised_model_that_this_installation_cannot_load_is_refused_by_name(model_dir: Path, method: str) -> None:
    path = model_dir / "config.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "quantization_config": {"quant_method": method, "bits": 4}})
    )
    with pytest.raises(
        PreconditionFailed, match=rf"^tiny-llama is quantised \({method}\) and can't be loaded here: [^\n]+$"
    ):
        load(model_dir, ModelOptions(device="cpu"))


def test_block_scaled_float8_weights_are_what_they_mean(model_dir: Path) -> None:
    plain = load(model_dir, FLOAT32).model
    weights = load_file(model_dir / "model.safetensors")
    for name in [name for name in weights if name.endswith("_proj.weight")]:
        scale = weights[name].abs().max() / 448
        weights[name] = (weights[name] / scale).to(torch.float8_e4m3fn)
        weights[name + "_scale_inv"] = scale.reshape(1, 1)
    save_file(weights, model_dir / "model.safetensors", metadata={"format": "pt"})
    path = model_dir / "config.json"
    method = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": method}))
    ids = torch.arange(5, 15)[None]
    expected, found = (model(ids).logits for model in (plain, load(model_dir, FLOAT32).model))
    assert (found - expected).norm() < 0.1 * expected.norm()


def test_weights_go_straight_to_a_gpu(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU here, only what is asked of transformers can be seen."""
    gpu, asked = torch.device("cuda"), list[Any]()

    def load_weights(path: Path, name: str, dtype: Any, attention: Any, device_map: Any) -> Any:
        asked.append(device_map)
        model = torch.nn.Linear(1, 1)
        model.hf_device_map = device_map
        return model

    monkeypatch.setattr(base_model, "load_weights", load_weights)
    monkeypatch.setattr(base_model, "pick_device", lambda _: gpu)
    loaded = load(tiny_model_dir, ModelOptions(dtype="float32"))
    assert (asked, loaded.device) == ([{"": gpu}], gpu)
    load(tiny_model_dir, ModelOptions(dtype="float32"), device_map="auto")
    assert asked[1] == "auto"


def _num_weights(directory: Path) -> int:
    shape = ModelShape.read(directory)
    assert shape is not None
    return shape.num_weights
