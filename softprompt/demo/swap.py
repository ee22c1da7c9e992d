"""Moves an alias from version 1 to version 2 while version 1 answers: what has begun ends on version 1."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from shared.errors import DeadlineExceeded
from shared.prompt.divergence import FLOAT32_NATS, tied_within
from shared.values.generation import FinishReason, Generation, GenerationDelta, GenerationEnd, GenerationStart
from shared.values.sampling import Sampling
from softprompt.client.async_client import AsyncClient
from softprompt.demo.answers import AnswerTable
from softprompt.demo.promises import Promises

RESOLVE_SECONDS = 60.0
POLL_SECONDS = 0.05
_OLD, _NEW = 0, 1
"""Columns of the table."""


@dataclass
class Answer:
    """What one stream has said so far."""

    start: GenerationStart | None = None
    end: GenerationEnd | None = None
    token_ids: list[int] = field(default_factory=list)

    @property
    def version(self) -> int:
        """0: unknown, or the bare model."""
        number = self.start.version.rpartition("/")[2] if self.start is not None else ""
        return int(number) if number.isdigit() else 0


class Swap:
    """Answers to some inputs through `default`, each begun twice: before the alias moves and after it."""

    def __init__(
        self, client: AsyncClient, prompt: str, inputs: list[str], sampling: Sampling, table: AnswerTable
    ) -> None:
        self._client, self._prompt, self._inputs, self._sampling, self._table = client, prompt, inputs, sampling, table
        self.before = [Answer() for _ in inputs]
        self.after = [Answer() for _ in inputs]
        self.running_at_swap = 0
        """Answers of the old version that had not ended when the new version began its first one."""
        self._begun = [asyncio.Event() for _ in inputs]

    async def run(self, old: int, new: int) -> None:
        """Move the alias while the old version answers. Raises DeadlineExceeded if no answer comes from version `new`
        within RESOLVE_SECONDS after that.
        """
        # A TaskGroup would wrap the error of one answer in an ExceptionGroup, which hides its text from the reader.
        running = [asyncio.create_task(self._answer_before(row)) for row in range(len(self._inputs))]
        try:
            await asyncio.gather(*(_set_or_done(begun, task) for begun, task in zip(self._begun, running, strict=True)))
            await self._client.set_alias(self._prompt, "default", new, expected_version=old)
            resolved_by = asyncio.get_running_loop().time() + RESOLVE_SECONDS
            await asyncio.gather(*(self._answer_after(row, new, resolved_by) for row in range(len(self._inputs))))
            await asyncio.gather(*running)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _answer_before(self, row: int) -> None:
        answer = self.before[row]
        stream = self._client.stream(self._inputs[row], prompt=self._prompt, sampling=self._sampling)
        async for delta in stream:
            answer.start = stream.start
            answer.token_ids += delta.token_ids
            self._table.append(row, _OLD, delta.text)
            self._begun[row].set()
        answer.end = stream.end

    async def _answer_after(self, row: int, new: int, resolved_by: float) -> None:
        """Ask for the alias until the replica has seen it move; stream that answer. `resolved_by`: the loop's time."""
        answer = self.after[row]
        while answer.end is None:
            async with self._client.stream(self._inputs[row], prompt=self._prompt, sampling=self._sampling) as stream:
                answer.start = await stream.started()
                if answer.version != new:
                    if asyncio.get_running_loop().time() > resolved_by:
                        waited = f"{RESOLVE_SECONDS:.0f} s after the alias has moved"
                        raise DeadlineExceeded(f"version {new} does not answer {waited}")
                    await asyncio.sleep(POLL_SECONDS)
                    continue
                self.running_at_swap = max(self.running_at_swap, sum(one.end is None for one in self.before))
                async for delta in stream:
                    answer.token_ids += delta.token_ids
                    self._table.append(row, _NEW, delta.text)
                answer.end = stream.end


async def expected_answers(
    client: AsyncClient, prompt: str, version: int, inputs: list[str], sampling: Sampling
) -> list[Generation]:
    """What a version answers when nothing else goes on, with the log-probabilities that `compare` needs."""
    exact = replace(sampling, num_logprobs=20)
    return [await client.generate(text, prompt=f"{prompt}@{version}", sampling=exact) for text in inputs]


def check_swap(
    promises: Promises, swap: Swap, expected: list[Generation], sampling: Sampling, old: int, new: int
) -> None:
    """Check what the answers came from, and that the old version's are what they are without a swap."""
    count = len(swap.before)
    numbers = {answer.version for answer in swap.before}
    promises.check(numbers == {old}, f"all {count} answers begun before the swap are version {old}'s")
    digest = swap.after[0].start.digest[:19] if swap.after[0].start is not None else "-"
    numbers = {answer.version for answer in swap.after}
    promises.check(numbers == {new}, f"all {count} begun after it are version {new}'s ({digest})")
    ends = {answer.end.finish_reason if answer.end is not None else None for answer in swap.before}
    running = f"{swap.running_at_swap} ran when version {new} began"
    are_whole = ends <= {FinishReason.EOS, FinishReason.LENGTH}
    promises.check(are_whole, f"all {count} of version {old} went on to their end; {running}")
    for answer, alone in zip(swap.before, expected, strict=True):
        comparison = compare(alone.output, answer.token_ids, sampling.frequency_penalty or 0.0)
        promises.check(comparison.undisturbed, f"version {old} wrote {comparison.account}")


async def _set_or_done(event: asyncio.Event, task: asyncio.Task[None]) -> None:
    """Until the event is set or the task has ended; its error is the task group's."""
    waiting = asyncio.create_task(event.wait())
    try:
        await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()


TIE_NATS = tied_within(FLOAT32_NATS)
"""0.009 nats, from the error model of the golden records: rounding in float32 exchanges no tokens farther apart."""


@dataclass(frozen=True)
class Comparison:
    """`account` describes the result, for people."""

    undisturbed: bool
    account: str


def compare(expected: GenerationDelta, token_ids: Sequence[int], frequency_penalty: float = 0.0) -> Comparison:
    """Whether a streamed answer is that to the same request alone. `expected` has log-probabilities with alternatives
    for each token, before the penalty of both answers. In float32, as the demo serves, a batch of another size changes
    logits by about 1e-5, so greedy answers of one version differ only at ties. In bfloat16 the difference of two logits
    changes by up to 0.5 (SmolLM2-135M): a limit that tolerates this also tolerates tokens of another version.
    """
    for index, (token, wanted) in enumerate(zip(token_ids, expected.token_ids, strict=False)):
        if token == wanted:
            continue
        place, written = expected.logprobs[index], Counter(token_ids[:index])
        other = next((one.logprob for one in place.alternatives if one.token_id == token), None)
        penalties = frequency_penalty * (written[wanted] - written[token])
        gap = None if other is None else place.logprob - other - penalties
        if gap is not None and abs(gap) <= TIE_NATS:
            tie = f"a tie by rounding ({gap:.4f} nats)"
            return Comparison(True, f"the same tokens as without a swap up to token {index}, {tie}")
        far = "no likely alternative" if gap is None else f"{gap:.2f} nats less likely"
        return Comparison(False, f"different tokens from those without a swap, from token {index} on ({far})")
    same_length = len(token_ids) == len(expected.token_ids)
    return Comparison(same_length, f"the same tokens as without a swap ({len(token_ids)} of {len(expected.token_ids)})")
