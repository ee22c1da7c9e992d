"""Golden records: the base model's answers with a prefix, which replicas replay before they serve it.

They are computed in float32 by the model's own code, so the replica's rounding is the only rounding, and neither the
training kernels nor the engine is compared with itself. Each record also says how much bfloat16 changes its answer:
rounding changes large logits more, so a fixed tolerance would be too narrow for some prompts and too wide for most.
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
from shared.prompt.prefix import Prefix
from shared.text.golden_inputs import golden_input_ids
from shared.text.template import InputEncoder
from trainer_service.training.attention.plain_inputs import plain_inputs

TOP_K = 8
REPLAYED = 2 * TOP_K + 4
"""How many tokens of the rounded answers are compared; a replica, too, sees only the most likely tokens."""
log = logging.getLogger(__name__)


def golden_records(base: BaseModel, prefix: Prefix, encoder: InputEncoder) -> tuple[GoldenRecord, ...]:
    """A record for each input of `shared.text.golden_inputs` that fits into the model's context.

    The virtual tokens and one more token must fit, too.
    """
    room = base.info.max_positions - prefix.num_virtual_tokens
    inputs = [ids for ids in golden_input_ids(encoder) if len(ids) < room]
    rounded: Sequence[torch.Tensor | None]
    try:
        exact = _answers(base, prefix, inputs, torch.float32)
        rounded = _answers(base, prefix, inputs, torch.bfloat16)
    except (RuntimeError, ValueError, TypeError) as error:
        # the model's code needs the dtype of its weights, or memory is short
        log.info("golden records are computed in %s: %s", base.dtype, str(error)[:200])
        exact, rounded = _answers(base, prefix, inputs, base.dtype), [None] * len(inputs)
    dtype = str(base.dtype).removeprefix("torch.")
    return tuple(_record(ids, dtype, one, other) for ids, one, other in zip(inputs, exact, rounded, strict=True))


@torch.no_grad()
def _answers(
    base: BaseModel, prefix: Prefix, inputs: Sequence[tuple[int, ...]], dtype: torch.dtype
) -> list[torch.Tensor]:
    """Log-probabilities `[vocab_size]` of the first token after each input."""
    model: Any = base.model
    found = list[torch.Tensor]()
    with computed_in(model, dtype):
        for ids in inputs:
            embedded = model.get_input_embeddings()(torch.tensor(ids, device=base.device)).to(dtype)  # [T, hidden_size]
            arguments = plain_inputs([embedded], [prefix.input(dtype, base.device)], "right")
            output = model(**arguments, use_cache="past_key_values" in arguments)
            found.append(output.logits[0, -1].float().log_softmax(-1))  # [vocab_size]
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
