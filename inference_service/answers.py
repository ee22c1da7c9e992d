"""Converts the service's types to protocol messages. Knows no engines, stores or servers."""

from __future__ import annotations

from prompttuning.v1 import common_pb2, generation_pb2

from inference_service.completions import InputToken
from inference_service.engine.core.request import Delta, FinishReason, TokenLogprob
from inference_service.generation import Counted, Ended, Scored, Started
from inference_service.limits import RequestLimits
from inference_service.prompts.registry import VersionStatus
from inference_service.token_texts import TokenTexts
from shared.model.base_model import BaseModelInfo
from shared.wire.enums import LOADED_STATES
from shared.wire.fields import write_duration
from shared.wire.mirror import write

_FINISH_REASONS = {
    FinishReason.EOS: generation_pb2.FINISH_REASON_EOS,
    FinishReason.LENGTH: generation_pb2.FINISH_REASON_LENGTH,
    FinishReason.STOP_SEQUENCE: generation_pb2.FINISH_REASON_STOP_SEQUENCE,
    FinishReason.DEADLINE: generation_pb2.FINISH_REASON_DEADLINE,
    FinishReason.CANCELLED: generation_pb2.FINISH_REASON_CANCELLED,
    FinishReason.ERROR: generation_pb2.FINISH_REASON_UNSPECIFIED,
    FinishReason.INTERNAL: generation_pb2.FINISH_REASON_UNSPECIFIED,
}


def start_message(started: Started, texts: TokenTexts) -> generation_pb2.GenerationStart:
    """The first message of an answer. Its cached tokens include the virtual ones."""
    usage = started.usage
    return generation_pb2.GenerationStart(
        version=started.version,
        digest=started.digest,
        input_tokens=usage.input_tokens,
        virtual_tokens=usage.virtual_tokens,
        cached_tokens=usage.cached_tokens + usage.virtual_tokens,
        seed=started.seed,
        request_id=started.request_id,
        input_logprobs=[_input_token_message(token, texts) for token in started.input_tokens],
    )


def delta_message(delta: Delta, texts: TokenTexts) -> generation_pb2.GenerationDelta:
    """A delta with its log-probabilities; `texts` gives the text of their tokens."""
    logprobs = [_logprob_message(logprob, texts) for logprob in delta.logprobs]
    return generation_pb2.GenerationDelta(
        text=delta.text, token_ids=delta.token_ids, logprobs=logprobs, index=delta.index
    )


def end_message(ended: Ended) -> generation_pb2.GenerationEnd:
    """The last message of an answer."""
    timing = ended.timing
    return generation_pb2.GenerationEnd(
        finish_reason=_FINISH_REASONS[ended.finish_reason],
        output_tokens=ended.usage.generated_tokens,
        queue_time=write_duration(timing.queue_seconds),
        first_token_time=None if timing.ttft_seconds is None else write_duration(timing.ttft_seconds),
        total_time=write_duration(timing.elapsed_seconds),
        stop_sequence=ended.stop_sequence,
        index=ended.index,
    )


def stream_message(part: Started | Delta | Ended, texts: TokenTexts) -> generation_pb2.GenerateStreamResponse:
    """A part of a streamed answer as one message of the stream."""
    if isinstance(part, Started):
        return generation_pb2.GenerateStreamResponse(start=start_message(part, texts))
    if isinstance(part, Ended):
        return generation_pb2.GenerateStreamResponse(end=end_message(part))
    return generation_pb2.GenerateStreamResponse(delta=delta_message(part, texts))


def score_message(scored: Scored, texts: TokenTexts) -> generation_pb2.ScoreResponse:
    """The scores of all candidates, with the index of the best."""
    scores = [
        generation_pb2.CandidateScore(
            candidate=candidate, logprob=score.logprob, probability=score.probability, num_tokens=len(score.logprobs)
        )
        for candidate, score in zip(scored.candidates, scored.scores, strict=True)
    ]
    best = max(range(len(scores)), key=lambda index: scores[index].logprob)
    return generation_pb2.ScoreResponse(start=start_message(scored.started, texts), scores=scores, best=best)


def count_message(counted: Counted, max_positions: int) -> generation_pb2.CountTokensResponse:
    """Token ids and counts of an input."""
    return generation_pb2.CountTokensResponse(
        input_tokens=len(counted.ids),
        virtual_tokens=counted.num_virtual_tokens,
        max_positions=max_positions,
        token_ids=counted.ids,
    )


def base_model_message(info: BaseModelInfo) -> common_pb2.BaseModel:
    """The identity of the base model."""
    return write(info, common_pb2.BaseModel())


def limits_message(limits: RequestLimits, max_running: int, max_waiting: int) -> generation_pb2.GenerationLimits:
    """The limits of requests, with those of the engine."""
    sampling = limits.sampling
    return generation_pb2.GenerationLimits(
        max_positions=limits.max_length,
        max_new_tokens=sampling.max_new_tokens,
        max_stop_sequences=sampling.max_stop_sequences,
        max_stop_sequence_chars=sampling.max_stop_sequence_chars,
        max_logprobs=sampling.max_logprobs,
        max_candidates=sampling.max_candidates,
        max_running=max_running,
        max_waiting=max_waiting,
        max_input_bytes=limits.max_input_bytes,
        max_completions=sampling.max_completions,
        max_guide_bytes=sampling.max_guide_bytes,
        max_listed_token_ids=sampling.max_listed_token_ids,
    )


def loaded_prompt_message(status: VersionStatus, prefix_kv_bytes: int) -> generation_pb2.LoadedPrompt:
    """The status of one version. `prefix_kv_bytes` is 0 while its keys and values are not in memory."""
    message = generation_pb2.LoadedPrompt(
        version=status.record.name,
        digest=status.record.digest,
        state=LOADED_STATES.to_wire(status.state),
        aliases=status.aliases,
        num_virtual_tokens=status.record.summary.num_virtual_tokens,
        prefix_kv_bytes=prefix_kv_bytes,
        active_requests=status.holds,
    )
    if status.quarantine is not None:
        message.reason = status.quarantine.message
        message.load_time.FromDatetime(status.quarantine.refused_at)
    if status.loaded is not None:
        message.load_time.FromDatetime(status.loaded.loaded_at)
    if status.publish_to_served_seconds is not None:
        message.publish_to_served.CopyFrom(write_duration(status.publish_to_served_seconds))
    return message


def _logprob_message(found: TokenLogprob, texts: TokenTexts) -> generation_pb2.TokenLogprob:
    id = found.token_id
    return generation_pb2.TokenLogprob(
        token_id=id,
        logprob=found.logprob,
        alternatives=_alternatives(found, texts),
        text=texts.text_of(id),
        utf8=texts.bytes_of(id),
    )


def _input_token_message(token: InputToken, texts: TokenTexts) -> generation_pb2.InputToken:
    id, found = token.token_id, token.logprob
    return generation_pb2.InputToken(
        token_id=id,
        logprob=None if found is None else found.logprob,
        alternatives=[] if found is None else _alternatives(found, texts),
        text=texts.text_of(id),
        utf8=texts.bytes_of(id),
    )


def _alternatives(found: TokenLogprob, texts: TokenTexts) -> list[generation_pb2.TokenAlternative]:
    return [
        generation_pb2.TokenAlternative(token_id=id, logprob=value, text=texts.text_of(id), utf8=texts.bytes_of(id))
        for id, value in found.top
    ]
