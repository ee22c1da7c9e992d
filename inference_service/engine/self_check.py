"""Checks on a few tokens that the engine computes the same logits as the model's own code.

An architecture may pass its attention arguments that the engine's attention ignores (a position bias, a special mask).
The check finds this before any request gets a wrong answer.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from inference_service.engine.core.plan import Chunk, StepPlan
from inference_service.engine.core.running_request import RunningRequest
from inference_service.engine.kv.prefix_cache import PrefixCache
from inference_service.engine.run.model_runner import ModelRunner, Runner
from shared.errors import PreconditionFailed
from shared.model.base_model import BaseModel
from shared.prompt.soft_prompt import SoftPrompt
from shared.values.sampling import SamplingParams

log = logging.getLogger(__name__)

NUM_TOKENS = 12
NUM_VIRTUAL = 3
_SPLITS = (((0, 7), (7, 4), (11, 1)), ((0, 7), (7, 5)))
"""Chunks `(start, count)` of two checks.

The first has a prefill that begins with virtual tokens, its continuation and a decode; in the second the last chunk has
several tokens.
"""
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Allowed difference, relative to the logits' norm: bfloat16 keeps 8 bits, and every layer sums in another order."""


def check_tokens(vocab_size: int) -> list[int]:
    """Frequent token ids: byte-pair vocabularies number them first, after bytes and special tokens.

    Rare tokens give noisy logits: those of SmolLM2-135M in bfloat16 differ from float32 by 6 % for rare tokens and by
    0.4 % for these.
    """
    first, many = (300, 1000) if vocab_size >= 1300 else (0, vocab_size)
    return [first + 7919 * (i + 1) % many for i in range(NUM_TOKENS)]


@torch.inference_mode()
def own_logits(base: BaseModel) -> torch.Tensor:
    """Logits `[vocab]` after the last check token, computed by the model's own attention.

    This is the plain ("eager") attention; the fused one ignores a soft cap.
    """
    ids = torch.tensor([check_tokens(base.info.vocab_size)], device=base.device)
    with own_attention(base.model):
        logits: torch.Tensor = base.model(input_ids=ids, use_cache=False).logits[0, -1].float()
    return logits


@contextmanager
def own_attention(model: Any) -> Iterator[None]:
    """Use the model's own plain attention inside, even if an engine has replaced it."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def check_runner(base: BaseModel, runner: Runner, expected: torch.Tensor) -> None:
    """Raise PreconditionFailed if the engine's logits differ from `expected` `[vocab]`, the model's own."""
    for logits in _computed(base, runner, _SPLITS):
        difference = _difference(logits, expected)
        if not difference <= TOLERANCE.get(base.dtype, 0.1):
            raise PreconditionFailed(
                f"{base.info.architecture}: the engine's logits differ from the model's own "
                f"by {difference:.2g} of their norm"
            )


def fuse(base: BaseModel, runner: ModelRunner, max_length: int) -> None:
    """Let the runner compute small steps by one call of a kernel, if its logits have the same bits.

    Both ways round alike, and a tolerance could hide a difference of structure, such as a layer without rotary
    embeddings. The last positions of the cache show what depends on the position, such as a scale of queries.
    """
    end = max_length - NUM_TOKENS
    splits = (*_SPLITS, ((end, NUM_TOKENS - 1), (max_length - 1, 1)))
    runner.fuse()
    if runner.fused is None:
        return
    try:
        found = _computed(base, runner, splits)
    except Exception as error:  # parts of the model that are not replaced raise anything
        found, reason = [], f"{type(error).__name__}: {error}"
    else:
        reason = "the logits differ"
    fused, runner.fused = runner.fused, None
    if found and all(map(torch.equal, found, _computed(base, runner, splits))):
        runner.fused = fused
    else:
        log.info("%s: steps are not fused: %s", base.info.architecture, reason)


def _difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def _computed(base: BaseModel, runner: Runner, splits: Sequence[Sequence[tuple[int, int]]]) -> list[torch.Tensor]:
    """The runner's logits `[vocab]` after the last token of each split."""
    ids, prefixes, found = check_tokens(base.info.vocab_size), PrefixCache(0), list[torch.Tensor]()
    with torch.inference_mode():
        embedded = base.model.get_input_embeddings()(torch.tensor(ids[:NUM_VIRTUAL], device=base.device))
    prefixes.add("self-check", SoftPrompt(embedded.float().cpu()))
    most = max(start + count for split in splits for start, count in split)
    rest = (ids * -(-most // len(ids)))[NUM_VIRTUAL:most]
    sequence = RunningRequest(
        "self-check", rest, len(rest), SamplingParams(), 0, prefix_id="self-check", num_virtual=NUM_VIRTUAL
    )
    for split in splits:
        for start, count in split:
            chunk = Chunk(sequence, runner.scratch_row, start, count, samples=(start, count) == split[-1])
            logits = runner.run(StepPlan((chunk,), ()), prefixes)
        found.append(logits[0].float())
    return found
