"""The input of a generation as a message: a text, a conversation and token ids are different fields."""

from __future__ import annotations

from prompttuning.v1 import generation_pb2

from shared.values.generation import GenerationInput, TokenIds
from shared.values.message import Message
from shared.violations import Violations
from shared.wire.mirror import fill, read, read_fields, reader, write, write_fields, writer


@reader(GenerationInput)
def read_input(
    message: generation_pb2.GenerationInput, path: str = "input", violations: Violations | None = None
) -> GenerationInput:
    """The input, with unchecked lengths. One without content is a violation."""
    content: str | tuple[Message, ...] | TokenIds = message.text
    match message.WhichOneof("content"):
        case "chat":
            content = tuple(read(Message, turn) for turn in message.chat.messages)
        case "token_ids":
            content = read(TokenIds, message.token_ids)
        case None if violations is not None:
            violations.add(path, "must have text, chat or token_ids")
    return GenerationInput(content, **read_fields(GenerationInput, message, path, violations))


@writer(GenerationInput)
def write_input(given: GenerationInput, message: generation_pb2.GenerationInput, path: str = "input") -> None:
    """Writes the input. Raises InvalidInput."""
    write_fields(given, message, path)
    match given.content:
        case str():
            fill(message, path, text=given.content)
        case TokenIds():
            fill(message, path, token_ids=given.content)
        case turns:
            message.chat.SetInParent()
            for index, turn in enumerate(turns):
                write(turn, message.chat.messages.add(), f"{path}.messages[{index}]")
