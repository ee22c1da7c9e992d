"""Before an engine serves a model it proves on a few tokens that it computes what the model's own code computes.

An architecture may pass its attention something that ours does not honour (a position bias, a mask of its own); nobody
should find that out from the quality of the answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from inference_service.engine.core.plan import Chunk, StepPlan
from inference_service.engine.core.running_request import RunningRequest
from inference_service.engine.kv.prefix_cache import PrefixCache
from inference_service.engine.run.model_runner import Runner
from shared.errors import PreconditionFailed
from shared.model.base_model import BaseModel
from shared.prompt.soft_prompt import SoftPrompt
from shared.values.sampling import SamplingParams

NUM_TOKENS = 12
NUM_VIRTUAL = 3
_SPLITS = (((0, 7), (7, 4), (11, 1)), ((0, 7), (7, 5)))
"""A prefill that begins with virtual tokens, its continuation and a decode; then one whose last chunk has several
tokens.
"""
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Of the logits' norm: bfloat16 keeps 8 bits, and the order of summation differs in every layer."""


def check_tokens(vocab_size: int) -> list[int]:
    """Frequent ones, which byte-pair vocabularies number first, after bytes and specials.

    Of rare ones a model makes noise: SmolLM2-135M's own bfloat16 logits differ from its float32 ones by 6 % there, and
    by 0.4 % here.
    """
    first, many = (300, 1000) if vocab_size >= 1300 else (0, vocab_size)
    return [first + 7919 * (i + 1) % many for i in range(NUM_TOKENS)]


@torch.inference_mode()
def own_logits(base: BaseModel) -> torch.Tensor:
    """`[vocab]` after the last check token, by the model's own plain attention (the fused one leaves a soft cap out)."""
    ids = torch.tensor([check_tokens(base.info.vocab_size)], device=base.device)
    with own_attention(base.model):
        logits: torch.Tensor = base.model(input_ids=ids, use_cache=False).logits[0, -1].float()
    return logits


@contextmanager
def own_attention(model: Any) -> Iterator[None]:
    """The model's own plain attention inside, also of a model that an engine had taken over."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def check_runner(base: BaseModel, runner: Runner, expected: torch.Tensor) -> None:
    """Raise PreconditionFailed if the engine's logits are not the model's."""
    ids, logits, prefixes = check_tokens(base.info.vocab_size), expected, PrefixCache(0)
    with torch.inference_mode():
        embedded = base.model.get_input_embeddings()(torch.tensor(ids[:NUM_VIRTUAL], device=base.device))
    prefixes.add("self-check", SoftPrompt(embedded.float().cpu()))
    rest = ids[NUM_VIRTUAL:]
    sequence = RunningRequest(
        "self-check", rest, len(rest), SamplingParams(), 0, prefix_id="self-check", num_virtual=NUM_VIRTUAL
    )
    for splits in _SPLITS:
        for start, count in splits:
            chunk = Chunk(sequence, runner.scratch_row, start, count, samples=start + count == NUM_TOKENS)
            logits = runner.run(StepPlan((chunk,), ()), prefixes)
        difference = float((logits[0].float() - expected).norm() / expected.norm())
        if not difference <= TOLERANCE.get(base.dtype, 0.1):
            raise PreconditionFailed(
                f"{base.info.architecture}: the engine's logits differ from the model's own by {difference:.2g} of their norm"
            )
