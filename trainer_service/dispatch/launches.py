"""Outcomes of worker launches by base model: how long they take, when the next is allowed, which models can't load.

A base model is broken if at least `max_model_failures` launches in a row, over at least `broken_model_seconds`, failed
because of the model: loading it raised an error or took more memory than a worker has. Other causes (no room in the
cluster, a lost node, another version of the software) delay the next launch but don't mark the model as broken.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from trainer_service.jobs.config import JobsConfig, retry_delay_seconds

_UNKNOWN_SECONDS = 10.0
"""Assumed load time of a base model that was never loaded here."""


@dataclass
class _Failures:
    in_a_row: int = 0
    of_the_model: int = 0
    """Latest failures in a row that were the model's fault."""
    model_failed_since: float = 0.0
    not_before: float = 0.0
    reason: str = ""


class Launches:
    """The launches of one trainer replica."""

    def __init__(self, config: JobsConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._config, self._clock = config, clock
        self._failures: dict[str, _Failures] = {}
        self._seconds: dict[str, float] = {}

    def succeeded(self, base_model: str, seconds: float) -> None:
        """Records that a worker loaded the model in `seconds`. Safe to repeat."""
        self._failures.pop(base_model, None)
        self._seconds[base_model] = seconds

    def failed(self, base_model: str, reason: str, *, is_models_fault: bool) -> bool:
        """Records that a worker ended before it had loaded the model. Returns whether the model is now broken."""
        config, now = self._config, self._clock()
        failures = self._failures.setdefault(base_model, _Failures())
        if now < failures.not_before:
            return False  # launched together with a worker whose failure is already counted
        failures.in_a_row += 1
        if is_models_fault:
            failures.of_the_model += 1
            failures.reason = reason
            if failures.of_the_model == 1:
                failures.model_failed_since = now
        else:
            failures.of_the_model = 0
        is_broken = bool(self.why_broken(base_model))
        longest = config.broken_model_seconds if is_broken else config.retry_max_seconds
        failures.not_before = now + retry_delay_seconds(failures.in_a_row, config.retry_first_seconds, longest)
        return is_broken

    def may_try(self, base_model: str) -> bool:
        """False during the pause after a failure; until it ends, the model gets no worker."""
        failures = self._failures.get(base_model)
        return failures is None or self._clock() >= failures.not_before

    def is_suspect(self, base_model: str) -> bool:
        """Whether its latest launch failed, so that the next attempt uses a single worker."""
        return base_model in self._failures

    def why_broken(self, base_model: str) -> str:
        """The error that workers report when they load the model; empty unless the model is broken."""
        failures, config = self._failures.get(base_model), self._config
        if failures is None or failures.of_the_model < config.max_model_failures:
            return ""
        return failures.reason if self._clock() - failures.model_failed_since >= config.broken_model_seconds else ""

    def seconds(self, base_model: str) -> float:
        """How long its latest worker took to load it; a guess if it was never loaded here."""
        return self._seconds.get(base_model, _UNKNOWN_SECONDS)
