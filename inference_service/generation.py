"""Handles a request without gRPC: resolves and holds a version, prepares the input, runs it, reports the end.

A version is held from before its template is used until after the last token, so that a swap never changes a running
answer. Every end of a request (the last token, a deadline, cancellation, an error) leaves the same `with` and
`aclosing` blocks.
"""

from __future__ import annotations

import itertools
import logging
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

from inference_service.completions import AnswerText, check_input_logprobs, completion_requests
from inference_service.engine.async_engine import AsyncEngine
from inference_service.engine.core.request import (
    Account,
    Delta,
    FinishReason,
    GenerationRequest,
    ScoreRequest,
    Timing,
    TokenUsage,
)
from inference_service.engine.run.bisect_failure import StepFailed
from inference_service.guides import Guides
from inference_service.inputs import InputPreparer, InputRequest, PreparedInput
from inference_service.limits import RequestLimits
from inference_service.prompts.load_queue import VersionLoads
from inference_service.prompts.registry import PromptRegistry
from inference_service.prompts.version import ServableVersion
from inference_service.prompts.watcher import PromptWatcher
from inference_service.token_texts import TokenTexts
from shared.caller import current_caller
from shared.errors import Cancelled, DeadlineExceeded, InvalidInput, NotFound, PreconditionFailed, Unavailable
from shared.model.base_model import BaseModel
from shared.store.index import VersionRecord
from shared.text.template import InputEncoder, TemplateFormat, bare_template, default_format
from shared.values import generation as values
from shared.values.generation import CandidateScore, GenerationEnd, GenerationStart, InputToken, Scores, TokenCount
from shared.values.sampling import Sampling, SamplingParams

log = logging.getLogger(__name__)

_MAX_LOAD_ATTEMPTS = 3


@dataclass(frozen=True)
class Call(Account):
    """Metadata of a request."""

    request_id: str

    @property
    def account(self) -> dict[str, Any]:
        """The fields of an engine request for tenant, caller, priority and deadline."""
        return {item.name: getattr(self, item.name) for item in fields(Account)}


@dataclass(frozen=True)
class _Source:
    """A held version, or None for the bare model, and its encoder."""

    version: ServableVersion | None
    encoder: InputEncoder

    @property
    def name(self) -> str:
        return self.version.record.name if self.version else ""

    @property
    def num_virtual_tokens(self) -> int:
        return self.version.num_virtual_tokens if self.version else 0

    @property
    def prefix_id(self) -> str | None:
        return self.version.prefix_id if self.version else None

    @property
    def tokenizes_targets_exactly(self) -> bool:
        """Whether the version's targets were tokenized as continuations, without the tokenizer's own first space."""
        return self.version is not None and self.encoder.template.rendering > 1

    def start(
        self, usage: TokenUsage, seed: int, request_id: str, tokens: tuple[InputToken, ...] = ()
    ) -> GenerationStart:
        """The start of an answer. Its cached tokens include the virtual ones."""
        return GenerationStart(
            version=self.name,
            digest=self.version.record.digest if self.version else "",
            input_tokens=usage.input_tokens,
            virtual_tokens=usage.virtual_tokens,
            cached_tokens=usage.cached_tokens + usage.virtual_tokens,
            seed=seed,
            request_id=request_id,
            input_logprobs=tokens,
        )


class GenerationService:
    """Generates and scores with one model, its engine and its loaded prompts."""

    def __init__(
        self,
        base: BaseModel,
        engine: AsyncEngine,
        registry: PromptRegistry,
        loads: VersionLoads,
        watcher: PromptWatcher,
        limits: RequestLimits,
        default_sampling: Sampling,
        guides: Guides,
        texts: TokenTexts,
    ) -> None:
        self._base, self._engine = base, engine
        self._default_format = default_format(base.tokenizer)
        self._bare = InputEncoder(base.tokenizer, bare_template(None, self._default_format))
        self._registry, self._loads, self._watcher = registry, loads, watcher
        self._limits, self._default_sampling, self._guides, self._texts = limits, default_sampling, guides, texts
        self._preparer = InputPreparer(base.info.vocab_size, limits.max_length, limits.length_limit)
        self._numbers = itertools.count()

    def close(self) -> None:
        """Stop the threads that tokenize and compile guides."""
        self._preparer.close()
        self._guides.close()

    def check_base_model(self, wanted: str) -> None:
        """Raises NotFound if `wanted` is neither empty nor the id or the fingerprint of this replica's base model."""
        if wanted and wanted not in (self._base.info.id, self._base.info.fingerprint):
            raise NotFound("base model", wanted, "it is not served here")

    async def stream(
        self, input: InputRequest, sampling: Sampling, call: Call
    ) -> AsyncIterator[GenerationStart | Delta | GenerationEnd]:
        """Yield one start, then deltas and one end of each completion (`index`).

        Completions share the computation of the input; if one of them fails, all end. Raises InvalidInput, NotFound,
        PreconditionFailed, Overloaded or Unavailable before the start; DeadlineExceeded if no token was ready in time.
        """
        async with self._source(input) as source:
            prepared = await self._preparer.prepare(input, source.encoder, source.num_virtual_tokens)
            params = self._sampling(source, sampling, prepared)
            is_bare_text = source.version is None and source.encoder.template.format is TemplateFormat.TEXT
            continues, lead, guide = is_bare_text or params.echo, "" if is_bare_text else prepared.answer_prefix, None
            if params.guide is not None:
                lead = self._guides.lead(lead, continues)
                guide = await self._guides.compiled(params.guide, lead, call.tenant)
            request = GenerationRequest(
                self._engine_id(call),
                prepared.ids,
                params,
                source.prefix_id,
                continues=continues,
                exact=source.tokenizes_targets_exactly,
                guide=guide,
                **call.account,
            )
            requests = completion_requests(request)
            texts = [
                AnswerText(self._text_of(prepared.ids)) if params.echo else AnswerText(trim=lead) for _ in requests
            ]
            started, written = False, [list[int]() for _ in requests]
            async with aclosing(self._engine.generate(*requests)) as deltas:  # type: ignore[type-var]
                async for delta in deltas:
                    index = delta.index
                    written[index] += delta.token_ids
                    _raise_if_failed(delta, started)
                    if not started and delta.usage is not None and delta.seed is not None:
                        started = True
                        asked = params.num_input_logprobs is not None
                        tokens = self._texts.shown_input(prepared.ids, delta.input_logprobs) if asked else ()
                        yield source.start(delta.usage, params.seed or 0, call.request_id, tokens)
                    if delta.token_ids or delta.text:
                        yield replace(delta, text=texts[index](delta.text))
                    if delta.finish_reason is not None and delta.usage is not None and delta.timing is not None:
                        reason, stop = _ending(source, delta, params, written[index])
                        _log_end(source.name, reason, delta.usage, delta.timing)
                        yield _end(reason, delta.usage, delta.timing, stop, index)

    async def score(self, input: InputRequest, candidates: tuple[str, ...], call: Call) -> Scores:
        """Score candidates, by default the label set of the prompt's version. Raises the errors of `stream`."""
        async with self._source(input) as source:
            labels = candidates or (source.version.manifest.labels if source.version else ())
            if not labels:
                raise InvalidInput.of("candidates", "must have at least one: this prompt's version has no label set")
            size_bytes = sum(len(label) for label in labels)
            ids = await self._preparer.run(size_bytes, lambda: source.encoder.encode_candidates(labels, "candidates"))
            for index, candidate in enumerate(ids):
                self._preparer.check_vocabulary(candidate, f"candidates[{index}]")
            prepared = await self._preparer.prepare(
                input, source.encoder, source.num_virtual_tokens, reserve=max(map(len, ids))
            )
            request = ScoreRequest(self._engine_id(call), prepared.ids, ids, source.prefix_id, **call.account)
            result = await self._engine.score(request)
            scores = tuple(
                CandidateScore(label, score.logprob, score.probability, len(score.logprobs))
                for label, score in zip(labels, result.scores, strict=True)
            )
            best = max(range(len(scores)), key=lambda index: scores[index].logprob)
            return Scores(source.start(result.usage, 0, call.request_id), scores, best)

    async def count_tokens(self, input: InputRequest) -> TokenCount:
        """Count the tokens of an input, even if it is too long to be answered; with `truncate`, after truncation."""
        async with self._source(input) as source:
            if input.truncate:
                prepared = await self._preparer.prepare(input, source.encoder, source.num_virtual_tokens)
            else:
                prepared = await self._preparer.encode(input, source.encoder)
            ids = prepared.ids
            return TokenCount(len(ids), source.num_virtual_tokens, self._limits.max_length, ids)

    @asynccontextmanager
    async def _source(self, input: InputRequest) -> AsyncIterator[_Source]:
        """The version that the input names, loaded and held until the block ends."""
        self.check_base_model(input.base_model)
        if input.reference is None:
            template = bare_template(input.template, self._default_format)
            yield _Source(None, InputEncoder(self._base.tokenizer, template) if input.template else self._bare)
            return
        for _ in range(_MAX_LOAD_ATTEMPTS):
            record = await self._resolve(input)
            with self._registry.hold(record) as version:
                if version is not None:
                    yield _Source(version, version.encoder)
                    return
            await self._loads.load(record)
        raise Unavailable(f"{input.reference} could not be kept in memory: too many versions are in use at once")

    async def _resolve(self, input: InputRequest) -> VersionRecord:
        """Resolve the reference; if it is unknown, poll the store once and try again.

        This also applies to prompts that the caller may not use, so that they take as long as prompts that don't exist.
        """
        assert input.reference is not None
        caller = current_caller()
        try:
            return self._registry.resolve(input.reference, input.routing_key, caller)
        except NotFound:
            await self._watcher.catch_up()
            return self._registry.resolve(input.reference, input.routing_key, caller)

    def _sampling(self, source: _Source, sampling: Sampling, prepared: PreparedInput) -> SamplingParams:
        room = self._limits.max_length - source.num_virtual_tokens - len(prepared.ids)
        defaults = source.version.manifest.sampling_defaults if source.version else None
        params = resolve(sampling, defaults, self._default_sampling, room, self._limits.sampling.max_new_tokens)
        check_input_logprobs(params, len(prepared.ids))
        source.encoder.check_stops(sampling.stop_sequences, "sampling.stop_sequences")
        stops = {*params.stop_token_ids, *source.encoder.control_tokens(params.stop_sequences)}
        if source.encoder.end_token_id is not None and not params.ignore_eos:
            stops.add(source.encoder.end_token_id)
        return replace(params, stop_token_ids=tuple(sorted(stops)))

    def _text_of(self, ids: Sequence[int]) -> str:
        """The text of token ids without control tokens."""
        text: str = self._base.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _engine_id(self, call: Call) -> str:
        """A unique id for the engine: concurrent calls may have the same request id."""
        return f"{call.request_id}/{next(self._numbers)}"


def _ending(source: _Source, delta: Delta, params: SamplingParams, written: Sequence[int]) -> tuple[FinishReason, str]:
    """The reason of the end and the stop sequence, if any, which may be a control token."""
    assert delta.finish_reason is not None
    if delta.finish_reason is not FinishReason.EOS or not written:
        return delta.finish_reason, delta.stop_sequence
    stop = source.encoder.control_tokens(params.stop_sequences).get(written[-1], "")
    return (FinishReason.STOP_SEQUENCE, stop) if stop else (delta.finish_reason, "")


def _raise_if_failed(delta: Delta, started: bool) -> None:
    if delta.finish_reason is FinishReason.INTERNAL:
        raise StepFailed(delta.error)
    if delta.finish_reason is FinishReason.ERROR:
        raise PreconditionFailed(delta.error or "the engine could not continue this request")
    if started or delta.token_ids:
        return
    if delta.finish_reason is FinishReason.DEADLINE:
        raise DeadlineExceeded("the deadline passed before the first token")
    if delta.finish_reason is FinishReason.CANCELLED:
        raise Cancelled("the service is stopping")


def _end(reason: FinishReason, usage: TokenUsage, timing: Timing, stop_sequence: str, index: int) -> GenerationEnd:
    return GenerationEnd(
        finish_reason=values.FinishReason[reason.name],
        output_tokens=usage.generated_tokens,
        queue_time_seconds=timing.queue_seconds,
        first_token_time_seconds=timing.ttft_seconds,
        total_time_seconds=timing.elapsed_seconds,
        stop_sequence=stop_sequence,
        index=index,
    )


def _log_end(version: str, reason: FinishReason, usage: TokenUsage, timing: Timing) -> None:
    fields = {
        "version": version or "bare model",
        "finish_reason": reason.value,
        "input_tokens": usage.input_tokens,
        "generated_tokens": usage.generated_tokens,
        "ttft_seconds": round(timing.ttft_seconds, 4) if timing.ttft_seconds is not None else None,
        "seconds": round(timing.elapsed_seconds, 4),
    }
    log.info("generated", extra={"fields": fields})


_SEED_BOUND = 1 << 53  # exact in every language's numbers


def resolve(
    request: Sampling, version: Sampling | None, service: Sampling, room: int, max_new_tokens: int
) -> SamplingParams:
    """The request's parameters, then the version's, then the service's.

    `room` is the number of tokens that fit behind the input; an answer has at most that many, and at most
    `max_new_tokens`. Raises InvalidInput if fewer fit than the request's `min_new_tokens`.
    """
    least = request.min_new_tokens or 0
    if least > room:
        raise InvalidInput.of("sampling.min_new_tokens", f"must leave room for the input: at most {room}, is {least}")
    given = request.or_else(version or Sampling()).or_else(service)
    wanted = max(max_new_tokens if given.max_new_tokens is None else given.max_new_tokens, least)
    seed = secrets.randbelow(_SEED_BOUND) if given.seed is None else given.seed
    return replace(given, max_new_tokens=min(wanted, max_new_tokens, room), seed=seed).complete()
