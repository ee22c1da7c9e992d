"""The engine's unfinished requests: each begins with `add` and ends with `release`, whatever its reason.

Knows their text streams and scores; the scheduler decides which of them a step computes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch

from inference_service.engine.core.config import EngineConfig
from inference_service.engine.core.integrity import IntegrityError
from inference_service.engine.core.plan import StepPlan
from inference_service.engine.core.request import (
    Delta,
    FinishReason,
    GenerationRequest,
    PrefixLoad,
    Request,
    ScoreResult,
    TokenLogprob,
)
from inference_service.engine.core.running_request import RunningRequest, sequence_of
from inference_service.engine.core.stats import EngineObserver, FinishedRequest
from inference_service.engine.guide.mask_workers import MaskWorkers
from inference_service.engine.guide.matcher import GuideProgress
from inference_service.engine.kv.prefix_cache import PrefixCache
from inference_service.engine.run import scoring
from inference_service.engine.run.sampler import NOT_FINITE, Sampled
from inference_service.engine.scheduler import Scheduler
from inference_service.engine.text.detokenizer import DetokenizerFactory
from inference_service.engine.text.text_stream import TextStream, timing
from shared.model.base_model import BaseModel

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Output:
    """Output of a step for one request: a delta of its text, the result of a score, or the end of a load."""

    request_id: str
    delta: Delta
    score: ScoreResult | None = None


@dataclass(frozen=True)
class Results:
    """Results of a forward pass: a token per sampling sequence, and the rows of logits per score by request id."""

    sampling: list[RunningRequest]
    sampled: list[Sampled]
    late: set[RunningRequest]
    """Sequences whose mask was not ready: they compute their last position again later."""
    scored: dict[str, torch.Tensor]
    inputs: dict[str, tuple[TokenLogprob, ...]]
    """Log-probabilities of input tokens by request id."""
    damaged: set[int]
    """Rows to which keys or values were written that are not finite."""


class LiveRequests:
    """Waiting and running requests by id, with what is held for each of them."""

    def __init__(
        self,
        base: BaseModel,
        config: EngineConfig,
        scheduler: Scheduler,
        prefixes: PrefixCache,
        clock: Callable[[], float],
    ) -> None:
        self._base, self._config = base, config
        self._scheduler, self._prefixes, self._clock = scheduler, prefixes, clock
        self.observer = EngineObserver()
        """Gets each step and each request that ended."""
        self.streams: dict[str, TextStream] = {}
        self._scores: dict[str, scoring.Tally] = {}
        self._detokenizers = DetokenizerFactory(base.tokenizer)
        self._mask_workers = MaskWorkers()
        self._arrivals = 0

    def add(self, request: Request) -> None:
        """Begin a request that admission has checked."""
        if isinstance(request, PrefixLoad):
            request.prefix.check_fits(self._base)
            self._prefixes.add(request.prefix_id, request.prefix)
        self._arrivals += 1
        sequence = sequence_of(request, self._prefixes.num_virtual(request.prefix_id), self._arrivals, self._clock())
        model_ends = frozenset() if sequence.sampling.ignore_eos else self._base.stop_token_ids
        before: tuple[int, ...] = ()
        guide, exact = None, False
        if isinstance(request, GenerationRequest):
            before, exact = request.input_ids if request.continues else (), request.exact
            if request.guide is not None:
                guide, model_ends = request.guide.begin(self._mask_workers, request.tenant), self._base.stop_token_ids
        stream = TextStream(
            sequence,
            self._detokenizers(before, exact=exact or guide is not None),
            model_ends.union(sequence.sampling.stop_token_ids),
            self._config.max_length,
            guide,
        )
        tally = scoring.Tally(sequence) if sequence.is_score else None
        if sequence.prefix_id is not None:
            self._prefixes.hold(sequence.prefix_id)
        self.streams[sequence.request_id] = stream
        if tally is not None:
            self._scores[sequence.request_id] = tally
        self._scheduler.add(sequence)

    def loaded(self) -> list[RunningRequest]:
        """Loads whose prefix KV is complete, whichever sequence computed it."""
        live = (stream.sequence for stream in self.streams.values())
        return [s for s in live if s.is_load and s.prefix_id is not None and self._prefixes.is_ready(s.prefix_id)]

    def guide_of(self, sequence: RunningRequest) -> GuideProgress | None:
        """The progress of the sequence's guide; None for free text."""
        return self.streams[sequence.request_id].guide

    def collect(self, results: Results) -> list[Output]:
        """Turn sampled tokens into deltas, and end the requests that are complete or failed."""
        now = self._clock()
        outputs = []
        for sequence, token in zip(results.sampling, results.sampled, strict=True):
            if sequence.finish_reason is not None:  # its soft prompt is damaged
                continue
            if token.error:
                outputs.append(self.fail(sequence, error=token.error))
                continue
            try:
                delta = self.streams[sequence.request_id].push(token.token_id, token.logprob, now)
            except Exception:
                log.exception("request %s: its tokens could not be converted to text", sequence.request_id)
                outputs.append(
                    self.fail(
                        sequence, FinishReason.INTERNAL, "the engine could not convert this request's tokens to text"
                    )
                )
                continue
            outputs.append(Output(sequence.request_id, delta))
            if delta.finish_reason is not None:
                self.release(sequence, delta.finish_reason, now)
        return outputs

    def collect_scores(self, plan: StepPlan, scored: dict[str, torch.Tensor]) -> list[Output]:
        """Add the computed rows of logits to their scores, and end the requests that are complete."""
        now = self._clock()
        outputs = []
        for chunk in plan.chunks:
            if not chunk.branches or chunk.sequence.finish_reason is not None:
                continue
            tally = self._scores[chunk.sequence.request_id]
            if not tally.add(chunk.branches, scored[chunk.sequence.request_id]):
                outputs.append(self.fail(chunk.sequence))
            elif tally.complete:
                sequence = chunk.sequence
                result = tally.result(timing(sequence, now))
                self.release(sequence, FinishReason.LENGTH, now)
                outputs.append(Output(sequence.request_id, Delta(finish_reason=FinishReason.LENGTH), result))
        return outputs

    def fail(
        self, sequence: RunningRequest, reason: FinishReason = FinishReason.ERROR, error: str = NOT_FINITE
    ) -> Output:
        """End the sequence with an error; the pool clears its row for the next holder."""
        return self.end(sequence, reason, error)

    def end(self, sequence: RunningRequest, reason: FinishReason, error: str = "") -> Output:
        """End a request with what is left of its text."""
        now = self._clock()
        try:
            delta = self.streams[sequence.request_id].end(reason, now, error)
        except Exception:
            log.exception("request %s: its last tokens could not be converted to text", sequence.request_id)
            delta = Delta(
                finish_reason=reason,
                usage=sequence.usage,
                timing=timing(sequence, now),
                seed=sequence.seed,
                error=error,
            )
        self.release(sequence, reason, now)
        return Output(sequence.request_id, delta)

    def release(self, sequence: RunningRequest, reason: FinishReason, now: float) -> None:
        """Free all resources of a request. Every request ends here."""
        self._scheduler.finish(sequence, reason)
        del self.streams[sequence.request_id]
        self._scores.pop(sequence.request_id, None)
        if sequence.prefix_id is not None and self._prefixes.release(sequence.prefix_id):
            self._scheduler.pool.forget(sequence.prefix_id)
        if sequence.is_load:
            return
        times = timing(sequence, now)
        self.observer.on_finished(
            FinishedRequest(
                tenant=sequence.tenant,
                prefix_id=sequence.prefix_id,
                finish_reason=reason,
                usage=sequence.usage,
                queue_seconds=times.queue_seconds,
                ttft_seconds=times.ttft_seconds,
                e2e_seconds=times.elapsed_seconds,
                inter_token_seconds=tuple(sequence.inter_token_seconds),
                is_score=sequence.is_score,
                caller=sequence.caller,
            )
        )

    def close(self) -> None:
        """End the threads that compute masks."""
        self._mask_workers.close()

    def check_integrity(self) -> None:
        """Raise IntegrityError if the bookkeeping is inconsistent. Cheap; runs when idle and after each test."""
        live = {s.request_id for s in [*self._scheduler.waiting, *self._scheduler.running]}
        if live != set(self.streams):
            raise IntegrityError(f"streams without a sequence, or the reverse: {sorted(live ^ set(self.streams))[:5]}")
        holds = sum(stream.sequence.prefix_id is not None for stream in self.streams.values())
        if holds != self._prefixes.num_holds:
            raise IntegrityError(f"{holds} requests use prefixes that count {self._prefixes.num_holds} holds")
        if not set(self._scores) <= live:
            raise IntegrityError("a score outlived its request")
