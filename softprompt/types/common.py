"""Types of both services: plain frozen dataclasses without protobuf. Field names are the protocol's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shared.values.enums import TemplateFormat as TemplateFormat
from shared.values.guide import Guide as Guide
from shared.values.message import Message as Message
from shared.values.results import Comparison as Comparison
from shared.values.sampling import Sampling as Sampling


@dataclass(frozen=True)
class Template:
    """How an input becomes the model's text. `text` contains `{input}` exactly once; empty: the input alone."""

    text: str = ""
    format: TemplateFormat | None = None
    system: str = ""
    system_override: bool = False
    """Whether a conversation's own system message may replace `system`."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the model's chat template besides the messages, such as {"enable_thinking": False}."""
    date: str = ""
    """Today's date for the chat template, YYYY-MM-DD. Empty: the day of the job for a prompt, today for the bare model.
    """


@dataclass(frozen=True)
class BaseModelInfo:
    """Identity and shape of a frozen base model."""

    id: str
    fingerprint: str
    tokenizer_digest: str
    architecture: str
    hidden_size: int
    vocab_size: int
    num_layers: int
    max_positions: int
