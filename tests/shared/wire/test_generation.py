"""Every kind of input survives the conversion to messages and back."""

from __future__ import annotations

import pytest
from prompttuning.v1 import generation_pb2

from shared.errors import InvalidInput
from shared.values.enums import TemplateFormat
from shared.values.generation import GenerationInput, TokenIds
from shared.values.message import Message
from shared.values.template import Template
from shared.wire.mirror import read, read_checked, write


@pytest.mark.parametrize(
    "given",
    [
        GenerationInput("hello", "tone@2", routing_key="user", truncate=True),
        GenerationInput((Message("user", "hi"), Message("assistant", ""))),
        GenerationInput(TokenIds((1, 2)), template=Template("Q: {input}", TemplateFormat.TEXT, arguments={"n": 3})),
        GenerationInput(""),
        GenerationInput(()),
    ],
)
def test_an_input_survives(given: GenerationInput) -> None:
    assert read_checked(GenerationInput, write(given, generation_pb2.GenerationInput(), "input"), "input") == given


def test_an_input_without_content_is_a_violation() -> None:
    with pytest.raises(InvalidInput, match="input: must have text, chat or token_ids"):
        read_checked(GenerationInput, generation_pb2.GenerationInput(prompt="tone"), "input")
    assert read(GenerationInput, generation_pb2.GenerationInput()).content == ""
