"""The completions of one input: their requests to the engine and their texts."""

from __future__ import annotations

from dataclasses import replace

from inference_service.engine.core.request import GenerationRequest
from shared.errors import InvalidInput
from shared.values.sampling import SamplingParams, completion_seed

MAX_INPUT_LOGPROBS = 65_536
"""Log-probabilities of one input, alternatives included; they are sent in one message of up to 2 MB."""


def completion_requests(first: GenerationRequest) -> tuple[GenerationRequest, ...]:
    """The requests of all completions. They share the input's keys and values; the first one scores the input."""
    if first.sampling.n == 1:
        return (first,)
    seed, others = first.sampling.seed or 0, replace(first.sampling, num_input_logprobs=None)
    return (
        replace(first, group=first.request_id),
        *(
            replace(
                first,
                request_id=f"{first.request_id}.{index}",
                sampling=replace(others, seed=completion_seed(seed, index)),
                group=first.request_id,
            )
            for index in range(1, first.sampling.n)
        ),
    )


def check_input_logprobs(params: SamplingParams, num_input: int) -> None:
    """Raise InvalidInput if the log-probabilities of an input of `num_input` tokens are too many for one message."""
    count = params.num_input_logprobs
    if count is not None and num_input * (1 + count) > MAX_INPUT_LOGPROBS:
        most = MAX_INPUT_LOGPROBS // num_input - 1
        raise InvalidInput.of(
            "sampling.num_input_logprobs",
            f"must be at most {most} for an input of {num_input} tokens, is {count}"
            if most >= 0
            else f"is available for inputs of at most {MAX_INPUT_LOGPROBS} tokens, this one has {num_input}",
        )


class AnswerText:
    """The text of one answer: after `echo`, or without `trim` at its beginning.

    `trim` is the space between input and target. Without it, the answer has the form of the outputs that the prompt was
    tuned on. The bare model under a TEXT template continues the input's own text, so its answer keeps the space.
    """

    def __init__(self, echo: str = "", *, trim: str = "") -> None:
        self._echo, self._trim = echo, trim

    def __call__(self, text: str) -> str:
        """The text to send for the next text of the engine."""
        if text and self._trim:
            text, self._trim = text.removeprefix(self._trim), ""
        text, self._echo = self._echo + text, ""
        return text
