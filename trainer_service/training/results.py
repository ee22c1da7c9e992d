"""Results of each held-out example, and the metrics computed from them. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from shared.values.enums import TEXT_METRICS
from trainer_service.training.spec import Metric

_WITHOUT_SPACES = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
"""Letters of Thai, Lao, Burmese, Khmer, Japanese and Chinese."""
_MAX_ORDER = 4
"""Words of the longest runs that BLEU counts (Papineni et al. 2002)."""


class Results(BaseModel):
    """Results of some examples, in their order. Part of checkpoints."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")
    log_probabilities: tuple[float, ...]
    """Natural logarithm of the probability of the whole target."""
    num_targets: tuple[int, ...]
    """Number of target tokens."""
    num_correct: tuple[int, ...]
    """Number of target tokens that the model predicts as most probable."""
    wanted: tuple[int, ...] = ()
    """Index of the right label (classification only)."""
    chosen: tuple[int, ...] = ()
    """Index of the label that scored highest (classification only)."""
    texts: dict[int, tuple[str, str]] = {}
    """Generated answer and wanted text by example index; only for text metrics, and only for a sample."""

    def __len__(self) -> int:
        return len(self.log_probabilities)

    def metrics(self, metric: Metric, indices: Sequence[int] | None = None) -> dict[str, float]:
        """loss (nats per target token; with labels, every example counts the same, as in training) and token_accuracy;
        with labels also accuracy and macro_f1; `metric`, if it is a text metric.

        `indices`: the examples to include, at least one; None: all. A text metric is left out if none of them has a
        text.
        """
        some = range(len(self)) if indices is None else indices
        losses, weights = self.losses
        found = {
            "loss": sum(losses[index] for index in some) / sum(weights[index] for index in some),
            "token_accuracy": sum(self.num_correct[index] for index in some)
            / sum(self.num_targets[index] for index in some),
        }
        if self.wanted:
            wanted, chosen = [self.wanted[index] for index in some], [self.chosen[index] for index in some]
            found |= classification_metrics(wanted, chosen, 1 + max(*wanted, *chosen))
        texts = [self.texts[index] for index in some if index in self.texts]
        if metric in TEXT_METRICS and texts:
            found |= {metric.value.lower(): text_metric(metric, texts), f"{metric.value.lower()}_examples": len(texts)}
        return found

    @property
    def losses(self) -> tuple[Sequence[float], Sequence[int]]:
        """The loss and the weight of each example; their sums' ratio is the loss."""
        if not self.wanted:
            return [-value for value in self.log_probabilities], self.num_targets
        pairs = zip(self.log_probabilities, self.num_targets, strict=True)
        return [-value / count for value, count in pairs], [1] * len(self)

    def num_measured(self, metric: Metric, indices: Sequence[int] | None = None) -> int:
        """The number of examples that `metric` is computed from, for a text metric those with a text."""
        some = range(len(self)) if indices is None else indices
        return sum(index in self.texts for index in some) if metric in TEXT_METRICS else len(some)

    def merged(self, other: Results, fold: Sequence[int]) -> Results:
        """Combine two results of the same examples: this one's where `fold` is 0, the other's where it is 1."""
        pair = (self, other)
        picks = list(enumerate(fold))
        return Results(
            log_probabilities=tuple(pair[side].log_probabilities[index] for index, side in picks),
            num_targets=tuple(pair[side].num_targets[index] for index, side in picks),
            num_correct=tuple(pair[side].num_correct[index] for index, side in picks),
            wanted=self.wanted,
            chosen=tuple(pair[side].chosen[index] for index, side in picks) if self.chosen else (),
            texts={index: pair[side].texts[index] for index, side in picks if index in self.texts},
        )


def classification_metrics(wanted: Sequence[int], answers: Sequence[int], num_labels: int) -> dict[str, float]:
    """accuracy, and macro_f1 over the labels that occur in `wanted` or `answers`."""
    f1 = []
    for label in range(num_labels):
        hits = sum(want == answer == label for want, answer in zip(wanted, answers, strict=True))
        total = wanted.count(label) + answers.count(label)
        if total:
            f1.append(2 * hits / total)
    correct = sum(want == answer for want, answer in zip(wanted, answers, strict=True))
    return {"accuracy": correct / len(wanted), "macro_f1": sum(f1) / len(f1)}


def text_metric(metric: Metric, texts: Sequence[tuple[str, str]]) -> float:
    """A metric over pairs of (answer, wanted): EXACT_MATCH is a share, CHRF and BLEU (sacrebleu) are 0 to 100.

    BLEU counts runs of up to four words, or of fewer if all wanted texts are shorter. If most letters are of scripts
    without spaces between words, it counts characters.
    """
    if metric is Metric.EXACT_MATCH:
        return sum(answer == wanted for answer, wanted in texts) / len(texts)
    import sacrebleu

    answers, references = [answer for answer, _ in texts], [[wanted for _, wanted in texts]]
    if metric is Metric.CHRF:
        return min(100.0, float(sacrebleu.corpus_chrf(answers, references).score))
    letters = "".join(references[0])
    has_words = 2 * len(_WITHOUT_SPACES.findall(letters)) <= sum(map(str.isalpha, letters))
    unit = "13a" if has_words else "char"  # sacrebleu's names
    tokenizer = sacrebleu.BLEU(tokenize=unit).tokenizer
    longest = max(len(tokenizer(text).split()) for text in references[0])
    bleu = sacrebleu.BLEU(tokenize=unit, max_ngram_order=min(_MAX_ORDER, max(1, longest)))
    return min(100.0, float(bleu.corpus_score(answers, references).score))
