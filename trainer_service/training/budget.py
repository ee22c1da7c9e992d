"""The token budget of a training pass: how many positions fit into free memory.

It is measured from the memory that a position keeps for its backward pass.
"""

from __future__ import annotations

from collections import Counter

import torch

from shared.kernels import ops
from shared.model.base_model import BaseModel
from shared.process.free_memory import free_bytes
from shared.prompt.prefix import PrefixInput
from trainer_service.training.attention.forward import Forward, PackedForward
from trainer_service.training.attention.packing import Row, Segment
from trainer_service.training.attention.row_memory import RowMemory
from trainer_service.training.compute import LOGITS_AT_ONCE

MAX_CPU, MAX_GPU = 2048, 131_072
"""On a CPU, a step takes seconds long before memory runs out, and other jobs wait for it."""
MIN_TOKENS = 64
_SHARE = 0.5
"""Share of free memory to use. Gradients of one layer at a time, other allocations and fragmentation take the rest."""
_LOGITS_BYTES = 3 * 4 * LOGITS_AT_ONCE
"""Upper bound for logits, their gradient and a copy, in float32. They are computed in parts."""
_FEW, _MANY = 64, 192
_SCORES_AT_ONCE = 3
"""In `prefix_attention`'s backward pass of one layer: the weights, their gradient and that of the scores."""
GOOD_PASSES, MAX_PATIENCE = 64, 4096


def measured_token_budget(base_model: BaseModel, forward: Forward) -> int:
    """The number of positions that one pass may have, measured with two small forward passes."""
    free = least_free_bytes(base_model)
    fits = int(_SHARE * max(free // 2, free - _LOGITS_BYTES)) // max(1, bytes_per_position(base_model, forward))
    return max(MIN_TOKENS, min(MAX_GPU if base_model.device.type == "cuda" else MAX_CPU, fits))


class TokenBudget:
    """The positions that a pass may have: reduced after an out-of-memory error, then raised again. Pure.

    It grows by a quarter after every `GOOD_PASSES` large passes. A size that failed is retried only after twice as many
    large passes as before the previous retry.
    """

    def __init__(self, most: int) -> None:
        self._most = self.current = max(MIN_TOKENS, most)
        self._failed_at: int | None = None
        self._patience = GOOD_PASSES
        self._good = 0

    def ran_out(self, down_to: int | None = None) -> None:
        """Reduce the budget after an out-of-memory error. `down_to`: a size that is known to fit; by default half."""
        self._patience = min(MAX_PATIENCE, 2 * self._patience) if self._failed_at is not None else GOOD_PASSES
        self._failed_at = self.current
        self.current = max(MIN_TOKENS, min(self.current // 2 if down_to is None else down_to, self.current))
        self._good = 0

    def fitted(self, num_tokens: int) -> None:
        """Record a successful pass of `num_tokens` positions. Small passes are ignored."""
        if self.current >= self._most or 2 * num_tokens < self.current:
            return
        self._good += 1
        larger = min(self._most, self.current + max(1, self.current // 4))
        needed = GOOD_PASSES if self._failed_at is None or larger < self._failed_at else self._patience
        if self._good >= needed:
            self.current, self._good = larger, 0


def measured_row_memory(base_model: BaseModel, forward: Forward) -> RowMemory:
    """The memory per position and per pair of positions, measured with two small forward passes."""
    return RowMemory(bytes_per_position(base_model, forward), bytes_per_pair(base_model, forward))


def bytes_per_pair(base_model: BaseModel, forward: Forward) -> float:
    """An upper bound of what attention keeps for each pair of positions of a row, from the model's configuration.

    0 for kernels that never write scores to memory: the compiled ones and PyTorch's fused ones.
    """
    model = base_model.model
    config = model.config.get_text_config()
    heads = int(getattr(config, "num_attention_heads", 0) or 0)
    size = 4 if base_model.device.type == "cpu" else base_model.dtype.itemsize
    if isinstance(forward, PackedForward):
        return 0.0 if _has_compiled_attention(base_model, heads) else float(heads * size * _SCORES_AT_ONCE)
    if getattr(config, "_attn_implementation", "") != "eager":
        return 0.0
    # scores and weights of every layer are kept for the backward pass
    return float(heads * size * 2 * base_model.info.num_layers)


def _has_compiled_attention(base_model: BaseModel, heads: int) -> bool:
    config = base_model.model.config.get_text_config()
    width = getattr(config, "head_dim", None) or (base_model.info.hidden_size // heads if heads else 0)
    softcap = getattr(config, "attn_logit_softcapping", None)
    sinks = any(name.endswith("sinks") for name, _ in base_model.model.named_parameters())
    sample = torch.empty(0, dtype=base_model.dtype, device=base_model.device)
    return softcap is None and not sinks and ops.takes(sample, int(width))


def bytes_per_position(base_model: BaseModel, forward: Forward) -> int:
    """Bytes that each additional position keeps for the backward pass, from the difference between two passes; of the
    device that keeps most.
    """
    few, many = (kept_bytes(base_model, forward, count) for count in (_FEW, _MANY))
    return max([0, *(many[device] - few[device] for device in many)]) // (_MANY - _FEW)


def least_free_bytes(base_model: BaseModel) -> int:
    """Free memory of the model's device that has the least."""
    return min(map(free_bytes, _devices(base_model)))


def _devices(base_model: BaseModel) -> set[torch.device]:
    return {base_model.device} | {parameter.device for parameter in base_model.model.parameters()}


def kept_bytes(base_model: BaseModel, forward: Forward, num_positions: int) -> Counter[torch.device]:
    """Bytes that a pass of `num_positions` keeps for the backward pass, by device."""
    width = base_model.embedding_table.shape[1]
    prompt = torch.zeros(
        num_positions // 2, width, dtype=base_model.dtype, device=base_model.device, requires_grad=True
    )
    rows = [Row(tuple((index + offset) % 8 for offset in range(8)), (0,)) for index in range(num_positions // 16)]
    kept = Counter[torch.device]()
    if base_model.device.type == "cuda":
        before = {device: torch.cuda.memory_allocated(device) for device in _devices(base_model)}
        states = forward.states([Segment(PrefixInput(prompt), rows)])
        kept.update({device: torch.cuda.memory_allocated(device) - size for device, size in before.items()})
        del states
        return kept
    weights = {parameter.untyped_storage().data_ptr() for parameter in base_model.model.parameters()}
    seen = set[int]()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if (address := storage.data_ptr()) not in weights and address not in seen:
            seen.add(address)
            kept[tensor.device] += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward.states([Segment(PrefixInput(prompt), rows)])
    return kept
