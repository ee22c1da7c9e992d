"""What routing reads of a request, and what it adds: by protobuf's rules, without serializing the request again."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError
from prompttuning.v1 import generation_pb2

ROUTED_KEY = "x-softprompt-routed"
"""Metadata of a call that was passed on already. A router refuses such a call, so that none goes in circles."""


@dataclass(frozen=True)
class Call:
    """A call to pass on: the method's name, the serialized request, metadata, and the time that it may take."""

    name: str
    request: bytes
    metadata: Sequence[tuple[str, str]] = ()
    timeout_seconds: float | None = None
    answered: Callable[[Any], object] = lambda metadata: None
    """Gets a replica's metadata: of a stream, the initial one, and the trailing one of a complete answer."""


@dataclass(frozen=True)
class Ask:
    """The fields of a request's input that decide where it goes."""

    prompt: str = ""
    routing_key: str = ""
    base_model: str = ""

    @classmethod
    def of(cls, request: bytes) -> Ask:
        """Read a request of Generate, GenerateStream, Score or CountTokens: all have their input in field 1. One that
        can't be read goes to any replica, which explains what is wrong.
        """
        try:
            given = generation_pb2.CountTokensRequest.FromString(request).input
        except DecodeError:
            return cls()
        return cls(given.prompt, given.routing_key, given.base_model)


def with_fields(request: bytes, routing_key: str = "", base_model: str = "") -> bytes:
    """The request with these fields of its input set: appended messages are merged into the ones before them."""
    added = generation_pb2.GenerationInput(routing_key=routing_key, base_model=base_model)
    return request + generation_pb2.CountTokensRequest(input=added).SerializeToString()


def random_key() -> str:
    """A routing key for a request that has none, so that router and replica pick the same target of an alias."""
    return uuid.uuid4().hex
