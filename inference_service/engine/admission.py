"""What may enter the queue: requests that can succeed, as long as there is room. Knows no tensors."""

from __future__ import annotations

from inference_service.engine.core.config import EngineConfig
from inference_service.engine.core.request import GenerationRequest, PrefixLoad, Request, ScoreRequest
from inference_service.engine.kv.prefix_cache import PrefixCache
from inference_service.engine.scheduler import Scheduler
from shared.errors import InvalidInput, Overloaded, PreconditionFailed
from shared.prompt.soft_prompt import SoftPrompt


class Admission:
    """`max_length` is what one request may have in virtual, input and generated tokens."""

    def __init__(self, config: EngineConfig, scheduler: Scheduler, prefixes: PrefixCache, vocab_size: int) -> None:
        self._config, self._scheduler, self._prefixes = config, scheduler, prefixes
        self._max_length = config.max_length
        self._vocab_size = vocab_size

    def check(self, request: Request) -> None:
        """Raises InvalidInput, NotFound, Overloaded, or PreconditionFailed for a soft prompt without room. The queue is
        looked at first: that is the cheapest check.
        """
        if isinstance(request, PrefixLoad):
            virtual = request.soft_prompt.num_virtual_tokens
            if virtual + 2 > self._max_length:
                text = f"{virtual} virtual tokens leave no room in {self._max_length} positions, set by {self._config.length_limit}"
                raise PreconditionFailed(text)
            return
        if not (isinstance(request, GenerationRequest) and request.always_admitted):
            self._check_room(request)
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

    def check_soft_prompt(self, soft_prompt: SoftPrompt, embedding_size: int) -> None:
        """Raises PreconditionFailed if the soft prompt is as wide as another model."""
        if soft_prompt.hidden_size != embedding_size:
            raise PreconditionFailed(
                f"the soft prompt has hidden size {soft_prompt.hidden_size}, this model takes {embedding_size}"
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

    def _check_room(self, request: GenerationRequest | ScoreRequest) -> None:
        """Refuses a request where the queue is full, unless its tenant has less waiting than its fair part of the
        queue.

        The queue is divided by weight among the tenants that have something waiting, so nobody can fill it against the
        others: a tenant that has nothing waiting always gets in. Together they hold at most twice the bounds.
        """
        waiting, cost = self._scheduler.waiting, request_cost(request)
        own = [sequence for sequence in waiting if sequence.tenant == request.tenant]
        weights = {sequence.tenant: sequence.weight for sequence in waiting} | {request.tenant: request.weight}
        part = request.weight / sum(weights.values())
        tokens, own_tokens = sum(sequence.cost for sequence in waiting), sum(sequence.cost for sequence in own)
        bounds = (
            (len(waiting), len(own), 1, self._config.max_waiting, "requests"),
            (tokens, own_tokens, cost, self._config.max_waiting_tokens, "tokens"),
        )
        for total, mine, more, most, what in bounds:
            # A single request may be larger than the bound in tokens, if nothing waits.
            full = total + more > most and (what == "requests" or bool(waiting))
            has_its_part = mine + more > part * most and bool(own)
            if full and (has_its_part or total + more > 2 * most):
                # How much others have waiting is theirs to know: only the bound and the tenant's own number are named.
                text = f"the queue is full: at most {most} {what} may wait, and {mine} of your tenant's do"
                raise Overloaded(text, self._retry_after_seconds())

    def _retry_after_seconds(self) -> float:
        """A guess: a tenth of a second for each wave of requests in the queue, at least half a second."""
        waves = len(self._scheduler.waiting) / self._config.max_running
        return min(30.0, max(0.5, waves))


def request_cost(request: GenerationRequest | ScoreRequest) -> int:
    """Tokens that it brings into the queue, candidates included."""
    return len(request.input_ids) + (sum(map(len, request.candidates)) if isinstance(request, ScoreRequest) else 0)
