"""Evaluations of one run: chooses the best checkpoint, and judges it and its rivals on other held-out examples."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from shared.errors import InvalidInput, SoftPromptError
from shared.model.base_model import BaseModel
from shared.prompt.prefix import PrefixInput
from shared.values.enums import TEXT_METRICS
from shared.values.report import HeldOutAnswers
from trainer_service.training.checkpoint import EvaluationRecord, FoldChoice, RunState, forget_evaluations
from trainer_service.training.comparison import (
    BARE,
    CURRENT,
    FEW_SHOT,
    INSTRUCTED,
    Comparison,
    Estimate,
    compare,
    estimate,
)
from trainer_service.training.data.encoding import EncodedDataset, check_vocabulary
from trainer_service.training.data.held_out import MAX_CHOOSING, MAX_JUDGING, HeldOut, distinct, parted
from trainer_service.training.data.split import input_digest, similar_input_digest
from trainer_service.training.evaluation import baselines
from trainer_service.training.evaluation.answers import TEXT_SHARE, TUNED, Way, held_out_answers
from trainer_service.training.evaluation.baselines import MAX_SHOT_TOKENS, Baseline
from trainer_service.training.evaluation.evaluate import evaluate_examples
from trainer_service.training.evaluation.generate import generated_texts
from trainer_service.training.evaluation.shared_beginning import shared_beginning
from trainer_service.training.recipe.selection import is_better, score_of, slack
from trainer_service.training.results import Results
from trainer_service.training.spec import Example, TrainingSpec
from trainer_service.training.work import CallWork, Work

log = logging.getLogger(__name__)

MAX_LABEL_ROWS = 4096
"""With labels of several tokens, every label of every example is a row; this limits the number of examples."""
_FIELDS = {INSTRUCTED: "instructed", FEW_SHOT: "few_shot"}
"""Fields of HeldOutAnswer by baseline."""
Measuring = Generator[Work, Any, Results]
Measured = TypeVar("Measured")
RowCheck = Callable[[int, int], None]
OnMeasured = Callable[[int, int, float], None]
"""Called with the number of models that are measured, the number of all models, and the estimated seconds left."""
_WRITTEN_ROWS, _WRITING = 32, 4.0
"""At least two batches of answers are written; each answer takes about as long as scoring it this many times."""


class EvaluationTime:
    """Estimates a run's remaining evaluations by the latest one's time per example: rough, it only counts examples."""

    def __init__(self) -> None:
        self._per_example = 0.0

    def timed(
        self, measuring: Generator[Work, object, Measured], num_examples: int
    ) -> Generator[Work, object, Measured]:
        """Yields the same work, and records its time in place of the previous measurement's."""
        started = time.perf_counter()
        measured = yield from measuring
        self._per_example = (time.perf_counter() - started) / max(1, num_examples)
        return measured

    def seconds(self, num_examples: int) -> float:
        """Estimated seconds to measure a model on this number of examples; 0 before the first measurement."""
        return self._per_example * num_examples

    def writing_seconds(self, train_seconds: float) -> float:
        """Estimated seconds to write answers after this time of training steps (`held_out_answers`)."""
        return max(TEXT_SHARE * train_seconds, _WRITTEN_ROWS * _WRITING * self._per_example)


@dataclass(frozen=True)
class Judgement:
    """The tuned prompt and its rivals on the same held-out examples."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    bare: Mapping[str, float] = field(default_factory=dict)
    """Metrics of the model as it answers a request without a prompt, that is, without the job's template."""
    rivals: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Metrics by BARE (with the job's template), INSTRUCTED, FEW_SHOT, CURRENT, without those not measured."""
    comparisons: Mapping[str, Comparison] = field(default_factory=dict)
    """The tuned prompt compared with each rival."""
    estimate: Estimate | None = None
    num_shots: int = 0
    num_judging: int = 0
    is_apart: bool = False
    """Whether no example judged a checkpoint that it helped to choose."""
    answers: HeldOutAnswers = field(default_factory=HeldOutAnswers)


class Evaluator:
    """Evaluates one run and records the outcome in the run's `state`, which checkpoints contain."""

    def __init__(
        self,
        base_model: BaseModel,
        spec: TrainingSpec,
        data: EncodedDataset,
        state: RunState,
        end_token_id: int | None,
        check_row: RowCheck,
    ) -> None:
        """`check_row(virtual tokens, tokens)` raises for a row that is too large for this worker's memory."""
        self._base_model, self._spec, self._state = base_model, spec, state
        self._metric, self._end_token_id, self._check_row = spec.hyperparameters.metric, end_token_id, check_row
        self._time = EvaluationTime()
        self._lines = tuple(example.example.line for example in data.examples)
        limit = MAX_CHOOSING
        if any(len(ids) > 1 for ids in data.label_ids):
            limit = min(limit, max(16, MAX_LABEL_ROWS // len(data.label_ids)))
        cross_fit = spec.hyperparameters.early_stop_patience == 0
        num_examples = len(data)
        self.num_distinct = len(data := distinct(data))
        if self.num_distinct < num_examples and not state.measures_distinct:
            forget_evaluations(state)  # they were of other examples
        state.measures_distinct = True
        state.groups_similar = state.groups_similar or not state.history
        digest = similar_input_digest if state.groups_similar else input_digest
        most = limit * MAX_JUDGING // MAX_CHOOSING
        self.held_out: HeldOut = parted(data, limit, most, cross_fit=cross_fit, digest=digest)
        if state.template_results is not None and len(state.template_results) != len(self):
            forget_evaluations(state)  # an earlier release measured more examples of a single input
        if self.held_out.fold and not state.history:
            state.folds = [FoldChoice(), FoldChoice()]

    def __len__(self) -> int:
        return len(self.held_out.choosing)

    def measure(self, prefix: PrefixInput | None) -> Measuring:
        """Results on the examples that choose. `prefix`: None for the model with the template alone."""
        choosing = self.held_out.choosing
        return self._time.timed(self._measured(prefix, choosing, self._end_token_id), len(choosing))

    def seconds_left(self, num_evaluations: int, has_current: bool, train_seconds: float) -> float:
        """Estimated seconds of this many calls of `measure` and of `judge`; 0 before the first measurement.

        `has_current`: whether `judge` gets a current version. `train_seconds`: as for `held_out_answers`.
        """
        choosing = self._time.seconds(num_evaluations * len(self.held_out.choosing))
        return choosing + self._judging_seconds(self._num_models(has_current), train_seconds)

    def _num_models(self, has_current: bool) -> int:
        """Models that `judge` measures."""
        fixed = self._crossed() is None, self._template() is None, has_current
        return sum(fixed) + (3 if self._spec.distillation is None else 0)

    def _judging_seconds(self, num_models: int, train_seconds: float) -> float:
        if not len(self.held_out.judging):
            return 0.0
        is_written = not self._spec.labels and self._metric not in TEXT_METRICS
        writing = self._time.writing_seconds(train_seconds) if is_written else 0.0
        return self._time.seconds(num_models * len(self.held_out.judging)) + writing

    def _template(self) -> Results | None:
        """Results of the model with the template alone on the judging examples, if they are known already."""
        return self._state.template_results if self.held_out.judging is self.held_out.choosing else None

    def keep(self, step: int, results: Results) -> bool:
        """Add an evaluation to the history. Returns whether it is the best so far."""
        state, metric, fold = self._state, self._metric, self.held_out.fold
        metrics = results.metrics(metric)
        score = score_of(metric, metrics)
        state.history.append(EvaluationRecord(step=step, metrics=metrics, score=score))
        top = max(record.score[0] for record in state.history)
        best = state.best_score
        is_best = best is None or is_better(score, best, top, slack(metric, top, results.num_measured(metric)))
        state.stale_evaluations = 0 if is_best else state.stale_evaluations + 1
        if is_best:
            state.best_step, state.best_score = step, score
        for half, choice in enumerate(state.folds):
            indices = [index for index, side in enumerate(fold) if side == half]
            score = score_of(metric, results.metrics(metric, indices))
            choice.top = max(choice.top, score[0])
            room = slack(metric, choice.top, results.num_measured(metric, indices))
            if choice.score is None or is_better(score, choice.score, choice.top, room):
                choice.step, choice.score, choice.results = step, score, results
        return is_best

    def judge(
        self, prefix: PrefixInput, current: PrefixInput | None, train: Sequence[Example], on_measured: OnMeasured
    ) -> Generator[Work, Any, Judgement]:
        """Compare the chosen prompt, the baselines and the alias's current version on the examples that judge."""
        data = self.held_out.judging
        if not len(data):
            return Judgement()
        num_models, num_measured = self._num_models(current is not None), 0

        def judged(measuring: Generator[Work, Any, Measured]) -> Generator[Work, Any, Measured]:
            nonlocal num_measured
            found = yield from self._time.timed(measuring, len(data))
            num_measured += 1
            report()
            return found

        def report() -> None:
            left = self._judging_seconds(num_models - num_measured, self._state.train_seconds)
            on_measured(num_measured, num_models, left)

        report()
        crossed = self._crossed()
        tuned = crossed or (yield from judged(self._measured(prefix, data, self._end_token_id)))
        ways = {TUNED: Way(data, tuned, prefix, self._end_token_id)}
        rivals = {BARE: self._template() or (yield from judged(self._measured(None, data, self._end_token_id)))}
        num_shots = 0
        examples = [example.example for example in data.examples]
        for name, write in self._ways(examples, train).items():
            baseline = yield CallWork(partial(self._written, name, write))
            if baseline is not None:
                ways[_FIELDS[name]] = way = yield from judged(self._baseline_way(baseline))
                rivals[name] = way.results
                num_shots = num_shots or baseline.num_shots
            else:
                num_models -= 1
        if current is not None:
            rivals[CURRENT] = yield from judged(self._measured(current, data, self._end_token_id))
            ways["current"] = Way(data, rivals[CURRENT], current, self._end_token_id)
        bare: Mapping[str, float] = rivals[BARE].metrics(self._metric) if self._spec.distillation is not None else {}
        raw: Baseline | None = None
        if self._spec.distillation is None:
            write = partial(baselines.bare, self._spec, self._base_model.tokenizer, examples)
            raw = yield CallWork(partial(self._written, "bare model", write))
        if raw is not None:
            results = yield from judged(self._measured(None, raw.data, raw.end_token_id))
            bare = results.metrics(self._metric)
            ways["bare"] = Way(raw.data, results, None, raw.end_token_id)
        num_models = num_measured  # what is left are the answers
        report()
        comparisons = dict[str, Comparison]()
        for name, results in rivals.items():
            comparison = yield CallWork(partial(compare, self._metric, tuned, results))
            if comparison is not None:
                comparisons[name] = comparison
        answers = yield from held_out_answers(self._base_model, ways, self._spec.labels, self._state.train_seconds)
        shown = {answer.line for answer in answers.answers}
        answers = replace(answers, other_lines=tuple(line for line in self._lines if line not in shown))
        return Judgement(
            metrics=tuned.metrics(self._metric),
            bare=bare,
            rivals={name: results.metrics(self._metric) for name, results in rivals.items()},
            comparisons=comparisons,
            estimate=(yield CallWork(partial(estimate, self._metric, tuned))),
            num_shots=num_shots,
            num_judging=len(data),
            is_apart=crossed is not None or data is not self.held_out.choosing,
            answers=answers,
        )

    def _crossed(self) -> Results | None:
        """Results of each half with the checkpoint that the other half chose.

        None without cross-fitting, or if the run resumed from an earlier release's checkpoint, whose history has no
        choices by halves.
        """
        if not self.held_out.fold or len(self._state.folds) < 2:
            return None
        first, second = (choice.results for choice in self._state.folds)
        return None if first is None or second is None else second.merged(first, self.held_out.fold)

    def _ways(self, examples: list[Example], train: Sequence[Example]) -> dict[str, Callable[[], Baseline]]:
        """The baselines of the frozen model, by name. A distillation has none: its teacher is the instructed model."""
        if self._spec.distillation is not None:
            return {}
        arguments = (self._spec, self._base_model.tokenizer, examples)
        room = self._base_model.info.max_positions
        return {
            INSTRUCTED: lambda: baselines.instructed(*arguments, room),
            FEW_SHOT: lambda: baselines.few_shot(*arguments, train, room),
        }

    def _written(self, name: str, write: Callable[[], Baseline]) -> Baseline | None:
        """A baseline; None if it can't be written for this model and these examples, or computed on this worker."""
        try:
            baseline = write()
            check_vocabulary(baseline.data.examples, self._base_model.info.vocab_size)
            longest = max(len(row.input_ids) + len(row.target_ids) for row in baseline.data.examples)
            if longest > (most := self._base_model.info.max_positions):
                raise InvalidInput.of("dataset", f"an example has {longest} tokens; the model's context is {most}")
            self._check_row(0, longest - 1)
        except SoftPromptError as error:
            log.info("the %s is not measured: %s", name.replace("_", " "), error.message)
            return None
        return baseline

    def _baseline_way(self, baseline: Baseline) -> Generator[Work, Any, Way]:
        """The results of a baseline. Its answers are generated after the beginning that all its inputs share."""
        data, end_token_id = baseline.data, baseline.end_token_id
        results = yield from evaluate_examples(None, data)
        if data.label_ids:  # then no text is generated
            return Way(data, results, None, end_token_id)
        prefix, data = yield CallWork(partial(shared_beginning, self._base_model, data), MAX_SHOT_TOKENS)
        return Way(data, (yield from self._with_texts(results, prefix, data, end_token_id)), prefix, end_token_id)

    def _measured(self, prefix: PrefixInput | None, data: EncodedDataset, end_token_id: int | None) -> Measuring:
        results = yield from evaluate_examples(prefix, data)
        return (yield from self._with_texts(results, prefix, data, end_token_id))

    def _with_texts(
        self, results: Results, prefix: PrefixInput | None, data: EncodedDataset, end_token_id: int | None
    ) -> Measuring:
        if self._metric not in TEXT_METRICS:
            return results
        texts = yield from generated_texts(self._base_model, prefix, data, end_token_id)
        return results.model_copy(update={"texts": texts})
