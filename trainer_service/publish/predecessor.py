"""Compares a trained prompt with a current version of another base model. That version can't run on this job's worker,
so the answers that its own job kept are compared with this job's answers to the same held-out examples. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shared.values.enums import CLASS_METRICS, TEXT_METRICS
from shared.values.report import HeldOutAnswer, HeldOutAnswers, ModelAnswer
from trainer_service.training.comparison import Comparison, compare
from trainer_service.training.results import Results
from trainer_service.training.spec import Metric


@dataclass(frozen=True)
class Predecessor:
    """A current version of another base model."""

    job: str
    """The job that trained it; empty if it was imported."""
    answers: HeldOutAnswers | None
    """The answers of its job; None if none are kept."""


def compare_kept(metric: Metric, ours: HeldOutAnswers, predecessor: Predecessor) -> Comparison | str:
    """The comparison on the examples that both jobs held out, or why there is none.

    Losses are compared in nats per target token of this job's tokenizer: the probability of a whole answer does not
    depend on how a tokenizer cuts it, only the number of its tokens does.
    """
    if predecessor.answers is None:
        what = f"{predecessor.job} keeps no answers" if predecessor.job else "no job of this trainer trained it"
        return f"it belongs to another base model, and {what}"
    if metric is Metric.TOKEN_ACCURACY:
        return "it belongs to another base model, and token_accuracy counts tokens, which tokenizers cut differently"
    kept = {_example(answer): answer.tuned for answer in predecessor.answers.answers}
    pairs = [
        (answer.reference.strip(), answer.tuned, theirs)
        for answer in ours.answers
        if answer.tuned is not None
        and (theirs := kept.get(_example(answer))) is not None
        and _is_usable(answer.tuned, metric)
        and _is_usable(theirs, metric)
    ]
    references = [reference for reference, _, _ in pairs]
    tokens = [max(1, own.num_targets) for _, own, _ in pairs]
    own = _results(metric, [own for _, own, _ in pairs], references, tokens)
    other = _results(metric, [theirs for _, _, theirs in pairs], references, tokens)
    return compare(metric, own, other) or (
        f"it belongs to another base model, and {predecessor.job} keeps no answers to these held-out examples that "
        f"could be compared by {metric.value.lower()}"
    )


def _is_usable(answer: ModelAnswer, metric: Metric) -> bool:
    return answer.is_comparable(metric) and (metric is not Metric.LOSS or answer.num_targets > 0)


def _example(answer: HeldOutAnswer) -> tuple[int, str, str]:
    return answer.line, answer.input, answer.reference


def _results(
    metric: Metric, answers: Sequence[ModelAnswer], references: Sequence[str], num_targets: Sequence[int]
) -> Results:
    """Answers in the form that `compare` takes. `num_targets`: tokens of each reference, the same for both models."""
    texts = [answer.text or "" for answer in answers]
    labels = {label: number for number, label in enumerate(sorted({*references, *texts}))}
    is_class, is_text = metric in CLASS_METRICS, metric in TEXT_METRICS
    return Results(
        log_probabilities=tuple(-answer.loss * answer.num_targets for answer in answers),
        num_targets=tuple(num_targets),
        num_correct=(0,) * len(answers),
        wanted=tuple(labels[text] for text in references) if is_class else (),
        chosen=tuple(labels[text] for text in texts) if is_class else (),
        texts=dict(enumerate(zip(texts, references, strict=True))) if is_text else {},
    )
