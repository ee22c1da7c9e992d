"""All that a caller learns from one call: answers, status, details and trailing metadata, as bytes that two services
can be compared by.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
from google.protobuf.message import Message

Outcome = tuple[str, str, tuple[tuple[str, bytes], ...], tuple[bytes, ...]]


async def outcome_of(
    service: Any, method: str, request: Any, token: str, masked: Sequence[str] = (), num_answers: int = 1000
) -> Outcome:
    """`request`: a message, or a list of the messages of an upload. `masked`: fields that are left out, wherever they
    stand.

    A stream is read to its end or up to `num_answers` messages.
    """
    sent = iter(request) if isinstance(request, list) else request
    call = getattr(service, method)(sent, metadata=(("authorization", f"Bearer {token}"), ("x-request-id", "same")))
    answers: list[Message] = []
    trailing: tuple[tuple[str, bytes], ...] = ()
    try:
        if isinstance(call, grpc.aio.UnaryStreamCall):
            async for answer in call:
                answers.append(answer)
                if len(answers) == num_answers:
                    call.cancel()
                    break
        else:
            answers.append(await call)
        code, details = "OK", ""
    except grpc.aio.AioRpcError as error:
        code, details = error.code().name, str(error.details())
        trailing = tuple(
            (str(key), value if isinstance(value, bytes) else str(value).encode())
            for key, value in error.trailing_metadata()
        )
    for answer in answers:
        mask(answer, masked)
    return code, details, trailing, tuple(answer.SerializeToString(deterministic=True) for answer in answers)


def mask(message: Message, fields: Sequence[str]) -> None:
    for descriptor, value in message.ListFields():
        if descriptor.name in fields:
            message.ClearField(descriptor.name)
        elif descriptor.type == descriptor.TYPE_MESSAGE and not (
            descriptor.message_type.GetOptions().map_entry or descriptor.message_type.full_name.startswith("google.")
        ):
            for item in [value] if isinstance(value, Message) else value:
                mask(item, fields)
