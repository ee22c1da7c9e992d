"""Checks that a model accepts virtual tokens: it reads embeddings without token ids, and is causal."""

from __future__ import annotations

from typing import Any

import torch

from shared.errors import PreconditionFailed
from shared.model.base_model import BaseModel

_NUM_TOKENS = 8
_TOLERANCE = {torch.float32: 1e-3}


@torch.no_grad()
def check_causal(base: BaseModel) -> None:
    """Raises PreconditionFailed, naming the model and the reason, if the check fails."""
    model: Any = base.model
    size = min(1000, base.embedding_table.shape[0])
    ids = torch.tensor([[(7 * index + 3) % size for index in range(_NUM_TOKENS + 1)]], device=base.device)
    try:
        rows = model.get_input_embeddings()(ids)
        embedded = (rows + rows.flip(1)) / 2  # [1, tokens, hidden_size]; not rows of the table, like soft prompts
        before = model(inputs_embeds=embedded[:, :-1], use_cache=False).logits[0].float()  # [tokens - 1, vocab_size]
        after = model(inputs_embeds=embedded, use_cache=False).logits[0, :-1].float()
    except Exception as error:  # the model's own code may raise anything
        reason = (str(error).splitlines() or [""])[0][:200]
        raise PreconditionFailed(
            f"{base.info.id} can't be given virtual tokens: {type(error).__name__}: {reason}"
        ) from error
    width = model.config.get_text_config().hidden_size
    if embedded.shape[-1] != width:
        raise PreconditionFailed(
            f"{base.info.id} can't be given virtual tokens: "
            f"its embeddings are {embedded.shape[-1]} wide, its states {width}"
        )
    if not bool(torch.isfinite(before).all()):
        dtype = str(base.dtype).removeprefix("torch.")
        raise PreconditionFailed(f"{base.info.id} gives numbers that are not finite in {dtype}: choose another dtype")
    if not float((before - after).norm()) <= _TOLERANCE.get(base.dtype, 0.1) * float(before.norm()):
        raise PreconditionFailed(
            f"{base.info.id} is not a causal language model: a later token changes what it says about earlier ones"
        )
