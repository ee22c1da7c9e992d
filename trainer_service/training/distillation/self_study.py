"""Self-study: the base model asks questions about a text and answers them with the text in its context.

Its result is the training data: inputs without the text, the answers, and the teacher's distributions at them.
Questions are sampled with a seed for each batch, answers are greedy, and a batch depends on nothing before it. So a
study that goes on from a checkpoint asks and answers the same.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from shared.errors import InvalidInput
from shared.model.base_model import BaseModel
from shared.text.template import InputEncoder
from shared.violations import moved
from trainer_service.training.attention.packing import Row
from trainer_service.training.data.encoding import EncodedDataset, EncodedExample, EncodedSplit
from trainer_service.training.data.places import DATASET, in_dataset
from trainer_service.training.distillation.continuations import Continuations, common_beginning
from trainer_service.training.distillation.requests import question_of, request_for
from trainer_service.training.distillation.texts import QUESTION_TOKENS, TeacherEncoder, check_lengths, texts_of
from trainer_service.training.spec import Example, TrainingSpec
from trainer_service.training.teacher_targets import TeacherTargets
from trainer_service.training.work import CallWork, RowScore, ScoreWork, Work

MAX_BATCH, MAX_BATCH_TOKENS = 16, 8192
"""Other jobs of the cohort wait for one batch, so its positions are bounded."""
Study = Generator[Work, Any, EncodedSplit]


@dataclass(frozen=True)
class StudiedRow:
    """A question, the teacher's answer and the distributions at the answer's tokens."""

    question: str
    answer_ids: tuple[int, ...]
    teacher: TeacherTargets


class SelfStudy:
    """The study of one job. `rows` and `num_asked` are its whole state."""

    def __init__(
        self, base_model: BaseModel, spec: TrainingSpec, examples: Sequence[Example], encoder: InputEncoder
    ) -> None:
        """`examples`: the text and its questions, as the dataset has them. Raises InvalidInput naming lines."""
        assert spec.distillation is not None
        self._base_model, self._spec, self._chosen, self._encoder = base_model, spec, spec.distillation, encoder
        with moved(in_dataset(DATASET)):
            self.document, self._given = texts_of(examples, self._chosen.num_questions)
            check_lengths(encoder, self.document, self._given, spec, base_model.info.max_positions)
        self._teacher = TeacherEncoder(encoder, self.document)
        self._continuations = Continuations(base_model, common_beginning(*map(self._teacher.ids, ("a", "?"))))
        end = encoder.end_token_id
        self._ends = base_model.stop_token_ids | (frozenset() if end is None else {end})
        self.rows: list[StudiedRow] = []
        self.num_asked = 0
        """Questions that were asked so far, with those that were left out because they were blank or repeated."""

    @property
    def num_questions(self) -> int:
        """Questions to ask."""
        return self._chosen.num_questions

    @property
    def document_tokens(self) -> int:
        """Tokens that the text takes in each of the teacher's inputs."""
        return len(self._teacher.ids("?")) - len(self._encoder.encode_input("?"))

    def teacher_ids(self, question: str) -> list[int]:
        """The teacher's input for a question."""
        return self._teacher.ids(question)

    def run(self, on_progress: Callable[[], None], check_row: Callable[[int, int], None]) -> Study:
        """Asks and answers the remaining questions, and returns the data. `on_progress` is called after each batch.

        Raises InvalidInput if there are not enough different questions, and what `check_row` raises for a row that is
        too large for this worker's memory.
        """
        answer = self._chosen.max_answer_tokens
        longest = len(self._teacher.ids("?")) + 2 * QUESTION_TOKENS + answer
        size = max(1, min(MAX_BATCH, MAX_BATCH_TOKENS // longest))
        check_row(0, longest)
        seen = {row.question for row in self.rows}
        while self.num_asked < self.num_questions:
            numbers = range(self.num_asked, min(self.num_asked + size, self.num_questions))
            questions = yield from self._questions(numbers)
            fresh = [text for text in dict.fromkeys(questions) if text and text not in seen and self._fits(text)]
            seen.update(fresh)
            if fresh:
                self.rows += yield from self._answered(fresh)
            self.num_asked = numbers.stop
            on_progress()
        return self._split()

    def _questions(self, numbers: range) -> Generator[Work, Any, list[str]]:
        """The questions of a batch: those of the dataset, then the base model's own."""
        given = [self._given[number].input.strip() for number in numbers if number < len(self._given)]
        asked = numbers[len(given) :]
        if not asked:
            return given
        seed, room = self._spec.hyperparameters.seed, self._base_model.info.max_positions - QUESTION_TOKENS
        inputs = list[list[int]]()
        for number in asked:
            request, plain = request_for(self.document, number, seed)
            ids = self._teacher.ids(request)
            inputs.append(ids if len(ids) <= room else self._teacher.ids(plain))
        sampling = random.Random(f"{seed} questions {asked.start}").getrandbits(63)
        answers = yield self._generation(inputs, QUESTION_TOKENS, sampling)
        decode = partial(self._base_model.tokenizer.decode, skip_special_tokens=True)
        return [*given, *(question_of(decode(ids)) for ids in answers)]

    def _answered(self, questions: Sequence[str]) -> Generator[Work, Any, list[StudiedRow]]:
        inputs = [self._teacher.ids(question) for question in questions]
        answers: list[list[int]] = yield self._generation(inputs, self._chosen.max_answer_tokens)
        rows = [Row(tuple(ids), tuple(answer)) for ids, answer in zip(inputs, answers, strict=True)]
        scores: list[RowScore] = yield ScoreWork(None, rows, keep_top=True)
        found = list[StudiedRow]()
        for question, row, score in zip(questions, rows, scores, strict=True):
            assert score.top is not None
            found.append(StudiedRow(question, row.target_ids, score.top))
        return found

    def _generation(self, inputs: Sequence[Sequence[int]], max_new_tokens: int, seed: int | None = None) -> CallWork:
        num_tokens = len(inputs) * (max(map(len, inputs)) + max_new_tokens)
        call = partial(self._continuations.generate, inputs, max_new_tokens, self._ends, seed)
        return CallWork(call, num_tokens)

    def _fits(self, question: str) -> bool:
        """Whether the question, which may have other tokens than the model wrote, fits with an answer."""
        answer, model = self._chosen.max_answer_tokens, self._base_model.info.max_positions
        served = min(self._spec.max_positions or model, model) - self._spec.hyperparameters.num_virtual_tokens
        return (
            len(self._teacher.ids(question)) + answer <= model
            and len(self._encoder.encode_input(question)) + answer <= served
        )

    def _split(self) -> EncodedSplit:
        """Training and held-out questions, by the job's seed."""
        num_rows = len(self.rows)
        if num_rows < 2:
            text = (
                f"the self-study asked {num_rows} different questions about the text, and at least 2 are needed: "
                "give questions, or more of them"
            )
            raise InvalidInput.of("spec.distillation.num_questions", text)
        num_held = max(1, min(self._chosen.num_held_out, math.floor(num_rows / 2)))
        held = set(random.Random(f"{self._spec.hyperparameters.seed} held out").sample(range(num_rows), num_held))
        examples = [self._example(index, row) for index, row in enumerate(self.rows)]
        train = tuple(example for index, example in enumerate(examples) if index not in held)
        return EncodedSplit(EncodedDataset(train), EncodedDataset(tuple(examples[index] for index in sorted(held))))

    def _example(self, index: int, row: StudiedRow) -> EncodedExample:
        text = self._base_model.tokenizer.decode(row.answer_ids, skip_special_tokens=True)
        example = Example(row.question, text, line=index + 1)
        return EncodedExample(
            example, tuple(self._encoder.encode_input(row.question)), row.answer_ids, teacher=row.teacher
        )
