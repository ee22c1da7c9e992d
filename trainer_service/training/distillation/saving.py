"""What a distilled prompt saves: the time to compute an input with the text, and without it after the prompt."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import torch

from shared.model.base_model import BaseModel
from shared.prompt.prefix import Entering, VirtualTokens
from trainer_service.training.attention.plain_inputs import cache_of
from trainer_service.training.faults import is_machine_fault

log = logging.getLogger(__name__)
_RUNS = 3


@torch.no_grad()
def prefill_seconds(
    base_model: BaseModel, prefix: Entering, teacher_ids: Sequence[int], input_ids: Sequence[int]
) -> tuple[float | None, float | None]:
    """Seconds until the model has computed the teacher's input, and the prompt's, each the best of `_RUNS`.

    The prefix's keys and values are there before, as at serving. None if the model can't be measured so: that must
    not fail a job that is trained.
    """
    model, device = base_model.model, base_model.device

    def teacher() -> float:
        ids = torch.tensor([list(teacher_ids)], device=device)
        return _timed(lambda: model(input_ids=ids, use_cache=True, logits_to_keep=1), device)

    def prompt() -> float:
        if isinstance(prefix, VirtualTokens):
            known = model(inputs_embeds=prefix.embeddings[None], use_cache=True, logits_to_keep=1).past_key_values
        else:
            known = cache_of([prefix], prefix.num_virtual_tokens)
        ids = torch.tensor([list(input_ids)], device=device)
        return _timed(lambda: model(input_ids=ids, past_key_values=known, use_cache=True, logits_to_keep=1), device)

    try:
        return min(teacher() for _ in range(_RUNS)), min(prompt() for _ in range(_RUNS))
    except Exception as error:
        if is_machine_fault(error):
            raise
        log.info("the time to the first token is not measured: %s", str(error)[:200])
        return None, None


def _timed(compute: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    compute()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
