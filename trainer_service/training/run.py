"""The training of one job in a cohort, as a generator: it yields pieces of work and receives their results.

The cohort decides when each piece is computed and with which other jobs. The whole state is in `RunState`, the trainees
and the best prefix, so a checkpoint may be taken between any two pieces of work, and a resumed run takes the same path.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from shared.errors import DamagedBlob, InvalidInput, PreconditionFailed
from shared.model.base_model import BaseModel
from shared.prompt.kinds import KINDS
from shared.prompt.lift import check_heads
from shared.prompt.prefix import Prefix, PrefixInput
from shared.text.template import InputEncoder
from shared.values.results import DistillationResult, EncodingStatistics
from trainer_service.training import checkpoint
from trainer_service.training.attention.packing import Row
from trainer_service.training.data import encoding
from trainer_service.training.data.encoding import EncodedDataset, EncodedSplit, encode_split
from trainer_service.training.data.token_weights import token_weights
from trainer_service.training.distillation.outcome import distillation_result
from trainer_service.training.distillation.self_study import SelfStudy
from trainer_service.training.distillation.state import restore_study, study_tensors
from trainer_service.training.evaluation.evaluate import nearest_tokens, row_slices
from trainer_service.training.evaluation.evaluator import Evaluator, Judgement, Measuring
from trainer_service.training.evaluation.golden import golden_records
from trainer_service.training.events import (
    Evaluated,
    Judging,
    Preparing,
    Started,
    StepDone,
    TrainingEvent,
    TrainingResult,
    TrainingTask,
)
from trainer_service.training.notes import data_notes
from trainer_service.training.outcome import training_result
from trainer_service.training.recipe.defaults import check_init
from trainer_service.training.results import Results
from trainer_service.training.search import last_comparison, num_kept, ranked
from trainer_service.training.spec import InitMethod, TaskKind
from trainer_service.training.start import begin
from trainer_service.training.trainee import NonFinite, Trainee, batch_indices
from trainer_service.training.work import CallWork, StepOutcome, TrainPart, TrainWork, Work

_ADVICE = "lower the learning rate, or look for examples that the model can't compute"
RunGenerator = Generator[Work, Any, TrainingResult]
"""Yields work and receives its result; returns the job's result."""


class TuningRun:
    """One job: its data, trainees, evaluations and events."""

    def __init__(
        self,
        task: TrainingTask,
        base_model: BaseModel,
        check_row: Callable[[int, int], None],
        piece_tokens: int,
        check_key_values: Callable[[], None],
    ) -> None:
        """`check_row(virtual tokens, tokens)` raises for a row that this worker can't compute; it gets the longest row.

        `piece_tokens`: tokens of one piece of an optimizer step, without virtual tokens. `check_key_values()` raises if
        this model's passes can't be given keys and values.
        """
        self.task, self._check_row, self._piece_tokens = task, check_row, piece_tokens
        self._base_model, self._check_key_values = base_model, check_key_values
        self._spec, self._hyper = task.spec, task.spec.hyperparameters
        self._state = checkpoint.RunState(
            digest=task.digest or checkpoint.digest_of(task.spec, task.train, task.validation)
        )
        self._trainees: list[Trainee] = []
        self.best: Prefix | None = None
        """The best prefix so far; None before the first evaluation."""
        self._train, self._validation = EncodedDataset(()), EncodedDataset(())
        self._row_weights = np.ones(0)
        self._statistics: EncodingStatistics | None = None
        self._events: list[TrainingEvent] = []
        self._study: SelfStudy | None = None

    @property
    def step(self) -> int:
        """The number of optimizer steps so far."""
        return self._trainees[0].step if self._trainees else 0

    def take_events(self) -> list[TrainingEvent]:
        """The events since the last call."""
        taken, self._events = self._events, []
        return taken

    def checkpoint(self) -> bytes | None:
        """The run's state as a checkpoint; None before training or a distillation's self-study has begun."""
        study = study_tensors(self._study)
        if not self._trainees and not study:
            return None
        return checkpoint.write_checkpoint(self._state, self._trainees, self.best, study)

    def run(self) -> RunGenerator:
        """Yields the job's work until it is trained.

        Raises InvalidInput for data or settings that can't be used for training, NonFinite if the loss diverges.
        """
        if self._spec.distillation is not None:
            yield from self._self_study()
        self._prepare()
        begun = begin(self.task, self._base_model, self._train, self._state)
        self._trainees, self._state, self.best = begun.trainees, begun.state, begun.best
        end = self._encoder.end_token_id
        self._evaluator = Evaluator(self._base_model, self._spec, self._validation, self._state, end, self._check_row)
        overlap = self.task.num_overlapping
        if overlap is None:
            overlap = EncodedSplit(self._train, self._validation).num_overlapping()
        self._statistics = encoding.statistics(self._train, self._validation, overlap)
        unknown = encoding.unknown_characters((self._train, self._validation), self._encoder)
        trained = set(self._train.label_indices.tolist())
        untrained = [label for index, label in enumerate(self._spec.labels) if index not in trained]
        notes = data_notes(len(self._train), self._evaluator.num_distinct, *unknown, self._hyper, untrained)
        self._emit(
            Started, statistics=self._statistics, step=self.step, notes=notes, restart_reason=begun.restart_reason
        )
        if len(self._evaluator) and self._state.template_metrics is None:
            self._state.template_results = yield from self._evaluator.measure(None)
            self._state.template_metrics = self._state.template_results.metrics(self._hyper.metric)
            if self._hyper.init.method is not InitMethod.FROM_PROMPT:
                self._emit(Evaluated, step=0, metrics=self._state.template_metrics, is_best=False)
        yield from self._evaluate_source()
        while True:
            yield from self._evaluate_if_due()
            if self._is_finished():
                break
            self._account((yield from self._train_step()))
        return (yield from self._result())

    def _emit(self, kind: type[TrainingEvent], **fields: Any) -> None:
        self._events.append(kind(job_id=self.task.job_id, attempt=self.task.attempt, **fields))

    def _self_study(self) -> Generator[Work, Any, None]:
        """Replace the task's examples, a text and questions, by the base model's questions and answers."""
        encoder = InputEncoder(self._base_model.tokenizer, self._spec.template)
        study = self._study = SelfStudy(self._base_model, self._spec, self.task.train, encoder)
        if self.task.checkpoint is not None:
            with suppress(DamagedBlob):  # `begin` gives the reason
                saved, tensors = checkpoint.read_checkpoint(self.task.checkpoint)
                if saved.digest == self._state.digest:
                    restore_study(study, tensors)
                    if not saved.trainees:
                        self.task = replace(self.task, checkpoint=None)

        def on_progress() -> None:
            self._emit(Preparing, num_prepared=study.num_asked, num_examples=study.num_questions)

        encoded = yield from study.run(on_progress, self._check_row)
        train, held_out = (tuple(row.example for row in part.examples) for part in (encoded.train, encoded.validation))
        self.task = replace(self.task, train=train, validation=held_out, encoded=encoded, num_overlapping=None)

    def _prepare(self) -> None:
        if not self.task.train:
            raise InvalidInput.of("dataset", "has no training examples")
        if not KINDS[self._hyper.kind].is_computed:
            self._check_key_values()
        check_init(self._hyper.init, self._spec.labels, self._base_model.tokenizer)
        self._encoder = InputEncoder(self._base_model.tokenizer, self._spec.template)
        info = self._base_model.info
        encoded = self.task.encoded or encode_split(
            self.task.train,
            self.task.validation,
            self._spec,
            self._encoder,
            info.max_positions,
            vocab_size=info.vocab_size,
        )
        self._train, self._validation = encoded.train, encoded.validation
        self._row_weights = token_weights(self._train, self._spec)
        parts = [data.input_lengths + data.target_lengths for data in (self._train, self._validation) if len(data)]
        longest = int(max(part.max() for part in parts)) - 1  # the model never reads the last target token
        self._check_row(self._hyper.num_virtual_tokens, longest)

    def _train_step(self) -> Generator[Work, Any, list[StepOutcome]]:
        """One optimizer step in pieces: a batch of thousands of long rows would block the other jobs for minutes."""
        picks = batch_indices(self._hyper.seed, self.step, len(self._train), self._hyper.batch_size)
        examples = [self._train.examples[pick] for pick in picks]
        rows = [
            Row(example.input_ids, example.target_ids, float(self._row_weights[pick]), example.teacher)
            for pick, example in zip(picks, examples, strict=True)
        ]
        by_example = self._spec.task is TaskKind.CLASSIFICATION
        total = float(len(rows)) if by_example else sum(row.weight * len(row.target_ids) for row in rows)
        pieces = list(row_slices(rows, self._piece_tokens // len(self._trainees)))
        outcomes: list[StepOutcome] = []
        for piece in pieces:
            parts = [TrainPart(trainee, piece, self._hyper.label_smoothing, total) for trainee in self._trainees]
            found: list[StepOutcome] = yield TrainWork(parts, is_last=piece is pieces[-1])
            outcomes = [one.plus(other) for one, other in zip(outcomes, found, strict=True)] if outcomes else found
        return outcomes

    def _account(self, outcomes: list[StepOutcome]) -> None:
        """Report a step. Drop prompts that skipped too many steps, and candidates with higher losses than others."""
        self._record_losses(outcomes)
        lost = [trainee for trainee in self._trainees if trainee.is_lost]
        if len(lost) == len(self._trainees):
            skipped = (
                f"{lost[0].num_skipped} of {self.step} steps had a loss or gradient that is not finite and were skipped"
            )
            raise NonFinite(f"{skipped}, the last one step {self.step}: {_ADVICE}")
        sound = [outcome for outcome in outcomes if outcome.is_finite]
        best = min(sound or outcomes, key=lambda outcome: outcome.loss)
        num_tokens = sum(outcome.num_tokens for outcome in outcomes)
        self._state.num_tokens += num_tokens
        self._state.train_seconds += best.step_seconds
        self._leave_out(lost, "not finite")
        self._compare_candidates()
        self._emit(
            StepDone,
            step=self.step,
            num_steps=self._hyper.num_steps,
            loss=best.loss if sound else math.nan,
            grad_norm=best.grad_norm if sound else math.nan,
            learning_rate=best.learning_rate,
            num_examples=self._hyper.batch_size * len(outcomes),
            num_tokens=num_tokens,
            step_seconds=best.step_seconds,
            num_skipped=len(outcomes) - len(sound),
            total_skipped=sum(trainee.num_skipped for trainee in self._trainees),
            evaluation_seconds=self._evaluation_seconds(),
        )

    def _evaluation_seconds(self) -> float:
        """Estimated time of the evaluations after this step."""
        num_steps, every = self._hyper.num_steps, self._hyper.evaluation_interval_steps
        first = max(self.step, last_comparison(num_steps)) if len(self._trainees) > 1 else self.step
        num_left = -(-num_steps // every) - (first - 1) // every
        return self._evaluator.seconds_left(
            num_left,
            self.task.current is not None,
            self._state.train_seconds * num_steps / max(1, self.step),
        )

    def _is_finished(self) -> bool:
        patience = self._hyper.early_stop_patience
        exhausted = patience > 0 and self._state.stale_evaluations >= patience
        return self.step >= self._hyper.num_steps or exhausted

    def _record_losses(self, outcomes: Sequence[StepOutcome]) -> None:
        if len(self._trainees) < 2:
            return
        for trainee, outcome in zip(self._trainees, outcomes, strict=True):
            if outcome.is_finite:
                self._state.tried[trainee.index].add_loss(outcome.loss)

    def _compare_candidates(self) -> None:
        """Drop the candidates of a search with the highest training losses, if they are due to be compared."""
        kept = num_kept(self.step, self._hyper.num_steps)
        if kept is None or len(self._trainees) < 2:
            return
        tried = [self._state.tried[trainee.index] for trainee in self._trainees]
        order = ranked(tried)
        for candidate in tried:
            candidate.end_comparison()
        self._leave_out([self._trainees[index] for index in order[kept:]], "worse")

    def _evaluate_if_due(self) -> Generator[Work, Any, None]:
        """Evaluate the prompt. The candidates of a search are not evaluated before one is left, so that the held-out
        examples choose nothing but its checkpoint.
        """
        step, evaluated = self.step, self._state.history[-1].step if self._state.history else 0
        due = step % self._hyper.evaluation_interval_steps == 0 or step >= self._hyper.num_steps
        if step <= evaluated or not due or not len(self._evaluator) or len(self._trainees) > 1:
            return
        (trainee,) = self._trainees
        results = yield from self._measure(trainee)
        self._tried(trainee, metrics=results.metrics(self._hyper.metric))
        self._keep(step, trainee, results)

    def _evaluate_source(self) -> Generator[Work, Any, None]:
        """Evaluate the version that training starts from. It is the first candidate, so if training only makes it
        worse, it is published unchanged.
        """
        from_prompt = self._hyper.init.method is InitMethod.FROM_PROMPT
        if from_prompt and len(self._evaluator) and not self.step and not self._state.history:
            self._keep(0, self._trainees[0], (yield from self._measure(self._trainees[0])))
            source = self.task.source
            if self.best is not None and source is not None and source.kind is self.best.kind:
                self.best = source  # leaves round keys and values

    def _measure(self, trainee: Trainee) -> Measuring:
        return self._evaluator.measure(trainee.input(self._base_model.dtype).detach())

    def _keep(self, step: int, trainee: Trainee, results: Results) -> None:
        """Add an evaluation to the history and keep the trainee's prefix if it is the best so far."""
        is_best = self._evaluator.keep(step, results)
        if is_best:
            self.best, self._state.best_candidate = trainee.leaves.prefix(), trainee.index
        self._emit(Evaluated, step=step, metrics=results.metrics(self._hyper.metric), is_best=is_best)

    def _tried(self, trainee: Trainee, **changes: Any) -> None:
        """Update a search's record of this candidate."""
        if trainee.index < len(self._state.tried):
            known = self._state.tried[trainee.index]
            self._state.tried[trainee.index] = known.model_copy(update={"steps": trainee.step, **changes})

    def _leave_out(self, trainees: Sequence[Trainee], why: str) -> None:
        for trainee in trainees:
            self._tried(trainee, end=why)
        self._trainees = [trainee for trainee in self._trainees if trainee not in trainees]

    def _result(self) -> RunGenerator:
        trainee = self._trainees[0]
        if not trainee.optimizer.num_updates:
            raise NonFinite(f"all {trainee.num_skipped} steps had a loss or gradient that is not finite: {_ADVICE}")
        self._tried(trainee)
        if self.best is None:
            self.best = trainee.leaves.prefix()
            self._state.best_step, self._state.best_candidate = self.step, trainee.index
        prefix = self.best
        entering = prefix.input(self._base_model.dtype, self._base_model.device)

        def on_measured(num_measured: int, num_models: int, seconds_left: float) -> None:
            self._emit(Judging, num_measured=num_measured, num_models=num_models, seconds_left=seconds_left)

        judged: Judgement = yield from self._evaluator.judge(entering, self._current(), self.task.train, on_measured)
        distilled: DistillationResult | None = None
        if self._study is not None:
            split = EncodedSplit(self._train, self._validation)
            distilled = yield from distillation_result(self._base_model, self._study, split, judged, entering)
        golden = yield CallWork(lambda: golden_records(self._base_model, prefix, self._encoder))
        return training_result(
            self._state,
            self._hyper.metric,
            trainee,
            prefix,
            judged,
            num_steps=self.step,
            statistics=self._statistics,
            golden=golden,
            nearest=nearest_tokens(self._base_model, prefix.input(torch.float32)),
            distillation=distilled,
        )

    def _current(self) -> PrefixInput | None:
        """The alias's current version, if it fits this model."""
        current = self.task.current
        if current is None:
            return None
        try:
            current.check_fits(self._base_model)
            check_heads(self._base_model, current)
        except PreconditionFailed:
            return None
        return current.input(self._base_model.dtype, self._base_model.device)
