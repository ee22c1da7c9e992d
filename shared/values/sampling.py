"""Sampling parameters: what a caller, a version or a service chooses, and what the engine runs with.

A parameter is one field of `Sampling`, with its range and its help text, one of `SamplingParams` and one of
`SamplingKeywords`. The message, the checks and the options of the command line follow from these fields.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Self, TypedDict

from shared.values.bounds import Bounds, shown
from shared.values.guide import MAX_GUIDE_BYTES, Guide
from shared.violations import Violations

_INT32_MAX = (1 << 31) - 1


@dataclass(frozen=True)
class SamplingLimits:
    """Bounds that depend on the service; the other bounds are the protocol's."""

    max_new_tokens: int = 8192
    max_stop_sequences: int = 16
    max_stop_sequence_chars: int = 256
    max_stop_token_ids: int = 256
    max_logprobs: int = 20
    max_candidates: int = 256
    """Candidates of one Score request."""
    max_completions: int = 16
    """Completions of one input."""
    max_guide_bytes: int = MAX_GUIDE_BYTES
    max_listed_token_ids: int = 1024
    """Token ids in `logit_bias`, `allowed_token_ids` and `forbidden_token_ids` each."""


LIMITS = SamplingLimits()
DEFAULTS_LIMITS = SamplingLimits(max_new_tokens=_INT32_MAX, max_stop_sequence_chars=200)
"""Bounds of a version's defaults, whatever the service that uses them allows."""


@dataclass(frozen=True)
class Parameter(Bounds):
    """The allowed range and the description of a parameter."""

    help: str = ""
    is_default: bool = False
    """A version may have a default for this parameter."""
    option: str = ""
    """Option of the command line; empty: made from the field's name."""


def _parameter(default: Any, help: str, low: float = 0.0, high: float = _INT32_MAX, **more: Any) -> Any:
    return field(default=default, metadata={"parameter": Parameter(low, high, help=help, **more)})


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. None or empty takes the version's default, else the service's."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "allow_inf_nan": False}

    temperature: float | None = _parameter(None, "0 always takes the most probable token.", 0, 10, is_default=True)
    top_k: int | None = _parameter(None, "Only the k most probable tokens; 0: all.", 0, _INT32_MAX, is_default=True)
    top_p: float | None = _parameter(
        None,
        "Only the most probable tokens whose probabilities add up to this.",
        0,
        1,
        above_low=True,
        is_default=True,
    )
    """Nucleus sampling (Holtzman et al. 2019, arXiv:1904.09751)."""
    min_p: float | None = _parameter(
        None, "Only tokens at least this fraction as probable as the most probable one.", 0, 1, is_default=True
    )
    repetition_penalty: float | None = _parameter(
        None, "Above 1: tokens that occurred become less probable.", 0, 10, above_low=True, is_default=True
    )
    """Divides the positive logits of tokens in the input or the answer and multiplies the negative ones (Keskar et al.
    2019, arXiv:1909.05858). 1 is off.
    """
    presence_penalty: float | None = _parameter(
        None, "Subtracted from the logits of generated tokens, once each.", -2, 2
    )
    frequency_penalty: float | None = _parameter(
        None, "Subtracted from the logits of generated tokens, once for each time.", -2, 2
    )
    seed: int | None = _parameter(None, "The same seed gives the same text.", 0, (1 << 63) - 1)
    stop_sequences: tuple[str, ...] = _parameter(
        (), "Stop before this text; may be repeated.", is_default=True, option="--stop"
    )
    stop_token_ids: tuple[int, ...] = _parameter(
        (), "Stop at this token id; may be repeated.", 0, _INT32_MAX, option="--stop-token-id"
    )
    """In addition to the model's own end-of-sequence tokens."""
    max_new_tokens: int | None = _parameter(None, "Upper bound of generated tokens.", 1, is_default=True)
    min_new_tokens: int | None = _parameter(None, "No end of sequence before this many tokens.", 0)
    ignore_eos: bool | None = _parameter(None, "Continue after the end of sequence.", option="--ignore-eos")
    num_logprobs: int | None = _parameter(
        None, "Alternatives with log-probabilities for each token; --json shows them.", 0, option="--logprobs"
    )
    """0: the log-probability of the token alone. None: no log-probabilities."""
    guide: Guide | None = _parameter(None, "The form that the answer must have.")  # noqa: RUF009 - a dataclass's `field`
    logit_bias: Mapping[int, float] | None = _parameter(
        None, "Add BIAS, from -100 to 100, to the logit of a token id; may be repeated.", -100, 100
    )
    allowed_token_ids: tuple[int, ...] = _parameter(
        (), "Sample only this token id; may be repeated.", option="--allow-token-id"
    )
    forbidden_token_ids: tuple[int, ...] = _parameter(
        (), "Never sample this token id; may be repeated.", option="--forbid-token-id"
    )
    n: int | None = _parameter(None, "Number of completions of the input.", 1, option="--n")
    """Completion i has the seed `completion_seed(seed, i)`."""
    num_input_logprobs: int | None = _parameter(
        None, "Like --logprobs, for each token of the input.", 0, option="--input-logprobs"
    )
    """Also known as prompt log-probabilities; here a prompt is a soft prompt."""
    echo: bool | None = _parameter(None, "Begin the answer with the text of the input.", option="--echo")

    def check(self, path: str = "sampling", limits: SamplingLimits = LIMITS, vocab_size: int | None = None) -> Self:
        """Return itself. Raises InvalidInput naming every field below `path` that is out of range."""
        violations = Violations()
        highs = {
            "max_new_tokens": limits.max_new_tokens,
            "num_logprobs": limits.max_logprobs,
            "num_input_logprobs": limits.max_logprobs,
            "n": limits.max_completions,
        }
        for name, parameter in PARAMETERS.items():
            value, high = getattr(self, name), highs.get(name, parameter.high)
            if isinstance(value, int | float) and not (value <= high and parameter.contains(value)):
                violations.add(f"{path}.{name}", f"must be {replace(parameter, high=high)}, is {shown(value)}")
        if self.min_new_tokens and self.min_new_tokens > (most := self.max_new_tokens or limits.max_new_tokens):
            text = f"must be from 0 to max_new_tokens ({most}), is {self.min_new_tokens}"
            violations.add(f"{path}.min_new_tokens", text)
        self._check_stops(path, limits, violations)
        self._check_token_ids(path, limits, vocab_size, violations)
        if self.guide is not None:
            self.guide.check(f"{path}.guide", violations, limits.max_guide_bytes)
        violations.raise_if_any()
        return self

    def check_defaults(self, path: str = "sampling_defaults") -> Self:
        """Like `check`, for a version's defaults: also refuses parameters that only a request can set."""
        violations = Violations()
        for name, parameter in PARAMETERS.items():
            if not parameter.is_default and getattr(self, name) not in (None, ()):
                violations.add(f"{path}.{name}", "can only be set on a request, not as a prompt's default")
        with violations.collected():
            self.check(path, DEFAULTS_LIMITS)
        violations.raise_if_any()
        return self

    def or_else(self, other: Sampling) -> Self:
        """These parameters, and those of `other` where a parameter is left out here."""
        left_out = [name for name in PARAMETERS if getattr(self, name) in (None, ())]
        return replace(self, **{name: getattr(other, name) for name in left_out})

    def complete(self) -> SamplingParams:
        """The engine's parameters: a parameter that is left out doesn't change the model's distribution."""
        given = {name: getattr(self, name) for name in PARAMETERS}
        return SamplingParams(**{name: value for name, value in given.items() if value is not None})

    def _check_stops(self, path: str, limits: SamplingLimits, violations: Violations) -> None:
        most, longest = limits.max_stop_sequences, limits.max_stop_sequence_chars
        if len(self.stop_sequences) > most:
            violations.add(
                f"{path}.stop_sequences", f"at most {most} are allowed, {len(self.stop_sequences)} were given"
            )
        for index, stop in enumerate(self.stop_sequences[:most]):
            if not 1 <= len(stop) <= longest:
                text = f"must have 1 to {longest} characters, has {len(stop)}"
                violations.add(f"{path}.stop_sequences[{index}]", text)

    def _check_token_ids(
        self, path: str, limits: SamplingLimits, vocab_size: int | None, violations: Violations
    ) -> None:
        lists: dict[str, tuple[Sequence[int], int]] = {
            "stop_token_ids": (self.stop_token_ids, limits.max_stop_token_ids),
            "logit_bias": (tuple(self.logit_bias or ()), limits.max_listed_token_ids),
            "allowed_token_ids": (self.allowed_token_ids, limits.max_listed_token_ids),
            "forbidden_token_ids": (self.forbidden_token_ids, limits.max_listed_token_ids),
        }
        last = _INT32_MAX if vocab_size is None else vocab_size - 1
        for name, (ids, most) in lists.items():
            if len(ids) > most:
                violations.add(f"{path}.{name}", f"at most {most} are allowed, {len(ids)} were given")
            for index, token in enumerate(ids[:most]):
                if not 0 <= token <= last:
                    place = f"[{token if name == 'logit_bias' else index}]"
                    violations.add(f"{path}.{name}{place}", f"must be a token id from 0 to {last}, is {token}")
        bounds = PARAMETERS["logit_bias"]
        for token, bias in list((self.logit_bias or {}).items())[: limits.max_listed_token_ids]:
            if not bounds.contains(bias):
                violations.add(f"{path}.logit_bias[{token}]", f"must be {bounds}, is {shown(bias)}")
        if self.allowed_token_ids and set(self.allowed_token_ids) <= set(self.forbidden_token_ids):
            violations.add(f"{path}.forbidden_token_ids", "must not contain all of allowed_token_ids")


PARAMETERS: Mapping[str, Parameter] = {item.name: item.metadata["parameter"] for item in fields(Sampling)}


@dataclass(frozen=True)
class SamplingParams(Sampling):
    """Sampling with nothing left out, as the engine runs it. The defaults sample from the model's own distribution."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    max_new_tokens: int = 128
    min_new_tokens: int = 0
    ignore_eos: bool = False
    n: int = 1
    echo: bool = False

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is always taken."""
        return self.temperature == 0.0

    @property
    def penalised(self) -> bool:
        """Whether any penalty changes the logits."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


class SamplingKeywords(TypedDict, total=False):
    """The fields of `Sampling` as keywords of a call, for type checkers. None or empty takes the version's default."""

    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    seed: int | None
    stop_sequences: tuple[str, ...]
    stop_token_ids: tuple[int, ...]
    max_new_tokens: int | None
    min_new_tokens: int | None
    ignore_eos: bool | None
    num_logprobs: int | None
    guide: Guide | Mapping[str, Any] | None
    logit_bias: Mapping[int, float] | None
    allowed_token_ids: tuple[int, ...]
    forbidden_token_ids: tuple[int, ...]
    n: int | None
    num_input_logprobs: int | None
    echo: bool | None


def completion_seed(seed: int, index: int) -> int:
    """The seed of completion `index` of an input."""
    return (seed + index) % (1 << 63)
