"""Base models as people have them load as they are, or are refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, MambaConfig, PreTrainedConfig, T5Config

from shared.errors import InvalidInput, NotFound, PreconditionFailed, Unavailable
from shared.model import base_model
from shared.model.base_model import check_supported, default_id, inspect, load, pick_device, pick_dtype, resolve
from shared.model.model_files import INDEX
from shared.model.options import ModelOptions
from tests.tiny_models import FLOAT32, LLAMA_SHAPE, save_tiny_llama, save_tiny_model

_LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8,
             "original_max_position_embeddings": "64"}  # fmt: skip


def test_loading_gives_a_frozen_model(model_dir: Path) -> None:
    model = load(model_dir, FLOAT32)
    assert model.embedding_table.shape == (261, 64)
    assert not any(parameter.requires_grad for parameter in model.model.parameters())
    assert not model.model.training
    assert model.stop_token_ids == {1}
    assert (model.device.type, model.dtype) == ("cpu", torch.float32)
    assert load(model_dir, ModelOptions(dtype="bfloat16", device="cpu")).embedding_table.dtype == torch.bfloat16


def test_what_is_no_model(model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFound, match=r"config\.json"):
        resolve(tmp_path / "empty")
    with pytest.raises(NotFound, match="neither a model directory nor a hub id"):
        resolve("no-such/model")
    with pytest.raises(NotFound, match="too long"):
        resolve("x" * 5000)
    with pytest.raises(NotFound, match="a file and not the directory of a model"):
        resolve(model_dir / "config.json")
    with pytest.raises(NotFound, match=r"no config\.json; do you mean its directory Tiny-Llama\?"):
        resolve(model_dir.parent)
    (tmp_path / "hub" / "snapshots").mkdir(parents=True)
    shutil.copytree(model_dir, tmp_path / "hub" / "snapshots" / "0a1b")
    with pytest.raises(NotFound, match=r"do you mean its directory snapshots/0a1b\?"):
        resolve(tmp_path / "hub")
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "tiny-Q4_0.gguf").write_bytes(b"GGUF")
    with pytest.raises(NotFound, match=r"softprompt\.gguf tiny-Q4_0\.gguf DIRECTORY` converts"):
        resolve(tmp_path / "gguf")
    (model_dir / "model.safetensors").rename(model_dir / "weights.safetensors")
    with pytest.raises(Unavailable, match=r"neither .* is there beside weights\.safetensors"):
        inspect(model_dir)
    (model_dir / "weights.safetensors").unlink()
    with pytest.raises(NotFound, match="weights"):
        inspect(model_dir)


@pytest.mark.parametrize(
    ("config", "why"),
    [(T5Config(), "encoder-decoder"), (MambaConfig(), "recurrent state"), (PreTrainedConfig(), "not a causal")],
)
def test_models_that_take_no_soft_prompt(config: PreTrainedConfig, why: str) -> None:
    with pytest.raises(PreconditionFailed, match=why):
        check_supported(config)
    check_supported(GPT2Config())


def test_ids_devices_and_dtypes() -> None:
    assert default_id("HuggingFaceTB/SmolLM2-135M-Instruct") == "smollm2-135m-instruct"
    assert default_id("/models/tiny/") == "tiny"
    assert pick_dtype("float32", torch.device("cpu")) == torch.float32
    assert pick_dtype("auto", torch.device("cpu")) in {torch.float32, torch.bfloat16}
    if not torch.cuda.is_available():
        with pytest.raises(InvalidInput, match="no GPU"):
            pick_device("cuda")


def test_a_hub_cache_of_links_loads_under_its_repositorys_name(model_dir: Path, tmp_path: Path) -> None:
    blobs, snapshot = (
        tmp_path / "models--Org--Tiny-Chat" / "blobs",
        tmp_path / "models--Org--Tiny-Chat" / "snapshots" / ("0" * 40),
    )
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(model_dir.iterdir())):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    assert load(snapshot, ModelOptions(device="cpu")).info.id == "tiny-chat"
    assert inspect(snapshot).fingerprint == inspect(model_dir).fingerprint
    (blobs / "0").unlink()
    with pytest.raises(Unavailable, match=r"tiny-chat.*link to a file that is gone"):
        load(snapshot, ModelOptions(device="cpu"))


@pytest.mark.parametrize(
    ("file", "content", "error", "why"),
    [
        ("config.json", {"num_hidden_layers": "2"}, Unavailable, "config.json that can't be read"),
        ("config.json", {"num_attention_heads": 0}, Unavailable, "config.json that can't be read"),
        ("config.json", {"num_hidden_layers": 0}, PreconditionFailed, "no num_hidden_layers"),
        ("config.json", {"hidden_size": 48}, PreconditionFailed, "other shapes than its config.json says"),
        ("config.json", {"quantization_config": {"bits": 4}}, PreconditionFailed, "does not know the method"),
        ("config.json", {"quantization_config": {"quant_method": []}}, PreconditionFailed, "does not know the method"),
        (
            "config.json",
            {"quantization_config": "fp8"},
            PreconditionFailed,
            'quantization_config "fp8" .* be an object',
        ),
        (INDEX, {"weight_map": {"a": 1, "b": "x"}, "metadata": {}}, Unavailable, "2 weight files are missing"),
        (INDEX, {"weight_map": {}, "metadata": {}}, Unavailable, "names no weights"),
        (INDEX, {"weight_map": {"a": "model.safetensors"}}, Unavailable, "'metadata'"),
        ("config.json", {"model_type": "gpt9000"}, PreconditionFailed, "model_type 'gpt9000' .*does not know"),
        ("config.json", {"model_type": 7}, PreconditionFailed, "no model_type"),
        ("config.json", {"architectures": ["LlamaForSequenceClassification"]}, PreconditionFailed, "another task"),
        ("config.json", {"architectures": "LlamaForSequenceClassification"}, PreconditionFailed, "another task"),
        ("config.json", {"architectures": ["LlamaForMultipleChoice"]}, PreconditionFailed, "another task"),
        ("config.json", {"architectures": ["LlamaBidirectionalModel"]}, PreconditionFailed, "another task"),
        ("config.json", {"num_hidden_layers": 10**6}, PreconditionFailed, "21 tensors, too few"),
        ("config.json", {"num_hidden_layers": 1}, PreconditionFailed, "more layers .* the first is model.layers.1:"),
        ("config.json", {"hidden_act": "wobble"}, PreconditionFailed, "asks for 'wobble'"),
        ("config.json", {"num_attention_heads": 3}, Unavailable, "multiple of the number of attention heads"),
        ("config.json", {"attention_bias": True}, PreconditionFailed, "copy the files again"),
        ("config.json", {"max_position_embeddings": 1}, PreconditionFailed, "a context of 1 position"),
        ("config.json", {"rope_parameters": _LONGROPE}, PreconditionFailed, "'int' and 'str'"),
        ("adapter_config.json", {"base_model_name_or_path": "x/y"}, PreconditionFailed, "it is an adapter"),
        ("config.json", "[]", Unavailable, "config.json is not a JSON object"),
        ("config.json", "\ufeff{}", Unavailable, "config.json is not valid JSON .*BOM"),
        ("generation_config.json", "[]", PreconditionFailed, "generation_config.json is not a JSON object"),
        ("generation_config.json", {"cache_implementation": "x"}, PreconditionFailed, "its generation_config.json: "),
        ("generation_config.json", '{"eos_token_id": [1, ', PreconditionFailed, "generation_config.json is not valid"),
        ("tokenizer_config.json", "{", Unavailable, "tokenizer_config.json is not valid JSON"),
    ],
)
def test_damaged_descriptions_are_refused_in_a_sentence(
    model_dir: Path, file: str, content: dict[str, Any] | str, error: type[Exception], why: str
) -> None:
    path = model_dir / file
    if isinstance(content, dict):
        content = json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **content})
    path.write_text(content)
    with pytest.raises(error, match=why):
        base_model.load(model_dir)


@pytest.mark.parametrize("bound", [-1, 0])
def test_a_model_may_name_no_longest_input(model_dir: Path, bound: int) -> None:
    path = model_dir / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "max_position_embeddings": bound}))
    assert inspect(model_dir).max_positions == 1 << 20


@pytest.mark.parametrize("ids", [-1, 999_999, [2, -1], [[2]], {"a": 1}, 2.5, ["2"], True], ids=str)
def test_ends_that_are_no_tokens_are_ignored(model_dir: Path, ids: Any) -> None:
    path = model_dir / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": ids}))
    assert base_model.load(model_dir).stop_token_ids <= {1, 2}


def test_a_checkpoints_sampling_changes_no_answer_of_an_evaluation(model_dir: Path) -> None:
    """Qwen2.5 has a repetition_penalty of 1.1. Replicas apply a penalty only if a request asks for it."""
    inputs: dict[str, Any] = {"input_ids": torch.tensor([[5, 6, 7]]), "do_sample": False, "max_new_tokens": 12}
    plain = load(model_dir, FLOAT32).model.generate(**inputs, eos_token_id=None)
    path = model_dir / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "repetition_penalty": 9.0, "min_new_tokens": 3}))
    assert torch.equal(load(model_dir, FLOAT32).model.generate(**inputs, eos_token_id=None), plain)


def test_length_dependent_positions_are_used_where_the_model_does_not_change_them(tmp_path: Path) -> None:
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    longrope = save_tiny_model(
        tmp_path / "longrope",
        "phi3",
        **LLAMA_SHAPE,
        original_max_position_embeddings=32,
        rope_parameters={**rope, "original_max_position_embeddings": 32},
    )
    assert load(longrope, ModelOptions(device="cpu")).info.max_positions == 32
    dynamic = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    assert (
        load(
            save_tiny_llama(tmp_path / "dynamic", rope_parameters=dynamic), ModelOptions(device="cpu")
        ).info.max_positions
        == 512
    )
