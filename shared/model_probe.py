"""What a causal model must be able to do before a soft prompt can be trained on it or served with it, found out by trying.

Each question is put to the loaded model on a few tokens, so an architecture needs no entry in a list: a model that fails is refused with
what it lacks.
"""

from __future__ import annotations

from typing import Any

import torch

from shared.errors import PreconditionFailed
from shared.weights import first_line

NUM_TOKENS = 8
_TOLERANCE = {torch.float32: 1e-3}
_COARSE_TOLERANCE = 0.1
"""For half precision and quantised weights, as a part of the norm."""


@torch.inference_mode()
def check_model(model: Any, name: str) -> None:
    """Raise PreconditionFailed unless the model reads embeddings alone, gives finite logits from them, and sees no later token."""
    embed, device = model.get_input_embeddings(), model.device
    vocab_size = model.config.get_text_config().vocab_size
    ids = torch.tensor([[(7919 * (i + 1) + 300) % vocab_size for i in range(NUM_TOKENS)]], device=device)
    try:
        by_ids = _logits(model(input_ids=ids, use_cache=False))
    except Exception as error:
        raise PreconditionFailed(f"{name} can't be run by this transformers release on text alone: {_reason(error)}") from error
    if not bool(torch.isfinite(by_ids).all()):
        raise PreconditionFailed(f"{name} gives numbers that are not finite in {_short(model.dtype)}; try another dtype")
    try:
        embedded = embed(ids)
        by_embeddings = _logits(model(inputs_embeds=embedded, use_cache=False))
        shorter = _logits(model(inputs_embeds=embedded[:, :-2], use_cache=False))
        _logits(model(inputs_embeds=(embedded + embedded.roll(1, dims=1)) / 2, use_cache=False))  # rows of no token, as a prompt's are
    except Exception as error:
        raise PreconditionFailed(
            f"{name} can't read embeddings in place of token ids, which virtual tokens need: {_reason(error)}"
        ) from error
    width = model.config.get_text_config().hidden_size
    if embedded.shape[-1] != width:
        raise PreconditionFailed(
            f"{name} has embeddings {embedded.shape[-1]} wide where its hidden size is {width}: prompts have one width"
        )
    tolerance = _TOLERANCE.get(model.dtype, _COARSE_TOLERANCE)
    if _difference(by_embeddings, by_ids) > tolerance:
        raise PreconditionFailed(f"{name} computes something else from embeddings than from their token ids: virtual tokens have no ids")
    if _difference(by_embeddings[: shorter.shape[0]], shorter) > tolerance:
        raise PreconditionFailed(f"{name} is not causal as it is configured: a token's logits change with the tokens after it")


def _logits(output: Any) -> torch.Tensor:
    logits: torch.Tensor = output.logits[0].float()
    return logits


def _difference(value: torch.Tensor, reference: torch.Tensor) -> float:
    """Infinite if there is no comparison."""
    if value.shape != reference.shape:
        return float("inf")
    difference = float((value - reference).norm() / reference.norm().clamp_min(1e-20))
    return difference if difference == difference else float("inf")


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
