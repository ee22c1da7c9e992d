"""What the masks of an architecture hide is known without sequences as long as its windows."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from shared.model.attention_calls import attention_calls
from tests.tiny_models import LLAMA_SHAPE

_WINDOW = {"sliding_window": 300}
_LAYERS = {"layer_types": ["full_attention", "sliding_attention"]}
_EXPERTS = {"moe_intermediate_size": 32, "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}


@pytest.mark.parametrize(
    ("kind", "config", "expected"),
    [
        ("llama", {}, [True, True]),
        ("mistral", _WINDOW, [True, True]),
        ("gemma2", {**_WINDOW, **_LAYERS, "head_dim": 16}, [True, True]),
        ("gpt_oss", {**_WINDOW, **_LAYERS, "head_dim": 16, "num_local_experts": 4}, [True, True]),
        ("phimoe", {**_WINDOW, **_EXPERTS}, [False, False]),  # the window is in the mask alone
        ("qwen2_moe", {**_WINDOW, **_LAYERS, **_EXPERTS, "use_sliding_window": True}, [True, False]),
        ("doge", {}, [False, False]),  # the values of tokens change the mask
    ],
)
def test_masks_say_what_the_arguments_say(kind: str, config: dict[str, Any], expected: list[bool]) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**LLAMA_SHAPE, **config}))
    calls = attention_calls(model)
    assert [call.layer for call in calls] == [0, 1]
    assert [call.is_described for call in calls] == expected
