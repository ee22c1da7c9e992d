"""Every causal architecture that the installed transformers has, tiny, through the doors that production uses.

`python -m tests.architectures` writes the table of docs/models.md.
"""

from __future__ import annotations

import copy
import dataclasses
import re
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

from inference_service.engine.engine import Engine
from inference_service.engine.run.model_runner import ModelRunner
from shared.errors import SoftPromptError
from shared.model import base_model
from shared.model.base_model import BaseModel
from shared.prompt.prefix import PrefixInput
from shared.prompt.soft_prompt import SoftPrompt
from tests.inference_service.engine.builders import greedy, run_one, small_config
from tests.tiny_models import FLOAT32, byte_tokenizer
from trainer_service.training.attention.forward import PackedForward, choose_forward
from trainer_service.training.attention.packing import Row, Segment

TABLE = Path(__file__).parents[1] / "docs" / "models.md"
WORKS, SLOWLY = "yes", "slowly"
NUM_VIRTUAL, NUM_GENERATED = 7, 10
INPUT_IDS = tuple((13 * index) % 200 + 5 for index in range(24))
_ROW = re.compile(r"^\| `([^`]+)` \| ([^|]+?) \| ([^|]+?) \|$", re.MULTILINE)

# What a configuration is shrunk to, where it has such a field. Windows and chunks are shorter than the sequences of the
# test.
_SMALL: dict[str, Any] = {
    **dict.fromkeys(
        (
            "hidden_size",
            "d_model",
            "n_embd",
            "embedding_size",
            "word_embed_proj_dim",
            "lru_width",
            "attention_hidden_size",
        ),
        64,
    ),
    **dict.fromkeys(
        ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers", "num_decoder_layers"), 4
    ),
    **dict.fromkeys(
        ("num_attention_heads", "swa_num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), 4
    ),
    **dict.fromkeys(("decoder_attention_heads", "num_decoder_attention_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(
        ("num_key_value_heads", "swa_num_key_value_heads", "n_head_kv", "num_kv_heads", "multi_query_group_num"), 2
    ),
    **dict.fromkeys(
        ("head_dim", "swa_head_dim", "qk_head_dim", "v_head_dim", "global_head_dim", "kv_channels", "index_head_dim"),
        16,
    ),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "mamba_head_dim"), 16),
    **dict.fromkeys(
        ("intermediate_size", "n_inner", "d_ff", "d_inner", "ffn_dim", "ffn_hidden_size", "decoder_ffn_dim"), 96
    ),
    **dict.fromkeys(("encoder_ffn_dim",), 96),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), 264),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length"), 512),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 32),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "index_topk"), 16),
    **dict.fromkeys(
        ("qk_rope_head_dim", "qk_nope_head_dim", "rotary_dim", "hidden_size_per_layer_input", "laurel_rank"), 8
    ),
    **dict.fromkeys(
        (
            "sliding_window",
            "sliding_window_size",
            "window_size",
            "attention_window",
            "attention_chunk_size",
            "mamba_d_state",
            "ssm_state_size",
        ),
        8,
    ),
    **dict.fromkeys(("n_group", "topk_group", "mamba_n_groups", "n_groups", "first_k_dense_replace"), 1),
    **dict.fromkeys(
        ("num_kv_shared_layers", "altup_num_inputs", "index_n_heads", "linear_num_key_heads", "encoder_layers"), 2
    ),
    **dict.fromkeys(("linear_num_value_heads", "mamba_n_heads", "mamba_num_heads"), 4),
    "mamba_d_head": 32,
    "state_size": 8,
    "bos_token_id": 257,
    "eos_token_id": 258,
    "pad_token_id": 259,
}
_KEEP_NONE = ("sliding_window", "n_inner", "q_lora_rank", "bos_token_id", "pad_token_id", "attention_chunk_size")
_MLA = {"num_key_value_heads": 4, "head_dim": 8}
"""Multi-head latent attention has as many key heads as query heads, and rotates the part of `qk_rope_head_dim`."""
_OVERRIDES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "longcat_flash"),
        _MLA,
    ),
    **dict.fromkeys(("minicpm3", "youtu"), _MLA),
    "gemma4_text": {"num_kv_shared_layers": 0},
    "gemma4_unified_text": {"num_kv_shared_layers": 0},
    "gemma4": {"text_config.num_kv_shared_layers": 0},
    "gemma4_unified": {"text_config.num_kv_shared_layers": 0},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "dots1": {"n_shared_experts": 1},
    "dots3_note_text": _MLA,
    "falcon_h1": {"mamba_d_ssm": 128},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "lfm2_moe": {"layer_types": ["full_attention", "conv"] * 2},
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "zaya": {"num_experts_per_tok": 1},
}
_UNTRIED = ("blt", "dbrx", "dots3_note", "gemma4_assistant", "gemma4_unified_assistant", "musicgen", "musicgen_melody",
            "qwen4_exp", "qwen4_exp_text", "reformer", "zamba", "zamba2")  # fmt: skip
"""This transformers release can't build a small one from its own configuration class, or takes minutes to."""


@dataclass(frozen=True)
class Verdict:
    """`training` and `serving`: yes, slowly, or "no: " and the reason."""

    training: str
    serving: str


def model_types() -> list[str]:
    return sorted({config_class.model_type for config_class in MODEL_FOR_CAUSAL_LM_MAPPING})


def documented() -> dict[str, Verdict]:
    return {kind: Verdict(training, serving) for kind, training, serving in _ROW.findall(TABLE.read_text())}


def judge(model_type: str, directory: Path) -> Verdict:
    """What becomes of a tiny model of that type, saved to disk. Raises AssertionError for a wrong answer; all else it
    raises is a crash.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own remarks on untrained models and unusual configurations
        if model_type in _UNTRIED:
            return Verdict("not tried", "not tried")
        try:
            save(model_type, directory)
        except ImportError:
            return Verdict(*["no: needs a package that is not installed"] * 2)
    return judge_saved(model_type, directory)


def judge_saved(model_type: str, directory: Path) -> Verdict:
    """What becomes of the model of that type in `directory`. Raises as `judge` does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            base = base_model.load(directory, FLOAT32)
        except SoftPromptError as error:
            return Verdict(*[_reason(error, model_type)] * 2)
        prompt = torch.randn(NUM_VIRTUAL, base.info.hidden_size, generator=torch.Generator().manual_seed(1)) * 0.3
        served = _copied(base)
        expected = _continuation(base, prompt)
        training = _training(base, prompt, model_type)
        return Verdict(training, _serving(served, prompt, expected, model_type))


def served_in_chunks(model_type: str, directory: Path, budgets: Sequence[int]) -> list[str]:
    """What serving comes to with each number of tokens a step. Raises as `judge` does."""
    save(model_type, directory)
    base = base_model.load(directory, FLOAT32)
    prompt = torch.randn(NUM_VIRTUAL, base.info.hidden_size, generator=torch.Generator().manual_seed(1)) * 0.3
    expected = _continuation(base, prompt)
    return [_serving(_copied(base), prompt, expected, model_type, budget) for budget in budgets]


def save(model_type: str, directory: Path) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(model_type))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3.0)  # so that greedy choices are not a coin's toss
    model.save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)


def config_of(model_type: str) -> Any:
    kind = next(config_class for config_class in MODEL_FOR_CAUSAL_LM_MAPPING if config_class.model_type == model_type)
    default = kind()
    small = _small(default) | {
        name: _small(value) for name, value in vars(default).items() if hasattr(value, "to_dict")
    }
    for name, value in _OVERRIDES.get(model_type, {}).items():
        outer, _, inner = name.rpartition(".")
        (small[outer] if outer else small)[inner] = value
    return kind(**small)


def _small(default: Any) -> dict[str, Any]:
    kept = {}
    for name, value in _SMALL.items():
        is_field = name in {field.name for field in dataclasses.fields(default)} | set(type(default).attribute_map)
        before = vars(default).get(name)
        if is_field and not isinstance(before, bool) and not (before is None and name in _KEEP_NONE):
            kept[name] = value
    return kept


@torch.no_grad()
def _continuation(base: BaseModel, prompt: torch.Tensor) -> tuple[int, ...] | None:
    """The model's own greedy choices, from nothing but embeddings and without any cache; None if it does not run that
    way.
    """
    model: Any = base.model
    table, found = model.get_input_embeddings(), list[int]()
    try:
        embedded = torch.cat([prompt, table(torch.tensor(INPUT_IDS))])[None]
        for _ in range(NUM_GENERATED):
            found.append(int(model(inputs_embeds=embedded, use_cache=False).logits[0, -1].argmax()))
            embedded = torch.cat([embedded, table(torch.tensor([[found[-1]]]))], dim=1)
    except Exception:
        return None
    return tuple(found)


def _training(base: BaseModel, prompt: torch.Tensor, model_type: str) -> str:
    rows = [Row(INPUT_IDS[:14], INPUT_IDS[14:17]), Row((*INPUT_IDS[:5], *INPUT_IDS[17:20]), INPUT_IDS[20:22])]
    try:
        forward = choose_forward(base)
    except SoftPromptError as error:
        return _reason(error, model_type)
    matrix = prompt.clone().requires_grad_(True)
    logits = forward.logits(forward.states([Segment(PrefixInput(matrix), rows)]))
    gradient = torch.autograd.grad(logits.float().log_softmax(-1)[:, 9].sum(), matrix)[0]

    again = prompt.clone().requires_grad_(True)
    total = torch.zeros(())
    for row in rows:
        embedded = torch.cat([again, base.model.get_input_embeddings()(torch.tensor(row.tokens))])
        own = base.model(inputs_embeds=embedded[None], use_cache=False).logits[0, -len(row.target_ids) :]
        total = total + own.log_softmax(-1)[:, 9].sum()
    expected = torch.autograd.grad(total, again)[0]
    difference = float((gradient - expected).norm() / expected.norm())
    assert difference < 2e-3, f"{model_type}: the gradient is {difference:.2g} of its norm away from the model's own"
    return WORKS if isinstance(forward, PackedForward) else SLOWLY


def _copied(base: BaseModel) -> BaseModel:
    """As loaded once more, in half the time: training and the engine replace parts of the model that they are given."""
    return dataclasses.replace(base, model=copy.deepcopy(base.model))


def _serving(
    base: BaseModel, prompt: torch.Tensor, expected: tuple[int, ...] | None, model_type: str, budget: int = 23
) -> str:
    config = small_config(max_tokens_per_step=budget, max_length=96)
    try:
        engine = Engine.from_base_model(base, config)
    except SoftPromptError as error:
        return _reason(error, model_type)
    engine.load_prefix("prompt", SoftPrompt(prompt))
    found = run_one(engine, INPUT_IDS, greedy(NUM_GENERATED), "prompt")
    assert found.token_ids == expected, (
        f"{model_type}: served {found.token_ids}, the model itself says {expected} {found.error}"
    )
    return WORKS if isinstance(engine.runner, ModelRunner) else SLOWLY


_REASONS: Mapping[str, str] = {
    "recurrent state": "recurrent state instead of keys and values",
    "encoder-decoder": "encoder-decoder",
    "not a causal": "looks at later tokens",
    "can't be given virtual tokens": "does not run on embeddings alone",
    "passes no gradient": "no gradient for virtual tokens",
    "cache": "no plain keys and values of every token",
    "plain keys and values": "no plain keys and values of every token",
    "differ from the model's own": "differs from the model's own answers",
}


def _reason(error: SoftPromptError, model_type: str) -> str:
    found = next((text for beginning, text in _REASONS.items() if beginning in error.message), None)
    assert found is not None, f"{model_type} is refused for a reason that the table does not know: {error.message}"
    return f"no: {found}"


@cache
def _text_around() -> tuple[str, str]:
    text = TABLE.read_text()
    rows = list(_ROW.finditer(text))
    return (text[: rows[0].start()], text[rows[-1].end() + 1 :]) if rows else (text, "")


def main() -> None:
    torch.set_num_threads(1)
    lines = []
    for kind in model_types():
        with tempfile.TemporaryDirectory() as directory:
            verdict = judge(kind, Path(directory))
        lines.append(f"| `{kind}` | {verdict.training} | {verdict.serving} |\n")
        print(lines[-1], end="", flush=True)
    before, after = _text_around()
    TABLE.write_text(before + "".join(lines) + after)


if __name__ == "__main__":
    main()
