"""A tiny random model of every causal architecture that transformers has, and what the product makes of it."""

from __future__ import annotations

import inspect
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

from inference_service.engine.config import EngineConfig
from inference_service.engine.engine import Engine
from inference_service.engine.request import GenerationRequest, SamplingParams
from inference_service.engine.row_runner import RowRunner
from shared import base_model
from shared.base_model import BaseModel
from shared.errors import PreconditionFailed
from shared.soft_prompt import SoftPrompt
from tests.tiny_models import VOCAB_SIZE, byte_tokenizer
from trainer_service.training.forward import PlainForward, choose_forward
from trainer_service.training.packing import Row, Segment

SMALL: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "d_model": 64,
    "n_embd": 64,
    "dim": 64,
    "emb_dim": 64,
    "embedding_size": 64,
    "word_embed_proj_dim": 64,
    "intermediate_size": 64,
    "ffn_dim": 64,
    "n_inner": 64,
    "ffn_hidden_size": 64,
    "dff": 64,
    "d_inner": 64,
    "decoder_ffn_dim": 64,
    "encoder_ffn_dim": 64,
    "num_encoder_layers": 2,
    "d_ff": 64,
    "hidden_dim": 64,
    "feed_forward_size": 64,
    "num_hidden_layers": 2,
    "n_layer": 2,
    "n_layers": 2,
    "num_layers": 2,
    "decoder_layers": 2,
    "encoder_layers": 2,
    "num_decoder_layers": 2,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_heads": 4,
    "attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_attention_heads": 4,
    "num_decoder_attention_heads": 4,
    "num_encoder_attention_heads": 4,
    "num_key_value_heads": 2,
    "multi_query_group_num": 2,
    "num_global_key_value_heads": 2,
    "head_dim": 16,
    "global_head_dim": 16,
    "swa_head_dim": 16,
    "attention_head_dim": 16,
    "v_head_dim": 16,
    "swa_v_head_dim": 16,
    "kv_channels": 16,
    "qk_head_dim": 24,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "rotary_dim": 8,
    "max_position_embeddings": 512,
    "n_positions": 512,
    "n_ctx": 512,
    "max_seq_len": 512,
    "seq_length": 512,
    "sliding_window": 16,
    "window_size": 16,
    "local_attention": 8,
    "sliding_window_size": 8,
    "attention_window_size": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "moe_k": 2,
    "moe_topk": 2,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "moe_intermediate_size": 32,
    "zero_expert_num": 1,
    "shared_expert_intermediate_size": 32,
    "expert_ffn_hidden_size": 32,
    "first_k_dense_replace": 1,
    "index_topk": 16,
    "index_n_heads": 2,
    "index_head_dim": 16,
    "mamba_n_heads": 4,
    "mamba_d_head": 32,
    "mamba_d_state": 8,
    "mamba_d_ssm": 128,
    "mamba_num_heads": 4,
    "mamba_head_dim": 32,
    "state_size": 8,
    "ssm_state_size": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCAB_SIZE,
    "laurel_rank": 8,
    "altup_num_inputs": 2,
    "num_kv_shared_layers": 0,
    "dense_attention_every_n_layers": 2,
    "lru_width": 64,
    "dim_model": 64,
    "dim_ff": 64,
    "dim_head": 16,
}
EXTRA: dict[str, dict[str, Any]] = {
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
}
DECODERS = {"is_decoder": True, "add_cross_attention": False}
"""Encoders that can be configured as causal models."""


def config_of(model_type: str) -> Any:
    cls = next(cls for cls in MODEL_FOR_CAUSAL_LM_MAPPING if cls.model_type == model_type)
    return _small(cls, model_type)


def _small(cls: Any, model_type: str = "") -> Any:
    default = cls()
    names = set(inspect.signature(cls.__init__).parameters) | set(vars(default)) | set(cls.attribute_map)
    chosen = {name: value for name, value in SMALL.items() if name in names and _given(default, name) is not None}
    if "qk_nope_head_dim" in names:
        chosen["num_key_value_heads"] = 4
    if hasattr(default, "is_decoder") and not default.is_encoder_decoder:
        chosen |= DECODERS
    for name, value in list(chosen.items()):
        if isinstance(_given(default, name), list) and not isinstance(value, list):
            chosen[name] = [value] * 2
    for name, sub in cls.sub_configs.items():
        if (value := getattr(default, name, None)) is not None and isinstance(sub, type):
            chosen[name] = _small(type(value)).to_dict()
    return cls(**{**chosen, **EXTRA.get(model_type, {})})


def _given(config: Any, name: str) -> Any:
    """None also for what differs between layers: asking the whole config for it is an error in transformers."""
    try:
        return getattr(config, name, None)
    except Exception:
        return SMALL[name]


def build(model_type: str) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(model_type)).float().eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.mul_(3.0)
    return model


REFERENCE_TOKENS = 6
INPUT = tuple((13 * i) % 200 + 20 for i in range(20))
NUM_VIRTUAL = 5
TARGET = 42
UNTRIED = "not tried, since no small model of it could be built"


@dataclass(frozen=True)
class Verdict:
    """What training and serving make of an architecture: "works", "works slowly", or the reason of the refusal."""

    training: str
    serving: str


def examine(model_type: str, directory: Path) -> Verdict:
    """Save a tiny model, load it as the services do, train a step with it and serve it. Raises AssertionError for wrong numbers."""
    directory /= model_type
    try:
        model = build(model_type)
    except Exception as error:  # transformers' own: its config does not shrink
        return Verdict(f"{UNTRIED}: {type(error).__name__}", f"{UNTRIED}: {type(error).__name__}")
    model.save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    try:
        base = base_model.load(directory, dtype="float32", device="cpu")
    except PreconditionFailed as refusal:
        return Verdict(refusal.message, refusal.message)
    prompt = torch.randn(NUM_VIRTUAL, base.info.hidden_size, generator=torch.Generator().manual_seed(1)) * 0.3
    tokens, gradient = _reference(base, prompt)
    serving = _serve(base, prompt, tokens)
    again = base_model.load(directory, dtype="float32", device="cpu")
    return Verdict(_train(again, prompt, gradient), serving)


def _reference(base: BaseModel, prompt: torch.Tensor) -> tuple[list[int], torch.Tensor]:
    """Greedy tokens by recomputing everything for each one, and the prompt's gradient of the first one's log-probability."""
    model, prompt = base.model, prompt.clone().requires_grad_(True)
    embed = model.get_input_embeddings()
    ids: list[int] = []
    for step in range(REFERENCE_TOKENS):
        embedded = torch.cat([prompt, embed(torch.tensor([*INPUT, *ids]))])[None]
        logits = model(inputs_embeds=embedded, use_cache=False).logits[0, -1].float()
        if step == 0:
            (gradient,) = torch.autograd.grad(logits.log_softmax(-1)[TARGET], prompt)
        ids.append(int(logits.argmax()))
    return ids, gradient


def _train(base: BaseModel, prompt: torch.Tensor, gradient: torch.Tensor) -> str:
    try:
        forward = choose_forward(base)
    except PreconditionFailed as refusal:
        return refusal.message
    mine = prompt.clone().requires_grad_(True)
    segments = [Segment(mine, [Row(INPUT, (TARGET,)), Row(INPUT[:9], (7, 8))]), Segment(prompt[:2], [Row(INPUT[3:9], (9,))])]
    logits = forward.logits(forward.states(segments))[0].float()
    (found,) = torch.autograd.grad(logits.log_softmax(-1)[TARGET], mine)
    difference = float((found - gradient).norm() / gradient.norm())
    assert difference < 1e-2, f"the prompt's gradient differs by {difference:.2g}"
    return "works slowly" if isinstance(forward, PlainForward) else "works"


def _serve(base: BaseModel, prompt: torch.Tensor, expected: list[int]) -> str:
    config = EngineConfig(max_running=2, max_length=64, max_tokens_per_step=13, kv_cache_bytes=1 << 22, prefix_kv_bytes=1 << 20)
    try:
        engine = Engine.from_base_model(base, config)
    except PreconditionFailed as refusal:
        return refusal.message
    engine.load_prefix("prompt", SoftPrompt(prompt.clone()))
    sampling = SamplingParams(max_new_tokens=REFERENCE_TOKENS, temperature=0.0, ignore_eos=True)
    engine.submit(GenerationRequest("one", INPUT, sampling, prefix_id="prompt"))
    engine.submit(GenerationRequest("other", INPUT[4:11], sampling))
    found: list[int] = []
    for _ in range(100):
        for output in engine.step():
            if output.request_id == "one":
                found += output.delta.token_ids
    assert found == expected, f"served {found}, the model says {expected}"
    return "works slowly" if isinstance(engine.runner, RowRunner) else "works"


WRONG = ("lfm3", "whisper")
"""Load, and then give other numbers than the model: known faults, which the table names."""
DOC = Path(__file__).parents[1] / "docs" / "models.md"
TYPES = sorted({config.model_type for config in MODEL_FOR_CAUSAL_LM_MAPPING})


def shown(model_type: str, verdict: str) -> str:
    """A verdict as the table has it: without the name that the row gives, and without the numbers that differ between machines."""
    text = re.sub(rf"^{re.escape(model_type)} (\(\w+\) )?", "", verdict.splitlines()[0])
    text = re.sub(r"differ from the model's own by \S+ of their norm", "differ from the model's own", text)
    text = text.replace("|", "/")
    return text if text.startswith(("works", "not tried")) else f"refused: {text}"


def row(model_type: str, verdict: Verdict) -> str:
    return f"| {model_type} | {shown(model_type, verdict.training)} | {shown(model_type, verdict.serving)} |"


def known(model_type: str) -> str:
    """The row of a known fault; empty for others."""
    return f"| {model_type} | wrong numbers on a tiny model: don't use it | the same |" if model_type in WRONG else ""


if __name__ == "__main__":
    with TemporaryDirectory() as scratch:
        found = [known(model_type) or row(model_type, examine(model_type, Path(scratch))) for model_type in sys.argv[1:] or TYPES]
    print("\n".join(found))
