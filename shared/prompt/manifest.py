"""The manifest of a version: the origin of the prefix, its kind, its base model, and how to use it.

The trainer (or an import) writes the manifest once. It contains neither the version number nor the digest, which are
known only after the bytes; both are in the store's log entry.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    PlainSerializer,
    StringConstraints,
    model_validator,
)

from shared.errors import InvalidInput
from shared.names import NAME_PATTERN
from shared.text.template import Template
from shared.values.base_model import MAX_HIDDEN_SIZE, BaseModelInfo
from shared.values.datasets import MAX_LABELS
from shared.values.enums import PrefixKind
from shared.values.hyperparameters import MAX_VIRTUAL_TOKENS
from shared.values.sampling import PARAMETERS, Sampling

MANIFEST_FORMAT = 1
MAX_GOLDEN_RECORDS = 16
MAX_METRICS = 64

Timestamp = Annotated[str, StringConstraints(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z$")]
ShortText = Annotated[str, StringConstraints(max_length=200)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]

_FROZEN = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


def utc_now() -> str:
    """The current time as in stored records."""
    return to_timestamp(datetime.now(UTC))


def to_timestamp(time: datetime) -> str:
    """A time of UTC in RFC 3339, with microseconds. The order of texts is the order of times."""
    return time.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_timestamp(text: str) -> datetime:
    """The aware datetime of a `Timestamp`."""
    return datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text))


_DEFAULTS_NAMES = {
    ("stop" if name == "stop_sequences" else name): name for name, one in PARAMETERS.items() if one.is_default
}
"""Field names of `Sampling` by their keys in stored JSON."""


def _read_defaults(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    if unknown := sorted(value.keys() - _DEFAULTS_NAMES):
        raise ValueError(f"{unknown[0]!r} can't be a default")
    return {_DEFAULTS_NAMES[key]: one for key, one in value.items()}


def _check_defaults(sampling: Sampling) -> Sampling:
    try:
        return sampling.check_defaults()
    except InvalidInput as error:
        raise ValueError(error.message) from error


def _write_defaults(sampling: Sampling) -> dict[str, Any]:
    return {key: getattr(sampling, name) for key, name in _DEFAULTS_NAMES.items()}


SamplingDefaults = Annotated[
    Sampling, BeforeValidator(_read_defaults), AfterValidator(_check_defaults), PlainSerializer(_write_defaults)
]
"""How a prompt is sampled where a request leaves a parameter out, as a field of a stored pydantic model."""


class GoldenRecord(BaseModel):
    """The answer of the trainer's model to one input of `shared.text.golden_inputs`.

    A replica replays it before it serves the version. `text` is empty; versions of earlier releases have a held-out
    input of the training data there. They load, and the text is never shown.

    `input_ids` follow the virtual tokens; `top_token_ids` and `top_logprobs` (natural logarithms) are the most likely
    next tokens after them, most likely first. If `rounding_nats` is set, they were computed in float32 from weights of
    `dtype`; otherwise in `dtype`.
    """

    model_config = _FROZEN
    text: Annotated[str, StringConstraints(max_length=32_000)]
    input_ids: tuple[TokenId, ...] = Field(min_length=1, max_length=8192)
    top_token_ids: tuple[TokenId, ...] = Field(min_length=1, max_length=64)
    top_logprobs: tuple[Annotated[float, Field(le=1e-3)], ...]
    dtype: Annotated[str, StringConstraints(pattern=r"^(float32|bfloat16|float16)$")]
    rounding_nats: float | None = Field(default=None, ge=0)
    """The divergence (`shared.prompt.divergence`) when the trainer's model is computed in bfloat16."""

    @property
    def is_synthetic(self) -> bool:
        """Whether the record claims one of this program's own inputs. Replicas check the claim."""
        return not self.text

    @model_validator(mode="after")
    def _pairs(self) -> Self:
        if len(self.top_token_ids) != len(self.top_logprobs):
            raise ValueError("top_token_ids and top_logprobs differ in length")
        return self


class Manifest(BaseModel):
    """All of a version but its number and digest. A field may be added only with a default or a new `format`."""

    model_config = _FROZEN
    format: int = MANIFEST_FORMAT
    prompt: Annotated[str, StringConstraints(pattern=rf"^{NAME_PATTERN}$")]
    job: ShortText = ""
    base_model: BaseModelInfo
    template: Template
    kind: PrefixKind = Field(default=PrefixKind.PROMPT, exclude_if=lambda kind: kind is PrefixKind.PROMPT)
    """The kind of prefix; not written for a soft prompt, so that its versions keep their digests."""
    num_virtual_tokens: int = Field(ge=1, le=MAX_VIRTUAL_TOKENS)
    hidden_size: int = Field(ge=1, le=MAX_HIDDEN_SIZE)
    labels: tuple[ShortText, ...] = Field(default=(), max_length=MAX_LABELS)
    sampling_defaults: SamplingDefaults = Sampling()
    metrics: dict[ShortText, float] = Field(default_factory=dict, max_length=MAX_METRICS)
    recipe: dict[str, JsonValue] = Field(default_factory=dict)
    """The effective training specification."""
    parent: ShortText = ""
    """The name of the version that training started from, or empty."""
    golden: tuple[GoldenRecord, ...] = Field(default=(), max_length=MAX_GOLDEN_RECORDS)
    created_at: Timestamp
    gate: JsonValue = None
    """The decision of the quality gate, with the metrics behind it."""

    @model_validator(mode="after")
    def _fits_the_base_model(self) -> Self:
        if self.hidden_size != self.base_model.hidden_size:
            raise ValueError(f"hidden_size is {self.hidden_size}, the base model's is {self.base_model.hidden_size}")
        try:
            self.template.check()
        except InvalidInput as error:
            raise ValueError(error.message) from error
        return self
