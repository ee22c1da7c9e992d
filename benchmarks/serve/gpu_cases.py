"""Decode steps of the paged engine with a randomly initialised model, compared with the bound by memory bandwidth."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from benchmarks.serve.workload import NUM_NEW, NUM_PROMPTS, NUM_VIRTUAL, Workload
from inference_service.engine.core.config import EngineConfig
from inference_service.engine.core.request import GenerationRequest
from inference_service.engine.engine import Engine
from inference_service.engine.run.paged_runner import PagedRunner
from shared.model.base_model import BaseModel
from shared.prompt.soft_prompt import SoftPrompt
from shared.values.base_model import BaseModelInfo
from shared.values.sampling import SamplingParams

REPEATS = 20
"""Measured repeats of one operation, for its rate."""
WANTED_SHARE = 0.7
MAX_LENGTH = 1024
SHAPES: dict[str, dict[str, int]] = {
    "8b": {
        "vocab_size": 128_256,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}


def measure(shape: str, device: str, batches: list[int]) -> dict[str, Any]:
    base = _random_model(shape, device)
    bytes_per_token = _bytes_per_token(base)
    blocks = max(batches) * (NUM_VIRTUAL + 256 + NUM_NEW) + MAX_LENGTH
    config = EngineConfig(
        max_running=max(batches),
        max_length=MAX_LENGTH,
        max_tokens_per_step=2048,
        kv_cache_bytes=2 * blocks * bytes_per_token,
        prefix_kv_bytes=2 * NUM_PROMPTS * NUM_VIRTUAL * bytes_per_token,
        paged=True,
        text_reuse="off",
    )
    weights = _decode_weights_bytes(base)
    engine = Engine.from_base_model(base, config)
    workload = Workload.make(base.embedding_table, max(batches))
    for index, prompt in enumerate(workload.prompts):
        engine.load_prefix(f"p{index}", SoftPrompt(prompt))
    rate = _copy_rate(device, 1 << 30 if device == "cuda" else 1 << 24)
    runner = engine.runner
    assert isinstance(runner, PagedRunner)
    cases = [_decode(engine, workload, batch, weights, bytes_per_token, rate, device) for batch in batches]
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "torch": torch.__version__,
        "shape": shape,
        "attention": "gathered"
        if runner.kernel is None
        else f"varlen_attn, blocks of {runner.kernel.block_tokens} tokens",
        "graphs": runner.graphs is not None,
        "weights_bytes": weights,
        "kv_bytes_per_token": bytes_per_token,
        "copy_rate_bytes_per_second": rate,
        "wanted_share": WANTED_SHARE,
        "cases": cases,
    }


def _decode(
    engine: Engine, workload: Workload, batch: int, weights: int, bytes_per_token: int, rate: float, device: str
) -> dict[str, float]:
    """Measures steps in which all requests decode. The lower bound reads the weights once, and each request's keys and
    values once.
    """
    sampling = SamplingParams(temperature=0.0, max_new_tokens=NUM_NEW, ignore_eos=True)
    for index in range(batch):
        engine.submit(GenerationRequest(f"r{index}", workload.inputs[index], sampling, f"p{index % NUM_PROMPTS}"))
    seconds, shares = list[float](), list[float]()
    while engine.has_work:
        running = engine.scheduler.running
        decoding = len(running) == batch and all(sequence.num_uncomputed == 1 for sequence in running)
        slots = sum(sequence.length for sequence in running)
        _wait(device)
        begun = time.perf_counter()
        engine.step()
        _wait(device)
        if decoding:
            seconds.append(time.perf_counter() - begun)
            shares.append((weights + slots * bytes_per_token) / rate / seconds[-1])
    engine.check_integrity()
    half = len(seconds) // 2  # the first steps are a warm-up
    return {
        "batch": batch,
        "step_seconds": statistics.median(seconds[half:]),
        "tokens_per_second": batch / statistics.median(seconds[half:]),
        "share_of_floor": statistics.median(shares[half:]),
    }


def _random_model(shape: str, device: str) -> BaseModel:
    config = LlamaConfig(**SHAPES[shape], max_position_embeddings=8192, use_cache=False)
    dtype = torch.bfloat16
    with torch.device(device):
        model = (
            AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
            .eval()
            .requires_grad_(False)
        )
    info = BaseModelInfo(
        id=shape,
        fingerprint="",
        tokenizer_digest="",
        architecture="LlamaForCausalLM",
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        num_layers=config.num_hidden_layers,
        max_positions=config.max_position_embeddings,
    )
    return BaseModel(info, model, _byte_tokenizer(), torch.device(device), dtype)


def _byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte; other tokens of a random model have no text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def _bytes_per_token(base: BaseModel) -> int:
    config = base.model.config
    head = config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * config.num_key_value_heads * head * base.dtype.itemsize)


def _decode_weights_bytes(base: BaseModel) -> int:
    """Bytes that a step reads: every parameter except the input embeddings, of which it reads one row per request."""
    table = base.embedding_table
    return sum(parameter.nbytes for parameter in base.model.parameters() if parameter.data_ptr() != table.data_ptr())


def _copy_rate(device: str, num_bytes: int) -> float:
    """Bytes read and written per second by a copy."""
    source = torch.empty(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    for _ in range(3):
        target.copy_(source)
    _wait(device)
    begun = time.perf_counter()
    for _ in range(REPEATS):
        target.copy_(source)
    _wait(device)
    return 2 * num_bytes * REPEATS / (time.perf_counter() - begun)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
