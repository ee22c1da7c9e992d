"""Assembles an engine for a model and a device: rows on a CPU, blocks with a kernel and graphs on a GPU."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch

from inference_service.engine import self_check
from inference_service.engine.core.config import LENGTH_SETTING, EngineConfig
from inference_service.engine.kv.blocks import BlockPool
from inference_service.engine.kv.cache_layout import layer_shapes
from inference_service.engine.kv.key_values import KeyValueReader
from inference_service.engine.kv.kv_cache import LayerShape, RowKVCache
from inference_service.engine.kv.paged_cache import PagedKVCache
from inference_service.engine.kv.prefix_cache import PrefixCache
from inference_service.engine.kv.rows import BLOCK_TOKENS, RowPool
from inference_service.engine.run import row_runner
from inference_service.engine.run.decode_graphs import capture, ladder
from inference_service.engine.run.model_runner import ModelRunner, Runner
from inference_service.engine.run.paged_runner import PagedRunner
from inference_service.engine.run.varlen_kernel import VarlenKernel, find_kernel
from inference_service.engine.scheduler import Scheduler
from shared.errors import InvalidInput, PreconditionFailed
from shared.kernels.replace_modules import speed_up_serving
from shared.model.base_model import BaseModel
from shared.model.causality import check_causal
from shared.process.free_memory import free_bytes

log = logging.getLogger(__name__)


KV_SHARE, PREFIX_SHARE = 0.4, 0.2
"""Parts of the free memory; the rest is for activations, logits and the process itself."""


@dataclass(frozen=True)
class MemoryPlan:
    """Sizes of the caches."""

    max_length: int
    length_limit: str
    """The origin of `max_length` for error texts: a setting, the model or the memory."""
    max_blocks: int
    prefix_bytes: int


def plan_memory(
    config: EngineConfig, bytes_per_token: int, max_positions: int, free_bytes: int, block_tokens: int = BLOCK_TOKENS
) -> MemoryPlan:
    """Blocks for running requests (at most all rows filled) and bytes for prefix KV.

    Raises InvalidInput if the memory is too small for one request; otherwise one request of `max_length` always fits.
    """
    kv_bytes = config.kv_cache_bytes or int(free_bytes * KV_SHARE)
    affordable = kv_bytes // (bytes_per_token * block_tokens)
    max_length = min(config.max_length, max_positions, affordable * block_tokens)
    if max_length < 2:
        raise InvalidInput.of(
            "kv_cache_bytes",
            f"{kv_bytes} bytes are less than one block: {block_tokens} tokens of {bytes_per_token} bytes each",
        )
    limits = {
        "the model's context": max_positions,
        "the memory for keys and values (SOFTPROMPT_INFERENCE_KV_CACHE_BYTES)": affordable * block_tokens,
        LENGTH_SETTING: config.max_length,
    }
    return MemoryPlan(
        max_length=max_length,
        length_limit=next(name for name, limit in limits.items() if limit == max_length),
        max_blocks=min(affordable, config.max_running * -(-max_length // block_tokens)),
        prefix_bytes=config.prefix_kv_bytes or int(free_bytes * PREFIX_SHARE),
    )


@dataclass(frozen=True)
class Parts:
    """The parts of an assembled engine."""

    config: EngineConfig
    """The requested configuration with `max_length` and `length_limit` as the model and the memory allow."""
    scheduler: Scheduler
    runner: Runner
    prefixes: PrefixCache


def assemble(base: BaseModel, config: EngineConfig) -> Parts:
    """Build the parts of an engine, and route the model's attention through the engine's cache.

    Raises PreconditionFailed for an architecture that the engine can't serve, InvalidInput if the memory holds no
    request.
    """
    with self_check.own_attention(base.model):
        check_causal(base)
    try:
        shapes = layer_shapes(base.model)
    except PreconditionFailed as error:
        log.info("using the model's own attention, one request at a time: %s", error.message)
        shapes = []
    expected = self_check.own_logits(base)
    paged = base.device.type == "cuda" if config.paged is None else config.paged
    if not shapes or not paged:
        return _rows(base, config, shapes, expected)
    return _paged(base, config, shapes, expected, kernel_for(base, shapes, config))


def kernel_for(base: BaseModel, shapes: list[LayerShape], config: EngineConfig) -> VarlenKernel | None:
    """A variable-length attention kernel that supports every layer, or None."""
    shape = shapes[0]
    if any(other != shape for other in shapes) or shape.key_width != shape.value_width:
        return None
    heads = base.model.config.get_text_config().num_attention_heads
    length, sizes = min(config.max_length, base.info.max_positions), ladder(config.max_running)
    batches = [size for size in sizes if size in (1, 8, sizes[-1])]
    kernel = find_kernel(heads, shape.num_heads, shape.key_width, base.dtype, base.device, length, batches)
    torch.cuda.empty_cache()  # what the check reserved counts as free for the memory plan; nothing without a GPU
    return kernel


def _rows(base: BaseModel, config: EngineConfig, shapes: list[LayerShape], expected: Any) -> Parts:
    packed = bool(shapes)
    shapes = shapes or row_runner.cache_shapes(base.model)
    bytes_per_token = sum(shape.bytes_per_token(base.dtype) for shape in shapes)
    plan = plan_memory(config, bytes_per_token, base.info.max_positions, _free_bytes(base, config))
    cache = RowKVCache(shapes, config.max_running + 1, plan.max_length, base.dtype, base.device)
    pool = RowPool(
        config.max_running, plan.max_blocks, plan.max_length, config.text_reuse != "off", config.text_reuse == "all"
    )
    speed_up_serving(base.model, base.device, base.dtype, config.linear_kernel, config.weights)
    runner: Runner = ModelRunner(base, cache) if packed else row_runner.RowRunner(base, cache)
    _check(base, runner, plan.max_length, expected, config)
    if isinstance(runner, ModelRunner) and plan.max_length >= self_check.NUM_TOKENS:
        self_check.fuse(base, runner, plan.max_length)
    prefixes = PrefixCache(plan.prefix_bytes, KeyValueReader(base, shapes))
    scheduler = Scheduler(pool, config.max_tokens_per_step, prefix_ready=prefixes.is_ready)
    return Parts(_as_planned(config, plan), scheduler, runner, prefixes)


def _paged(
    base: BaseModel, config: EngineConfig, shapes: list[LayerShape], expected: Any, kernel: VarlenKernel | None
) -> Parts:
    block_tokens = BLOCK_TOKENS if kernel is None else kernel.block_tokens
    bytes_per_token = sum(shape.bytes_per_token(base.dtype) for shape in shapes)
    plan = plan_memory(config, bytes_per_token, base.info.max_positions, _free_bytes(base, config), block_tokens)
    cache = PagedKVCache(
        shapes, config.max_running, plan.max_length, plan.max_blocks, block_tokens, base.dtype, base.device
    )
    pool = BlockPool(
        config.max_running,
        plan.max_blocks,
        plan.max_length,
        block_tokens,
        config.text_reuse != "off",
        config.text_reuse == "all",
    )
    speed_up_serving(base.model, base.device, base.dtype, config.linear_kernel, config.weights)
    runner = PagedRunner(base, cache, kernel)
    _check(base, runner, plan.max_length, expected, config)
    if kernel is not None:
        runner.graphs = capture(runner.decode, config.max_running, (0, cache.null_row, 0), base.device)
    log.info(
        "paged keys and values: %d blocks of %d tokens, %s, %s",
        plan.max_blocks,
        block_tokens,
        "gathered" if kernel is None else "varlen_attn",
        "graphs" if runner.graphs is not None else "no graphs",
    )
    prefixes = PrefixCache(plan.prefix_bytes, KeyValueReader(base, shapes))
    scheduler = Scheduler(pool, config.max_tokens_per_step, block_tokens, prefixes.is_ready)
    return Parts(_as_planned(config, plan), scheduler, runner, prefixes)


def _as_planned(config: EngineConfig, plan: MemoryPlan) -> EngineConfig:
    return config.model_copy(update={"max_length": plan.max_length, "length_limit": plan.length_limit})


def _free_bytes(base: BaseModel, config: EngineConfig) -> int:
    """Free memory of the device in bytes; 0, unmeasured, if the configuration sets both sizes."""
    return 0 if config.kv_cache_bytes and config.prefix_kv_bytes else free_bytes(base.device)


def _check(base: BaseModel, runner: Runner, max_length: int, expected: Any, config: EngineConfig) -> None:
    if max_length < self_check.NUM_TOKENS:
        return
    try:
        self_check.check_runner(base, runner, expected)
    except torch.OutOfMemoryError:
        raise
    except PreconditionFailed as error:
        if config.weights == "stored":
            raise
        raise PreconditionFailed(f"weights: {config.weights}: {error.message}") from error
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise PreconditionFailed(
            f"{base.info.architecture} can't be computed over the engine's cache: {reason}"
        ) from error
