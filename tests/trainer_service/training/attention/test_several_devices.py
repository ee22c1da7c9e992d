"""A packed pass over a model whose layers are on two devices, without two GPUs.

torch's fake tensors compute shapes and devices, and no values: an operation on tensors of two devices raises the error
that two GPUs would. Their devices here are `cpu:1` and `cpu:2`. That the values agree, `choose_forward` compares at
each load.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, LlamaConfig

from shared.model.base_model import BaseModel
from shared.prompt.prefix import PrefixInput
from trainer_service.training.attention.forward import Forward, PackedForward, PlainForward
from trainer_service.training.attention.packing import Row, Segment
from trainer_service.training.attention.prefix_attention import NativePrefixAttention

FIRST, SECOND = torch.device("cpu:1"), torch.device("cpu:2")
WIDTH, VOCAB = 32, 64


@contextmanager
def fake_devices(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    make = torch.tensor

    def tensor(data: Any, *, device: Any = None, **options: Any) -> torch.Tensor:
        """The original puts a fake tensor on `cpu`, whatever the index."""
        made = make(data, **options)
        return made if device is None else made.to(device)

    monkeypatch.setattr(torch, "tensor", tensor)
    monkeypatch.setattr(NativePrefixAttention, "fits", lambda *_: False)  # it reads memory, and only on a CPU
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def spread_model() -> BaseModel:
    """As accelerate spreads a model: the hooks of its parts move what they get, and the whole answers on the first."""
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    parts = {"model.embed_tokens": FIRST, "model.rotary_emb": FIRST, "model.norm": SECOND, "lm_head": SECOND}
    parts |= {f"model.layers.{index}": (FIRST, SECOND)[index // 2] for index in range(4)}
    for name, device in parts.items():
        part = model.get_submodule(name)
        for module in part.modules():
            for key, value in module._parameters.items():
                if value is not None:
                    fake = torch.empty(value.shape, device=device)
                    module._parameters[key] = torch.nn.Parameter(fake, requires_grad=False)
            for key, value in module._buffers.items():
                module._buffers[key] = None if value is None else torch.empty(value.shape, device=device)
        add_hook_to_module(part, AlignDevicesHook(execution_device=device, place_submodules=False))
    add_hook_to_module(model, AlignDevicesHook(execution_device=FIRST, io_same_device=True, place_submodules=False))
    info: Any = None
    return BaseModel(info=info, model=model, tokenizer=None, device=FIRST, dtype=torch.float32)


@pytest.mark.parametrize("kind", [PackedForward, PlainForward])
def test_logits_and_gradients_come_back_to_the_first_device(
    kind: type[PackedForward | PlainForward], monkeypatch: pytest.MonkeyPatch
) -> None:
    with fake_devices(monkeypatch):
        forward: Forward = kind(spread_model())
        prompt = torch.empty(8, WIDTH, device=FIRST, requires_grad=True)
        alone = Row((4, 5), (6, 7, 8))
        segments = [
            Segment(PrefixInput(prompt[:5]), [Row((1, 2, 3, 4), (5, 6)), Row((1, 2, 3, 7, 8), (9,))]),
            Segment(PrefixInput(prompt[5:]), [alone]),
            Segment(None, [alone]),
        ]
        logits = forward.logits(forward.states(segments))
        assert (logits.shape, logits.device) == ((9, VOCAB), FIRST)
        (gradient,) = torch.autograd.grad(logits.log_softmax(-1)[:, 7].sum(), prompt)
        assert (gradient.shape, gradient.device) == ((8, WIDTH), FIRST)
