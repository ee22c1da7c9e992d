"""The runner for architectures whose attention can't be replaced (Falcon, Bloom, GPT-J, MPT ...).

It computes one chunk at a time, with the model's own attention over transformers' cache interface and rows of the KV
cache behind it. It is slower because sequences don't share a forward pass. Answers, scheduling, prefix KV and sampling
are the same.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from inference_service.engine.core.plan import StepPlan
from inference_service.engine.kv.kv_cache import LayerShape, PrefixKV, RowKVCache
from inference_service.engine.kv.prefix_cache import PrefixCache
from inference_service.engine.run.finite_check import FiniteCheck
from inference_service.engine.run.model_runner import do_ops, virtual_tokens
from shared.errors import PreconditionFailed
from shared.model.base_model import BaseModel


class RowLayer(DynamicLayer):  # type: ignore[misc]
    """One layer of one row behind transformers' cache interface; `length` slots are valid."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, length: int) -> None:
        """keys and values `[heads, max_length, width]`"""
        super().__init__()
        self._row_keys, self._row_values, self._length = keys, values, length
        self.keys, self.values = keys[None, :, :length], values[None, :, :length]
        self.is_initialized = True

    def get_seq_length(self) -> int:
        return self._length

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        end = self._length + key_states.shape[-2]
        self._row_keys[:, self._length : end] = key_states[0]
        self._row_values[:, self._length : end] = value_states[0]
        self._length = end
        self.keys, self.values = self._row_keys[None, :, :end], self._row_values[None, :, :end]
        return self.keys, self.values


class RowRunner:
    """Runs plans over a row cache, one forward pass per chunk."""

    def __init__(self, base: BaseModel, cache: RowKVCache) -> None:
        self._model: Any = base.model
        self._device, self._dtype = base.device, base.dtype
        self._num_layers = base.model.config.get_text_config().num_hidden_layers
        self._cache = cache
        self._parameters = inspect.signature(base.model.forward).parameters
        self.scratch_row = cache.num_rows - 1
        self.finite = FiniteCheck(base.model)

    @torch.inference_mode()
    def run(self, plan: StepPlan, prefixes: PrefixCache) -> torch.Tensor:
        """Like `ModelRunner.run`: logits `[n, vocab]` in the order of the chunks."""
        do_ops(plan.ops, self._cache, prefixes)
        self.finite.begin()
        wanted: list[torch.Tensor] = []
        for chunk in plan.chunks:
            sequence, begin, end = chunk.sequence, chunk.start + chunk.num_virtual, chunk.start + chunk.count
            if chunk.num_virtual:
                self._forward(
                    chunk.row,
                    chunk.start,
                    1,
                    inputs_embeds=virtual_tokens(chunk, prefixes, self._device, self._dtype)[None],
                )
            if begin < end:
                tokens = sequence.tokens[begin - sequence.num_virtual : end - sequence.num_virtual]
                logits = self._feed(chunk.row, begin, tokens, max(1, chunk.num_main_logits))
                if chunk.num_main_logits:
                    wanted.append(logits)
            wanted += [
                self._feed(chunk.row, end, list(branch[:-1]), len(branch) - 1)
                for branch in chunk.branches
                if len(branch) > 1
            ]
        return torch.cat(wanted) if wanted else torch.empty(0, device=self._device)

    @torch.inference_mode()
    def snapshot(self, row: int, length: int) -> PrefixKV:
        return self._cache.snapshot(row, length)

    def _feed(self, row: int, start: int, token_ids: list[int], last: int) -> torch.Tensor:
        """Feed tokens and return logits `[last, vocab]` of the last ones."""
        return self._forward(row, start, last, input_ids=torch.tensor(token_ids, device=self._device)[None])

    def _forward(self, row: int, start: int, last: int, **inputs: torch.Tensor) -> torch.Tensor:
        end = start + next(iter(inputs.values())).shape[1]
        layers = [
            RowLayer(keys[row], values[row], start) for keys, values in map(self._cache.layer, range(self._num_layers))
        ]
        options: dict[str, Any] = dict(inputs)
        if "position_ids" in self._parameters:
            options["position_ids"] = torch.arange(start, end, device=self._device)[None]
        if "logits_to_keep" in self._parameters:
            options["logits_to_keep"] = last
        mask = torch.ones(1, end, dtype=torch.long, device=self._device)
        logits: torch.Tensor = self._model(
            **options, attention_mask=mask, past_key_values=Cache(layers=layers), use_cache=True
        ).logits[0]
        return logits[-last:]


@torch.inference_mode()
def cache_shapes(model: Any) -> list[LayerShape]:
    """The shapes of a model's own cache, one for each layer.

    Raises PreconditionFailed unless it holds keys and values of every token in every layer.
    """
    kind = model.config.get_text_config().model_type
    cache = DynamicCache()
    try:
        model(input_ids=torch.zeros(1, 2, dtype=torch.long, device=model.device), past_key_values=cache, use_cache=True)
    except Exception as error:
        raise PreconditionFailed(
            f"{kind} does not run with transformers' cache interface: {type(error).__name__}: {str(error)[:200]}"
        ) from error
    layers: list[Any] = cache.layers
    shapes = [tuple(layer.keys.shape) if getattr(layer, "is_initialized", False) else () for layer in layers]
    if len(layers) != model.config.get_text_config().num_hidden_layers or any(
        len(shape) != 4 or shape[2] != 2 for shape in shapes
    ):
        raise PreconditionFailed(
            f"{kind} does not keep plain keys and values of every token in every layer, so a prefix can't be shared"
        )
    return [LayerShape(layer.keys.shape[1], layer.keys.shape[3], layer.values.shape[3]) for layer in layers]
