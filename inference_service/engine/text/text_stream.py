"""Converts a request's sampled tokens to deltas: detokenizing, stop sequences, the end. Knows no queues or tensors."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import replace

from inference_service.engine.core.request import Delta, FinishReason, Timing, TokenLogprob
from inference_service.engine.core.running_request import RunningRequest
from inference_service.engine.guide.matcher import GuideProgress
from inference_service.engine.text.detokenizer import Detokenizer


class StopMatcher:
    """Holds back the longest end of the text that could still become a stop sequence.

    The stop sequence that is complete first ends the text; of several that end together, the longest one. The result
    does not depend on how the text is split.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found = ""
        """The stop sequence that was found."""

    def push(self, text: str) -> tuple[str, bool]:
        """(text that may be sent, whether a stop sequence was found). Don't call it again after one was found."""
        if not self._stops:
            return text, False
        held = self._held + text
        places = [(held.find(stop) + len(stop), -len(stop), stop) for stop in self._stops if stop in held]
        if places:
            end, _, self.found = min(places)
            self._held = ""
            return held[: end - len(self.found)], True
        keep = max(self._overlap(held, stop) for stop in self._stops)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep], False

    def flush(self) -> str:
        """The text that was held back."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _overlap(text: str, stop: str) -> int:
        """Length of the longest end of `text` that is a proper beginning of `stop`."""
        return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)


class TextStream:
    """One request's text. `end_ids` end the generation; `max_length`: most positions of the sequence."""

    def __init__(
        self,
        sequence: RunningRequest,
        detokenizer: Detokenizer,
        end_ids: Set[int],
        max_length: int,
        guide: GuideProgress | None = None,
    ) -> None:
        self.sequence, self.guide = sequence, guide
        self._detokenizer = detokenizer
        self._stops = StopMatcher(sequence.sampling.stop_sequences)
        self.end_ids = frozenset(end_ids)
        self._max_length = max_length
        self._input_logprobs: tuple[TokenLogprob, ...] = ()

    def push(self, token_id: int, logprob: TokenLogprob | None, now: float) -> Delta:
        """Append a sampled token; the delta carries a finish reason if it was the last."""
        sequence = self.sequence
        sequence.tokens.append(token_id)
        first = sequence.first_token_at is None
        if sequence.last_token_at is None:
            sequence.first_token_at = now
        else:
            sequence.inter_token_seconds.append(now - sequence.last_token_at)
        sequence.last_token_at = now
        reason: FinishReason | None = None
        text = ""
        if self._is_end(token_id):
            reason = FinishReason.EOS
        else:
            text = self._detokenizer.push((token_id,))
            if sequence.num_generated >= sequence.sampling.min_new_tokens:
                text, stopped = self._stops.push(text)
                if stopped:
                    return self._delta(text, token_id, logprob, FinishReason.STOP_SEQUENCE, now, about=True)
            if sequence.num_generated >= sequence.sampling.max_new_tokens or sequence.length >= self._max_length:
                reason = FinishReason.LENGTH
        if reason is not None:
            text += self._rest()
        elif self.guide is not None:
            self.guide.advance(token_id)
        return self._delta(text, token_id, logprob, reason, now, about=first or reason is not None)

    def add_input_logprobs(self, logprobs: tuple[TokenLogprob, ...]) -> None:
        """Add the log-probabilities of the next input tokens; the first delta has them all."""
        self._input_logprobs += logprobs
        self.sequence.num_input_scored += len(logprobs)

    def end(self, reason: FinishReason, now: float, error: str = "") -> Delta:
        """The last delta of a stream that ends without another token: deadline, cancellation, error."""
        return Delta(
            text=self._rest(),
            finish_reason=reason,
            usage=self.sequence.usage,
            timing=timing(self.sequence, now),
            seed=self.sequence.seed,
            error=error,
        )

    def _is_end(self, token_id: int) -> bool:
        """Whether the token, already appended, ends the answer. Under a guide, it does so only where that is complete;
        elsewhere a stop token is text.
        """
        if token_id not in self.end_ids:
            return False
        if self.guide is not None:
            return self.guide.mask.complete
        return self.sequence.num_generated > self.sequence.sampling.min_new_tokens

    def _rest(self) -> str:
        shown, stopped = self._stops.push(self._detokenizer.flush())
        return shown if stopped else shown + self._stops.flush()

    def _delta(
        self,
        text: str,
        token_id: int,
        logprob: TokenLogprob | None,
        reason: FinishReason | None,
        now: float,
        *,
        about: bool,
    ) -> Delta:
        return Delta(
            text=text,
            token_ids=(token_id,),
            logprobs=() if logprob is None else (logprob,),
            finish_reason=reason,
            usage=self.sequence.usage if about else None,
            timing=timing(self.sequence, now) if about else None,
            seed=self.sequence.seed if about else None,
            stop_sequence=self._stops.found if reason is FinishReason.STOP_SEQUENCE else "",
            input_logprobs=self._input_logprobs if self.sequence.num_generated == 1 else (),
        )


def timing(sequence: RunningRequest, now: float) -> Timing:
    """The request's times up to `now`, in seconds."""
    started = sequence.started_at
    return Timing(
        queue_seconds=(now if started is None else started) - sequence.arrived_at,
        ttft_seconds=None if sequence.first_token_at is None else sequence.first_token_at - sequence.arrived_at,
        elapsed_seconds=now - sequence.arrived_at,
    )


def merge(deltas: list[Delta]) -> Delta:
    """Merge consecutive deltas of one stream into one."""
    if len(deltas) == 1:
        return deltas[0]
    last = deltas[-1]
    about = last if last.usage is not None else deltas[0]
    return replace(
        last,
        text="".join(delta.text for delta in deltas),
        token_ids=tuple(token for delta in deltas for token in delta.token_ids),
        logprobs=tuple(logprob for delta in deltas for logprob in delta.logprobs),
        usage=about.usage,
        timing=about.timing,
        seed=about.seed,
        input_logprobs=deltas[0].input_logprobs,
    )
