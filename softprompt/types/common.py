"""What both services speak of, as plain frozen dataclasses. Knows no protobuf; field names are those of the protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class TemplateFormat(StrEnum):
    TEXT = "TEXT"
    """The text as it is, `{input}` replaced; the answer follows."""
    CHAT = "CHAT"
    """The base model's own chat template around the text."""


@dataclass(frozen=True)
class Template:
    """How an input becomes the text that the model reads. `text` contains `{input}` exactly once; empty means just the input."""

    text: str = ""
    format: TemplateFormat | None = None
    system: str = ""
    system_override: bool = False
    """A conversation may bring a system message of its own in place of `system`."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """What the model's chat template takes besides messages, such as {"enable_thinking": False}."""
    date: str = ""
    """The day that a chat template shows as today's, YYYY-MM-DD. Empty: for a prompt the day of its job, for the bare model today."""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation: `role` is "system", "user" or "assistant"."""

    role: str
    content: str


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. What is None is left to the version's own defaults, then to the service's."""

    temperature: float | None = None
    """0 is greedy."""
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop_sequences: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    ignore_eos: bool | None = None
    num_logprobs: int | None = None
    """Alternatives to report beside each token's own log-probability."""


@dataclass(frozen=True)
class BaseModelInfo:
    """Identity of a frozen base model."""

    id: str
    fingerprint: str
    tokenizer_digest: str
    architecture: str
    hidden_size: int
    vocab_size: int
    num_layers: int
    max_positions: int


@dataclass(frozen=True)
class Comparison:
    """A tuned prompt beside another way to use its base model, on the same held-out examples."""

    rival: str
    """ "bare_model", "instructed_model", "few_shot_model" or "current_version"."""
    metric: str
    value: float
    rival_value: float
    difference: float
    """Positive where the tuned prompt is better."""
    low: float | None
    high: float | None
    """Ends of the 95 % interval of `difference`; None: too few examples for one."""
    num_examples: int
    beats: bool
    """Better beyond chance."""
