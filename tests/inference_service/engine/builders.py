"""Small engines and the reference they are compared with."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from inference_service.engine.core.config import EngineConfig
from inference_service.engine.core.request import Delta, GenerationRequest
from inference_service.engine.core.stats import EngineObserver, StepStats
from inference_service.engine.engine import Engine
from inference_service.engine.text.text_stream import merge
from shared.model.base_model import BaseModel
from shared.prompt.soft_prompt import SoftPrompt
from shared.values.base_model import BaseModelInfo
from shared.values.sampling import SamplingParams
from tests.tiny_models import LLAMA_SHAPE, VOCAB_SIZE, byte_tokenizer

SHAPE = {**LLAMA_SHAPE, "num_hidden_layers": 4, "bos_token_id": 2}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "mistral": {"sliding_window": 8},
    "gemma2": {"head_dim": 16, "sliding_window": 8},
    "gemma3_text": {"head_dim": 16, "sliding_window": 8, "num_hidden_layers": 6},
    "gpt2": {"n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": 512},
    "gpt_neox": {},
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64},
    "phi3": {},
    "mixtral": {"num_local_experts": 4},
    "gpt_oss": {"head_dim": 16, "num_local_experts": 4, "sliding_window": 8},
    "deepseek_v3": {
        "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "kv_lora_rank": 16,
        "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16, "n_group": 1,
        "topk_group": 1, "num_key_value_heads": 4,
    },
    "starcoder2": {"sliding_window": 8},
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "bloom": {"n_head": 4, "n_layer": 4},
}  # fmt: skip
_EAGER = ("gemma2", "gpt_oss", "bloom")  # transformers' fused attention lacks what these need

IDS = (40, 41, 42, 43)
"""A short input."""


def tiny_base(kind: str = "llama", *, dtype: torch.dtype = torch.float32, seed: int = 0, **overrides: Any) -> BaseModel:
    """A random model in memory; its weights are large enough that greedy choices are not a coin's toss."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **{**SHAPE, **ARCHITECTURES.get(kind, {}), **overrides})
    attention = "eager" if kind in _EAGER else "sdpa"
    model = (
        AutoModelForCausalLM.from_config(config, attn_implementation=attention).to(dtype).eval().requires_grad_(False)
    )
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.mul_(3.0)
    info = BaseModelInfo(
        id=kind,
        fingerprint="sha256:0",
        tokenizer_digest="sha256:0",
        architecture=type(model).__name__,
        hidden_size=64,
        vocab_size=VOCAB_SIZE,
        num_layers=config.num_hidden_layers,
        max_positions=512,
    )
    return BaseModel(info, model, byte_tokenizer(), torch.device("cpu"), dtype)


def soft_prompt(base: BaseModel, num_virtual: int = 7, seed: int = 1) -> SoftPrompt:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(5, VOCAB_SIZE, (num_virtual,), generator=generator)
    table = base.embedding_table.float()
    return SoftPrompt(table[rows] + table.std() * torch.randn(num_virtual, table.shape[1], generator=generator))


def reference(
    base: BaseModel, prompt: SoftPrompt | None, input_ids: tuple[int, ...], max_new_tokens: int
) -> tuple[int, ...]:
    """transformers' own greedy continuation, the soft prompt put before the input as embeddings. Run before an engine
    takes the model.
    """
    embeds = base.model.get_input_embeddings()(torch.tensor(input_ids))
    if prompt is not None:
        embeds = torch.cat([prompt.cast(base.dtype), embeds])
    out = base.model.generate(
        inputs_embeds=embeds[None],
        attention_mask=torch.ones(1, embeds.shape[0], dtype=torch.long),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return tuple(out[0].tolist())


def small_config(**overrides: Any) -> EngineConfig:
    defaults = {
        "max_running": 4,
        "max_length": 128,
        "max_tokens_per_step": 64,
        "kv_cache_bytes": 1 << 22,
        "prefix_kv_bytes": 1 << 20,
    }
    return EngineConfig(**{**defaults, **overrides})


def build(**config: Any) -> Engine:
    """An engine with `small_config` and the prompt "a"."""
    engine = Engine.from_base_model(tiny_base(), small_config(**config))
    engine.load_prefix("a", soft_prompt(engine.base))
    return engine


def greedy(max_new_tokens: int = 16, **fields: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0.0, "max_new_tokens": max_new_tokens, "ignore_eos": True, **fields})


def drain(engine: Engine, max_steps: int = 2000) -> dict[str, Delta]:
    """Step until there is nothing to do; every request's deltas merged."""
    deltas: dict[str, list[Delta]] = {}
    for _ in range(max_steps):
        if not engine.has_work:
            break
        for output in engine.step():
            deltas.setdefault(output.request_id, []).append(output.delta)
    assert not engine.has_work
    engine.check_integrity()
    return {request_id: merge(parts) for request_id, parts in deltas.items()}


class Positions(EngineObserver):
    """Counts the positions that an engine computes."""

    def __init__(self) -> None:
        self.num_positions = 0

    def on_step(self, step: StepStats) -> None:
        self.num_positions += step.num_positions


def run_one(
    engine: Engine, input_ids: tuple[int, ...], sampling: SamplingParams, prefix_id: str | None = None
) -> Delta:
    engine.submit(GenerationRequest("one", input_ids, sampling, prefix_id))
    return drain(engine)["one"]
