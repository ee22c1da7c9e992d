"""The text of a distillation and its questions as token ids. Imports no torch, so that the service can check them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from shared.errors import InvalidInput
from shared.location import Location
from shared.text.template import InputEncoder, Message, TemplateFormat
from shared.values.spec import (
    DEFAULT_ANSWER_TOKENS,
    DEFAULT_QUESTIONS,
    DOCUMENT,
    MAX_STUDY_TOKENS,
    MIN_QUESTIONS,
    QUESTION,
    Distillation,
)
from shared.violations import Violations
from trainer_service.training.distillation.requests import REQUESTS
from trainer_service.training.spec import Example, FilledDistillation, Hyperparameters, Init, InitMethod, TrainingSpec

HELD_OUT_FRACTION = 1 / 8
MAX_DEFAULT_QUESTIONS = 512
"""The most questions of a dataset that are used if the spec doesn't say how many."""
MAX_INIT_CHARS = 2000
"""Of the text at whose embeddings training starts; a prompt has fewer tokens."""
_MAX_REPORTED = 20
QUESTION_TOKENS = 64
"""Longest question that the base model writes."""


class TeacherEncoder:
    """Inputs of the teacher: the text is the system message, before that of the template.

    Where the chat template has no system message, and without a chat template, the text stands before the question.
    """

    def __init__(self, encoder: InputEncoder, document: str) -> None:
        """`encoder`: of the job's template, as the prompt is served."""
        template = encoder.template
        self._document = "\n\n".join(part for part in (document.strip(), template.system) if part)
        self._template = template
        self._encoder = InputEncoder(encoder.tokenizer, replace(template, system="", system_override=True))
        self._has_system = template.format is TemplateFormat.CHAT and self._takes_system()

    def ids(self, question: str) -> list[int]:
        """The token ids of a question with the text before it."""
        if self._has_system:
            turns = [Message("system", self._document), Message("user", self._template.render(question))]
            return self._encoder.encode_messages(turns)
        return self._encoder.encode_input(f"{self._document}\n\n{question}")

    def _takes_system(self) -> bool:
        try:
            with_system = self._encoder.encode_messages([Message("system", "x"), Message("user", "x")])
            return with_system != self._encoder.encode_messages([Message("user", "x")])
        except InvalidInput:
            return False


def filled(asked: Distillation, num_given: int, validation_fraction: float | None) -> FilledDistillation:
    """The defaults. `num_given`: questions in the dataset."""
    num_questions = asked.num_questions or min(num_given, MAX_DEFAULT_QUESTIONS) or DEFAULT_QUESTIONS
    num_questions = max(num_questions, MIN_QUESTIONS)
    answer = asked.max_answer_tokens or min(DEFAULT_ANSWER_TOKENS, MAX_STUDY_TOKENS // num_questions)
    if num_questions * answer > MAX_STUDY_TOKENS:
        text = f"{num_questions} questions with answers of {answer} tokens are more than {MAX_STUDY_TOKENS} tokens"
        raise InvalidInput.of("spec.distillation.max_answer_tokens", f"{text}: lower it, or num_questions")
    held = round(num_questions * (validation_fraction or HELD_OUT_FRACTION))
    return FilledDistillation(
        num_questions=num_questions,
        max_answer_tokens=answer,
        num_held_out=max(1, min(held, num_questions - 1)),
    )


def texts_of(examples: Sequence[Example], num_questions: int) -> tuple[str, Sequence[Example]]:
    """The text, and at most `num_questions` examples whose inputs are questions. Raises InvalidInput naming lines."""
    some = examples[: num_questions + 1]
    if not len(some):
        raise InvalidInput.of("dataset", "has no text to distill")
    check_roles(some)
    return some[0].input, some[1:]


def check_roles(examples: Sequence[Example]) -> None:
    """Raises InvalidInput unless the first example is the text and all others are questions."""
    found = Violations(_MAX_REPORTED)
    for index, example in enumerate(examples):
        wanted = QUESTION if index else DOCUMENT
        if example.output != wanted:
            text = (
                f"must be {wanted!r}: a distillation's first line has the text as its input, each other line a question"
            )
            found.add(Location(row=example.line, path=("output",)), text)
    found.raise_if_any()


def with_text_init(chosen: Hyperparameters, document: str) -> Hyperparameters:
    """Training starts from the beginning of the text, as in Cartridges, unless the caller chose a start."""
    init = chosen.init or Init()
    if init.chosen_method not in (None, InitMethod.TEXT) or init.text:
        return chosen
    return replace(chosen, init=Init(InitMethod.TEXT, document.strip()[:MAX_INIT_CHARS]))


def check_lengths(
    encoder: InputEncoder, document: str, questions: Sequence[Example], spec: TrainingSpec, model_positions: int
) -> None:
    """Raises InvalidInput naming lines for a text or question that doesn't fit with an answer.

    `model_positions`: the model's context, which the teacher uses. The prompt has `spec.max_positions`.
    """
    distillation, num_virtual_tokens = spec.distillation, spec.hyperparameters.num_virtual_tokens
    assert distillation is not None
    max_positions = min(spec.max_positions or model_positions, model_positions)
    teacher, answer = TeacherEncoder(encoder, document), distillation.max_answer_tokens
    asked = len(teacher.ids("?")) + QUESTION_TOKENS + answer
    if len(questions) < distillation.num_questions:
        asked = max(asked, max(len(teacher.ids(request)) for request in REQUESTS) + QUESTION_TOKENS)
    if asked > model_positions:
        text = (
            f"the text has {len(teacher.ids('?'))} tokens; with a question and an answer of up to {answer} tokens it "
            f"takes {asked}, and the base model's context has {model_positions}: shorten it"
        )
        raise InvalidInput.of(Location(row=1, path=("input",)), text)
    found = Violations(_MAX_REPORTED)
    for example in questions:
        with_text, alone = len(teacher.ids(example.input)), len(encoder.encode_input(example.input))
        if with_text + answer > model_positions or num_virtual_tokens + alone + answer > max_positions:
            text = f"the question has {alone} tokens, which leaves no room for an answer of {answer}: shorten it"
            found.add(Location(row=example.line, path=("input",)), text)
    found.raise_if_any()
    if num_virtual_tokens + len(encoder.encode_input("?")) + QUESTION_TOKENS + answer > max_positions:
        text = f"{answer} leave no room for a question beside {num_virtual_tokens} virtual tokens"
        raise InvalidInput.of(
            "spec.distillation.max_answer_tokens", f"{text}: a sequence has {max_positions} positions"
        )
