"""The step loop: takes requests, computes steps, returns deltas. Single-threaded; `async_engine` gives it a thread.

step: schedule -> run -> sample -> update -> collect
"""

from __future__ import annotations

import logging
import time
from itertools import count
from pathlib import Path

from inference_service.engine.admission import RequestAdmission
from inference_service.engine.build import assemble
from inference_service.engine.core.config import EngineConfig
from inference_service.engine.core.late_masks import late_masks, still_paused
from inference_service.engine.core.plan import StepPlan
from inference_service.engine.core.request import Delta, FinishReason, PrefixLoad, Request
from inference_service.engine.core.stats import EngineStats, StepStats
from inference_service.engine.kv.prefix_cache import PrefixCache
from inference_service.engine.live_requests import LiveRequests, Output, Results
from inference_service.engine.run import scoring
from inference_service.engine.run.bisect_failure import StepFailed, compute_each_alone
from inference_service.engine.run.model_runner import Runner
from inference_service.engine.run.sampler import sample
from inference_service.engine.scheduler import Scheduler
from shared.errors import AlreadyExists, DamagedBlob, Unavailable
from shared.model import base_model
from shared.model.base_model import BaseModel
from shared.model.options import DEFAULTS, ModelOptions
from shared.prompt.prefix import Prefix

log = logging.getLogger(__name__)

MAX_FAILED_STEPS = 5


class Engine:
    """One model with its scheduler, runner and prefixes; build it with `load_engine` or `Engine.from_base_model`.

    `clock` returns seconds; deadlines refer to it.
    """

    def __init__(
        self, base: BaseModel, config: EngineConfig, scheduler: Scheduler, runner: Runner, prefixes: PrefixCache
    ) -> None:
        self.base, self.config = base, config
        self.scheduler, self.runner, self.prefixes = scheduler, runner, prefixes
        self.clock = time.monotonic
        self.live = LiveRequests(base, config, scheduler, prefixes, lambda: self.clock())
        self.admission = RequestAdmission(config, scheduler, prefixes, base.info.vocab_size)
        self._load_numbers = count()
        self._early: list[Output] = []
        self._failed_steps = 0

    @classmethod
    def from_base_model(cls, base: BaseModel, config: EngineConfig | None) -> Engine:
        """Build an engine, and route the model's attention through the engine's cache.

        Raises PreconditionFailed for an architecture that the engine can't serve, InvalidInput if the memory holds no
        request.
        """
        parts = assemble(base, config or EngineConfig())
        return cls(base, parts.config, parts.scheduler, parts.runner, parts.prefixes)

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to compute or return."""
        return self.scheduler.has_work or bool(self._early)

    def submit(self, *requests: Request) -> None:
        """Queue requests, all or none. Several requests are the completions of one input.

        Raises InvalidInput, NotFound (prefix), AlreadyExists (request id) or Overloaded; for a load PreconditionFailed
        or DamagedBlob. A refused request leaves no state behind.
        """
        for request in requests:
            if request.request_id in self.live.streams:
                raise AlreadyExists(f"request {request.request_id} is running")
        self.admission.check(requests[0], len(requests))
        for request in requests:
            self.live.add(request)

    def cancel(self, request_id: str, reason: FinishReason = FinishReason.CANCELLED) -> Output | None:
        """End a waiting or running request and free its resources. None if it has already ended."""
        stream = self.live.streams.get(request_id)
        return None if stream is None else self.live.end(stream.sequence, reason)

    def step(self) -> list[Output]:
        """Compute one step. An output with a finish reason is the last one of its request."""
        started = self.clock()
        outputs, self._early = self._early, []
        outputs += [self.live.end(sequence, FinishReason.DEADLINE) for sequence in self.scheduler.expired(started)]
        outputs += [self.live.end(sequence, FinishReason.LENGTH) for sequence in self.live.loaded()]
        paused = still_paused(self.scheduler.running, self.live.guide_of)
        plan = self.scheduler.schedule(started)
        if not plan.chunks:
            if paused:  # nothing else can run: wait instead of planning again at once
                late_masks(paused[:1], self.live.guide_of)
            return outputs
        try:
            computed = [(plan, self._compute(plan))]
        except Exception as error:
            computed, failures = self._recover(plan, error)
            outputs += failures
        for done, results in computed:
            self.scheduler.complete(done)
            for sequence in results.late:
                sequence.num_computed, sequence.paused = sequence.length - 1, True
            # Fail these first: if the sequence leaves its row later (cancelled, preempted), the row must be clean.
            outputs += [self.live.fail(chunk.sequence) for chunk in done.chunks if chunk.row in results.damaged]
            outputs += self._keep_prefixes(done)
            for request_id, logprobs in results.inputs.items():
                if (stream := self.live.streams.get(request_id)) is not None:
                    stream.add_input_logprobs(logprobs)
            outputs += self.live.collect(results)
            outputs += self.live.collect_scores(done, results.scored)
        self._failed_steps = 0 if computed else self._failed_steps + 1
        seconds = self.clock() - started
        self.scheduler.pace.observe(plan.num_positions, seconds)
        self.live.observer.on_step(StepStats(seconds, plan.num_positions))
        return outputs

    @property
    def broken(self) -> bool:
        """Whether MAX_FAILED_STEPS consecutive steps failed entirely, so that the device or the engine is defective."""
        return self._failed_steps >= MAX_FAILED_STEPS

    def load_prefix(self, prefix_id: str, prefix: Prefix) -> None:
        """Load a prefix synchronously, for callers that run `step` themselves.

        Computes steps until the load ends. Outputs of other requests come with the next step. Raises PreconditionFailed
        for another model's prefix, DamagedBlob if the prefix KV is not finite, Unavailable if it can't be computed.
        """
        request_id = f"load-{next(self._load_numbers)}"
        self.submit(PrefixLoad(request_id, prefix_id, prefix))
        early: list[Output] = []
        while request_id in self.live.streams:
            early += self.step()
        (end,) = (output.delta for output in early if output.request_id == request_id)
        self._early = [output for output in early if output.request_id != request_id]
        raise_if_not_loaded(end)

    def unload_prefix(self, prefix_id: str) -> bool:
        """Unload a soft prompt. False if requests still use it; it is then unloaded when the last of them ends."""
        gone = self.prefixes.unload(prefix_id)
        if gone:
            self.scheduler.pool.forget(prefix_id)
        return gone

    def check_integrity(self) -> None:
        """Raise IntegrityError if the bookkeeping is inconsistent. Cheap; runs when idle and after each test."""
        self.scheduler.check_integrity()
        self.prefixes.check_integrity()
        self.live.check_integrity()

    def close(self) -> None:
        """End the threads that compute masks."""
        self.live.close()

    def stats(self) -> EngineStats:
        """A snapshot of the counters and gauges."""
        pool, prefixes = self.scheduler.pool, self.prefixes
        return EngineStats(
            running=len(self.scheduler.running),
            waiting=len(self.scheduler.waiting),
            waiting_tokens=self.scheduler.waiting_tokens,
            kv_blocks_used=pool.held_blocks,
            kv_blocks_total=pool.max_blocks,
            prefixes_loaded=prefixes.num_loaded,
            prefix_kv_bytes=prefixes.num_bytes,
            prefix_kv_max_bytes=prefixes.max_bytes,
            prefix_kv_hits=prefixes.num_hits,
            prefix_kv_loads=prefixes.num_computed,
            prefix_kv_evictions=prefixes.num_evictions,
            preemptions=self.scheduler.num_preemptions,
        )

    def _keep_prefixes(self, plan: StepPlan) -> list[Output]:
        """Keep the prefix KV of each soft prompt whose last virtual token was computed in this step."""
        outputs = []
        for chunk in plan.chunks:
            sequence = chunk.sequence
            if sequence.finish_reason is not None or not chunk.num_virtual:
                continue
            if chunk.start + chunk.num_virtual < sequence.num_virtual or sequence.prefix_id is None:
                continue
            try:
                self.prefixes.keep(sequence.prefix_id, self.runner.snapshot(chunk.row, sequence.num_virtual))
            except DamagedBlob as error:
                outputs.append(self.live.fail(sequence, FinishReason.ERROR, error.message))
        return outputs

    def _compute(self, plan: StepPlan) -> Results:
        """Run the model and sample. Changes no bookkeeping, so it can be repeated for a part of the plan."""
        logits = self.runner.run(plan, self.prefixes)
        everything = [chunk.sequence for chunk in plan.chunks if chunk.samples]
        picked, scored = scoring.split(plan.chunks, logits)
        late = late_masks(everything, self.live.guide_of)
        sampling = [sequence for sequence in everything if sequence not in late]
        if late:
            picked = picked[[index for index, sequence in enumerate(everything) if sequence not in late]]
        streams = [self.live.streams[sequence.request_id] for sequence in sampling]
        masks = [None if stream.guide is None else stream.guide.mask for stream in streams]
        sampled = sample(picked, sampling, [stream.end_ids for stream in streams], masks) if sampling else []
        inputs = {
            chunk.sequence.request_id: scoring.input_logprobs(chunk, scored[chunk.sequence.request_id])
            for chunk in plan.chunks
            if chunk.num_input_logits
        }
        return Results(sampling, sampled, late, scored, inputs, self.runner.finite.damaged(plan.chunks))

    def _recover(self, plan: StepPlan, error: Exception) -> tuple[list[tuple[StepPlan, Results]], list[Output]]:
        """Repeat a failed step chunk by chunk. Returns the computed results and the outputs of failed requests."""
        log.error("a step of %d requests failed; computing each request separately", len(plan.chunks), exc_info=error)
        self.scheduler.pool.forget_all()
        found = compute_each_alone(plan, self._compute)
        for chunk in found.postponed:
            self.scheduler.preempt(chunk.sequence, keep=False)
        outputs = []
        for chunk, reason in found.failed:
            log.error("request %s could not be computed", chunk.sequence.request_id, exc_info=reason)
            outputs.append(
                self.live.fail(chunk.sequence, FinishReason.INTERNAL, "the engine could not compute this request")
            )
        return found.computed, outputs


def raise_if_not_loaded(end: Delta) -> None:
    """Raise the error with which a `PrefixLoad` ended, if any.

    DamagedBlob if the numbers were not finite, StepFailed if the engine could not compute them, Unavailable if the load
    was interrupted.
    """
    if end.finish_reason is FinishReason.ERROR:
        raise DamagedBlob(end.error)
    if end.finish_reason is FinishReason.INTERNAL:
        raise StepFailed(end.error)
    if end.finish_reason is not FinishReason.LENGTH:
        raise Unavailable(end.error or "the engine is stopping: the soft prompt was not loaded")


def load_engine(
    source: str | Path, options: ModelOptions = DEFAULTS, *, id: str = "", config: EngineConfig | None
) -> Engine:
    """The engine of a model directory or hub id. Raises as `base_model.load` and `Engine.from_base_model`."""
    return Engine.from_base_model(base_model.load(source, options, id=id), config)
