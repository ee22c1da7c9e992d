"""The identity of a base model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

MAX_HIDDEN_SIZE = 65536


@dataclass(frozen=True)
class BaseModelInfo:
    """Identity and shape of a frozen base model; part of every manifest. Digests are `sha256:<hex>`."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    id: str
    fingerprint: str
    tokenizer_digest: str
    architecture: str
    hidden_size: int
    vocab_size: int
    num_layers: int
    max_positions: int
