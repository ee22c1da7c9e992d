"""Golden records: what the base model answers behind a soft prompt, for replicas to replay before they serve it.

They are computed in float32 by the model's own code, so that a replica's rounding is the only one, and neither our
training's kernels nor our engine is compared with itself. Beside that stands how much bfloat16 moves these very
answers: a sharp prompt has large logits, whose rounding moves them more than a mild one's, so a tolerance for all
prompts would be too narrow for some and too wide for most.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch

from shared.model.base_model import BaseModel
from shared.model.precision import computed_in
from shared.prompt.divergence import divergence_nats
from shared.prompt.manifest import GoldenRecord
from shared.prompt.soft_prompt import SoftPrompt
from shared.text.golden_inputs import golden_input_ids
from shared.text.template import InputEncoder

TOP_K = 8
REPLAYED = 2 * TOP_K + 4
"""Of the rounded answers only so many are looked at, as a replica sees only the most likely tokens of its replay."""
log = logging.getLogger(__name__)


def golden_records(base: BaseModel, soft_prompt: SoftPrompt, encoder: InputEncoder) -> tuple[GoldenRecord, ...]:
    """Of each input of `shared.text.golden_inputs` that fits into the model's positions with the virtual tokens and one
    token more.
    """
    room = base.info.max_positions - soft_prompt.num_virtual_tokens
    inputs = [ids for ids in golden_input_ids(encoder) if len(ids) < room]
    rounded: Sequence[torch.Tensor | None]
    try:
        exact = _answers(base, soft_prompt, inputs, torch.float32)
        rounded = _answers(base, soft_prompt, inputs, torch.bfloat16)
    except (
        RuntimeError,
        ValueError,
        TypeError,
    ) as error:  # the model's code needs the dtype of its weights, or memory is short
        log.info("golden records are computed in %s: %s", base.dtype, str(error)[:200])
        exact, rounded = _answers(base, soft_prompt, inputs, base.dtype), [None] * len(inputs)
    dtype = str(base.dtype).removeprefix("torch.")
    return tuple(_record(ids, dtype, one, other) for ids, one, other in zip(inputs, exact, rounded, strict=True))


@torch.no_grad()
def _answers(
    base: BaseModel, soft_prompt: SoftPrompt, inputs: Sequence[tuple[int, ...]], dtype: torch.dtype
) -> list[torch.Tensor]:
    """Log-probabilities `[vocab_size]` of the first token after each input."""
    model: Any = base.model
    prompt = soft_prompt.cast(dtype, base.device)  # [P, hidden_size]
    found = list[torch.Tensor]()
    with computed_in(model, dtype):
        for ids in inputs:
            embedded = model.get_input_embeddings()(torch.tensor(ids, device=base.device)).to(dtype)  # [T, hidden_size]
            logits = model(inputs_embeds=torch.cat([prompt, embedded])[None], use_cache=False).logits[
                0, -1
            ]  # [vocab_size]
            found.append(logits.float().log_softmax(-1))
    return found


def _record(
    input_ids: tuple[int, ...], weights_dtype: str, exact: torch.Tensor, rounded: torch.Tensor | None
) -> GoldenRecord:
    values, tokens = (part.tolist() for part in exact.topk(TOP_K))
    values = [min(0.0, value) for value in values]
    rounding = None
    if rounded is not None:
        likely, their_tokens = (part.tolist() for part in rounded.topk(REPLAYED))
        moved = divergence_nats(tokens, values, dict(zip(their_tokens, likely, strict=True)))
        rounding = moved if math.isfinite(moved) else None
    return GoldenRecord(
        text="",
        input_ids=input_ids,
        top_token_ids=tuple(tokens),
        top_logprobs=tuple(values),
        dtype=weights_dtype,
        rounding_nats=rounding,
    )
