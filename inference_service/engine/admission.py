"""What may enter the queue: requests that can succeed, as long as there is room. Knows no tensors."""

from __future__ import annotations

from inference_service.engine.config import EngineConfig
from inference_service.engine.prefix_cache import PrefixCache
from inference_service.engine.request import GenerationRequest, ScoreRequest
from inference_service.engine.scheduler import Scheduler
from shared.errors import InvalidInput, Overloaded, PreconditionFailed
from shared.soft_prompt import SoftPrompt


class Admission:
    """`max_length` is what one request may have in virtual, input and generated tokens."""

    def __init__(self, config: EngineConfig, scheduler: Scheduler, prefixes: PrefixCache, vocab_size: int) -> None:
        self._config, self._scheduler, self._prefixes = config, scheduler, prefixes
        self._max_length = config.max_length
        self._vocab_size = vocab_size

    def check(self, request: GenerationRequest | ScoreRequest) -> None:
        """Raises InvalidInput, NotFound or Overloaded. A full queue is told first: it is the cheapest to find out."""
        if not (isinstance(request, GenerationRequest) and request.always_admitted):
            self._check_room(len(request.input_ids))
        virtual = self._prefixes.num_virtual(request.prefix_id)
        count = len(request.input_ids)
        if isinstance(request, GenerationRequest):
            request.sampling.check("sampling", self._config.limits)
            longest = 1
        else:
            longest = self._check_candidates(request)
        if not count:
            raise InvalidInput.of("input_ids", "must not be empty: the first generated token follows the last input token")
        if virtual + count + longest > self._max_length:
            raise InvalidInput.of(
                "input_ids",
                f"{count} input tokens, {virtual} virtual tokens and {longest} to follow exceed this model's {self._max_length}",
            )
        self._check_ids("input_ids", request.input_ids)

    @staticmethod
    def check_soft_prompt(soft_prompt: SoftPrompt, hidden_size: int, embedding_size: int) -> None:
        if soft_prompt.hidden_size != embedding_size:
            raise PreconditionFailed(
                f"the soft prompt has hidden size {soft_prompt.hidden_size}, this model takes {embedding_size}",
                model_hidden_size=hidden_size,
            )

    def _check_candidates(self, request: ScoreRequest) -> int:
        """The longest candidate's tokens."""
        limit = self._config.limits.max_candidates
        if not 1 <= len(request.candidates) <= limit:
            raise InvalidInput.of("candidates", f"1 to {limit} are allowed, {len(request.candidates)} were given")
        for index, candidate in enumerate(request.candidates):
            if not candidate:
                raise InvalidInput.of(f"candidates[{index}]", "must not be empty")
            self._check_ids(f"candidates[{index}]", candidate)
        return max(map(len, request.candidates))

    def _check_ids(self, field: str, ids: tuple[int, ...]) -> None:
        if min(ids) < 0 or max(ids) >= self._vocab_size:
            raise InvalidInput.of(field, f"token ids are from 0 to {self._vocab_size - 1}")

    def _check_room(self, num_tokens: int) -> None:
        waiting, tokens = len(self._scheduler.waiting), self._scheduler.waiting_tokens
        if waiting >= self._config.max_waiting:
            raise Overloaded(f"the queue is full: at most {self._config.max_waiting} requests may wait", self._retry_after_seconds())
        if waiting and tokens + num_tokens > self._config.max_waiting_tokens:
            text = f"the queue is full: requests with at most {self._config.max_waiting_tokens} input tokens together may wait"
            raise Overloaded(text, self._retry_after_seconds())  # no counts: they would tell the length of other callers' inputs

    def _retry_after_seconds(self) -> float:
        """A guess: a tenth of a second for each wave of requests in the queue, at least half a second."""
        waves = len(self._scheduler.waiting) / self._config.max_running
        return min(30.0, max(0.5, waves))
