"""What a distillation reports: what the prompt keeps of its teacher, and the time that it saves."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any

import torch

from shared.model.base_model import BaseModel
from shared.prompt.prefix import PrefixInput
from shared.values.results import DistillationResult
from trainer_service.training.attention.plain_inputs import cache_of
from trainer_service.training.comparison import BARE
from trainer_service.training.data.encoding import EncodedSplit
from trainer_service.training.distillation.self_study import SelfStudy
from trainer_service.training.evaluation.evaluator import Judgement
from trainer_service.training.faults import is_machine_fault
from trainer_service.training.work import CallWork, Work

log = logging.getLogger(__name__)
_RUNS = 3


def distillation_result(
    base_model: BaseModel, study: SelfStudy, split: EncodedSplit, judged: Judgement, prefix: PrefixInput
) -> Generator[Work, Any, DistillationResult]:
    """The result of a job that was judged on the held-out questions of `split`."""
    rows = sorted(split.validation.examples, key=lambda row: len(row.input_ids))
    row = rows[len(rows) // 2]
    teacher_ids = study.teacher_ids(row.example.input)
    measure = partial(prefill_seconds, base_model, prefix, teacher_ids, row.input_ids)
    with_text, with_prompt = yield CallWork(measure, 3 * len(teacher_ids))
    bare = judged.rivals[BARE]
    return DistillationResult(
        num_questions=len(split.train),
        num_held_out=len(split.validation),
        num_answer_tokens=sum(len(studied.answer_ids) for studied in study.rows),
        document_tokens=study.document_tokens,
        num_virtual_tokens=prefix.num_virtual_tokens,
        kl=judged.metrics["loss"],
        bare_kl=bare["loss"],
        agreement=judged.metrics["token_accuracy"],
        bare_agreement=bare["token_accuracy"],
        teacher_prefill_seconds=with_text,
        prompt_prefill_seconds=with_prompt,
    )


@torch.no_grad()
def prefill_seconds(
    base_model: BaseModel, prefix: PrefixInput, teacher_ids: Sequence[int], input_ids: Sequence[int]
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
        known: Any = cache_of([prefix], prefix.num_given) if prefix.keys else None
        if (embeds := prefix.embeddings) is not None:
            found = model(inputs_embeds=embeds[None], past_key_values=known, use_cache=True, logits_to_keep=1)
            known = found.past_key_values
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
