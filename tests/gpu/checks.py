"""The engine and the trainer on a device, compared with transformers and with torch on the CPU."""

from __future__ import annotations

import os
import random
from dataclasses import replace

import pytest
import torch

from inference_service.engine.core.request import Delta, GenerationRequest
from inference_service.engine.engine import Engine
from inference_service.engine.run.decode_graphs import ladder
from inference_service.engine.run.paged_runner import PagedRunner
from inference_service.engine.run.token_choice import Draw, choose_in_torch
from inference_service.engine.run.varlen_kernel import find_kernel
from shared.model.base_model import BaseModel
from shared.prompt.prefix import PrefixInput
from shared.prompt.soft_prompt import SoftPrompt
from shared.values.sampling import SamplingParams
from tests.gpu import DEVICE
from tests.inference_service.engine.builders import drain, small_config, soft_prompt, tiny_base
from tests.tiny_models import VOCAB_SIZE
from trainer_service.training.attention.forward import PackedForward, PlainForward, choose_forward
from trainer_service.training.attention.packing import Row, Segment

device = torch.device(os.environ.get(DEVICE, "cuda"))
WIDE = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
"""Heads of 64 numbers, as attention kernels take them."""
on_gpu = pytest.mark.skipif(device.type != "cuda", reason="needs a GPU")


def on_device(kind: str, dtype: torch.dtype, **shape: int) -> BaseModel:
    base = tiny_base(kind, dtype=dtype, **shape)
    return replace(base, model=base.model.to(device), device=device)


def some_inputs(count: int) -> list[tuple[int, ...]]:
    rng = random.Random(0)
    return [tuple(rng.randrange(5, VOCAB_SIZE) for _ in range(rng.randint(1, 60))) for _ in range(count)]


@torch.no_grad()
def own_logprobs(base: BaseModel, prompt: SoftPrompt | None, ids: tuple[int, ...]) -> torch.Tensor:
    """The model's own log-probabilities after each of `ids`, `[ids, vocab]` float32, on the CPU."""
    embeds = base.model.get_input_embeddings()(torch.tensor(ids, device=device))
    if prompt is not None:
        embeds = torch.cat([prompt.cast(base.dtype, device), embeds])
    logits = base.model(inputs_embeds=embeds[None], use_cache=False).logits[0, -len(ids) :]
    return logits.float().log_softmax(-1).cpu()


def greedy_continuation(
    base: BaseModel, prompt: SoftPrompt | None, ids: tuple[int, ...], count: int
) -> tuple[int, ...]:
    found = ids
    for _ in range(count):
        found = (*found, int(own_logprobs(base, prompt, found)[-1].argmax()))
    return found[len(ids) :]


def served(base: BaseModel, prompt: SoftPrompt, sampling: SamplingParams, inputs: list[tuple[int, ...]]) -> list[Delta]:
    """Every second input after the prompt, all together."""
    engine = Engine.from_base_model(
        base, small_config(paged=True, max_length=256, kv_cache_bytes=1 << 26, max_tokens_per_step=48)
    )
    assert isinstance(engine.runner, PagedRunner)
    engine.load_prefix("p", prompt)
    for index, ids in enumerate(inputs):
        engine.submit(GenerationRequest(f"r{index}", ids, sampling, "p" if index % 2 else None))
    found = drain(engine)
    return [found[f"r{index}"] for index in range(len(inputs))]


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral", "gemma2"])
def test_greedy_answers_in_float32_are_those_of_the_model(kind: str) -> None:
    base, inputs = on_device(kind, torch.float32), some_inputs(8)
    prompt = soft_prompt(tiny_base(kind))
    expected = [greedy_continuation(base, prompt if index % 2 else None, ids, 12) for index, ids in enumerate(inputs)]
    sampling = SamplingParams(temperature=0.0, max_new_tokens=12, ignore_eos=True)
    assert [delta.token_ids for delta in served(base, prompt, sampling, inputs)] == expected


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral"])
def test_log_probabilities_in_bfloat16_are_within_five_percent(kind: str) -> None:
    """Those of the input come from prefills, those of the answer from decodes."""
    base, inputs = on_device(kind, torch.bfloat16, **WIDE), some_inputs(8)
    prompt = soft_prompt(tiny_base(kind, dtype=torch.bfloat16, **WIDE))
    sampling = SamplingParams(temperature=0.0, max_new_tokens=24, ignore_eos=True, num_logprobs=0, num_input_logprobs=0)
    own = on_device(kind, torch.bfloat16, **WIDE)
    for index, (ids, delta) in enumerate(zip(inputs, served(base, prompt, sampling, inputs), strict=True)):
        whole = (*ids, *delta.token_ids)
        logprobs = own_logprobs(own, prompt if index % 2 else None, whole)
        expected = torch.tensor([float(logprobs[place, token]) for place, token in enumerate(whole[1:])])
        found = torch.tensor([item.logprob for item in (*delta.input_logprobs, *delta.logprobs)])
        assert float((found - expected).norm() / expected.norm()) < 0.05


@on_gpu
@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(32, 8, 128), (9, 3, 64)])
def test_an_attention_kernel_is_right_at_full_length_in_every_batch(heads: int, kv_heads: int, width: int) -> None:
    assert find_kernel(heads, kv_heads, width, torch.bfloat16, device, 8192, ladder(256)) is not None


@on_gpu
def test_the_device_chooses_the_tokens_that_the_cpu_chooses() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = [
        Draw(0.0),
        *(Draw(0.8, number=number) for number in (0.0, 0.3, 0.99)),
        *(Draw(1.2, top_k=40, number=number) for number in (0.1, 0.7)),
        *(Draw(0.9, top_p=0.95, number=number) for number in (0.2, 0.9)),
        Draw(1.0, min_p=0.05, number=0.6),
    ]
    logits = (torch.randn(len(draws), 50_000, generator=generator) * 3).to(torch.bfloat16)
    assert choose_in_torch(logits.to(device), draws) == choose_in_torch(logits, draws)


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma2"])
def test_packed_gradients_are_those_of_padded_rows(kind: str) -> None:
    base = on_device(kind, torch.float32)
    packed = choose_forward(base)
    assert isinstance(packed, PackedForward)
    rng, gradients, losses = random.Random(0), [], []
    rows = [Row(ids, tuple(rng.randrange(5, VOCAB_SIZE) for _ in range(3))) for ids in some_inputs(12)]
    for forward in (packed, PlainForward(base)):
        prompt = soft_prompt(tiny_base(kind), 20).cast(torch.float32, device).requires_grad_(True)
        states = forward.states([Segment(PrefixInput(prompt), rows)])
        loss = forward.logits(states).float().log_softmax(-1)[:, 7].sum()
        gradients.append(torch.autograd.grad(loss, prompt)[0])
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert float((gradients[0] - gradients[1]).norm() / gradients[1].norm()) < 1e-3
