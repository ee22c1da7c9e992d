"""One job's life in a cohort, written from top to bottom as a generator: it yields the work that comes next and is sent the results.

The cohort decides when the work is done and beside whose. All state that matters lies in `RunState`, the trainees and the best matrix,
so a checkpoint may be taken between any two pieces of work, and a resumed life runs through the same places.
"""

from __future__ import annotations

import logging
import math
import statistics as numbers
from collections.abc import Callable, Generator
from functools import partial
from typing import Any

import torch

from shared.base_model import BaseModel
from shared.errors import DamagedBlob, InvalidInput
from shared.soft_prompt import SoftPrompt
from shared.template import InputEncoder, Template
from trainer_service.training import encoding
from trainer_service.training.checkpoint import EvaluationRecord, RunState, digest_of, read_checkpoint, restore, write_checkpoint
from trainer_service.training.dataset import count_overlap
from trainer_service.training.encoding import EncodedDataset, EncodedExample, encode_bare, encode_dataset
from trainer_service.training.evaluate import SLICE_TOKENS, evaluate, nearest_tokens, row_slices
from trainer_service.training.events import Evaluated, Started, StepDone, TrainingEvent, TrainingResult, TrainingTask
from trainer_service.training.generate import evaluate_generations
from trainer_service.training.golden import golden_records
from trainer_service.training.init import embedding_std, initial_matrix
from trainer_service.training.packing import Row
from trainer_service.training.recipe import check_init
from trainer_service.training.reparameterise import new_parameters
from trainer_service.training.search import candidates, is_rung, num_survivors
from trainer_service.training.selection import is_better, ranked, score_of, slack
from trainer_service.training.spec import Example, Init, InitMethod, Metric, TaskKind
from trainer_service.training.trainee import Candidate, NonFinite, Trainee, batch_indices
from trainer_service.training.work import CallWork, StepOutcome, TrainPart, TrainWork, Work

log = logging.getLogger(__name__)

MAX_PERIODIC, MAX_FINAL = 128, 512
"""Held-out examples of each evaluation while training, and of the last ones."""
MAX_LABEL_ROWS = 4096
"""Labels of several tokens cost a row for each label of each example: fewer examples then."""
ENCODE_SLICE = 500
_TEXT_METRICS = frozenset({Metric.CHRF, Metric.BLEU, Metric.EXACT_MATCH})
Life = Generator[Work, Any, TrainingResult]
Metrics = Generator[Work, Any, dict[str, float]]


class TuningRun:
    def __init__(
        self,
        task: TrainingTask,
        base_model: BaseModel,
        check_row: Callable[[int, int], None] | None = None,
        piece_tokens: int = SLICE_TOKENS,
    ) -> None:
        """`check_row(virtual tokens, tokens)` raises for a row that this worker can't compute; called with the longest one.
        `piece_tokens`: tokens of one piece of an optimizer step, virtual ones aside.
        """
        self.task, self._check_row, self._piece_tokens = task, check_row, piece_tokens
        self._base_model = base_model
        self._spec, self._hyper = task.spec, task.spec.hyperparameters
        self._state = RunState(digest=task.digest or digest_of(task.spec, task.train, task.validation))
        self._trainees: list[Trainee] = []
        self._best: torch.Tensor | None = None
        self._train, self._validation = EncodedDataset(()), EncodedDataset(())
        self._row_weights: list[float] = []
        self._events: list[TrainingEvent] = []

    @property
    def step(self) -> int:
        return self._trainees[0].step if self._trainees else 0

    def take_events(self) -> list[TrainingEvent]:
        taken, self._events = self._events, []
        return taken

    def checkpoint(self) -> bytes | None:
        """Everything needed to go on from here; None before training has begun."""
        return write_checkpoint(self._state, self._trainees, self._best) if self._trainees else None

    def best_prompt(self) -> SoftPrompt | None:
        return None if self._best is None else SoftPrompt(self._best.float().cpu())

    def life(self) -> Life:
        """Raises InvalidInput for data or settings that can't be trained, NonFinite when the loss explodes."""
        yield from self._prepare()
        self._begin()
        overlap = self.task.num_overlapping
        if overlap is None:
            overlap = count_overlap(self.task.train, self.task.validation)
        self._emit(Started, statistics=encoding.statistics(self._train, self._validation, overlap), step=self.step)
        periodic = self._held_out(MAX_PERIODIC)
        if len(periodic) and self._state.template_metrics is None:
            self._state.template_metrics = yield from self._measure(None, periodic)
            if self._hyper.init.method is not InitMethod.FROM_PROMPT:
                self._emit(Evaluated, step=0, metrics=self._state.template_metrics, is_best=False)
        yield from self._evaluate_source(periodic)
        while True:
            yield from self._evaluate_if_due(periodic)
            if self._is_finished():
                break
            self._account((yield from self._train_step()))
        return (yield from self._result())

    def _emit(self, kind: type[TrainingEvent], **fields: Any) -> None:
        self._events.append(kind(job_id=self.task.job_id, attempt=self.task.attempt, **fields))

    def _prepare(self) -> Generator[Work, Any, None]:
        if not self.task.train:
            raise InvalidInput.of("dataset", "has no training examples")
        if self._hyper.search and not self.task.validation:
            raise InvalidInput.of("spec.hyperparameters.search", "needs held-out examples to choose by")
        check_init(self._hyper.init, self._spec.labels, self._base_model.tokenizer)
        self._encoder = InputEncoder(self._base_model.tokenizer, self._spec.template)
        self._train = yield from self._encode(self.task.train)
        if self.task.validation:
            self._validation = yield from self._encode(self.task.validation)
        self._row_weights = self._token_weights()
        if self._check_row is not None:
            examples = (*self._train.examples, *self._validation.examples)
            longest = max(len(example.input_ids) + len(example.target_ids) - 1 for example in examples)  # the last is never read
            self._check_row(self._hyper.num_virtual_tokens, longest)

    def _encode(self, examples: tuple[Example, ...]) -> Generator[Work, Any, EncodedDataset]:
        """In slices: tokenizing 50,000 examples takes seconds that others don't wait for."""
        encoded, labels = list[EncodedExample](), tuple[tuple[int, ...], ...]()
        for first in range(0, len(examples), ENCODE_SLICE):
            part = examples[first : first + ENCODE_SLICE]
            room = self._base_model.info.max_positions
            data: EncodedDataset = yield CallWork(partial(encode_dataset, part, self._encoder, self._spec, room))
            encoded += data.examples
            labels = data.label_ids
        return EncodedDataset(tuple(encoded), labels)

    def _token_weights(self) -> list[float]:
        """Of each target token of each training example.

        In classification an example is an example, however many tokens its label has, and weights are relative to their mean over the
        data set: divided by the weights of its own batch, a rare class would have the weight of any other wherever it is alone.
        """
        if self._spec.task is not TaskKind.CLASSIFICATION:
            return [1.0] * len(self._train)
        weights = self._class_weights()
        mean = sum(weights) / len(weights)
        return [weight / mean / len(example.target_ids) for weight, example in zip(weights, self._train.examples, strict=True)]

    def _class_weights(self) -> list[float]:
        if self._hyper.class_weights:
            by_index = [self._hyper.class_weights.get(label, 1.0) for label in self._spec.labels]
            return [by_index[example.label_index] for example in self._train.examples]
        if not self._hyper.balance_classes:
            return [1.0] * len(self._train)
        counts = [0] * len(self._spec.labels)
        for example in self._train.examples:
            counts[example.label_index] += 1
        present = sum(count > 0 for count in counts)
        return [len(self._train) / (present * counts[example.label_index]) for example in self._train.examples]

    def _begin(self) -> None:
        """New trainees, or those of the checkpoint. A checkpoint of something else, or a damaged one, means starting again."""
        saved: RunState | None = None
        tensors: dict[str, torch.Tensor] = {}
        if self.task.checkpoint is not None:
            try:
                saved, tensors = read_checkpoint(self.task.checkpoint)
                if saved.digest != self._state.digest or not saved.trainees:
                    raise DamagedBlob("the checkpoint is of another job")
                choices = [self._new_trainee(state.learning_rate, state.init) for state in saved.trainees]
                for index, (trainee, state) in enumerate(zip(choices, saved.trainees, strict=True)):
                    restore(trainee, state, tensors, index)
                self._trainees, self._state = choices, saved
                self._best = tensors["best"].to(self._base_model.device) if "best" in tensors else None
                return
            except DamagedBlob as error:
                log.warning("job %s starts again from step 0: %s", self.task.job_id, error.message)
        self._trainees = [self._new_trainee(choice.learning_rate, choice.init) for choice in candidates(self._spec)]

    def _new_trainee(self, learning_rate: float, init: Init) -> Trainee:
        generator = torch.Generator().manual_seed(self._hyper.seed % 2**63)
        texts = (example.input_ids for example in self._train.examples) if init.method is InitMethod.SAMPLE_VOCAB else ()
        matrix = initial_matrix(
            self._base_model, init, self._hyper.num_virtual_tokens, generator, self._spec.labels, self.task.source, texts
        )
        parameters = new_parameters(matrix, self._hyper.reparameterisation, embedding_std(self._base_model), generator)
        return Trainee(Candidate(learning_rate, init), parameters, self._hyper)

    def _train_step(self) -> Generator[Work, Any, list[StepOutcome]]:
        """One optimizer step, asked for in pieces: a batch of thousands of long rows would be minutes of work that others wait for."""
        picks = batch_indices(self._hyper.seed, self.step, len(self._train), self._hyper.batch_size)
        rows = [Row(self._train.examples[pick].input_ids, self._train.examples[pick].target_ids, self._row_weights[pick]) for pick in picks]
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
        sound = [index for index, outcome in enumerate(outcomes) if math.isfinite(outcome.loss) and math.isfinite(outcome.grad_norm)]
        if not sound:
            raise NonFinite(f"the loss is {outcomes[0].loss} at step {self.step}: lower the learning rate or look at the data")
        self._trainees = [self._trainees[index] for index in sound]
        best = min((outcomes[index] for index in sound), key=lambda outcome: outcome.loss)
        self._emit(
            StepDone,
            step=self.step,
            num_steps=self._hyper.num_steps,
            loss=best.loss,
            grad_norm=best.grad_norm,
            learning_rate=best.learning_rate,
            num_examples=self._hyper.batch_size * len(outcomes),
            num_tokens=sum(outcome.num_tokens for outcome in outcomes),
            step_seconds=best.step_seconds,
        )

    def _is_finished(self) -> bool:
        patience = self._hyper.early_stop_patience
        exhausted = patience > 0 and self._state.stale_evaluations >= patience and len(self._trainees) == 1
        return self.step >= self._hyper.num_steps or exhausted

    def _evaluate_if_due(self, data: EncodedDataset) -> Generator[Work, Any, None]:
        step, evaluated = self.step, self._state.history[-1].step if self._state.history else 0
        last = step >= self._hyper.num_steps
        rung = len(self._trainees) > 1 and (is_rung(step, self._hyper.num_steps) or last)
        if step <= evaluated or not len(data) or not (step % self._hyper.evaluation_interval_steps == 0 or rung or last):
            return
        found = []
        for trainee in self._trainees:
            prompt = trainee.matrix().detach()
            metrics = yield from self._measure(prompt.to(self._base_model.dtype), data)
            found.append((trainee, metrics, prompt))
        metric = self._hyper.metric
        order = ranked([score_of(metric, metrics) for _, metrics, _ in found], metric, len(data))
        _, metrics, prompt = found[order[0]]
        self._keep(step, metrics, prompt, len(data))
        if rung:
            self._trainees = [found[index][0] for index in order[: 1 if last else num_survivors(len(found))]]

    def _evaluate_source(self, data: EncodedDataset) -> Generator[Work, Any, None]:
        """A version that training starts from is its first candidate: a training that only makes it worse publishes it as it was."""
        if self._hyper.init.method is not InitMethod.FROM_PROMPT or not len(data) or self.step or self._state.history:
            return
        prompt = self._trainees[0].matrix().detach()
        metrics = yield from self._measure(prompt.to(self._base_model.dtype), data)
        self._keep(0, metrics, prompt, len(data))

    def _keep(self, step: int, metrics: dict[str, float], prompt: torch.Tensor, num_examples: int) -> None:
        """Enter an evaluation in the history; its prompt is kept if it is the best so far."""
        metric = self._hyper.metric
        score = score_of(metric, metrics)
        self._state.history.append(EvaluationRecord(step=step, metrics=metrics, score=score))
        top = max(record.score[0] for record in self._state.history)
        best = self._state.best_score
        is_best = best is None or is_better(score, best, top, slack(metric, top, num_examples))
        self._state.stale_evaluations = 0 if is_best else self._state.stale_evaluations + 1
        if is_best:
            self._state.best_step, self._state.best_score, self._best = step, score, prompt.clone()
        self._emit(Evaluated, step=step, metrics=metrics, is_best=is_best)

    def _measure(self, prompt: torch.Tensor | None, data: EncodedDataset) -> Metrics:
        metrics = yield from evaluate(prompt, data)
        if self._hyper.metric in _TEXT_METRICS:
            metrics |= yield from evaluate_generations(self._base_model, prompt, data, self._hyper.metric, self._encoder.end_token_id)
        return metrics

    def _held_out(self, limit: int) -> EncodedDataset:
        """At most `limit` held-out examples, the same ones each time."""
        labels = self._validation.label_ids
        if any(len(ids) > 1 for ids in labels):
            limit = min(limit, max(16, MAX_LABEL_ROWS // len(labels)))
        return _head(self._validation, limit)

    def _result(self) -> Life:
        trainee = self._trainees[0]
        if self._best is None:
            self._best, self._state.best_step = trainee.matrix().detach().clone(), self.step
        soft_prompt = SoftPrompt(self._best.float().cpu().clone())
        prompt = soft_prompt.cast(self._base_model.dtype, self._base_model.device)
        final = self._held_out(MAX_FINAL)
        metrics, bare, template, current = dict[str, float](), dict[str, float](), dict[str, float](), dict[str, float]()
        if len(final):
            metrics = yield from self._measure(prompt, final)
            bare = yield from self._measure(None, self._without_template(final))
            same = len(final) == len(self._held_out(MAX_PERIODIC)) and self._state.template_metrics is not None
            template = dict(self._state.template_metrics or {}) if same else (yield from self._measure(None, final))
            if self.task.current is not None and self.task.current.hidden_size == soft_prompt.hidden_size:
                serving = self.task.current.cast(self._base_model.dtype, self._base_model.device)
                current = yield from self._measure(serving, final)
        golden = yield CallWork(lambda: golden_records(self._base_model, soft_prompt, self._encoder))
        scores = [record.metrics[self._hyper.metric.value.lower()] for record in self._state.history[-5:]]
        return TrainingResult(
            soft_prompt=soft_prompt,
            best_step=self._state.best_step,
            num_steps=self.step,
            metrics=metrics,
            bare_metrics=bare,
            template_metrics=template,
            current_metrics=current,
            golden=golden,
            nearest_tokens=nearest_tokens(self._base_model, soft_prompt.embeddings),
            score_stability=numbers.pstdev(scores) if scores else 0.0,
            learning_rate=trainee.candidate.learning_rate,
            init=trainee.candidate.init,
        )

    def _without_template(self, data: EncodedDataset) -> EncodedDataset:
        plain = InputEncoder(self._base_model.tokenizer, Template())
        encoder = self._encoder if self._spec.task is TaskKind.CHAT else plain
        examples = tuple(
            EncodedExample(
                example.example, tuple(encode_bare(encoder, example.example)), tuple(self._target(encoder, example)), example.label_index
            )
            for example in data.examples
        )
        return EncodedDataset(examples, encoder.encode_candidates(self._spec.labels, "labels") if data.label_ids else ())

    def _target(self, encoder: InputEncoder, example: EncodedExample) -> list[int]:
        source = example.example
        text = source.messages[-1].content if source.messages else source.label if source.label is not None else source.output
        return encoder.encode_target(text or "")


def _head(data: EncodedDataset, count: int) -> EncodedDataset:
    """At most `count` examples, spread evenly over the dataset."""
    if len(data) <= count:
        return data
    return EncodedDataset(tuple(data.examples[index * len(data) // count] for index in range(count)), data.label_ids)
