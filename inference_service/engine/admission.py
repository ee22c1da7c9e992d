"""Checks requests before they enter the queue. Knows no tensors."""

from __future__ import annotations

from inference_service.engine.core.config import EngineConfig
from inference_service.engine.core.request import GenerationRequest, PrefixLoad, Request, ScoreRequest
from inference_service.engine.kv.prefix_cache import PrefixCache
from inference_service.engine.scheduler import Scheduler
from shared.errors import InvalidInput, Overloaded, PreconditionFailed


class RequestAdmission:
    """Refuses requests that can't succeed, and requests for which the queue has no room."""

    def __init__(self, config: EngineConfig, scheduler: Scheduler, prefixes: PrefixCache, vocab_size: int) -> None:
        self._config, self._scheduler, self._prefixes = config, scheduler, prefixes
        self._max_length = config.max_length
        self._vocab_size = vocab_size

    def check(self, request: Request, copies: int = 1) -> None:
        """Check a request against the model, the limits and the queue, which must have room for `copies` of it.

        Raises InvalidInput, NotFound or Overloaded; for the load of a prefix PreconditionFailed if it leaves no
        room for a request. The limits of the queue are checked first because that is the cheapest check.
        """
        if isinstance(request, PrefixLoad):
            virtual = request.prefix.num_virtual_tokens
            if virtual + 2 > self._max_length:
                raise PreconditionFailed(
                    f"{virtual} virtual tokens leave no room in {self._max_length} positions, "
                    f"set by {self._config.length_limit}"
                )
            return
        if not (isinstance(request, GenerationRequest) and request.always_admitted):
            self._check_room(request, copies)
        virtual = self._prefixes.num_virtual(request.prefix_id)
        count = len(request.input_ids)
        if isinstance(request, GenerationRequest):
            request.sampling.check("sampling", self._config.limits)
            longest = 1
        else:
            longest = self._check_candidates(request)
        if not count:
            raise InvalidInput.of(
                "input_ids", "must not be empty: the first generated token follows the last input token"
            )
        if virtual + count + longest > self._max_length:
            raise InvalidInput.of(
                "input_ids",
                f"{count} input tokens, {virtual} virtual tokens and {longest} to follow exceed "
                f"{self._max_length}, set by {self._config.length_limit}",
            )
        self._check_ids("input_ids", request.input_ids)

    def _check_candidates(self, request: ScoreRequest) -> int:
        """Check the candidates and return the number of tokens of the longest one."""
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

    def _check_room(self, request: GenerationRequest | ScoreRequest, copies: int) -> None:
        """Refuse a request if the queue is full, unless its tenant uses less than its fair part of the queue.

        The queue is divided by weight among the tenants with waiting requests, so no tenant can block the others: a
        tenant without waiting requests always gets in. All tenants together hold at most twice the limits.
        """
        waiting, cost = self._scheduler.waiting, copies * request_cost(request)
        own = [sequence for sequence in waiting if sequence.tenant == request.tenant]
        weights = {sequence.tenant: sequence.weight for sequence in waiting} | {request.tenant: request.weight}
        part = request.weight / sum(weights.values())
        tokens, own_tokens = sum(sequence.cost for sequence in waiting), sum(sequence.cost for sequence in own)
        bounds = (
            (len(waiting), len(own), copies, self._config.max_waiting, "requests"),
            (tokens, own_tokens, cost, self._config.max_waiting_tokens, "tokens"),
        )
        for total, mine, more, most, what in bounds:
            full = total + more > most and bool(waiting)  # one input may exceed the limits if nothing waits
            has_its_part = mine + more > part * most and bool(own)
            if full and (has_its_part or total + more > 2 * most):
                # The queue lengths of other tenants are private: the error has only the limit and the tenant's own
                # number.
                text = f"the queue is full: at most {most} {what} may wait, and {mine} of your tenant's do"
                raise Overloaded(text, self._retry_after_seconds())

    def _retry_after_seconds(self) -> float:
        """An estimate: one second per full batch of waiting requests, from 0.5 to 30."""
        waves = len(self._scheduler.waiting) / self._config.max_running
        return min(30.0, max(0.5, waves))


def request_cost(request: GenerationRequest | ScoreRequest) -> int:
    """Tokens that the request adds to the queue, candidates included."""
    return len(request.input_ids) + (sum(map(len, request.candidates)) if isinstance(request, ScoreRequest) else 0)
