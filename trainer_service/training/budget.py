"""How many positions one training pass may have: measured from what a position keeps for its backward pass and from what memory is free."""

from __future__ import annotations

import torch

from shared.base_model import BaseModel
from shared.free_memory import free_bytes
from trainer_service.training.compute import LOGITS_AT_ONCE
from trainer_service.training.forward import Forward
from trainer_service.training.packing import Row, Segment

MAX_CPU, MAX_GPU = 2048, 131_072
"""On a CPU a step takes seconds well before memory is spent, and jobs wait for steps."""
MIN_TOKENS = 64
_SHARE = 0.5
"""Of free memory; gradients of one layer at a time, other allocations and fragmentation take the rest."""
_LOGITS_BYTES = 3 * 4 * LOGITS_AT_ONCE
"""Logits, their gradient and a copy, float32; taken in parts, so that this bounds them."""
_FEW, _MANY = 64, 192


def measured_token_budget(base_model: BaseModel, forward: Forward) -> int:
    """Positions. Two small forward passes are run for it."""
    free = free_bytes(base_model.device)
    fits = int(_SHARE * max(free // 2, free - _LOGITS_BYTES)) // max(1, bytes_per_position(base_model, forward))
    return max(MIN_TOKENS, min(MAX_GPU if base_model.device.type == "cuda" else MAX_CPU, fits))


def bytes_per_position(base_model: BaseModel, forward: Forward) -> int:
    """What one more position of a pass keeps until its backward pass: the difference of two passes, so that constants don't count."""
    few, many = (_kept_bytes(base_model, forward, count) for count in (_FEW, _MANY))
    return max(0, many - few) // (_MANY - _FEW)


def _kept_bytes(base_model: BaseModel, forward: Forward, num_positions: int) -> int:
    width = base_model.embedding_table.shape[1]
    prompt = torch.zeros(num_positions // 2, width, dtype=base_model.dtype, device=base_model.device, requires_grad=True)
    rows = [Row(tuple((index + offset) % 8 for offset in range(8)), (0,)) for index in range(num_positions // 16)]
    if base_model.device.type == "cuda":
        before = torch.cuda.memory_allocated(base_model.device)
        states = forward.states([Segment(prompt, rows)])
        kept = torch.cuda.memory_allocated(base_model.device) - before
        del states
        return kept
    weights = {parameter.untyped_storage().data_ptr() for parameter in base_model.model.parameters()}
    sizes: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward.states([Segment(prompt, rows)])
    return sum(sizes.values())
